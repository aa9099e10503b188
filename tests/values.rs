//! C20: what arrives is what was sent: arguments, replies, errors, contexts and streams on every backend.
//! All shapes of serde stand in `crates/hatchery-proto/tests/values.rs`.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_core::Stream;
use futures_util::stream;
use hatchery::{Blob, CallError, Callee, Config, ContextError, Error, Portal, Shared};
use hatchery_tests::{BACKENDS, BUDGET, for_each, for_each_with, here, with_worker};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Range {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    L(Vec<Self>),
    M { a: u8 },
    N(u64),
    Host(IpAddr),
    Deep { deep: Option<Option<u8>> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Unit,
    Range(Range),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Zoo {
    #[serde(flatten)]
    range: Range,
    untagged: Vec<Untagged>,
    tagged: Vec<Tagged>,
    deep: Vec<Option<Option<()>>>,
    keys: BTreeMap<(i8, bool), u128>,
    blob: Blob,
    shared: Shared<Vec<Range>>,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[error("refused")]
struct Refused {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    zoo: Zoo,
}

fn range() -> Range {
    Range { min: None, max: Some(10) }
}

fn zoo(blob: usize) -> Zoo {
    Zoo {
        range: range(),
        untagged: vec![
            Untagged::M { a: 1 },
            Untagged::L(vec![Untagged::N(7)]),
            Untagged::Host("::1".parse().unwrap()),
            Untagged::Deep { deep: Some(None) },
            Untagged::Deep { deep: None },
        ],
        tagged: vec![Tagged::Range(range()), Tagged::Unit],
        deep: vec![None, Some(None), Some(Some(()))],
        keys: BTreeMap::from([((-1, true), u128::MAX), ((0, false), 0)]),
        blob: Blob::from(vec![7; blob]),
        shared: Shared::new(vec![range(), Range { min: Some(1), max: None }]),
    }
}

/// Fails unless what has come is what the caller means.
fn check(zoo_: &Zoo) {
    assert_eq!(*zoo_, zoo(zoo_.blob.len()));
}

#[hatchery::function]
async fn echo(sent: Zoo) -> Zoo {
    check(&sent);
    sent
}

#[hatchery::function]
async fn refuse(zoo: Zoo) -> Result<(), Refused> {
    Err(Refused { why: None, zoo })
}

#[hatchery::function]
fn items(zoo: Zoo) -> impl Stream<Item = Zoo> + Send {
    stream::iter([zoo.clone(), zoo])
}

#[hatchery::context]
async fn converse(callee: Callee<Zoo, Zoo, Zoo>, first: Zoo) -> Result<Zoo, Error> {
    let mut stream = callee.started(first)?;
    let sent = stream.recv().await?.unwrap();
    check(&sent);
    stream.send(sent.clone()).await?;
    Ok(sent)
}

#[hatchery::context]
async fn refuse_to_converse(callee: Callee, zoo: Zoo) -> Result<(), Refused> {
    callee.started(()).unwrap();
    Err(Refused { why: None, zoo })
}

async fn all_ways(worker: &Portal) -> Result<(), Error> {
    // One that lies in its message, and one beside it.
    for size in [100, 40_000] {
        check(&worker.call(echo(zoo(size))).await?);
        let CallError::Failed { error: refused, .. } =
            worker.call(refuse(zoo(size))).await.unwrap_err()
        else {
            panic!("another error");
        };
        check(&refused.zoo);
        let mut items = worker.stream(items(zoo(size))).await?;
        for _ in 0..2 {
            check(&items.next().await?.unwrap());
        }
        assert_eq!(items.next().await?, None);
        let talk = async |mut cx: hatchery::Context<Zoo, Zoo, Zoo, Zoo, Error>| {
            check(cx.started());
            cx.send(zoo(size)).await?;
            check(&cx.recv().await?.unwrap());
            Ok(cx.result().await?)
        };
        check(&worker.open_context(converse(zoo(size)), talk).await?);
        let refused = worker
            .open_context(refuse_to_converse(zoo(size)), async |mut cx| Ok(cx.result().await?));
        let ContextError::Failed { error: refused, .. } = refused.await.unwrap_err() else {
            panic!("another error");
        };
        check(&refused.zoo);
    }
    Ok(())
}

/// C20: every way a value goes.
#[test]
fn what_arrives_is_what_was_sent_whichever_way_it_goes() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| all_ways(&worker).await).await;
    });
}

/// C20: the same where values move to threads as they are.
#[test]
fn what_moves_arrives_as_it_was_sent() {
    let config = Config { move_from_bytes: Some(1), ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| all_ways(&worker).await).await;
    });
}
