//! What the daemon tells of itself, as JSON between two processes of maybe different versions:
//! what is absent has its default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Of the daemon.
    pub version: String,
    /// When it started, in RFC 3339.
    pub started: String,
    /// How long ago.
    pub uptime_seconds: u64,
    /// A policy set is in force and the audit log takes records: the gate does what it is for.
    /// Otherwise it refuses everything that it judges. Whether pods can start is told by `sandbox`.
    pub enforcing: bool,
    /// `policies`
    pub policies: PoliciesReport,
    /// `audit`
    pub audit: AuditReport,
    /// `runtime`
    pub runtime: RuntimeReport,
    /// The sandbox (pause) image.
    pub sandbox: SandboxReport,
    /// The socket that kubelet must be configured with.
    pub socket: String,
    /// The kubelet that called. None: none has since the start.
    pub kubelet: Option<ClientReport>,
    /// The last other client that called.
    pub other_client: Option<ClientReport>,
    /// What is wrong with the evidence that is kept on this node.
    pub evidence: Vec<String>,
    /// The last look at what the runtime has, where there was one: an
    /// [`inventory::Summary`](crate::inventory::Summary) with its `age_seconds`.
    pub inventory: Option<Value>,
    /// What was decided since the start, by event.
    pub decisions: BTreeMap<String, Count>,
    /// Records that the audit log did not take since the start; all of these calls were refused.
    pub unrecorded: u64,
    /// Panics in Portcullis since the start. Each refused what it ended; the daemon's log tells more.
    pub faults: u64,
    /// The last refusals, the latest first.
    pub refusals: Vec<RefusalReport>,
}

/// The policies in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoliciesReport {
    /// Where they come from.
    pub source: String,
    /// Names exactly the set in force. None: no set is.
    pub digest: Option<String>,
    /// How many there are in it.
    pub count: usize,
    /// How many of them only warn.
    pub only_warn: usize,
    /// The source's own count of its changes, where it has one.
    pub revision: Option<u64>,
    /// Names exactly the source's set, without the floor of this node. None: there is none of it.
    pub source_digest: Option<String>,
    /// Since when the source's set is in force, in RFC 3339.
    pub loaded: Option<String>,
    /// For how long.
    pub age_seconds: u64,
    /// When the source last said that this is its set, in RFC 3339.
    pub confirmed: Option<String>,
    /// How long ago.
    pub confirmed_seconds_ago: Option<u64>,
    /// From this moment on it is in force no more, unless the source is heard before.
    pub until: Option<String>,
    /// What kind of trouble there is: `Rejected`, `Unreachable`, `Expired` or `NotKept`.
    pub trouble: Option<String>,
    /// What the trouble is, or why no set is in force.
    pub rejected: Option<String>,
}

/// The audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditReport {
    /// The file.
    pub file: String,
    /// `seq` of its last line.
    pub seq: u64,
    /// Why it did not take the last record.
    pub unavailable: Option<String>,
    /// What was last found not to be as Portcullis left it, of the log and its head, since the
    /// start.
    pub drift: Option<String>,
}

/// The container runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeReport {
    /// Its socket.
    pub endpoint: String,
    /// Its name and version. None: it did not answer.
    pub version: Option<String>,
    /// Why it did not.
    pub problem: Option<String>,
}

/// The sandbox (pause) image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxReport {
    /// Its name, where it is known.
    pub image: Option<String>,
    /// It is on this node, and the policies in force accept it.
    pub proven: bool,
    /// Why it is not.
    pub problem: Option<String>,
}

/// A process that called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientReport {
    /// Its process ID, as it was when it connected.
    pub pid: i32,
    /// Its name (`/proc/<pid>/comm`).
    pub name: String,
    /// How long ago its last call came.
    pub seconds_ago: u64,
}

/// Decisions of one kind of event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    /// The call went on.
    pub allow: u64,
    /// The call was refused.
    pub deny: u64,
    /// The call went on although policies refuse the image.
    pub warn: u64,
}

/// One refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusalReport {
    /// When, in RFC 3339.
    pub time: String,
    /// `event` of its audit record.
    pub event: String,
    /// The image as it was asked for.
    pub image: String,
    /// `namespace/name` of the pod, where the call names one.
    pub pod: Option<String>,
    /// The code.
    pub reason: String,
    /// For people, shortened.
    pub message: String,
}
