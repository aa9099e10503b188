//! What a whole process tree is doing right now, read from `/proc` and from what its actors wrote
//! down: for the end of a bound. See [`hatchery::dump`], which this is.

pub use hatchery::dump::{Dump, Fd, Process, Signals, Socket, Thread, boards, culprit};

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_dump_shows_the_child_of_a_child_and_survives_json() {
        let script = "exec 3<&0; cat <&3 & echo ready; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(shell.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();

        let tree = Process::of(shell.id()).unwrap();
        assert_eq!((tree.count(), tree.children.len()), (2, 1), "{tree}");
        assert!(!tree.threads.is_empty() && tree.fds.contains_key(&0), "{tree}");
        assert_eq!(tree.to_string().matches("signals:").count(), 2);
        let json = serde_json::to_string(&tree).unwrap();
        assert_eq!(serde_json::from_str::<Process>(&json).unwrap(), tree);

        let below = crate::fault::sigkill(tree.children[0].pid).unwrap();
        assert!(below.wait_dead(std::time::Duration::from_secs(5)));
        shell.wait().unwrap();
    }
}
