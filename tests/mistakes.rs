//! What the attributes say to the mistakes that are made most often: what is wrong, and what to write
//! instead. The texts stand beside the mistakes, in `mistakes/*.stderr`.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

#[hatchery::function]
async fn halvings(mut x: u64) -> u64 {
    let mut count = 0;
    while x > 1 {
        x /= 2;
        count += 1;
    }
    count
}

/// A mistake is told at the place where it was made, with what to write instead. After a change of the
/// texts: `TRYBUILD=overwrite`, then read the difference.
#[test]
fn a_mistake_is_told_where_it_was_made_and_what_to_do_instead() {
    trybuild::TestCases::new().compile_fail("mistakes/*.rs");
}

/// What looks like a mistake and is none: an argument that the body changes.
#[test]
fn an_argument_may_be_mut() {
    let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(tokio.block_on(halvings(8).here()).unwrap(), 3);
}
