use std::rc::Rc;

#[hatchery::function]
async fn counted(x: u64) -> u64 {
    let shared = Rc::new(x);
    std::future::ready(()).await;
    *shared
}

fn main() {}
