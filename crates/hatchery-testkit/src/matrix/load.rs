//! What goes on in a matrix's tree while it comes down: calls, streams, peers that talk.

use std::time::Duration;

use hatchery::{Callee, Context, Error, Fault, FaultKind, Peer, Portal, Receiver, Sender};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::axis::Load;

/// What keeps one actor and its children busy; dropped, it stops.
pub(super) struct Busy {
    tasks: JoinSet<hatchery::Result<()>>,
}

impl Busy {
    /// Puts the children under load, and returns when every one of them is at it. `pause` is what
    /// a sender rests between two bursts.
    pub(super) async fn begin(
        load: Load,
        pause: Duration,
        children: &[Portal],
    ) -> hatchery::Result<Self> {
        let mut busy = Self { tasks: JoinSet::new() };
        let mut all_at_it = Vec::new();
        for (at, child) in children.iter().enumerate() {
            let (tell, at_it) = oneshot::channel();
            let child = child.clone();
            match load {
                Load::Idle => return Ok(busy),
                Load::Calling => busy.tasks.spawn(call(child, pause, tell)),
                Load::Streaming => busy.tasks.spawn(stream(child, pause, tell)),
                Load::Peers => {
                    let next = &children[(at + 1) % children.len()];
                    let alone = children.len() == 1;
                    let peer = if alone { hatchery::here()? } else { next.peer().await? };
                    busy.tasks.spawn(introduce(child, peer, pause, tell))
                }
            };
            all_at_it.push(at_it);
        }
        for at_it in all_at_it {
            if at_it.await.is_err() {
                return Err(busy.ended().await);
            }
        }
        Ok(busy)
    }

    /// Waits until the load ends in a way that no teardown explains.
    pub(super) async fn failed(&mut self) -> Error {
        loop {
            let error = self.ended().await;
            if !error.fault().leaves().into_iter().all(is_of_a_teardown) {
                return error;
            }
        }
    }

    async fn ended(&mut self) -> Error {
        match self.tasks.join_next().await {
            Some(Ok(Ok(()))) => Error::msg("a load ended by itself"),
            Some(Ok(Err(error))) => error,
            Some(Err(panic)) => panic.into(),
            None => std::future::pending().await,
        }
    }
}

/// What a load may be told when somebody goes.
fn is_of_a_teardown(fault: &Fault) -> bool {
    matches!(
        &fault.kind,
        FaultKind::Cancelled(_)
            | FaultKind::Interrupted { .. }
            | FaultKind::Died(_)
            | FaultKind::Lost
    )
}

/// What a sender rests in a tree of so many actors, so that trees of any size are about as busy.
/// Without it the scheduler decides how long their ends take, and that is not what is asked.
pub(super) fn pause(actors: u64) -> Duration {
    PAUSE.saturating_mul(u32::try_from(actors).unwrap_or(u32::MAX))
}

/// Rests after each burst.
async fn rest(number: u64, pause: Duration) {
    if number % BURST == BURST - 1 {
        tokio::time::sleep(pause).await;
    }
}

/// Messages that go without a pause.
const BURST: u64 = 64;
/// What one actor rests between two bursts if it is alone.
const PAUSE: Duration = Duration::from_micros(100);

/// Tells once that it is at it.
type Tell = oneshot::Sender<()>;

fn say(tell: &mut Option<Tell>) {
    if let Some(tell) = tell.take() {
        // Nobody hears it if the tree comes down already.
        let _heard = tell.send(());
    }
}

async fn call(child: Portal, pause: Duration, tell: Tell) -> hatchery::Result<()> {
    let mut tell = Some(tell);
    for number in 0.. {
        let answer = child.call(echo(number)).await?;
        if answer != number {
            return Err(Error::msg(format!("{answer} is the answer to {number}")));
        }
        say(&mut tell);
        rest(number, pause).await;
    }
    Ok(())
}

/// One stream on which both sides send, and one that this side does not read.
async fn stream(child: Portal, pause: Duration, tell: Tell) -> hatchery::Result<()> {
    let read = child.open_context(flow(pause), async |cx| converse_with(cx, pause, tell).await);
    let unread = child.context(flow(Duration::ZERO)).credit(4096);
    let unread = unread.run(async |mut cx| Ok(cx.result().await?));
    tokio::try_join!(read, unread)?;
    Ok(())
}

async fn introduce(child: Portal, peer: Peer, pause: Duration, tell: Tell) -> hatchery::Result<()> {
    let visiting = child.open_context(visit(peer, pause), async |mut cx| {
        // Says `started` when it talks with the peer.
        say(&mut Some(tell));
        Ok(cx.result().await?)
    });
    Ok(visiting.await?)
}

#[hatchery::function]
async fn echo(number: u64) -> u64 {
    number
}

/// Sends numbers for ever, and is sent numbers.
#[hatchery::context]
async fn flow(callee: Callee<u64, u64>, pause: Duration) -> Result<(), Error> {
    let (sender, receiver) = callee.started(())?.split();
    converse(sender, receiver, pause, None).await?;
    // The opener has left: a cancel is on its way.
    std::future::pending().await
}

/// Talks with the introduced actor for ever.
#[hatchery::context]
async fn visit(callee: Callee, peer: Peer, pause: Duration) -> Result<(), Error> {
    let portal = peer.connect().await?;
    let (tell, told) = oneshot::channel();
    let talk = portal.open_context(flow(pause), async |cx| converse_with(cx, pause, tell).await);
    let say = async {
        if told.await.is_err() {
            // The talk says why.
            std::future::pending::<()>().await;
        }
        let _stream = callee.started(())?;
        std::future::pending::<hatchery::Result<()>>().await
    };
    tokio::select! {
        talk = talk => Ok(talk?),
        said = say => said,
    }
}

async fn converse_with(
    mut cx: Context<u64, u64, (), (), Error>,
    pause: Duration,
    tell: Tell,
) -> hatchery::Result<()> {
    let (sender, receiver) = cx.split();
    converse(sender, receiver, pause, Some(tell)).await?;
    Ok(cx.result().await?)
}

/// Sends and receives numbers in their order until the other side leaves.
async fn converse(
    mut sender: Sender<u64>,
    mut receiver: Receiver<u64>,
    pause: Duration,
    mut tell: Option<Tell>,
) -> hatchery::Result<()> {
    let sending = async {
        for number in 0.. {
            match sender.send(number).await {
                Ok(()) => rest(number, pause).await,
                // The reader finds out why.
                Err(hatchery::StreamError::Closed) => break,
                Err(error) => return Err(error.into()),
            }
        }
        std::future::pending::<hatchery::Result<()>>().await
    };
    let receiving = async {
        let mut due = 0;
        while let Some(number) = receiver.recv().await? {
            if number != due {
                return Err(Error::msg(format!("{number} came where {due} was due")));
            }
            due += 1;
            say(&mut tell);
        }
        Ok(())
    };
    tokio::select! {
        sent = sending => sent,
        received = receiving => received,
    }
}
