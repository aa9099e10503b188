//! In place of `tokio::process`: the same few lines, but nothing is left behind, whatever happens.
//!
//! The edit: `tokio::process::Command` becomes `hatchery_spawn::Command`, builder methods take the
//! value, and `kill_on_drop` is always on.

use hatchery_spawn::{Command, Stdio};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let output = Command::new("ls").arg("-d").arg("/").output().await?;
    println!("ls: {} ({})", String::from_utf8_lossy(&output.stdout).trim(), output.status);

    let script = "for i in 1 2 3; do echo line $i; done; exit 3";
    let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::Piped).spawn().await?;
    let stdout = child.take_stdout().ok_or("stdout was piped")?;
    let mut lines = BufReader::new(pipe::Receiver::from_owned_fd(stdout)?).lines();
    while let Some(line) = lines.next_line().await? {
        println!("sh: {line}");
    }
    println!("sh: {}", child.wait().await?);

    // Dropped in the middle, it is gone; tokio's would run on for a thousand seconds.
    let sleeper = Command::new("sleep").arg("1000").spawn().await?;
    let handle = sleeper.handle();
    drop(sleeper);
    println!("sleep: {}", handle.wait().await?);

    match Command::new("no-such-program").spawn().await {
        Ok(_) => println!("there is such a program here"),
        Err(error) => println!("{error}"),
    }
    Ok(())
}
