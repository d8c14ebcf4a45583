//! The daemon's parts in this process, put together with the patience that a test has.

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

/// How long registries and the runtime may take.
pub(crate) struct Patience {
    pub(crate) registries: Timeouts,
    pub(crate) runtime: Duration,
    /// How long a pod waits for the sandbox image.
    pub(crate) sandbox: Duration,
    /// Where judgements run; None: where the test does.
    pub(crate) threads: Option<Handle>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            registries: Timeouts::default(),
            runtime: Duration::from_secs(30),
            sandbox: Duration::from_secs(10),
            threads: None,
        }
    }
}

/// A gate on `directory/s` before the runtime at this socket, with its log in
/// `directory/a.jsonl`. It stops when the sender is dropped.
pub(crate) fn gate(
    directory: &Path,
    runtime: &Path,
    policies: &str,
    patience: Patience,
) -> watch::Sender<bool> {
    let (socket, state) = (directory.join("s"), directory.join("state"));
    let audit_file = directory.join("a.jsonl");
    let current = policy::Current::default();
    let set = source::parse("p.yaml", policies, jiff::Timestamp::now()).unwrap();
    current.replace(Arc::new(set));
    let config =
        Config { file: audit_file.clone(), state_directory: state.clone(), node: "node".into() };
    let upstream = Upstream::new(Arc::new(runtime.to_owned()));
    let registry = Registry::with_timeouts(HostsDirectories::parse(""), patience.registries);
    let pipeline = Pipeline::new(Parts {
        policies: current.clone(),
        registry: Arc::new(registry),
        local: Local::new(Store::open(&state).0),
        ledger: Ledger::open(&state),
        runtime: Runtime::with_patience(&upstream, patience.runtime),
        sandbox: SandboxImage::with_patience(None, patience.sandbox),
        audit: Log::open(config).unwrap().0,
        threads: patience.threads.unwrap_or_else(Handle::current),
    });
    let places = Places {
        socket: socket.clone(),
        endpoint: runtime.to_owned(),
        source: String::new(),
        audit_file,
    };
    let desk = Desk::new(status::Parts {
        standing: tokio::sync::watch::channel(Default::default()).1,
        board: Board::default(),
        policies: current,
        pipeline: pipeline.clone(),
        inventory: watch::channel(None).1,
        places,
        threads: Handle::current(),
    });
    let (stop, stopping) = watch::channel(false);
    let listener = UnixListener::bind(&socket).unwrap();
    let methods = Arc::new(Methods::default());
    tokio::spawn(serve(listener, pipeline, upstream, methods, desk, stopping));
    stop
}
