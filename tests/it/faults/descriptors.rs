//! No more descriptors: nothing is accepted, nothing dies, nothing spins, and it passes.

use std::{fs, process::Stdio, time::Duration};

use tokio::net::UnixStream;

use crate::support::{cri::VERSION, gate::Gate, grpc::framed};

use super::{Node, memory_returns, pulled};

/// Processor time that it has used, in ticks of 10 ms.
fn ticks(gate: &Gate) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", gate.pid())).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<_> = rest.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn descriptors(gate: &Gate) -> usize {
    fs::read_dir(format!("/proc/{}/fd", gate.pid())).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_it_waits_refuses_and_recovers() {
    const LIMIT: usize = 64;
    let node = Node::new();
    let script = format!("ulimit -n {LIMIT}; exec \"$0\" \"$@\"");
    let gate = node.setup().start_by(&script, Stdio::null());
    let before = gate.resident();
    let (app, bad) = (node.pinned("app", node.app), node.pinned("bad", node.bad));
    // A client that was there before, with its way to the runtime open.
    let early = gate.client().await;
    assert_eq!(early.call(VERSION, &[], framed(b"")).await.status().0, 0);

    let mut idle = Vec::new();
    for _ in 0..2 * LIMIT {
        idle.push(UnixStream::connect(gate.socket()).await.unwrap());
    }
    super::until("descriptors run out", || descriptors(&gate) >= LIMIT).await;
    for _ in 0..100 {
        assert_eq!(early.call(VERSION, &[], framed(b"")).await.status().0, 0);
    }
    // What cannot be asked, read or written for want of descriptors is refused.
    for image in [&app, &bad, &app] {
        let (code, message) = pulled(&early, image).await;
        assert_eq!(code, 2, "{message}");
    }
    // It looks now and then whether that is over, and does not run in circles. This is a
    // measurement: there is nothing to wait for.
    let used = ticks(&gate);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(ticks(&gate) - used < 25, "{} ticks in half a second", ticks(&gate) - used);
    assert_eq!(gate.log().matches("cannot accept connections").count(), 1, "{}", gate.log());

    drop(idle);
    node.sound(&gate, &[], 3).await;
    memory_returns(&gate, before).await;
}

#[tokio::test]
async fn it_takes_as_many_descriptors_as_it_may() {
    let node = Node::new();
    let gate = node.setup().start_by("ulimit -S -n 64; exec \"$0\" \"$@\"", Stdio::null());
    let limits = fs::read_to_string(format!("/proc/{}/limits", gate.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{limits}");
    assert_ne!(numbers[0], "64");
}
