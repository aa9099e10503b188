use futures_core::Stream;

#[hatchery::function]
async fn numbers() -> impl Stream<Item = u64> + Send {
    futures_util::stream::iter(0..3)
}

fn main() {}
