//! A web server that ends well: who has asked is answered, who comes later is turned away, and then the
//! tree comes down. Here it sends itself the SIGTERM that an orchestrator would send.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use hatchery::{Portal, Runtime, Signals};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[hatchery::function]
async fn square_slowly(x: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(300)).await;
    x * x
}

static ASKED: AtomicUsize = AtomicUsize::new(0);

async fn answer(State(worker): State<Portal>, Path(x): Path<u64>) -> Result<String, StatusCode> {
    ASKED.fetch_add(1, Ordering::SeqCst);
    // While the runtime drains, new calls are refused: another server may take the request.
    let squared = worker.call(square_slowly(x)).await;
    squared.map(|squared| squared.to_string()).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::builder().signals(Signals::Notify).open()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let clients = tokio::spawn(clients(listener.local_addr()?));

    let told = runtime.clone();
    let served = runtime.nursery(async |n| {
        let app = Router::new().route("/{x}", get(answer)).with_state(n.start("worker").await?);
        // axum accepts nobody any more, and returns when everybody has been answered.
        let asked_to_go = async move {
            told.interrupted().await;
        };
        Ok(axum::serve(listener, app).with_graceful_shutdown(asked_to_go).await?)
    });
    let ended = async {
        let came = runtime.interrupted().await;
        println!("signal {}: {} requests are under way", came.signal, ASKED.load(Ordering::SeqCst));
        runtime.clone().drain(Duration::from_secs(10)).await
    };
    let (served, drained) = tokio::join!(served, ended);
    served?;
    println!("down, {} cut off", drained.cut);
    for answer in clients.await? {
        println!("answered {answer}");
    }
    Ok(())
}

/// Three who ask, and the signal while all of them wait.
async fn clients(server: SocketAddr) -> Vec<String> {
    let asking: Vec<_> = (7..10).map(|x| tokio::spawn(ask(server, x))).collect();
    while ASKED.load(Ordering::SeqCst) < asking.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let own = hatchery_spawn::Pidfd::open(std::process::id());
    own.and_then(|own| own.send_signal(SIGTERM)).expect("a process may signal itself");
    let mut answers = Vec::new();
    for one in asking {
        answers.push(one.await.unwrap_or_else(|error| error.to_string()));
    }
    answers
}

async fn ask(server: SocketAddr, x: u64) -> String {
    let asked = async {
        let mut connection = TcpStream::connect(server).await?;
        let request = format!("GET /{x} HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        let (status, body) = (answer.lines().next(), answer.lines().last());
        Ok::<_, std::io::Error>(format!("{}: {}", status.unwrap_or(""), body.unwrap_or("")))
    };
    asked.await.unwrap_or_else(|error| error.to_string())
}

const SIGTERM: i32 = 15;
