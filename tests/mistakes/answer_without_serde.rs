struct Point {
    x: u64,
}

#[hatchery::function]
async fn origin() -> Point {
    Point { x: 0 }
}

fn main() {}
