#[hatchery::function]
async fn halved(x: u64) -> Result<u64, String> {
    if x > 10 { Err("too large".to_owned()) } else { Ok(x / 2) }
}

fn main() {}
