//! The stand-in for the API server, in a process of its own, that does what it is told on standard
//! input, a line at a time, and answers each with a line of JSON.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    cluster::{changed, furnish, node_name, objects},
    support::{
        api_server::{ApiServer, Fault, Request},
        ca::TestCa,
    },
};

const NODE: &str = "client-certificate: node.pem, client-key: node.pem";

/// What the server has seen so far, or from a request on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) requests: usize,
    pub(crate) connections: usize,
    /// Open now.
    pub(crate) watched: usize,
    /// In bytes, TLS included.
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// Of the server's process.
    pub(crate) cpu: Duration,
    pub(crate) lists: usize,
    pub(crate) watches: usize,
    pub(crate) patches: usize,
    /// Those that say that the last change is in force, or the first set if there was none.
    pub(crate) reports: usize,
    pub(crate) posts: usize,
    /// Most requests within any second.
    pub(crate) peak: usize,
    /// The same of patches.
    pub(crate) patch_peak: usize,
    /// The same of new watches.
    pub(crate) watch_peak: usize,
    /// From the first watch to the last.
    pub(crate) watches_within: Duration,
    /// From the first patch to the last.
    pub(crate) patches_within: Duration,
}

/// The CPU time that this process has used.
pub(crate) fn cpu() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec() as u64, 0) + Duration::from_micros(time.tv_usec() as u64)
    };
    let all = |usage: &Usage| of(usage.user_time()) + of(usage.system_time());
    all(&used)
}

/// Serves until standard input ends.
pub(crate) fn run(directory: &Path, nodes: usize) {
    portcullis::accept::raise_descriptor_limit();
    let ca = TestCa::new();
    let user = ca.user("system:node:fleet", "system:nodes");
    let server = ApiServer::builder().client_cert(&ca, &user).start();
    fs::write(directory.join("ca.pem"), ca.pem()).unwrap();
    fs::write(directory.join("node.pem"), format!("{}{}", user.cert_pem, user.key_pem)).unwrap();
    server.kubeconfig(&directory.join("kubeconfig"), "certificate-authority: ca.pem", NODE);
    let objects = objects();
    for object in &objects {
        server.apply(object);
    }
    for number in 0..nodes {
        server.add_node(&node_name(number));
        server.change_node(&node_name(number), furnish);
    }
    let (mut output, mut changes, mut mark) = (io::stdout().lock(), 0, "InForce".to_owned());
    let size = |object| serde_json::Value::to_string(object).len();
    let held: usize = objects.iter().map(size).sum();
    let about = json!({
        "objects": objects.len(), "bytes": held, "policy": size(&objects[0]),
        "node": size(&server.node(&node_name(0)).unwrap()),
    });
    writeln!(output, "{about}").unwrap();
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let answer = match line.split_once(' ').unwrap_or((&*line, "")) {
            ("seen", from) => {
                serde_json::to_value(seen(&server, from.parse().unwrap(), &mark)).unwrap()
            }
            ("change", _) => {
                changes += 1;
                let version = server.apply(&changed(&objects[0], changes));
                mark = format!(" revision {version} ");
                json!(version)
            }
            (order, _) => {
                obey(&server, order);
                json!("done")
            }
        };
        writeln!(output, "{answer}").unwrap();
    }
}

fn obey(server: &ApiServer, order: &str) {
    match order {
        "bookmark" => server.bookmark(),
        "end" => server.end_watches(),
        "break" => server.break_watches(""),
        "down" => {
            server.fault(usize::MAX, |_| true, Fault::Close);
            server.break_watches("");
        }
        "up" => server.heal(),
        other => panic!("{other} is no order"),
    }
}

/// `mark` stands in the patches that are reports.
fn seen(server: &ApiServer, from: usize, mark: &str) -> Seen {
    let all = server.requests();
    let all = &all[from..];
    let (received, sent) = server.traffic();
    let is_report = |request: &&Request| {
        request.method == "PATCH" && str::from_utf8(&request.body).unwrap().contains(mark)
    };
    let of = |wanted: fn(&Request) -> bool| -> Vec<Instant> {
        all.iter().filter(|request| wanted(request)).map(|request| request.arrived).collect()
    };
    let watches = of(|request| request.target.contains("watch=true"));
    let patches = of(|request| request.method == "PATCH");
    Seen {
        requests: from + all.len(),
        connections: server.connections(),
        watched: server.watched(),
        received,
        sent,
        cpu: cpu(),
        lists: of(|request| request.target.contains("?limit=")).len(),
        posts: of(|request| request.method == "POST").len(),
        peak: peak(&of(|_| true)),
        watch_peak: peak(&watches),
        patch_peak: peak(&patches),
        watches_within: within(&watches),
        patches_within: within(&patches),
        watches: watches.len(),
        patches: patches.len(),
        reports: all.iter().filter(is_report).count(),
    }
}

/// Most of these moments, in order, that are within a second.
fn peak(moments: &[Instant]) -> usize {
    let mut first = 0;
    let second = Duration::from_secs(1);
    let windows = moments.iter().enumerate().map(|(last, moment)| {
        while moment.duration_since(moments[first]) > second {
            first += 1;
        }
        last + 1 - first
    });
    windows.max().unwrap_or_default()
}

fn within(moments: &[Instant]) -> Duration {
    match moments {
        [first, .., last] => last.duration_since(*first),
        _ => Duration::ZERO,
    }
}
