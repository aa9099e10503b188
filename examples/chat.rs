//! A chat of peers: the root introduces three actors to each other and is not there any more when
//! they talk; what they say goes directly from one to the other.

use hatchery::{Callee, Error, Nothing, Peer, nursery};

/// Listens to one other guest until that one has said all. Each line that it prints carries its own
/// path in front.
#[hatchery::context]
async fn listen(callee: Callee<String, Nothing>) -> Result<(), Error> {
    let speaker = callee.opener().clone();
    let mut words = callee.started(())?;
    while let Some(word) = words.recv().await? {
        println!("{} says: {word}", speaker.name());
    }
    Ok(())
}

/// Talks to every guest it was introduced to, to all at once.
#[hatchery::function]
async fn talk(guests: Vec<Peer>, words: Vec<String>) -> Result<(), Error> {
    let mut talks = tokio::task::JoinSet::new();
    for guest in guests {
        let words = words.clone();
        talks.spawn(async move {
            let guest = guest.connect().await?;
            let talk = guest.open_context(listen(), async |mut cx| {
                for word in words {
                    cx.send(word).await?;
                }
                cx.close().await?;
                // So that nothing is cut off: the listener has heard all when it returns.
                Ok(cx.result().await?)
            });
            Ok::<_, Error>(talk.await?)
        });
    }
    while let Some(done) = talks.join_next().await {
        done??;
    }
    Ok(())
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), hatchery::ScopeError> {
    nursery(async |n| {
        let mut guests = Vec::new();
        for name in ["ada", "grace", "linus"] {
            let portal = n.start(name).await?;
            let introduction = portal.peer().await?;
            guests.push((portal, introduction));
        }
        let talking = guests.iter().map(|(portal, own)| {
            let others = guests.iter().map(|(_, peer)| peer).filter(|peer| *peer != own);
            let words = ["hello", "how are you?", "bye"].map(str::to_owned);
            let (portal, talk) = (portal.clone(), talk(others.cloned().collect(), words.to_vec()));
            tokio::spawn(async move { portal.call(talk).await })
        });
        for done in talking.collect::<Vec<_>>() {
            done.await??;
        }
        Ok(())
    })
    .await
}
