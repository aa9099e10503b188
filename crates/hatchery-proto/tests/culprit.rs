//! The culprit of a hang: the end of the chain of waits.

use std::collections::BTreeMap;
use std::time::Duration;

use hatchery_proto::culprit::{Awaited, Culprit, Health, Wait, culprit};

fn calls(from: &str, to: &str, seconds: u64) -> Wait {
    let what = Awaited::Answer("f".to_owned());
    Wait { from: from.to_owned(), to: to.to_owned(), what, age: Duration::from_secs(seconds) }
}

fn ends(from: &str, to: &str, seconds: u64) -> Wait {
    Wait { what: Awaited::End("asked to go".to_owned()), ..calls(from, to, seconds) }
}

fn find(waits: &[Wait], health: &[(&str, Health)]) -> Option<Culprit> {
    let health: BTreeMap<_, _> =
        health.iter().map(|(who, health)| ((*who).to_owned(), health.clone())).collect();
    culprit(waits, &health)
}

fn who(waits: &[Wait], health: &[(&str, Health)]) -> String {
    find(waits, health).expect("a culprit").who
}

#[test]
fn nobody_waits_so_nobody_is_to_blame() {
    assert_eq!(find(&[], &[("root", Health::Stopped)]), None);
}

#[test]
fn the_chain_leads_to_the_one_that_waits_for_nobody() {
    let found =
        find(&[calls("root", "a", 3), calls("a", "b", 2), calls("b", "c", 1)], &[]).unwrap();
    assert_eq!((&*found.who, found.chain.len(), found.circle), ("c", 3, false));
    let text = found.to_string();
    assert!(text.contains("b waits 1.000s for c to answer `f`"), "{text}");
    assert!(text.ends_with("c waits for nobody of this tree\n"), "{text}");
}

#[test]
fn one_that_is_stopped_is_blamed_before_an_idle_one_that_takes_longer() {
    let waits = [ends("root", "a", 9), ends("root", "b", 1)];
    assert_eq!(who(&waits, &[("a", Health::Idle), ("b", Health::Stopped)]), "b");
    assert_eq!(who(&waits, &[("a", Health::Idle), ("b", Health::Idle)]), "a");
}

#[test]
fn one_that_is_stopped_is_blamed_although_it_waits_itself() {
    let waits = [calls("root", "a", 2), calls("a", "b", 1)];
    assert_eq!(who(&waits, &[("a", Health::Stopped), ("b", Health::Idle)]), "a");
}

#[test]
fn a_teardown_tells_more_than_a_long_call() {
    let waits = [calls("root", "a", 100), ends("root", "b", 1)];
    assert_eq!(who(&waits, &[("a", Health::Idle), ("b", Health::Idle)]), "b");
}

#[test]
fn a_blocked_thread_is_blamed_before_a_teardown_that_idles() {
    let waits = [calls("root", "a", 1), ends("root", "b", 5)];
    let blocked = Health::Blocked("pipe_write".to_owned());
    assert_eq!(who(&waits, &[("a", blocked), ("b", Health::Idle)]), "a");
}

#[test]
fn who_waits_for_each_other_is_told_as_a_circle() {
    let found = find(&[calls("a", "b", 1), calls("b", "a", 1)], &[]).unwrap();
    assert!(found.circle && found.chain.len() == 2, "{found}");
    let own = find(&[calls("root", "a", 1), calls("a", "a", 1)], &[]).unwrap();
    assert!(own.circle && own.who == "a", "{own}");
}

#[test]
fn a_thousand_ways_end_the_search() {
    let mut waits = Vec::new();
    for level in 0..30 {
        for (from, to) in [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")] {
            waits.push(calls(&format!("{from}{level}"), &format!("{to}{}", level + 1), 1));
        }
    }
    assert!(find(&waits, &[]).is_some());
}

/// C15: a chain as long as nobody's tree is deep, which an actor has made up, is not followed to its
/// end: whoever looks would run out of stack.
#[test]
fn a_chain_without_an_end_is_not_followed() {
    let wait = |i: u32| Wait {
        from: format!("{i:06}"),
        to: format!("{:06}", i + 1),
        what: Awaited::Start,
        age: Duration::ZERO,
    };
    let waits: Vec<Wait> = (0..90_000).map(wait).collect();
    let found = culprit(&waits, &BTreeMap::new()).unwrap();
    assert!(found.chain.len() < 1_000, "{}", found.chain.len());
}
