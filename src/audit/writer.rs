//! The thread that writes: whatever waits becomes one write and one sync, then all are answered.
//!
//! The chain moves on only when its line is synced. Whatever goes wrong before that is cut off
//! the file again, and the next batch begins by looking at what is really there. So a disk that
//! was full, or a log that was rotated, needs no restart.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, mpsc},
};

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::refusal::{Code, Refusal};

use super::{
    Event, LogError, Observer, Position, Record,
    end::{self, Opening},
    file,
    head::Head,
    line,
};

/// Most records in one write.
const MAX_BATCH: usize = 256;
/// Most records of our own that wait for the disk.
const MAX_PENDING: usize = 16;
/// The write buffer keeps this much room from batch to batch, in bytes.
const KEPT_BUFFER: usize = 256 * 1024;

/// What the queue carries.
pub(super) enum Request {
    /// Write this, then answer.
    Record(Arc<Record>, oneshot::Sender<Result<(), Refusal>>),
    /// Answer everything before, let go of the files, then answer.
    Close(oneshot::Sender<()>),
}

/// What the writer asks of the disk; tests put faults in between.
pub(super) trait Disk: Send {
    fn write(&mut self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }
    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
    fn truncate(&mut self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }
}

/// The disk without faults of ours.
pub(super) struct RealDisk;

impl Disk for RealDisk {}

/// The state of one log.
pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) state_directory: PathBuf,
    pub(super) node: String,
    disk: Box<dyn Disk>,
    head: Option<Head>,
    log: Option<OpenLog>,
    /// The end of the chain, as far as it is known.
    position: Option<Position>,
    /// Records of our own that go before the next batch.
    pending: Vec<Record>,
    opening: Opening,
    findings: Vec<String>,
    buffer: Vec<u8>,
    observers: Vec<Arc<dyn Observer>>,
}

/// The log file, open, locked, and whole up to `length`.
struct OpenLog {
    file: File,
    /// Device and inode.
    id: (u64, u64),
    length: u64,
    /// There may be bytes behind `length` that no answer speaks for.
    soiled: bool,
}

impl Writer {
    pub(super) fn new(
        path: PathBuf,
        state_directory: PathBuf,
        node: String,
        start: Record,
        disk: Box<dyn Disk>,
        observers: Vec<Arc<dyn Observer>>,
    ) -> Self {
        Self {
            path,
            state_directory,
            node,
            disk,
            head: None,
            log: None,
            position: None,
            pending: vec![start],
            opening: Opening::Start,
            findings: Vec::new(),
            buffer: Vec::new(),
            observers,
        }
    }

    /// What was unusual about the files at the start.
    pub(super) fn findings(&self) -> &[String] {
        &self.findings
    }

    /// The `seq` of the last line.
    pub(super) fn seq(&self) -> u64 {
        self.position.map_or(0, |position| position.seq)
    }

    /// Serves the queue until it is closed.
    pub(super) fn run(mut self, queue: &mpsc::Receiver<Request>) {
        let mut closing = None;
        while closing.is_none() {
            let Ok(first) = queue.recv() else { break };
            let mut records = Vec::new();
            let mut answers = Vec::new();
            for request in std::iter::once(first).chain(queue.try_iter()) {
                match request {
                    Request::Record(record, answer) => {
                        records.push(record);
                        answers.push(answer);
                    }
                    Request::Close(done) => closing = Some(done),
                }
                if closing.is_some() || records.len() == MAX_BATCH {
                    break;
                }
            }
            // A fault costs its own batch: what it left behind the last line is cut off by the next.
            let failed = match guarded(|| self.commit(&records)) {
                Some(Ok(())) => None,
                Some(Err(error)) => Some(unavailable(&error)),
                None => Some(unavailable(&FAULT)),
            };
            if let Some(refusal) = &failed {
                for record in &records {
                    unwritten(record, refusal, &self.observers);
                }
            }
            let outcome = failed.map_or(Ok(()), Err);
            for answer in answers {
                // Who no longer waits has no answer to send.
                let _ = answer.send(outcome.clone());
            }
            if outcome.is_ok() {
                guarded(|| self.keep_head());
            }
        }
        guarded(|| self.sync_head());
        drop(self);
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    /// Writes and syncs these records, all or none.
    pub(super) fn commit(&mut self, records: &[Arc<Record>]) -> Result<(), LogError> {
        let mut position = self.ready()?;
        let before = position.seq;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER);
        for record in self.pending.iter().chain(records.iter().map(|record| &**record)) {
            position =
                line::append(&mut self.buffer, &position, Timestamp::now(), &self.node, record)
                    .map_err(LogError::io("write", &self.path))?;
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.append().map_err(LogError::io("write", &self.path))?;
        self.position = Some(position);
        let pending = std::mem::take(&mut self.pending);
        let written = pending.iter().chain(records.iter().map(|record| &**record));
        for (seq, record) in (before + 1..).zip(written) {
            self.observers.iter().for_each(|observer| observer.recorded(record, seq));
        }
        Ok(())
    }

    /// Keeps the end of the chain beside the log. A head that lags is no reason to refuse.
    pub(super) fn keep_head(&mut self) {
        if let (Some(head), Some(position)) = (&mut self.head, &self.position)
            && let Err(error) = head.write(position)
        {
            tracing::warn!("audit head: {error}");
        }
    }

    /// Makes the head survive a power cut as well.
    pub(super) fn sync_head(&self) {
        if let Some(head) = &self.head
            && let Err(error) = head.sync()
        {
            tracing::warn!("audit head: {error}");
        }
    }

    /// Adds the buffer to the file. After an error, nothing of it is there.
    fn append(&mut self) -> io::Result<()> {
        let Some(log) = &mut self.log else { return Err(io::ErrorKind::NotFound.into()) };
        log.soiled = true;
        let written = write_all(&mut *self.disk, &log.file, &self.buffer)
            .and_then(|()| self.disk.sync(&log.file));
        match written {
            Ok(()) => {
                log.length += self.buffer.len() as u64;
                log.soiled = false;
            }
            // If this fails too, the next batch tries it again before all else.
            Err(_) => log.soiled = self.disk.truncate(&log.file, log.length).is_err(),
        }
        written
    }

    /// Makes sure that the file at the path is ours, locked and whole, and returns the chain's
    /// end.
    fn ready(&mut self) -> Result<Position, LogError> {
        if self.head.as_ref().is_some_and(|head| !head.is_in_place()) {
            self.head = None;
            self.note(Some(HEAD_GONE.to_owned()));
        }
        if self.head.is_none() {
            let (head, reading) = Head::open(&self.state_directory)?;
            self.head = Some(head);
            // What is known already is what this process wrote itself.
            self.position = self.position.or(reading.position);
            self.note(reading.finding());
        }
        if let Some(log) = &mut self.log {
            let unread = LogError::io("read", &self.path);
            match std::fs::symlink_metadata(&self.path) {
                Ok(found) if (found.dev(), found.ino()) == log.id => {
                    let mut length = found.len();
                    if log.soiled {
                        self.disk
                            .truncate(&log.file, log.length)
                            .map_err(LogError::io("truncate", &self.path))?;
                        log.soiled = false;
                        length = log.length;
                    }
                    if let (true, Some(position)) = (length == log.length, self.position) {
                        return Ok(position);
                    }
                    self.opening = Opening::Altered;
                }
                Ok(_) => self.opening = Opening::Rotated,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.opening = Opening::Rotated;
                }
                Err(error) => return Err(unread(error)),
            }
            // Lets go of the lock, which the same file may need.
            self.log = None;
        }
        self.open()
    }

