//! Answers the question how the gate stands.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::Value;
use tokio::{runtime::Handle, sync::watch, time::timeout};

use crate::{
    inventory::Summary,
    pipeline::Pipeline,
    policy::{self, Mode, standing::Standing},
};

use super::{
    Board, Report, RuntimeReport, SandboxReport,
    board::{MAX_PROBLEM, MAX_TEXT, cut},
};

/// How long the runtime may take to tell of itself.
const ASKING: Duration = Duration::from_secs(2);

/// Who is asked how the gate stands. Clones share it.
#[derive(Clone, Debug)]
pub struct Desk(Arc<Parts>);

/// What the answer is put together from.
#[derive(Debug)]
pub struct Parts {
    /// What was noted so far.
    pub board: Board,
    /// The policies in force.
    pub policies: policy::Current,
    /// How they stand.
    pub standing: watch::Receiver<Standing>,
    /// Knows the runtime and the sandbox image.
    pub pipeline: Pipeline,
    /// The last look at what the runtime has.
    pub inventory: watch::Receiver<Option<Arc<Summary>>>,
    /// Where things are.
    pub places: Places,
    /// Where questions are answered, away from the relay.
    pub threads: Handle,
}

/// Where things are, by the configuration.
#[derive(Clone, Debug)]
pub struct Places {
    /// `listen.socket`
    pub socket: PathBuf,
    /// `runtime.endpoint`
    pub endpoint: PathBuf,
    /// `policy.source`
    pub source: String,
    /// `audit.file`
    pub audit_file: PathBuf,
}

impl Desk {
    /// Nobody has asked yet.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Where connections are noted.
    pub fn board(&self) -> &Board {
        &self.0.board
    }

    /// How the gate stands, as JSON.
    pub async fn report(&self) -> Vec<u8> {
        let desk = self.0.clone();
        let report = self.0.threads.spawn(async move { desk.report().await }).await;
        // A fault leaves what is noted without being asked.
        let report = report.unwrap_or_else(|_| self.0.board.report());
        serde_json::to_vec(&report).unwrap_or_default()
    }
}

impl Parts {
    async fn report(&self) -> Report {
        let mut report = self.board.report();
        report.inventory = {
            let summary = self.inventory.borrow();
            summary.as_deref().and_then(|summary| looked(summary, Timestamp::now()))
        };
        let Places { socket, endpoint, source, audit_file } = &self.places;
        report.socket = socket.display().to_string();
        report.policies.source.clone_from(source);
        report.audit.file = audit_file.display().to_string();
        self.policies(&mut report, Timestamp::now());
        report.runtime = RuntimeReport {
            endpoint: endpoint.display().to_string(),
            ..within(self.runtime()).await.unwrap_or_else(|| RuntimeReport {
                problem: Some(SILENT.to_owned()),
                ..Default::default()
            })
        };
        // A runtime that does not tell its version tells nothing else.
        report.sandbox = match &report.runtime.problem {
            Some(problem) => SandboxReport { problem: Some(problem.clone()), ..Default::default() },
            None => within(self.sandbox()).await.unwrap_or_else(|| SandboxReport {
                problem: Some(SILENT.to_owned()),
                ..Default::default()
            }),
        };
        report
    }

    fn policies(&self, report: &mut Report, now: Timestamp) {
        let standing = self.standing.borrow().clone();
        let policies = &mut report.policies;
        let ago = |at| now.duration_since(at).as_secs().try_into().unwrap_or(0);
        let shown = |at: Timestamp| format!("{at:.0}");
        policies.confirmed = standing.confirmed.map(shown);
        policies.confirmed_seconds_ago = standing.confirmed.map(ago);
        if let Some(in_force) = &standing.in_force {
            policies.until = in_force.until.map(shown);
            policies.source_digest = Some(in_force.digest.to_string());
            policies.loaded = Some(shown(in_force.since));
            policies.age_seconds = ago(in_force.since);
        }
        if let Some(trouble) = &standing.trouble {
            policies.trouble = Some(trouble.kind.as_str().to_owned());
            policies.rejected = Some(cut(&trouble.message, MAX_PROBLEM));
        }
        match self.policies.snapshot(now) {
            Ok(set) => {
                policies.digest = Some(set.digest().to_string());
                policies.revision = set.revision();
                policies.count = set.policies().len();
                let only_warn = set.policies().iter().filter(|policy| policy.mode == Mode::Warn);
                policies.only_warn = only_warn.count();
                report.enforcing = report.audit.unavailable.is_none();
            }
            Err(refusal) => {
                policies.rejected.get_or_insert(refusal.message);
            }
        }
    }

    async fn runtime(&self) -> RuntimeReport {
        match self.pipeline.runtime_version().await {
            Ok(version) => RuntimeReport { version: Some(version), ..Default::default() },
            Err(error) => RuntimeReport { problem: Some(error.to_string()), ..Default::default() },
        }
    }

    async fn sandbox(&self) -> SandboxReport {
        let name = match self.pipeline.sandbox_image().await {
            Ok(name) => name,
            Err(error) => {
                return SandboxReport { problem: Some(error.to_string()), ..Default::default() };
            }
        };
        let standing = self.pipeline.sandbox_standing(&name).await;
        let problem = standing.err().map(|refusal| refusal.message);
        SandboxReport { image: Some(name.to_string()), proven: problem.is_none(), problem }
    }
}

/// The last look at the runtime, as JSON, with its age in seconds; what it says of single images
/// shortened.
fn looked(summary: &Summary, now: Timestamp) -> Option<Value> {
    let mut summary = summary.clone();
    for unproven in &mut summary.images.why {
        unproven.message = cut(&unproven.message, MAX_TEXT);
    }
    let age: u64 = now.duration_since(summary.taken).as_secs().try_into().unwrap_or(0);
    let mut told = serde_json::to_value(summary).ok()?;
    told["age_seconds"] = age.into();
    Some(told)
}

const SILENT: &str = "the container runtime does not answer";

async fn within<T>(asking: impl Future<Output = T>) -> Option<T> {
    timeout(ASKING, asking).await.ok()
}
