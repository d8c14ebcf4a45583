//! What is noted while the daemon works.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::Read,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    audit::{ABOUT_THE_LOG, Event, Observer, Outcome, Record},
    refusal::Refusal,
};

use super::{AuditReport, ClientReport, Count, RefusalReport, Report};

/// Most refusals that are remembered.
const MAX_REFUSALS: usize = 10;
/// Longest text of one of them, in characters.
pub(super) const MAX_TEXT: usize = 400;
/// Longest account of policies that do not load, in characters.
pub(super) const MAX_PROBLEM: usize = 4000;
/// What kubelet is called by the system.
const KUBELET: &str = "kubelet";
/// What Portcullis is called: its own questions are no sign of use.
const OURSELVES: &str = "portcullis";

/// Everything that is noted. Clones share it.
#[derive(Clone, Debug)]
pub struct Board(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: (Timestamp, Instant),
    notes: Mutex<Notes>,
    clients: Mutex<Clients>,
    /// Counted without a lock: a panic may hold one.
    faults: AtomicU64,
}

#[derive(Debug, Default)]
struct Notes {
    seq: u64,
    unavailable: Option<String>,
    drift: Option<String>,
    unrecorded: u64,
    decisions: BTreeMap<String, Count>,
    refusals: VecDeque<RefusalReport>,
    evidence: Vec<String>,
}

/// The processes that connected last.
#[derive(Debug, Default)]
struct Clients {
    kubelet: Option<Arc<Client>>,
    other: Option<Arc<Client>>,
}

/// A process on the other side of the socket, as it was when it connected.
#[derive(Debug)]
pub struct Client {
    pid: i32,
    name: String,
    start: Instant,
    /// Milliseconds from `start` to its last call, and one more. 0: it made none.
    called: AtomicU64,
}

impl Client {
    /// Notes that it calls now.
    pub fn calls(&self) {
        let at = self.start.elapsed().as_millis().try_into().unwrap_or(u64::MAX - 1);
        self.called.store(at + 1, Ordering::Relaxed);
    }

    fn report(&self) -> Option<ClientReport> {
        let called = self.called.load(Ordering::Relaxed).checked_sub(1)?;
        let now: u64 = self.start.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        let seconds_ago = now.saturating_sub(called) / 1000;
        Some(ClientReport { pid: self.pid, name: self.name.clone(), seconds_ago })
    }
}

impl Default for Board {
    fn default() -> Self {
        let started = (Timestamp::now(), Instant::now());
        let (notes, clients) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { started, notes, clients, faults: AtomicU64::new(0) }))
    }
}

impl Board {
    /// Notes a connection of this process. None: its calls say nothing of whether the gate is in
    /// use. Reads one small file of `/proc`.
    pub fn connected(&self, pid: Option<i32>) -> Option<Arc<Client>> {
        let pid = pid.filter(|pid| *pid > 0)?;
        self.client(pid, &name_of(pid)?)
    }

    fn client(&self, pid: i32, name: &str) -> Option<Arc<Client>> {
        if name == OURSELVES {
            return None;
        }
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let Clients { kubelet, other } = &mut *clients;
        let slot = if name == KUBELET { kubelet } else { other };
        // kubelet has two connections, which are one client.
        if let Some(client) = slot.as_ref().filter(|one| one.pid == pid && one.name == name) {
            return Some(client.clone());
        }
        let (name, start) = (name.to_owned(), self.0.started.1);
        let client = Arc::new(Client { pid, name, start, called: AtomicU64::new(0) });
        Some(slot.insert(client).clone())
    }

    /// Notes that the audit log takes nothing, from its start on.
    pub fn audit_unavailable(&self, refusal: &Refusal) {
        self.notes().unavailable = Some(cut(&refusal.message, MAX_TEXT));
    }

    /// Notes what is wrong with the evidence kept on this node.
    pub fn evidence(&self, findings: Vec<String>) {
        self.notes().evidence = findings;
    }

    /// Notes a panic, wherever it happened.
    pub fn fault(&self) {
        self.0.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// What is noted so far.
    pub(super) fn report(&self) -> Report {
        let (started, start) = self.0.started;
        let clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |client: &Option<Arc<Client>>| client.as_ref()?.report();
        let (kubelet, other_client) = (told(&clients.kubelet), told(&clients.other));
        drop(clients);
        let notes = self.notes();
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: started.to_string(),
            uptime_seconds: start.elapsed().as_secs(),
            audit: AuditReport {
                seq: notes.seq,
                unavailable: notes.unavailable.clone(),
                drift: notes.drift.clone(),
                ..Default::default()
            },
            kubelet,
            other_client,
            evidence: notes.evidence.clone(),
            decisions: notes.decisions.clone(),
            unrecorded: notes.unrecorded,
            faults: self.0.faults.load(Ordering::Relaxed),
            refusals: notes.refusals.iter().cloned().collect(),
            ..Default::default()
        }
    }

