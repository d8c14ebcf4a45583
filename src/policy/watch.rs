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
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::TempDir;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::{policy::PolicySet, verify::testing::Pair};

    /// No test waits for this long unless it fails.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Looks only when something is heard or asked.
    const BY_EAR: Pace = Pace {
        settle: Duration::from_millis(20),
        settle_at_most: Duration::from_secs(1),
        poll: Duration::from_secs(3600),
    };
    const BY_POLL: Pace = Pace { poll: Duration::from_millis(20), ..BY_EAR };

    struct Scene {
        current: Current,
        watcher: Watcher,
        events: UnboundedReceiver<String>,
        _node: TempDir,
    }

    fn plan(directory: &Path, node: &Path) -> Plan {
        Plan {
            source: Source::Directory(directory.to_owned()),
            floor: None,
            max_age: None,
            state_directory: node.join("state"),
            audit_file: node.join("audit.jsonl"),
        }
    }

    fn start(pace: Pace, directory: &Path) -> Scene {
        let current = Current::default();
        let (tell, events) = unbounded_channel();
        let path = directory.display().to_string();
        let node = TempDir::new().unwrap();
        let plan = plan(directory, node.path());
        let watcher = watch_at(pace, plan, current.clone(), move |event| {
            let names = |set: &PolicySet| {
                set.policies().iter().map(|policy| &*policy.name).collect::<Vec<_>>().join(" ")
            };
            let _ = tell.send(match event {
                Event::Loaded(set) => format!("loaded {}", names(&set)),
                Event::Recalled(set) => format!("recalled {}", names(&set)),
                Event::Rejected(problems) => format!("rejected {problems}").replace(&path, "D"),
                Event::Unchanged(set) => format!("unchanged {}", names(&set)),
                Event::Unreachable(why) => format!("unreachable {why}"),
                Event::Expired(why) => format!("expired {why}"),
            });
        });
        Scene { current, watcher, events, _node: node }
    }

    impl Scene {
        async fn next(&mut self) -> String {
            timeout(PATIENCE, self.events.recv()).await.expect("an event").expect("the watcher")
        }

        fn in_force(&self) -> String {
            match self.current.snapshot(Timestamp::now()) {
                Ok(set) => set.policies()[0].name.clone(),
                Err(refusal) => refusal.message,
            }
        }
    }

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\n\
             metadata: {{name: {name}}}\nspec:\n  match: {{images: ['**']}}\n  \
             authorities: [{{name: a, unsigned: {{reason: test}}}}]\n"
        )
    }

    /// Replaces a file in one step, as careful editors do.
    fn put(path: &Path, text: &str) {
        let draft = path.with_extension("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, path).unwrap();
    }

    const EMPTY: &str = "rejected D: holds no policy (*.yaml, *.yml)";

    #[tokio::test]
    async fn a_changed_policy_comes_into_force() {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("p.yaml");
        put(&file, &policy("one"));
        let mut scene = start(BY_EAR, directory.path());
        // The first look is over when `watch` returns.
        assert_eq!(
            (scene.events.try_recv().unwrap(), scene.in_force()),
            ("loaded one".into(), "one".into())
        );
        put(&file, &policy("two"));
        assert_eq!(scene.next().await, "loaded two");
        assert_eq!(scene.in_force(), "two");
        // Written in place, without a rename.
        fs::write(&file, policy("three")).unwrap();
        while scene.next().await != "loaded three" {}
        assert_eq!(scene.in_force(), "three");
    }

    #[tokio::test]
    async fn a_bad_set_is_told_once_and_leaves_the_old_one_in_force() {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("p.yaml");
        put(&file, &policy("one"));
        let mut scene = start(BY_POLL, directory.path());
        assert_eq!(scene.next().await, "loaded one");
        put(&file, "{}");
        assert_eq!(scene.next().await, "rejected D/p.yaml:1:1: is empty");
        assert_eq!(scene.in_force(), "one");
        // Who asks is told in any case.
        scene.watcher.reload();
        assert_eq!(scene.next().await, "rejected D/p.yaml:1:1: is empty");
        fs::remove_file(&file).unwrap();
        assert_eq!(scene.next().await, EMPTY);
        assert_eq!(scene.in_force(), "one");
        put(&file, &policy("one"));
        assert_eq!(scene.next().await, "unchanged one");
        scene.watcher.reload();
        assert_eq!(scene.next().await, "unchanged one");
        put(&file, &policy("two"));
        assert_eq!(scene.next().await, "loaded two");
    }

    #[tokio::test]
    async fn nothing_is_in_force_until_the_directory_appears() {
        let parent = TempDir::new().unwrap();
        let directory = parent.path().join("policies");
        let mut scene = start(BY_EAR, &directory);
        let gone = "rejected D: cannot be read: No such file or directory (os error 2)";
        assert_eq!(scene.next().await, gone);
        assert!(scene.in_force().starts_with("no policy is in force on this node"));
        let draft = parent.path().join("draft");
        fs::create_dir(&draft).unwrap();
        put(&draft.join("p.yaml"), &policy("one"));
        fs::rename(&draft, &directory).unwrap();
        assert_eq!(scene.next().await, "loaded one");
        // It is listened to from now on, and so is what takes its place.
        put(&directory.join("p.yaml"), &policy("two"));
        assert_eq!(scene.next().await, "loaded two");
        fs::rename(&directory, parent.path().join("old")).unwrap();
        assert_eq!(scene.next().await, gone);
        assert_eq!(scene.in_force(), "two");
        fs::create_dir(&draft).unwrap();
        put(&draft.join("p.yaml"), &policy("three"));
        fs::rename(&draft, &directory).unwrap();
        assert_eq!(scene.next().await, "loaded three");
        put(&directory.join("p.yaml"), &policy("four"));
        assert_eq!(scene.next().await, "loaded four");
    }

    #[tokio::test]
    async fn a_config_map_is_swapped_as_a_whole() {
        let directory = TempDir::new().unwrap();
        let mount = |name: &str| directory.path().join(name);
        for (version, name) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(mount(version)).unwrap();
            put(&mount(version).join("p.yaml"), &policy(name));
        }
        symlink("..1", mount("..data")).unwrap();
        symlink("..data/p.yaml", mount("p.yaml")).unwrap();
        let mut scene = start(BY_EAR, directory.path());
        assert_eq!(scene.next().await, "loaded one");
        symlink("..2", mount("..data_tmp")).unwrap();
        fs::rename(mount("..data_tmp"), mount("..data")).unwrap();
        assert_eq!(scene.next().await, "loaded two");
    }

    #[tokio::test]
    async fn a_directory_behind_a_link_is_found_again_when_the_link_moves() {
        let parent = TempDir::new().unwrap();
        let path = |name: &str| parent.path().join(name);
        for name in ["one", "two"] {
            fs::create_dir(path(name)).unwrap();
            put(&path(name).join("p.yaml"), &policy(name));
        }
        symlink("one", path("policies")).unwrap();
        let mut scene = start(BY_EAR, &path("policies"));
        assert_eq!(scene.next().await, "loaded one");
        symlink("two", path("next")).unwrap();
        fs::rename(path("next"), path("policies")).unwrap();
        assert_eq!(scene.next().await, "loaded two");
        put(&path("two").join("p.yaml"), &policy("three"));
        assert_eq!(scene.next().await, "loaded three");
    }

    #[tokio::test]
    async fn a_key_outside_of_the_directory_is_noticed_by_polling() {
        let (directory, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let key = elsewhere.path().join("key.pub");
        put(&key, &Pair::p256().pem());
        let public_key = format!("publicKey: {{file: {}}}", key.display());
        let text = policy("one").replace("unsigned: {reason: test}", &public_key);
        put(&directory.path().join("p.yaml"), &text);
        let mut scene = start(BY_POLL, directory.path());
        assert_eq!(scene.next().await, "loaded one");
        let before = scene.current.snapshot(Timestamp::now()).unwrap().digest();
        put(&key, &Pair::p256().pem());
        assert_eq!(scene.next().await, "loaded one");
        assert_ne!(scene.current.snapshot(Timestamp::now()).unwrap().digest(), before);
    }

    #[tokio::test]
    async fn a_watcher_that_fails_says_so() {
        let directory = TempDir::new().unwrap();
        let mut first = true;
        let plan = plan(directory.path(), directory.path());
        let mut watcher = watch_at(BY_EAR, plan, Current::default(), move |_| {
            assert!(std::mem::take(&mut first), "this panic belongs to the test");
        });
        watcher.reload();
        timeout(PATIENCE, watcher.ended()).await.expect("the watcher has ended");
    }
}
