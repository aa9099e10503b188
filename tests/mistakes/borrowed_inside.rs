#[hatchery::function]
async fn longest(texts: Vec<&str>) -> usize {
    texts.iter().map(|text| text.len()).max().unwrap_or(0)
}

fn main() {}
