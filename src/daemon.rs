//! From configuration to a listening gate, and down again.
//!
//! Two runtimes: the relay has a thread of its own, so that a judgement never holds up a call
//! that only passes; judgements, registries and the watch over policies share the other threads.

mod policies;

use std::{io, panic::resume_unwind, sync::Arc, thread, time::Duration};

use jiff::Timestamp;
use nix::unistd::gethostname;
use tokio::{
    runtime::{Builder, Handle},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::timeout,
};

use crate::{
    accept::{self, ListenError, Listener, Methods},
    audit::{self, Event, Log, LogError, Observer, Record},
    config::Config,
    evidence::{Ledger, Store},
    forward::{Runtime, Upstream},
    inventory::{self, Inventory},
    kubernetes::{self, events},
    local::Local,
    metrics::{self, Metrics},
    pipeline::{Parts, Pipeline, SandboxError, SandboxImage},
    policy::{
        self,
        watch::{Plan, Watcher},
    },
    resolve::{HostsDirectories, Registry},
    sources::{self, Followed},
    status::{self, Board, Desk, Places},
    telemetry,
};

/// How long the runtime may take to tell its sandbox image before the gate opens without.
const ASKING: Duration = Duration::from_secs(2);
/// Threads for judgements. They wait for registries more than they work.
const JUDGES: usize = 2;

/// Runs until a signal ends it: SIGTERM and SIGINT let calls in flight end; SIGHUP reads the
/// policies anew.
///
/// # Errors
///
/// Whatever keeps the gate from opening. A missing or broken policy set does not: the gate opens
/// and refuses every pull.
pub fn run(config: Config) -> Result<(), DaemonError> {
    let judges = Builder::new_multi_thread()
        .worker_threads(JUDGES)
        .thread_name("judge")
        .enable_all()
        .build()
        .map_err(DaemonError::Threads)?;
    let relay = Builder::new_current_thread().enable_all().build().map_err(DaemonError::Threads)?;
    let signals = judges.block_on(async { Signals::catch() }).map_err(DaemonError::Threads)?;

    accept::raise_descriptor_limit();
    let node = gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let state_directory = config.state.directory.clone();
    let Followed { plan, api_server } = {
        let _judges = judges.enter();
        sources::follow(&config).map_err(DaemonError::Source)?
    };
    let node_name = config.kubernetes.node.clone();
    let node_name = node_name.or_else(|| kubernetes::node_name(&node)).unwrap_or_default();
    let places = Places {
        socket: config.listen.socket.clone(),
        endpoint: config.runtime.endpoint.clone(),
        source: config.policy.source.to_string(),
        audit_file: config.audit.file.clone(),
    };
    let audit_config = audit::Config {
        file: config.audit.file.clone(),
        state_directory: state_directory.clone(),
        node,
    };
    let (board, metrics) = (Board::default(), Metrics::default());
    {
        let (board, metrics) = (board.clone(), metrics.clone());
        telemetry::tell_panics(move || (board.fault(), metrics.fault()).1);
    }
    // What was found wrong with the log stands in its `start` record, and was logged.
    let mut observers: Vec<Arc<dyn Observer>> =
        vec![Arc::new(board.clone()), Arc::new(metrics.clone())];
    let (refusals, events) = api_server.is_some().then(events::channel).unzip();
    let refusals = refusals.map(Arc::new);
    observers.extend(refusals.clone().map(|refusals| refusals as Arc<dyn Observer>));
    let (log, opened) = Log::open_observed(audit_config, observers)?;
    if let Some(refusal) = &opened.unavailable {
        board.audit_unavailable(refusal);
    }
    let policies = policy::Current::default();
    // A thousand policies and ten thousand images take the longest of a start: side by side.
    let (watcher, opened) = thread::scope(|scope| {
        let opening = scope.spawn(|| Store::open(&state_directory));
        let _runtime = judges.enter();
        let watcher = keep_policies(plan, policies.clone(), log.clone());
        (watcher, opening.join())
    });
    let (store, findings) = opened.unwrap_or_else(|panic| resume_unwind(panic));
    for finding in &findings {
        tracing::error!("{finding}");
        // The log says itself when it cannot be written.
        let _ = judges.block_on(log.record(Record::new(Event::Drift, finding), ()));
    }
    board.evidence(findings);
    if let (Some(server), Some(events)) = (api_server, events) {
        let (standing, node, same) = (watcher.standing(), node_name.clone(), server.clone());
        judges.spawn(async move { kubernetes::report(&server, &node, standing).await });
        judges.spawn(async move { events.run(&same, &node_name).await });
    }
    let upstream = Upstream::new(Arc::new(config.runtime.endpoint.clone()));
    let registry = Arc::new(Registry::new(HostsDirectories::new(config.runtime.registry_config)));
    let local = Local::new(store);
    let ledger = Ledger::open(&state_directory);
    let pipeline = Pipeline::new(Parts {
        policies: policies.clone(),
        registry: registry.clone(),
        local: local.clone(),
        ledger: ledger.clone(),
        runtime: Runtime::new(&upstream),
        sandbox: SandboxImage::new(config.runtime.sandbox_image),
        audit: log.clone(),
        threads: judges.handle().clone(),
    });
    let inventory = Inventory::new(inventory::Parts {
        policies: policies.clone(),
        registry,
        local,
        ledger,
        runtime: Runtime::new(&upstream),
        audit: log.clone(),
        pipeline: pipeline.clone(),
    });
    let sources = metrics::Sources {
        policies: policies.clone(),
        standing: watcher.standing(),
        events: refusals,
        inventory: inventory.summary(),
    };
    let methods = Arc::new(Methods::with(config.runtime.forward_methods));
    let desk = Desk::new(status::Parts {
        board,
        policies,
        standing: watcher.standing(),
        pipeline: pipeline.clone(),
        inventory: inventory.summary(),
        places,
        threads: judges.handle().clone(),
    });

    if !config.runtime.endpoint.exists() {
        tracing::warn!(
            "{} is not there: until it is, calls are answered with UNAVAILABLE; a socket made now \
             lets root alone connect",
            config.runtime.endpoint.display()
        );
    }
    judges.block_on(sandbox_image_is_known(&pipeline))?;
    if let Some(address) = &config.metrics.listen {
        match judges.block_on(metrics::Listener::open(address)) {
            Ok(listener) => {
                tracing::info!("metrics at {address}");
                judges.spawn(metrics::serve(listener, metrics, sources));
            }
            // Whoever takes that address must not cost the node its gate.
            Err(error) => tracing::error!("{error}; there are none until the next start"),
        }
    }
    let listener = Listener::open(&config.listen.socket, &config.runtime.endpoint)?;
    let (stop, stopping) = watch::channel(false);
    let obeying = judges.spawn(signals.obey(stop, watcher));
    let served = relay.block_on(async {
        tracing::info!(runtime = %config.runtime.endpoint.display(), "listening on {listener}");
        let (socket, _file) = listener.accept()?;
        notify(sd_notify::NotifyState::Ready);
        let looking = judges.spawn(inventory.keep());
        accept::serve(socket, pipeline, upstream, methods, desk, stopping).await;
        // What it would put on record now would come after the end.
        looking.abort();
        Ok(())
    });
    judges.block_on(async {
        // A log that cannot be written has said so; nothing is left to refuse.
        let _ = log.record(Record::new(Event::Stop, "Portcullis stopped"), ()).await;
        log.close().await;
    });
    served.map_err(DaemonError::Threads)?;
    let ended = judges.block_on(obeying).unwrap_or(Ended::ByFault);
    judges.shutdown_background();
    match ended {
        Ended::ByOrder => Ok(()),
        Ended::ByFault => Err(DaemonError::Watch),
    }
}