    // Nothing that runs under the lock can panic; a poisoned one holds a whole value.
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Board {
    fn recorded(&self, record: &Record, seq: u64) {
        let mut notes = self.notes();
        (notes.seq, notes.unavailable) = (seq, None);
        if let (Event::Drift, Some(finding)) =
            (record.event, record.message.strip_prefix(ABOUT_THE_LOG))
        {
            notes.drift = Some(cut(finding, MAX_TEXT));
        }
        let Some(decision) = record.decision else { return };
        let count = notes.decisions.entry(written(record.event)).or_default();
        match decision {
            Outcome::Allow => count.allow += 1,
            Outcome::Warn => count.warn += 1,
            Outcome::Deny => {
                count.deny += 1;
                notes.refusals.truncate(MAX_REFUSALS - 1);
                notes.refusals.push_front(refusal(record));
            }
        }
    }

    fn unrecorded(&self, _record: &Record, refusal: &Refusal) {
        let mut notes = self.notes();
        notes.unrecorded += 1;
        notes.unavailable = Some(cut(&refusal.message, MAX_TEXT));
    }
}

fn refusal(record: &Record) -> RefusalReport {
    let image = record.image.as_ref().map_or("", |image| &image.requested);
    // The pod of a call that names none is empty.
    let pod = record.pod.as_ref().filter(|pod| !pod.namespace.is_empty() || !pod.name.is_empty());
    let pod = pod.map(|pod| format!("{}/{}", pod.namespace, pod.name));
    RefusalReport {
        time: format!("{:.0}", Timestamp::now()),
        event: written(record.event),
        image: cut(image, MAX_TEXT),
        pod: pod.map(|pod| cut(&pod, MAX_TEXT)),
        reason: record.reason.map(|code| code.to_string()).unwrap_or_default(),
        message: cut(&record.message, MAX_TEXT),
    }
}

/// An event as it is written in records.
fn written(event: Event) -> String {
    match serde_json::to_value(event) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What the system calls a process: 15 bytes at most.
fn name_of(pid: i32) -> Option<String> {
    let mut name = Vec::new();
    File::open(format!("/proc/{pid}/comm")).ok()?.take(64).read_to_end(&mut name).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Pod, RequestedImage},
        refusal::Code,
    };

    fn record(decision: Outcome, number: usize) -> Record {
        Record {
            decision: Some(decision),
            reason: Some(Code::SignatureMissing),
            image: Some(RequestedImage {
                requested: format!("app:{number}"),
                ..Default::default()
            }),
            ..Record::new(Event::Pull, "é".repeat(MAX_TEXT + 1))
        }
    }

    #[test]
    fn decisions_are_counted_and_the_last_refusals_kept() {
        let board = Board::default();
        board.recorded(&Record::new(Event::Start, "started"), 1);
        (2..20).for_each(|number| board.recorded(&record(Outcome::Deny, number), number as u64));
        board.recorded(&record(Outcome::Allow, 20), 20);
        board.recorded(&record(Outcome::Warn, 21), 21);
        let report = board.report();
        let count = Count { allow: 1, deny: 18, warn: 1 };
        assert_eq!(report.decisions, BTreeMap::from([("pull".to_owned(), count)]));
        let images: Vec<_> = report.refusals.iter().map(|refusal| &*refusal.image).collect();
        let expected: Vec<_> = (10..20).rev().map(|number| format!("app:{number}")).collect();
        assert_eq!(images, expected);
        assert_eq!(report.refusals[0].message, "é".repeat(MAX_TEXT) + "…");
        assert_eq!(report.audit.seq, 21);
    }

    #[test]
    fn a_refusal_names_the_pod_of_a_call_that_names_one() {
        let pod = |namespace: &str, name: &str| {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            let pod = Some(Pod { namespace, name, uid: String::new() });
            refusal(&Record { pod, ..record(Outcome::Deny, 1) }).pod
        };
        assert_eq!(pod("shop", "web-0").as_deref(), Some("shop/web-0"));
        assert_eq!(pod("", ""), None);
        assert_eq!(refusal(&record(Outcome::Deny, 1)).pod, None);
    }

    #[test]
    fn a_log_that_takes_nothing_is_told_until_it_does() {
        let board = Board::default();
        let refusal = Refusal::new(Code::AuditUnavailable, "full");
        board.unrecorded(&record(Outcome::Allow, 1), &refusal);
        let report = board.report();
        assert_eq!((report.audit.unavailable.as_deref(), report.unrecorded), (Some("full"), 1));
        assert!(report.decisions.is_empty());
        board.recorded(&record(Outcome::Allow, 2), 7);
        let report = board.report();
        assert_eq!((report.audit.unavailable, report.audit.seq, report.unrecorded), (None, 7, 1));
    }

    #[test]
    fn a_client_is_told_once_it_has_called() {
        let board = Board::default();
        assert!(board.client(7, OURSELVES).is_none());
        assert!(board.connected(None).is_none());
        assert!(board.connected(Some(0)).is_none());
        let first = board.client(7, KUBELET).unwrap();
        assert_eq!(board.report().kubelet, None);
        first.calls();
        let expected = ClientReport { pid: 7, name: KUBELET.into(), seconds_ago: 0 };
        assert_eq!(board.report().kubelet, Some(expected));
        // Its second connection is the same client, and another process is another.
        assert!(Arc::ptr_eq(&first, &board.client(7, KUBELET).unwrap()));
        board.client(8, "crictl").unwrap().calls();
        assert_eq!(board.report().other_client.unwrap().name, "crictl");
        board.client(9, KUBELET).unwrap();
        assert_eq!(board.report().kubelet, None);
    }

    #[test]
    fn a_process_has_a_name() {
        assert!(name_of(std::process::id() as i32).is_some_and(|name| !name.is_empty()));
        assert_eq!(name_of(i32::MAX), None);
    }
}
