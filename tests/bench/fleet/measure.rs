//! What a fleet does: started, left alone, told of a change, and cut off.

use std::{
    fs,
    sync::mpsc::{Receiver, channel},
    thread::sleep,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    node::Node,
    server::{PATIENCE, StandIn},
    stand_in::{Seen, cpu},
    table::progress,
};

/// How often the policy is changed before a node that is alone.
const CHANGES: usize = 20;
/// How long the server is away.
pub(crate) const AWAY: Duration = Duration::from_secs(8);
/// What is left over of a restart is done by then.
const SETTLED: Duration = Duration::from_secs(14);

/// What was measured with so many nodes. What the server saw is of all of them together.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) nodes: usize,
    /// What the server holds.
    pub(crate) about: Value,
    pub(crate) started: Times,
    pub(crate) start: Seen,
    /// Of the fleet's process, from nothing to everything in force.
    pub(crate) start_cpu: Duration,
    /// Resident memory, in KiB, of all nodes.
    pub(crate) memory: f64,
    /// A bookmark for each watch, and nothing else.
    pub(crate) quiet: Seen,
    pub(crate) changed: Times,
    pub(crate) change: Seen,
    pub(crate) change_cpu: Duration,
    /// What the server used until the change was in force.
    pub(crate) told_cpu: Duration,
    /// One pod of each node is refused.
    pub(crate) refused: Seen,
    /// All watches end in good order.
    pub(crate) ended: Seen,
    /// All watches break, and the server is there.
    pub(crate) broken: Seen,
    /// All watches break, and the server is not there for a while.
    pub(crate) away: Seen,
    /// It is there again.
    pub(crate) back: Seen,
}

/// How long it took nodes, in milliseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |percent: usize| {
            let place = (all.len() * percent).div_ceil(100).max(1) - 1;
            all[place].as_secs_f64() * 1000.0
        };
        Self { p50: at(50), p99: at(99), most: at(100) }
    }
}

/// Measures so many nodes; of one alone only the start and changes.
pub(crate) fn run(nodes: usize) -> Figures {
    portcullis::accept::raise_descriptor_limit();
    let directory = tempfile::tempdir().unwrap();
    let server = StandIn::start(directory.path(), nodes);
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (tell, in_force) = channel();
    let mut fleet = Fleet { nodes, server, in_force };
    let (memory, before, used) = (resident(), fleet.server.seen(0), cpu());
    let began = Instant::now();
    let _entered = threads.enter();
    let all: Vec<_> =
        (0..nodes).map(|number| Node::start(directory.path(), number, tell.clone())).collect();
    let started = fleet.in_force_since(began, nodes);
    let start_cpu = cpu() - used;
    // A patch of nothing that shows the node, and the condition.
    let seen = fleet.server.until(0, |seen| seen.reports >= nodes && seen.watched == 2 * nodes);
    let mut figures = Figures {
        nodes,
        about: fleet.server.about.clone(),
        started,
        start: since(seen, &before),
        start_cpu,
        memory: resident() - memory,
        ..Figures::default()
    };
    match nodes {
        1 => fleet.changes(&mut figures),
        _ => fleet.whole(&mut figures, &all),
    }
    figures
}

struct Fleet {
    nodes: usize,
    server: StandIn,
    in_force: Receiver<Instant>,
}

impl Fleet {
    /// How long it takes until another set was in force so many times.
    fn in_force_since(&self, began: Instant, times: usize) -> Times {
        let next = |_| self.in_force.recv_timeout(PATIENCE).expect("a set comes into force");
        Times::of((0..times).map(next).map(|at| at.duration_since(began)).collect())
    }

    fn changes(&mut self, figures: &mut Figures) {
        let used = cpu();
        let taken = (0..CHANGES).map(|_| {
            let began = Instant::now();
            self.server.order("change");
            self.in_force.recv_timeout(PATIENCE).expect("it comes into force").duration_since(began)
        });
        figures.changed = Times::of(taken.collect());
        figures.change_cpu = (cpu() - used) / CHANGES as u32;
    }

    fn whole(&mut self, figures: &mut Figures, all: &[Node]) {
        let nodes = self.nodes;
        progress("left alone");
        figures.quiet = self.seen_of(|fleet, from| {
            sleep(Duration::from_secs(4));
            fleet.server.order("bookmark");
            sleep(Duration::from_secs(4));
            fleet.server.seen(from)
        });
        progress("a change");
        let mut changed = (Times::default(), Duration::ZERO, Duration::ZERO);
        figures.change = self.seen_of(|fleet, from| {
            let (used, before) = (cpu(), fleet.server.seen(from));
            let began = Instant::now();
            fleet.server.order("change");
            let times = fleet.in_force_since(began, nodes);
            changed = (times, cpu() - used, fleet.server.seen(from).cpu - before.cpu);
            fleet.server.until(from, |seen| seen.reports >= nodes)
        });
        (figures.changed, figures.change_cpu, figures.told_cpu) = changed;
        progress("refusals");
        figures.refused = self.seen_of(|fleet, from| {
            all.iter().for_each(Node::refuse);
            fleet.server.until(from, |seen| seen.posts == nodes)
        });
        let again = |seen: &Seen| seen.watches >= 2 * nodes && seen.watched == 2 * nodes;
        progress("watches end");
        figures.ended = self.seen_of(|fleet, from| {
            fleet.server.order("end");
            fleet.server.until(from, again)
        });
        self.all_is_well();
        progress("connections break");
        figures.broken = self.seen_of(|fleet, from| {
            fleet.server.order("break");
            fleet.server.until(from, again)
        });
        self.all_is_well();
        progress("the server is away");
        figures.away = self.seen_of(|fleet, from| {
            fleet.server.order("down");
            sleep(AWAY);
            fleet.server.seen(from)
        });
        figures.back = self.seen_of(|fleet, from| {
            fleet.server.order("up");
            let began = Instant::now();
            fleet.server.until(from, again);
            sleep(SETTLED.saturating_sub(began.elapsed()));
            fleet.server.seen(from)
        });
    }

    /// What the server sees during a phase, which is told the number of the first request.
    fn seen_of(&mut self, phase: impl FnOnce(&mut Self, usize) -> Seen) -> Seen {
        let before = self.server.seen(0);
        let seen = phase(self, before.requests);
        since(seen, &before)
    }

    /// Watches that have heard something have nothing against their server any more.
    fn all_is_well(&mut self) {
        self.server.order("bookmark");
        sleep(Duration::from_secs(1));
    }
}

/// Totals become what was added to them.
fn since(seen: Seen, before: &Seen) -> Seen {
    Seen {
        requests: seen.requests - before.requests,
        connections: seen.connections - before.connections,
        received: seen.received - before.received,
        sent: seen.sent - before.sent,
        cpu: seen.cpu - before.cpu,
        ..seen
    }
}

/// In KiB.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