/// Whether the sandbox image is known, or can be asked for later: of a runtime that is there and
/// does not tell, no answer will ever come.
async fn sandbox_image_is_known(pipeline: &Pipeline) -> Result<(), DaemonError> {
    match timeout(ASKING, pipeline.sandbox_image()).await {
        Ok(Err(error @ SandboxError::Unknown(_))) => Err(DaemonError::Sandbox(Box::new(error))),
        Ok(Err(error @ SandboxError::Differs { .. })) => {
            tracing::error!("no pod can start: {error}");
            Ok(())
        }
        Ok(Err(SandboxError::Runtime(error))) => {
            tracing::warn!(%error, "until it tells its sandbox image, no pod starts");
            Ok(())
        }
        Err(_) => {
            tracing::warn!("the container runtime does not answer; until it does, no pod starts");
            Ok(())
        }
        Ok(Ok(name)) => {
            tracing::info!(%name, "sandbox image");
            Ok(())
        }
    }
}

/// Loads the policies, keeps them in force while they change, and puts each change on record.
fn keep_policies(plan: Plan, current: policy::Current, log: Log) -> Watcher {
    let threads = Handle::current();
    let in_force = current.clone();
    policy::watch::watch(plan, current, move |event| {
        let in_force = in_force.snapshot(Timestamp::now());
        let record = policies::record(&event, in_force.is_ok());
        // Waited for, so that the order on record is the order of events. The log says itself
        // when it cannot be written.
        let _ = threads.block_on(log.record(record, ()));
    })
}

/// Why the daemon stops.
enum Ended {
    ByOrder,
    ByFault,
}

/// The signals that the daemon obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Obeys until the order to stop. Policies that nobody watches any more would grow stale in
    /// silence, so that stops the daemon too: its supervisor starts a whole one.
    async fn obey(mut self, stop: watch::Sender<bool>, mut watcher: Watcher) -> Ended {
        let ended = loop {
            tokio::select! {
                _ = self.terminate.recv() => break Ended::ByOrder,
                _ = self.interrupt.recv() => break Ended::ByOrder,
                _ = self.hang_up.recv() => watcher.reload(),
                () = watcher.ended() => {
                    tracing::error!("the watch over the policies ended by a fault");
                    break Ended::ByFault;
                }
            }
        };
        tracing::info!("stopping");
        notify(sd_notify::NotifyState::Stopping);
        let _ = stop.send(true);
        ended
    }
}

/// Tells systemd, where it is there to be told.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

impl DaemonError {
    /// Whether it takes a hand on the configuration, so that trying again is in vain.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            DaemonError::Audit(LogError::Irregular(_) | LogError::Foreign(_))
                | DaemonError::Listen(ListenError::NotASocket(_))
                | DaemonError::Sandbox(_)
                | DaemonError::Source(_)
        )
    }
}

/// What keeps the gate from opening, or from staying open.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The audit log cannot be used by this process.
    #[error(transparent)]
    Audit(#[from] LogError),
    /// Which image sandboxes are made from is not known.
    #[error(transparent)]
    Sandbox(Box<SandboxError>),
    /// The source of policies is configured so that it cannot be believed.
    #[error("{0}")]
    Source(String),
    /// There is no socket to listen on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Nobody watches the policies any more; without, they would grow stale in silence.
    #[error("the watch over the policies ended by a fault; its log line tells more")]
    Watch,
    /// The system gives no threads, signals or events.
    #[error("cannot begin: {0}")]
    Threads(io::Error),
}
