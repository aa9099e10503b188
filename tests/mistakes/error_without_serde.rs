#[derive(Debug)]
struct TooLarge;

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("too large")
    }
}

impl std::error::Error for TooLarge {}

#[hatchery::function]
async fn halved(x: u64) -> Result<u64, TooLarge> {
    if x > 10 { Err(TooLarge) } else { Ok(x / 2) }
}

fn main() {}
