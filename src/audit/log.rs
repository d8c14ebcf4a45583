//! The audit log as the rest of Portcullis sees it.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::refusal::Refusal;

use super::{
    Event, LogError, Record,
    line::cut,
    writer::{Disk, RealDisk, Request, Writer, unavailable, unwritten},
};

/// Most records that wait for the disk; beyond, nothing more is judged.
const MAX_QUEUE: usize = 1024;
/// Longest wait for the disk.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Longest node name in a record, in characters: that of a DNS name.
const MAX_NODE: usize = 253;

/// Proof that the record of a decision is on disk.
#[derive(Debug)]
#[must_use]
pub struct Recorded<T> {
    decision: T,
}

impl<T> Recorded<T> {
    /// The decision, now that it is on record.
    pub fn into_inner(self) -> T {
        self.decision
    }
}

/// Where the audit log is, and whose.
#[derive(Clone, Debug)]
pub struct Config {
    /// The log.
    pub file: PathBuf,
    /// Where the head of the chain is kept.
    pub state_directory: PathBuf,
    /// The node's name, for each record.
    pub node: String,
}

/// What [`Log::open`] found. The `start` record says the same.
#[derive(Debug)]
pub struct Opened {
    /// `seq` of the last line: the `start` record, where it is written already.
    pub seq: u64,
    /// What is wrong with the files that were there, a sentence each, already logged as warnings.
    pub findings: Vec<String>,
    /// Why nothing can be written yet. The log goes on trying; until then it refuses.
    pub unavailable: Option<Refusal>,
}

/// The audit log. Clones share one writer; when the last one is gone, so is the writer.
#[derive(Clone, Debug)]
pub struct Log {
    queue: mpsc::SyncSender<Request>,
    wait: Duration,
    observers: Vec<Arc<dyn Observer>>,
}

/// Hears of every record, once it is on disk and before its decision goes anywhere. It is called
/// on the thread that writes, which everybody waits for.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// The record is on disk, as line `seq`. Where this panics, what waited for it is refused.
    fn recorded(&self, record: &Record, seq: u64);

    /// The record is not on disk, and what waited for it was refused. A disk that hangs may still
    /// take it later; that is told then. Where this panics, nothing else comes of it.
    fn unrecorded(&self, record: &Record, refusal: &Refusal);
}

impl Log {
    /// Opens or creates the log, mends what a crash left behind, and writes the `start` record.
    ///
    /// Blocks on the disk. Existing files that are damaged, cut or changed are no error: they
    /// are reported, on record, and the chain goes on. A disk that is full or fails is none
    /// either, since calls that need no judgement must pass: see [`Opened::unavailable`].
    pub fn open(config: Config) -> Result<(Self, Opened), LogError> {
        Self::open_observed(config, Vec::new())
    }

    /// The same, with observers of every record from the `start` record on.
    pub fn open_observed(
        config: Config,
        observers: Vec<Arc<dyn Observer>>,
    ) -> Result<(Self, Opened), LogError> {
        Self::begin(config, Box::new(RealDisk), MAX_WAIT, observers)
    }

    #[cfg(test)]
    pub(super) fn open_on(
        config: Config,
        disk: Box<dyn Disk>,
        wait: Duration,
    ) -> Result<(Self, Opened), LogError> {
        Self::begin(config, disk, wait, Vec::new())
    }

    fn begin(
        config: Config,
        disk: Box<dyn Disk>,
        wait: Duration,
        observers: Vec<Arc<dyn Observer>>,
    ) -> Result<(Self, Opened), LogError> {
        let start = concat!("Portcullis ", env!("CARGO_PKG_VERSION"), " started");
        let node = cut(&config.node, MAX_NODE);
        let start = Record::new(Event::Start, start);
        let (file, state_directory) = (config.file, config.state_directory);
        let mut writer = Writer::new(file, state_directory, node, start, disk, observers.clone());
        let unavailable = match writer.commit(&[]) {
            Ok(()) => {
                writer.keep_head();
                writer.sync_head();
                None
            }
            Err(error) if error.may_pass() => {
                tracing::error!("audit log: {error}");
                Some(unavailable(&error))
            }
            Err(error) => return Err(error),
        };
        let findings = writer.findings().to_vec();
        let opened = Opened { seq: writer.seq(), findings, unavailable };
        let (queue, requests) = mpsc::sync_channel(MAX_QUEUE);
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&requests))
            .map_err(LogError::Thread)?;
        Ok((Self { queue, wait, observers }, opened))
    }

    /// Writes and syncs one line. The decision comes back only when it is on disk.
    ///
    /// Refuses with `audit_unavailable` when that fails or takes longer than ten seconds. Needs
    /// a Tokio runtime with its timer enabled. A caller that goes away leaves its line behind.
    pub async fn record<T>(&self, record: Record, decision: T) -> Result<Recorded<T>, Refusal> {
        let record = Arc::new(record);
        let (answer, answered) = oneshot::channel();
        let refuse = |why: &str| {
            let refusal = unavailable(&why);
            unwritten(&record, &refusal, &self.observers);
            Err(refusal)
        };
        match self.queue.try_send(Request::Record(Arc::clone(&record), answer)) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Full(_)) => return refuse(QUEUE_FULL),
            Err(mpsc::TrySendError::Disconnected(_)) => return refuse(WRITER_GONE),
        }
        match tokio::time::timeout(self.wait, answered).await {
            Ok(Ok(Ok(()))) => Ok(Recorded { decision }),
            // The writer has logged the record.
            Ok(Ok(Err(refusal))) => Err(refusal),
            Ok(Err(_)) => refuse(WRITER_GONE),
            Err(_) => refuse(DISK_STUCK),
        }
    }

    /// Lets go of the files, after everything that was handed in before. For the daemon's end,
    /// after its `stop` record; clones refuse from then on.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.queue.try_send(Request::Close(done)).is_ok() {
            let _ = tokio::time::timeout(self.wait, closed).await;
        }
    }
}

const QUEUE_FULL: &str = "too many records wait for the disk: check the disk";
const DISK_STUCK: &str = "the disk did not take the record in time: check the disk";
const WRITER_GONE: &str = "its writer has ended: restart Portcullis, its own log says why";
