//! Keeps the policies in force while they change.
//!
//! A good, different set is swapped in as a whole; anything else leaves the set in force and is
//! told, once. Of directories, inotify says when to look, and a slow poll looks where it cannot:
//! at keys outside of the directory, and at directories that come, go or move above it. Other
//! sources speak for themselves.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use crate::verify::PublicKey;

use super::{
    Current, Event, Heard, Offer,
    bundle::Sealed,
    ear::Ear,
    floor::Floor,
    keeper::{Keeper, Setup},
    kept::{Kept, Kind},
    source::{self, shown},
    standing::Standing,
};

/// What is watched, and where it is kept.
#[derive(Debug)]
pub struct Plan {
    /// Where the policies come from.
    pub source: Source,
    /// The directory of the floor. None: there is none.
    pub floor: Option<PathBuf>,
    /// How long a source is believed that is not heard of. None: for ever.
    pub max_age: Option<SignedDuration>,
    /// The last good sets are kept in it.
    pub state_directory: PathBuf,
    /// What says which sets those are lies beside it.
    pub audit_file: PathBuf,
}

/// Where policies come from.
#[derive(Debug)]
pub enum Source {
    /// A directory of files.
    Directory(PathBuf),
    /// What speaks for itself.
    Remote(Remote),
}

/// A source that is not on this node.
#[derive(Debug)]
pub struct Remote {
    /// As people know it.
    pub name: String,
    /// How what it said before is believed again.
    pub proof: Proof,
    /// What it says.
    pub heard: mpsc::Receiver<Heard>,
    /// Asks it to speak now.
    pub asked: Arc<Notify>,
}

/// Why a set of a remote source is believed.
#[derive(Clone, Debug)]
pub enum Proof {
    /// It came from the API server, or from a directory, and the mark names it.
    Mark,
    /// One of these keys signed it.
    Keys(Vec<PublicKey>),
}

impl Proof {
    /// Reads what was kept.
    fn open(&self, bytes: &[u8]) -> Result<Offer, String> {
        match self {
            Proof::Mark => Offer::of_kept_files(bytes),
            Proof::Keys(keys) => {
                let offer = Sealed::parse(bytes).and_then(|sealed| sealed.open(keys));
                offer.map_err(|error| error.to_string())
            }
        }
    }
}

/// When directories are looked at.
#[derive(Clone, Copy)]
struct Pace {
    /// Quiet that must follow a change: editors and deployments write in several steps.
    settle: Duration,
    /// Longest wait for quiet, so that steady changes cannot keep a policy out of force.
    settle_at_most: Duration,
    /// From one look to the next where nothing is heard of.
    poll: Duration,
}

