#[hatchery::context]
async fn talk(topic: String) {
    drop(topic);
}

fn main() {}
