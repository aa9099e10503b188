#[hatchery::function]
async fn length(text: &str) -> usize {
    text.len()
}

fn main() {}
