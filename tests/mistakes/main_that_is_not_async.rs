#[hatchery::main]
fn main() {}
