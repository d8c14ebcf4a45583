//! A registry that hangs, on each request of a pull. In this process, since the product's own
//! patience is thirty seconds.

use std::{path::Path, sync::Arc, time::Duration};

use portcullis::{
    accept::{Methods, serve},
    audit::{Config, Log},
    evidence::{Ledger, Store},
    forward::{Runtime, Upstream},
    local::Local,
    pipeline::{Parts, Pipeline, SandboxImage},
    policy::{self, source},
    resolve::{HostsDirectories, Registry, Timeouts},
    status::{self, Board, Desk, Places},
};
use tokio::{net::UnixListener, runtime::Handle, sync::watch};

use crate::support::{
    registry::Fault,
    runtime::{FakeRuntime, ok},
};

use super::{answers, attempt_all, hold, stage};

/// Two tries of each question, then no time is left.
const HASTY: Timeouts = Timeouts {
    connect: Duration::from_secs(20),
    request: Duration::from_millis(300),
    call: Duration::from_millis(500),
    backoff: Duration::from_millis(1),
};

#[tokio::test]
async fn a_registry_that_hangs_is_no_judgement() {
    let faults = [("nothing", Fault::Hang), ("half an answer and no end", Fault::StallBody)];
    let cases = answers::requests().flat_map(|request| {
        faults.clone().map(|(name, fault)| {
            let message = request.open("did not answer in time");
            request.goes_wrong(name, fault).refused("registry_unreachable", message)
        })
    });
    let staged: Vec<_> = cases.enumerate().map(|(n, case)| stage(n, case)).collect();
    let policies: Vec<_> = staged.iter().map(super::Staged::policy_text).collect();

    let runtime = FakeRuntime::start(|_| ok(b""));
    let directory = tempfile::tempdir().unwrap();
    let (socket, audit_file) = (directory.path().join("s"), directory.path().join("a.jsonl"));
    let _gate = gate(&socket, &audit_file, &runtime, &policies.join("---\n"));
    let attempts = attempt_all(&staged, &socket).await;
    hold(&staged, &attempts, &runtime, &audit_file);
}

/// The daemon's parts, put together with less patience. It stops when the sender is dropped.
fn gate(
    socket: &Path,
    audit_file: &Path,
    runtime: &FakeRuntime,
    policies: &str,
) -> watch::Sender<bool> {
    let current = policy::Current::default();
    let set = source::parse("p.yaml", policies, jiff::Timestamp::now()).unwrap();
    current.replace(Arc::new(set));
    let config = Config {
        file: audit_file.to_owned(),
        state_directory: socket.with_file_name("state"),
        node: "node".into(),
    };
    let (log, _) = Log::open(config).unwrap();
    let registry = Registry::with_timeouts(HostsDirectories::parse(""), HASTY);
    let upstream = Upstream::new(Arc::new(runtime.socket().to_owned()));
    let state = socket.with_file_name("state");
    let pipeline = Pipeline::new(Parts {
        policies: current.clone(),
        registry: Arc::new(registry),
        local: Local::new(Store::open(&state).0),
        ledger: Ledger::open(&state),
        runtime: Runtime::new(&upstream),
        sandbox: SandboxImage::default(),
        audit: log,
        threads: Handle::current(),
    });
    let (stop, stopping) = watch::channel(false);
    let listener = UnixListener::bind(socket).unwrap();
    let methods = Arc::new(Methods::default());
    let places = Places {
        socket: socket.to_owned(),
        endpoint: runtime.socket().to_owned(),
        source: String::new(),
        audit_file: audit_file.to_owned(),
    };
    let desk = Desk::new(status::Parts {
        board: Board::default(),
        policies: current,
        pipeline: pipeline.clone(),
        inventory: watch::channel(None).1,
        places,
        threads: Handle::current(),
    });
    tokio::spawn(serve(listener, pipeline, upstream, methods, desk, stopping));
    stop
}