const PACE: Pace = Pace {
    settle: Duration::from_millis(100),
    settle_at_most: Duration::from_secs(2),
    poll: Duration::from_secs(30),
};

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    asked: Arc<Notify>,
    standing: watch::Receiver<Standing>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Looks at the source and the floor now, and tells what became of it in any case.
    pub fn reload(&self) {
        self.asked.notify_one();
    }

    /// How the policies stand.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Returns when nothing is watched any more, which happens by a fault only.
    pub async fn ended(&mut self) {
        let _ = (&mut self.task).await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Loads the policies and keeps them in force.
///
/// What is on this node is loaded, and told, when this returns; all else happens on the Tokio
/// runtime that it must be called from, on threads where `on_event` may block. A directory that is
/// not there yet is waited for.
pub fn watch(
    plan: Plan,
    current: Current,
    on_event: impl FnMut(Event) + Send + 'static,
) -> Watcher {
    watch_at(PACE, plan, current, on_event)
}

fn watch_at(
    pace: Pace,
    plan: Plan,
    current: Current,
    on_event: impl FnMut(Event) + Send + 'static,
) -> Watcher {
    let (standing, stands) = watch::channel(Standing::default());
    let (kind, name, directory, remote) = match plan.source {
        Source::Directory(path) => (Kind::Directory, shown(&path), Some(path), None),
        Source::Remote(remote) => {
            let kind = match remote.proof {
                Proof::Mark => Kind::Kubernetes,
                Proof::Keys(_) => Kind::Bundle,
            };
            (kind, remote.name.clone(), None, Some(remote))
        }
    };
    let setup = Setup { kind, source: name, max_age: plan.max_age, floor: plan.floor.clone() };
    let kept = Kept::open(&plan.state_directory, &plan.audit_file);
    let changed = Arc::new(Notify::new());
    let paths = directory.iter().chain(&plan.floor);
    // Listens before the first look, so that no change falls between the two.
    let ears = paths.map(|path| Ear::new(path.clone(), changed.clone())).collect();
    let keeper = Keeper::new(setup, kept, current, standing);
    let mut watch = Watch { keeper, directory, floor: plan.floor, ears, on_event };
    watch.begin(remote.as_ref());
    let asked = Arc::new(Notify::new());
    let task = tokio::spawn(watch.run(pace, changed, asked.clone(), remote));
    Watcher { asked, standing: stands, task }
}

/// The keeper and what it looks at itself.
struct Watch<F> {
    keeper: Keeper,
    directory: Option<PathBuf>,
    floor: Option<PathBuf>,
    ears: Vec<Ear>,
    on_event: F,
}

/// What there is to do.
enum Task {
    Look { asked: bool },
    Hear { heard: Heard, asked: bool },
    Tick,
}

impl<F: FnMut(Event) + Send + 'static> Watch<F> {
    /// What is on this node comes into force before anything else is heard: of directories what
    /// they hold or else, as for other sources, what was kept.
    fn begin(&mut self, remote: Option<&Remote>) {
        let now = Timestamp::now();
        if let Some(floor) = &self.floor {
            let looked = Floor::read(floor, now);
            let recalled = looked.is_err().then(|| self.keeper.recall_floor(now)).flatten();
            self.tell(recalled);
            let event = self.keeper.look_at_floor(looked, now);
            self.tell(event);
        }
        let looked = self.directory.as_deref().map(|directory| source::read(directory, now));
        if !matches!(looked, Some(Ok(_))) {
            let proof = remote.map_or(&Proof::Mark, |remote| &remote.proof);
            let event = self.keeper.recall(|bytes| proof.open(bytes), now);
            self.tell(event);
        }
        if let Some(looked) = looked {
            let event = self.keeper.look(looked, false, now);
            self.tell(event);
        }
    }

    async fn run(
        mut self,
        pace: Pace,
        changed: Arc<Notify>,
        asked: Arc<Notify>,
        mut remote: Option<Remote>,
    ) {
        // Somebody asked, and the source has not answered yet.
        let mut due = false;
        let mut looked = Instant::now();
        loop {
            let task = tokio::select! {
                () = asked.notified() => {
                    if let Some(remote) = &remote {
                        remote.asked.notify_one();
                        due = true;
                    }
                    Task::Look { asked: true }
                }
                () = changed.notified() => {
                    let latest = Instant::now() + pace.settle_at_most;
                    while Instant::now() < latest
                        && timeout(pace.settle, changed.notified()).await.is_ok()
                    {}
                    Task::Look { asked: false }
                }
                heard = next(&mut remote) => match heard {
                    Some(heard) => Task::Hear { heard, asked: std::mem::take(&mut due) },
                    // Who spoke is gone by a fault.
                    None => return,
                },
                () = sleep(self.pause(pace, looked)) => match looked.elapsed() >= pace.poll {
                    true => Task::Look { asked: false },
                    false => Task::Tick,
                },
            };
            if matches!(task, Task::Look { .. }) {
                looked = Instant::now();
            }
            // Reading, parsing, and writing to disk and to the audit log.
            match spawn_blocking(move || self.work(task)).await {
                Ok(back) => self = back,
                Err(_panicked) => return,
            }
        }
    }

    /// Until there is something to do without anything being heard.
    fn pause(&self, pace: Pace, looked: Instant) -> Duration {
        let poll = pace.poll.saturating_sub(looked.elapsed());
        let until = self.keeper.next().map(|until| until.duration_since(Timestamp::now()));
        until.map_or(poll, |until| poll.min(until.try_into().unwrap_or(Duration::ZERO)))
    }

    fn work(mut self, task: Task) -> Self {
        match task {
            Task::Look { asked } => {
                self.ears.iter_mut().for_each(Ear::listen);
                self.look_at_floor();
                if let Some(directory) = self.directory.clone() {
                    self.look(&directory, asked);
                }
            }
            Task::Hear { heard, asked } => {
                let event = self.keeper.hear(heard, asked, Timestamp::now());
                self.tell(event);
            }
            Task::Tick => {}
        }
        let event = self.keeper.tick(Timestamp::now());
        self.tell(event);
        self
    }

    fn look(&mut self, directory: &Path, asked: bool) {
        let now = Timestamp::now();
        let event = self.keeper.look(source::read(directory, now), asked, now);
        self.tell(event);
    }

    fn look_at_floor(&mut self) {
        let Some(floor) = &self.floor else { return };
        let now = Timestamp::now();
        let event = self.keeper.look_at_floor(Floor::read(floor, now), now);
        self.tell(event);
    }

    fn tell(&mut self, event: Option<Event>) {
        if let Some(event) = event {
            (self.on_event)(event);
        }
    }
}

/// What a remote source says next; for ever where there is none.
async fn next(remote: &mut Option<Remote>) -> Option<Heard> {
    match remote {
        Some(remote) => remote.heard.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
