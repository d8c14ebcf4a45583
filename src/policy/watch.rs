//! Keeps a directory's policies in force while they change.
//!
//! A good, different set is swapped in as a whole; anything else leaves the set in force and is
//! told, once. inotify says when to look, and a slow poll looks where it cannot: at keys outside
//! of the directory, and at directories that come, go or move above it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use notify::{
    EventKind, INotifyWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::problem::Problems;

use super::{Current, PolicySet, source};

/// What became of a look at the directory.
#[derive(Clone, Debug)]
pub enum Event {
    /// A set that differs from the one before is in force.
    Loaded(Arc<PolicySet>),
    /// What is there is no policy set. The set that was in force, if any, still is.
    Rejected(Problems),
    /// The directory holds the set in force: told when somebody asked, or when the look before
    /// ended in [`Event::Rejected`].
    Unchanged(Arc<PolicySet>),
}

/// When the directory is looked at.
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
    task: JoinHandle<()>,
}

impl Watcher {
    /// Looks at the directory now, and tells what became of it in any case.
    pub fn reload(&self) {
        self.asked.notify_one();
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

/// Loads a directory's policies and keeps them in force.
///
/// The first look is over, and told, when this returns; later ones happen on the Tokio runtime
/// that it must be called from, on threads where `on_event` may block. A directory that is not
/// there yet is waited for.
pub fn watch(
    directory: impl Into<PathBuf>,
    current: Current,
    on_event: impl FnMut(Event) + Send + 'static,
) -> Watcher {
    watch_at(PACE, directory.into(), current, on_event)
}

fn watch_at(
    pace: Pace,
    directory: PathBuf,
    current: Current,
    on_event: impl FnMut(Event) + Send + 'static,
) -> Watcher {
    let changed = Arc::new(Notify::new());
    let asked = Arc::new(Notify::new());
    // Listens before the first look, so that no change falls between the two.
    let ear = Ear::new(directory.clone(), changed.clone());
    let mut keeper = Keeper { directory, current, rejected: None, on_event };
    keeper.look(false);
    let task = tokio::spawn(run(pace, keeper, ear, changed, asked.clone()));
    Watcher { asked, task }
}

async fn run<F: FnMut(Event) + Send + 'static>(
    pace: Pace,
    mut keeper: Keeper<F>,
    mut ear: Ear,
    changed: Arc<Notify>,
    asked: Arc<Notify>,
) {
    loop {
        let on_request = tokio::select! {
            () = asked.notified() => true,
            () = changed.notified() => {
                let latest = Instant::now() + pace.settle_at_most;
                while Instant::now() < latest
                    && timeout(pace.settle, changed.notified()).await.is_ok()
                {}
                false
            }
            () = sleep(pace.poll) => false,
        };
        let look = tokio::task::spawn_blocking(move || {
            ear.listen();
            keeper.look(on_request);
            (keeper, ear)
        });
        match look.await {
            Ok(back) => (keeper, ear) = back,
            Err(_panicked) => return,
        }
    }
}

/// Puts in force what it sees.
struct Keeper<F> {
    directory: PathBuf,
    current: Current,
    /// What was wrong at the last look, so that it is told once.
    rejected: Option<Problems>,
    on_event: F,
}

impl<F: FnMut(Event)> Keeper<F> {
    fn look(&mut self, on_request: bool) {
        let set = match source::load(&self.directory, Timestamp::now()) {
            Ok(set) => Arc::new(set),
            Err(problems) => {
                if let Some(first) = problems.list().first() {
                    self.current.explain(first.to_string());
                }
                let told = self.rejected.as_ref() == Some(&problems);
                self.rejected = Some(problems.clone());
                if on_request || !told {
                    (self.on_event)(Event::Rejected(problems));
                }
                return;
            }
        };
        let recovered = self.rejected.take().is_some();
        match self.current.snapshot() {
            Ok(in_force) if in_force.digest() == set.digest() => {
                if on_request || recovered {
                    (self.on_event)(Event::Unchanged(in_force));
                }
            }
            _ => {
                self.current.replace(set.clone());
                (self.on_event)(Event::Loaded(set));
            }
        }
    }
}

/// Hears of changes by inotify.
struct Ear {
    directory: PathBuf,
    inotify: Option<INotifyWatcher>,
}

impl Ear {
    fn new(directory: PathBuf, changed: Arc<Notify>) -> Self {
        let inside = directory.clone();
        let hear = move |event: notify::Result<notify::Event>| {
            // An error may stand for changes that were missed.
            let concerns = event.map_or(true, |event| {
                is_change(event.kind)
                    && (event.paths.is_empty()
                        || event.paths.iter().any(|p| p.starts_with(&inside)))
            });
            if concerns {
                changed.notify_one();
            }
        };
        let inotify = INotifyWatcher::new(hear, notify::Config::default()).map_err(|error| {
            tracing::warn!(%error, "changes of the policies are noticed by polling only");
        });
        let mut ear = Self { directory, inotify: inotify.ok() };
        ear.listen();
        ear
    }

