struct Counter(u64);

impl Counter {
    #[hatchery::function]
    async fn next(&self) -> u64 {
        self.0 + 1
    }
}

fn main() {}
