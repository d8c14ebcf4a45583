//! The stand-in as the fleet's process sees it.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::stand_in::Seen;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A stand-in that runs; ends with the value.
pub(crate) struct StandIn {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// What it holds.
    pub(crate) about: Value,
}

impl StandIn {
    /// Keeps what a client needs to find it in this directory.
    pub(crate) fn start(directory: &Path, nodes: usize) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("stand-in")
            .arg(directory)
            .arg(nodes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut server = Self { process, orders, answers, about: Value::Null };
        server.about = server.answer();
        server
    }

    /// Gives an order and waits until it is obeyed.
    pub(crate) fn order(&mut self, order: &str) {
        self.tell(order);
        self.answer::<Value>();
    }

    /// What it has seen, with the counts of requests from this number on.
    pub(crate) fn seen(&mut self, from: usize) -> Seen {
        self.tell(&format!("seen {from}"));
        self.answer()
    }

    /// Waits until what it has seen from this number on is as wanted.
    pub(crate) fn until(&mut self, from: usize, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let latest = Instant::now() + PATIENCE;
        loop {
            let seen = self.seen(from);
            if wanted(&seen) {
                return seen;
            }
            assert!(Instant::now() < latest, "this is not what was waited for: {seen:?}");
            // Asking costs the server as well.
            sleep(Duration::from_millis(200));
        }
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.orders.as_mut().expect("it runs"), "{order}").unwrap();
    }

    fn answer<T: DeserializeOwned>(&mut self) -> T {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}
