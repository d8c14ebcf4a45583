//! Directories that change, and what comes into force.

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
