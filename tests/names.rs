//! C20: a name means one function, wherever functions of one name stand.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use futures_core::Stream;
use futures_util::stream;
use hatchery::{Call, Callee, ContextCall, Error, Nothing, Portal, StreamCall};
use hatchery_tests::{BACKENDS, for_each, here, with_worker};

/// Three functions of each kind that are called the same, each with a number of its own.
macro_rules! work {
    ($number:literal) => {
        #[hatchery::function]
        async fn work() -> u32 {
            $number
        }

        #[hatchery::function]
        fn items() -> impl Stream<Item = u32> + Send {
            stream::iter([$number])
        }

        #[hatchery::context]
        async fn converse(callee: Callee<Nothing, u32>) -> Result<u32, Error> {
            callee.started(())?.send($number).await?;
            Ok($number)
        }
    };
}

struct A;
struct B;
struct Of<T>(T);

impl A {
    work!(1);
}

impl B {
    work!(2);
}

trait Works {
    fn work() -> Call<u32>;
}

impl Works for A {
    #[hatchery::function]
    async fn work() -> u32 {
        3
    }
}

impl Works for B {
    #[hatchery::function]
    async fn work() -> u32 {
        4
    }
}

impl Of<u8> {
    work!(5);
}

impl Of<u16> {
    work!(6);
}

/// All that one invocation makes stands at one place.
macro_rules! two_at_once {
    ($one:ident $other:ident $first:literal $second:literal) => {
        struct $one;
        struct $other;

        impl $one {
            #[hatchery::function]
            async fn work() -> u32 {
                $first
            }
        }

        impl $other {
            #[hatchery::function]
            async fn work() -> u32 {
                $second
            }
        }
    };
}

two_at_once!(C D 7 8);

type Three = (Call<u32>, StreamCall<u32>, ContextCall<Nothing, u32, (), u32, Error>);

fn nested() -> Three {
    work!(9);
    (work(), items(), converse())
}

fn nested_elsewhere() -> Three {
    work!(10);
    (work(), items(), converse())
}

/// Not even the function around tells these apart.
fn in_blocks() -> [Three; 2] {
    let one = {
        work!(11);
        (work(), items(), converse())
    };
    let other = {
        work!(12);
        (work(), items(), converse())
    };
    [one, other]
}

/// Nor does their place.
macro_rules! blocks_at_once {
    ($first:literal $second:literal) => {
        [
            {
                #[hatchery::function]
                async fn work() -> u32 {
                    $first
                }
                work()
            },
            {
                #[hatchery::function]
                async fn work() -> u32 {
                    $second
                }
                work()
            },
        ]
    };
}

mod inner {
    #[hatchery::function]
    pub(super) async fn work() -> u32 {
        15
    }
}

#[hatchery::function]
async fn work() -> u32 {
    16
}

fn plain() -> Vec<(Call<u32>, u32)> {
    let [thirteen, fourteen] = blocks_at_once!(13 14);
    vec![
        (<A as Works>::work(), 3),
        (<B as Works>::work(), 4),
        (C::work(), 7),
        (D::work(), 8),
        (thirteen, 13),
        (fourteen, 14),
        (inner::work(), 15),
        (work(), 16),
    ]
}

fn of_three_kinds() -> Vec<(Three, u32)> {
    let [eleven, twelve] = in_blocks();
    vec![
        ((A::work(), A::items(), A::converse()), 1),
        ((B::work(), B::items(), B::converse()), 2),
        ((Of::<u8>::work(), Of::<u8>::items(), Of::<u8>::converse()), 5),
        ((Of::<u16>::work(), Of::<u16>::items(), Of::<u16>::converse()), 6),
        (nested(), 9),
        (nested_elsewhere(), 10),
        (eleven, 11),
        (twelve, 12),
    ]
}

async fn each_runs(worker: &Portal) -> Result<(), Error> {
    for (call, number) in plain() {
        assert_eq!(worker.call(call).await?, number);
    }
    for ((call, items, converse), number) in of_three_kinds() {
        assert_eq!(worker.call(call).await?, number);
        let mut items = worker.stream(items).await?;
        assert_eq!((items.next().await?, items.next().await?), (Some(number), None));
        let talk = async |mut cx: hatchery::Context<u32, Nothing, (), u32, Error>| {
            Ok((cx.recv().await?, cx.result().await?))
        };
        assert_eq!(worker.open_context(converse, talk).await?, (Some(number), number));
    }
    Ok(())
}

/// C20: of functions that are called the same, the one that was meant runs: on every backend, by calls,
/// streams and contexts, and one level further down.
#[test]
fn of_all_functions_of_one_name_the_one_that_was_meant_runs() {
    #[hatchery::function]
    async fn below() -> Result<(), Error> {
        Ok(hatchery::nursery(async |n| each_runs(&n.start("leaf").await?).await).await?)
    }
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            each_runs(&worker).await?;
            worker.call(below()).await?;
            Ok(())
        })
        .await;
    });
}

/// What people see of a name is its path, with the block or function around it.
#[test]
fn a_name_that_people_see_is_the_path() {
    assert_eq!(inner::work().name(), "names::inner::work");
    assert_eq!(A::work().name(), "names::A::work");
    assert_eq!(nested().0.name(), "names::nested::work");
    assert!(<B as Works>::work().name().contains("Works"));
}
