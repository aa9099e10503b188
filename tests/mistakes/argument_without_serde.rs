struct Point {
    x: u64,
}

#[hatchery::function]
async fn shifted(point: Point) -> u64 {
    point.x + 1
}

fn main() {}