    /// Listens anew: the directory, or the link that leads to it, may be another one by now. The
    /// parent tells when it comes, goes or is swapped.
    fn listen(&mut self) {
        let Some(inotify) = &mut self.inotify else { return };
        for path in self.directory.parent().into_iter().chain([&*self.directory]) {
            let _ = inotify.unwatch(path);
            if let Err(error) = inotify.watch(path, RecursiveMode::NonRecursive) {
                tracing::debug!(path = %path.display(), %error, "is not watched yet");
            }
        }
    }
}

/// Whether an event can mean other contents; our own reading causes events, too.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use tempfile::TempDir;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::verify::testing::Pair;

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
    }

    fn start(pace: Pace, directory: &Path) -> Scene {
        let current = Current::default();
        let (tell, events) = unbounded_channel();
        let path = directory.display().to_string();
        let watcher = watch_at(pace, directory.to_owned(), current.clone(), move |event| {
            let names = |set: &PolicySet| {
                set.policies().iter().map(|policy| &*policy.name).collect::<Vec<_>>().join(" ")
            };
            let _ = tell.send(match event {
                Event::Loaded(set) => format!("loaded {}", names(&set)),
                Event::Rejected(problems) => format!("rejected {problems}").replace(&path, "D"),
                Event::Unchanged(set) => format!("unchanged {}", names(&set)),
            });
        });
        Scene { current, watcher, events }
    }

    impl Scene {
        async fn next(&mut self) -> String {
            timeout(PATIENCE, self.events.recv()).await.expect("an event").expect("the watcher")
        }

        fn in_force(&self) -> String {
            match self.current.snapshot() {
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

    #[test]
    fn what_was_told_is_not_told_at_every_look() {
        let directory = TempDir::new().unwrap();
        let (mut told, current) = (0, Current::default());
        let mut keeper = Keeper {
            directory: directory.path().to_owned(),
            current: current.clone(),
            rejected: None,
            on_event: |_| told += 1,
        };
        (0..5).for_each(|_| keeper.look(false));
        put(&directory.path().join("p.yaml"), &policy("one"));
        (0..5).for_each(|_| keeper.look(false));
        keeper.look(true);
        assert_eq!((told, current.snapshot().unwrap().policies().len()), (3, 1));
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
        let before = scene.current.snapshot().unwrap().digest();
        put(&key, &Pair::p256().pem());
        assert_eq!(scene.next().await, "loaded one");
        assert_ne!(scene.current.snapshot().unwrap().digest(), before);
    }

    #[tokio::test]
    async fn a_watcher_that_fails_says_so() {
        let directory = TempDir::new().unwrap();
        let mut first = true;
        let mut watcher =
            watch_at(BY_EAR, directory.path().to_owned(), Current::default(), move |_| {
                assert!(std::mem::take(&mut first), "this panic belongs to the test");
            });
        watcher.reload();
        timeout(PATIENCE, watcher.ended()).await.expect("the watcher has ended");
    }

    #[test]
    fn our_own_reading_is_no_change() {
        use notify::event::{CreateKind, ModifyKind};
        assert!(!is_change(EventKind::Access(AccessKind::Open(AccessMode::Any))));
        assert!(!is_change(EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert!(is_change(EventKind::Access(AccessKind::Close(AccessMode::Write))));
        assert!(is_change(EventKind::Create(CreateKind::Any)));
        assert!(is_change(EventKind::Modify(ModifyKind::Any)));
        assert!(is_change(EventKind::Other));
    }
}