    /// Opens the file at the path and brings it and the chain into line.
    fn open(&mut self) -> Result<Position, LogError> {
        let file = file::open_log(&self.path)?;
        let metadata = file.metadata().map_err(LogError::io("read", &self.path))?;
        let end = end::read(&file, self.position.as_ref())
            .map_err(LogError::io("read", &self.path))?
            .ok_or_else(|| LogError::Foreign(self.path.clone()))?;
        let (position, finding) = end.go_on(self.position.as_ref(), self.opening);
        let mut torn = None;
        if end.whole < end.length {
            let kept = file::preserve(&file, &self.path, end.whole, position.seq + 1)?;
            if let Err(error) = self.disk.truncate(&file, end.whole) {
                // The bytes are still in the log; the next try keeps them under this name again.
                let _ = std::fs::remove_file(&kept);
                return Err(LogError::io("truncate", &self.path)(error));
            }
            torn = Some(format!(
                "{} bytes behind its last whole line were moved to {}",
                end.length - end.whole,
                kept.display()
            ));
        }
        let id = (metadata.dev(), metadata.ino());
        self.log = Some(OpenLog { file, id, length: end.whole, soiled: false });
        self.position = Some(position);
        self.note(finding);
        self.note(torn);
        let verb = if position.seq == 0 { "begins" } else { "goes on" };
        tracing::info!("audit log {}: {verb} at seq {}", self.path.display(), position.seq + 1);
        Ok(position)
    }

    /// Puts what was found into the log itself: into the `start` record, or one of its own.
    fn note(&mut self, finding: Option<String>) {
        let Some(finding) = finding else { return };
        tracing::warn!("audit log {}: {finding}", self.path.display());
        if let Some(start) = self.pending.iter_mut().find(|record| record.event == Event::Start) {
            start.message.push_str("; the audit log: ");
            start.message.push_str(&finding);
            self.findings.push(finding);
        } else if self.pending.len() < MAX_PENDING {
            let message = format!("{ABOUT_THE_LOG}{finding}");
            if !self.pending.iter().any(|record| record.message == message) {
                self.pending.push(Record::new(Event::Drift, message));
            }
        }
    }
}

/// The beginning of a `drift` about the log itself.
pub(crate) const ABOUT_THE_LOG: &str = "the audit log: ";
const HEAD_GONE: &str = "its head, or the whole state directory with what was kept there, was removed \
                         or replaced while Portcullis ran; it is made anew";
const FAULT: &str = "a fault in Portcullis ended the write, its own log has the details";

/// What this comes to, or nothing where a fault ended it: the writer outlives its faults, since
/// without it nothing is judged any more.
fn guarded<T>(job: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(job)).ok()
}

fn write_all(disk: &mut dyn Disk, file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match disk.write(file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The refusal of everything that wants to be recorded.
pub(super) fn unavailable(why: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(
        Code::AuditUnavailable,
        format!("nothing is allowed unrecorded, and the audit log is not writable: {why}"),
    )
}

/// What the audit log does not take must not be lost.
pub(super) fn unwritten(record: &Record, refusal: &Refusal, observers: &[Arc<dyn Observer>]) {
    for observer in observers {
        guarded(|| observer.unrecorded(record, refusal));
    }
    tracing::error!(record = line::describe(record), "not in the audit log: {refusal}");
}
