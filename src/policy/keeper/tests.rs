//! What comes into force, and what must not: single steps, and any sequence of them.

mod later;

use std::{fs, path::Path};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    image::Digest,
    policy::{Text, source},
};

/// The source's name.
const SOURCE: &str = "kubernetes:";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn policy(name: &str, pattern: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: {name}}}\n\
         spec: {{match: {{images: ['{pattern}']}}, authorities: [{{name: a, unsigned: {{reason: \
         test}}}}]}}\n"
    )
}

fn offer(name: &str, revision: u64) -> Offer {
    let text = policy(name, "**");
    let texts = Texts { files: vec![Text { name: name.into(), text }], keys: Vec::new() };
    Offer::of_objects(texts, revision)
}

fn digest(name: &str) -> Digest {
    offer(name, 0).read(SOURCE, at(0)).unwrap().digest()
}

struct Node {
    place: TempDir,
    keeper: Keeper,
    current: Current,
    max_age: Option<SignedDuration>,
    floor: bool,
}

impl Node {
    fn new() -> Self {
        Self::with(None, false)
    }

    fn with(max_age: Option<SignedDuration>, floor: bool) -> Self {
        let place = TempDir::new().unwrap();
        fs::create_dir(place.path().join("log")).unwrap();
        fs::create_dir(place.path().join("floor")).unwrap();
        fs::write(place.path().join("floor/f.yaml"), policy("pause", "pause.example/**")).unwrap();
        let (keeper, current) = started(place.path(), max_age, floor);
        let mut node = Self { place, keeper, current, max_age, floor };
        node.begin(at(0));
        node
    }

    /// What a start of the daemon does.
    fn begin(&mut self, now: Timestamp) {
        if self.floor {
            let looked = Floor::read(&self.place.path().join("floor"), now);
            if looked.is_err() {
                self.keeper.recall_floor(now);
            }
            self.keeper.look_at_floor(looked, now);
        }
        self.keeper.recall(Offer::of_kept_files, now);
    }

    fn restart(&mut self, now: Timestamp) {
        (self.keeper, self.current) = started(self.place.path(), self.max_age, self.floor);
        self.begin(now);
    }

    fn hear(&mut self, heard: Heard, now: i64) -> String {
        told(self.keeper.hear(heard, false, at(now)))
    }

    fn offer(&mut self, name: &str, revision: u64, now: i64) -> String {
        self.hear(Heard::Offer(offer(name, revision)), now)
    }

    fn state(&self) -> std::path::PathBuf {
        self.place.path().join("state")
    }

    fn mark(&self) -> std::path::PathBuf {
        self.place.path().join("log/audit.jsonl.policy-mark")
    }

    /// The digest in force, or the code of the refusal.
    fn in_force(&self, now: i64) -> Result<Digest, Code> {
        self.current.snapshot(at(now)).map(|set| set.digest()).map_err(|refusal| refusal.code)
    }

    /// What is said of an image that the floor does not match.
    fn refusal(&self, now: i64) -> Refusal {
        let image = "registry.example/x".parse().unwrap();
        match self.current.snapshot(at(now)) {
            Ok(set) => set.select(&image, None).map(|_| ()).unwrap_err(),
            Err(refusal) => refusal,
        }
    }

    fn trouble(&self) -> Option<(TroubleKind, String)> {
        let standing = self.keeper.standing.borrow();
        standing.trouble.as_ref().map(|trouble| (trouble.kind, trouble.message.clone()))
    }
}

fn started(place: &Path, max_age: Option<SignedDuration>, floor: bool) -> (Keeper, Current) {
    let current = Current::default();
    let floor = floor.then(|| place.join("floor"));
    let setup = Setup { kind: Kind::Kubernetes, source: SOURCE.into(), max_age, floor };
    let kept = Kept::open(&place.join("state"), &place.join("log/audit.jsonl"));
    (Keeper::new(setup, kept, current.clone(), watch::channel(Standing::default()).0), current)
}

fn told(event: Option<Event>) -> String {
    let names = |set: &PolicySet| {
        set.policies().iter().map(|policy| &*policy.name).collect::<Vec<_>>().join(" ")
    };
    match event {
        None => String::new(),
        Some(Event::Loaded(set)) => format!("loaded {}", names(&set)),
        Some(Event::Recalled(set)) => format!("recalled {}", names(&set)),
        Some(Event::Rejected(why)) => format!("rejected {why}"),
        Some(Event::Unchanged(set)) => format!("unchanged {}", names(&set)),
        Some(Event::Unreachable(why)) => format!("unreachable {why}"),
        Some(Event::Expired(why)) => format!("expired {why}"),
    }
}

#[test]
fn each_change_of_the_source_comes_into_force() {
    let mut node = Node::new();
    assert_eq!(node.in_force(0), Err(Code::PolicyUnavailable));
    assert_eq!(
        node.refusal(0).message,
        "no policy is in force on this node, so every image is refused: kubernetes: was not heard \
         of yet"
    );
    assert_eq!(node.offer("one", 5, 1), "loaded one");
    assert_eq!(node.current.snapshot(at(1)).unwrap().revision(), Some(5));
    assert_eq!(node.offer("two", 6, 2), "loaded two");
    assert_eq!(node.in_force(2), Ok(digest("two")));
    // The same set later is no other set, and its revision counts.
    assert_eq!(node.offer("two", 8, 3), "");
    assert_eq!(node.current.snapshot(at(3)).unwrap().revision(), Some(8));
    assert!(
        node.offer("one", 7, 4)
            .starts_with("rejected kubernetes: the API server is at resourceVersion 7")
    );
}

#[test]
fn what_is_no_set_leaves_the_set_in_force_and_is_told_once() {
    let mut node = Node::new();
    node.offer("one", 1, 1);
    let empty = || Heard::Offer(Offer::of_objects(Texts::default(), 2));
    assert_eq!(node.hear(empty(), 2), "rejected kubernetes: holds no policy");
    assert_eq!(node.hear(empty(), 3), "");
    // That it still holds the same says nothing for the set in force.
    assert_eq!(node.hear(Heard::Unchanged, 4), "");
    assert_eq!(node.trouble().unwrap().0, TroubleKind::Rejected);
    assert_eq!(node.keeper.standing.borrow().confirmed, Some(at(1)));
    assert_eq!(node.in_force(4), Ok(digest("one")));
    assert_eq!(node.hear(Heard::Failed("away".into()), 5), "unreachable away");
    assert_eq!(node.trouble().unwrap().0, TroubleKind::Rejected);
    assert_eq!(node.hear(Heard::Failed("away".into()), 6), "");
    assert_eq!(node.hear(Heard::Unchanged, 7), "rejected kubernetes: holds no policy");
    assert_eq!(node.offer("one", 3, 8), "unchanged one");
    assert_eq!((node.trouble(), node.in_force(8)), (None, Ok(digest("one"))));
}

#[test]
fn a_restart_goes_on_with_the_last_set_and_never_with_an_older_one() {
    let mut node = Node::new();
    node.offer("one", 1, 1);
    let old = fs::read(node.state().join("policy").join(format!("{}.json", digest("one").hex())));
    node.offer("two", 2, 2);
    node.restart(at(3));
    assert_eq!(node.in_force(3), Ok(digest("two")));
    assert_eq!(node.current.snapshot(at(3)).unwrap().revision(), Some(2));
    assert!(node.offer("one", 1, 4).contains("this node had policies as of 2"));
    // The older set, put in the place of the newer one, and where it was.
    let sets = node.state().join("policy");
    for name in ["one", "two"] {
        let path = sets.join(format!("{}.json", digest(name).hex()));
        fs::write(path, old.as_ref().unwrap()).unwrap();
    }
    node.restart(at(5));
    assert_eq!(node.in_force(5), Err(Code::PolicyUnavailable));
    assert!(node.trouble().unwrap().1.contains("they are not those that this node had last"));
    fs::remove_dir_all(node.state()).unwrap();
    node.restart(at(6));
    assert_eq!(node.in_force(6), Err(Code::PolicyUnavailable));
    assert!(node.offer("one", 1, 7).contains("this node had policies as of 2"));
    assert_eq!(node.offer("two", 2, 8), "loaded two");
    node.restart(at(9));
    assert_eq!(node.in_force(9), Ok(digest("two")));
}

#[test]
fn what_cannot_be_marked_does_not_come_into_force_and_is_tried_again() {
    let mut node = Node::new();
    node.offer("one", 1, 1);
    let log = node.place.path().join("log");
    let away = node.place.path().join("away");
    fs::rename(&log, &away).unwrap();
    assert!(node.offer("two", 2, 2).contains("policy-mark cannot be written"));
    assert_eq!(node.in_force(2), Ok(digest("one")));
    assert_eq!(node.trouble().unwrap().0, TroubleKind::NotKept);
    fs::rename(&away, &log).unwrap();
    assert_eq!(told(node.keeper.tick(at(3))), "loaded two");
    assert_eq!((node.in_force(3), node.trouble()), (Ok(digest("two")), None));
}

#[test]
fn without_a_readable_mark_no_remote_set_is_believed() {
    let mut node = Node::new();
    node.offer("one", 1, 1);
    fs::write(node.mark(), "half").unwrap();
    node.restart(at(2));
    assert_eq!(node.in_force(2), Err(Code::PolicyUnavailable));
    assert_eq!(node.offer("two", 2, 3), "", "it was told at the start");
    assert!(node.trouble().unwrap().1.ends_with("no danger, and start Portcullis anew"));
    assert_eq!(node.in_force(3), Err(Code::PolicyUnavailable));
}

#[test]
fn a_silent_source_is_believed_for_max_age_across_restarts() {
    let mut node = Node::with(Some(SignedDuration::from_secs(1000)), false);
    node.offer("one", 1, 100);
    assert_eq!(node.in_force(1099), Ok(digest("one")));
    assert_eq!(node.in_force(1100), Err(Code::PolicyExpired));
    assert_eq!(
        node.refusal(1100).message,
        "kubernetes: was not heard of for longer than policy.max_age, which is 16m 40s; until it \
         is, the policies of this node are not in force"
    );
    assert_eq!(node.hear(Heard::Unchanged, 600), "");
    assert_eq!(node.in_force(1599), Ok(digest("one")));
    node.restart(at(1500));
    assert_eq!(node.in_force(1599), Ok(digest("one")));
    assert_eq!(node.in_force(1600), Err(Code::PolicyExpired));
    assert_eq!(node.keeper.next(), Some(at(1600)));
    assert_eq!(told(node.keeper.tick(at(1599))), "");
    assert!(told(node.keeper.tick(at(1600))).starts_with("expired kubernetes: was not heard of"));
    assert_eq!(told(node.keeper.tick(at(1601))), "");
    assert_eq!(node.trouble().unwrap().0, TroubleKind::Expired);
    assert_eq!(node.hear(Heard::Unchanged, 1700), "loaded one");
    assert_eq!((node.in_force(1700), node.trouble()), (Ok(digest("one")), None));
}

#[test]
fn an_expired_set_leaves_the_floor_alone_and_what_it_revoked_revoked() {
    let mut node = Node::with(None, true);
    let alone = node.in_force(0).unwrap();
    assert_eq!(node.refusal(0).code, Code::PolicyUnavailable);
    let mut first = offer("one", 1);
    first.expires_at = Some(at(50));
    let revoked = Digest::of(b"revoked");
    let revocation = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: r}}\n\
         spec: {{digests: ['{revoked}']}}\n"
    );
    first.texts.files.push(Text { name: "r".into(), text: revocation });
    assert_eq!(node.hear(Heard::Offer(first.clone()), 1), "loaded floor/pause one");
    assert_eq!(node.refusal(50).code, Code::PolicyExpired);
    let set = node.current.snapshot(at(50)).unwrap();
    assert!(set.revoked().digests.contains_key(&revoked) && set.digest() != alone);
    let pause = "pause.example/pause".parse().unwrap();
    assert_eq!(set.select(&pause, None).unwrap().policies()[0].name, "floor/pause");
    assert!(told(node.keeper.tick(at(50))).contains("expired at 1970-01-01T00:00:50Z"));
    // What is expired already does not come into force in place of anything.
    let mut late = offer("two", 2);
    late.expires_at = Some(at(60));
    assert!(node.hear(Heard::Offer(late), 60).contains("it expired at"));
    // The same set, signed anew for longer, does.
    first.revision = Some(3);
    first.expires_at = Some(at(100));
    assert_eq!(node.hear(Heard::Offer(first), 61), "loaded floor/pause one");
    assert_eq!(node.current.snapshot(at(61)).unwrap().policies().len(), 2);
}

#[test]
fn without_its_floor_a_node_refuses() {
    let mut node = Node::with(None, true);
    node.offer("one", 1, 1);
    let floor = node.place.path().join("floor");
    fs::remove_file(floor.join("f.yaml")).unwrap();
    let looked = Floor::read(&floor, at(2));
    assert!(told(node.keeper.look_at_floor(looked, at(2))).contains("holds no policy"));
    assert_eq!(node.current.snapshot(at(2)).unwrap().policies().len(), 2, "the old one stays");
    node.restart(at(3));
    assert_eq!(node.current.snapshot(at(3)).unwrap().policies().len(), 2, "and is kept");
    fs::remove_dir_all(node.state()).unwrap();
    node.restart(at(4));
    node.offer("one", 1, 5);
    assert_eq!(node.in_force(5), Err(Code::PolicyUnavailable));
    assert!(node.refusal(5).message.contains("/floor is not known: "), "{:?}", node.refusal(5));
    assert_eq!(node.keeper.standing.borrow().in_force, None, "and so it is told");
}

#[test]
fn nothing_is_told_to_be_in_force_that_is_not() {
    let mut node = Node::with(Some(SignedDuration::from_secs(100)), true);
    let told = |event: Option<Event>, node: &Node, now| match event {
        Some(Event::Loaded(set) | Event::Recalled(set) | Event::Unchanged(set)) => {
            assert_eq!(Ok(set.digest()), node.in_force(now));
            true
        }
        _ => false,
    };
    let unchanged = |node: &mut Node, now| node.keeper.hear(Heard::Unchanged, true, at(now));
    let event = node.keeper.hear(Heard::Offer(offer("one", 1)), false, at(1));
    assert!(told(event, &node, 1));
    let event = unchanged(&mut node, 2);
    assert!(told(event, &node, 2));
    node.keeper.tick(at(500));
    let event = unchanged(&mut node, 501);
    assert!(told(event, &node, 501), "the set with its floor is back");
    // A floor that is broken, and was not kept.
    fs::write(node.place.path().join("floor/f.yaml"), "kind: [").unwrap();
    fs::remove_dir_all(node.state()).unwrap();
    node.restart(at(502));
    for (now, heard) in [(503, Heard::Offer(offer("one", 1))), (504, Heard::Unchanged)] {
        let event = node.keeper.hear(heard, true, at(now));
        assert!(matches!(&event, Some(Event::Rejected(why)) if why.starts_with("the floor ")));
        assert_eq!(node.in_force(now), Err(Code::PolicyUnavailable));
    }
    // What is kept, and too old.
    let mut node = Node::with(Some(SignedDuration::from_secs(100)), false);
    node.offer("one", 1, 1);
    (node.keeper, node.current) = started(node.place.path(), node.max_age, false);
    let event = node.keeper.recall(Offer::of_kept_files, at(200));
    assert!(matches!(event, Some(Event::Expired(_))), "{event:?}");
    assert!(node.keeper.tick(at(200)).is_none(), "it was told");
}

#[test]
fn a_directory_needs_no_mark() {
    let place = TempDir::new().unwrap();
    let current = Current::default();
    let setup = Setup { kind: Kind::Directory, source: "D".into(), max_age: None, floor: None };
    let kept = Kept::open(&place.path().join("state"), &place.path().join("gone/audit.jsonl"));
    let standing = watch::channel(Standing::default()).0;
    let mut keeper = Keeper::new(setup, kept, current.clone(), standing);
    fs::write(place.path().join("p.yaml"), policy("one", "**")).unwrap();
    let looked = || source::read(place.path(), at(1));
    assert_eq!(told(keeper.look(looked(), false, at(1))), "loaded one");
    assert_eq!(told(keeper.look(looked(), false, at(2))), "");
    assert!(current.snapshot(at(2)).is_ok());
}

/// What can happen to a node.
#[derive(Clone, Debug)]
enum Happening {
    /// The source, which had so many changes, tells its newest set.
    Publish,
    /// Somebody between answers with an older set, told with its own revision.
    Replay(usize),
    /// What is told is no set.
    Garbage,
    Unchanged,
    Failure,
    Restart,
    /// The state directory comes back as it was before, or is gone.
    Restore(usize),
    /// Nothing can be written beside the audit log, until the next happening.
    Unwritable,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        4 => Just(Happening::Publish),
        2 => (0..8_usize).prop_map(Happening::Replay),
        1 => Just(Happening::Garbage),
        1 => Just(Happening::Unchanged),
        1 => Just(Happening::Failure),
        3 => Just(Happening::Restart),
        2 => (0..8_usize).prop_map(Happening::Restore),
        1 => Just(Happening::Unwritable),
    ];
    prop::collection::vec(one, 1..24)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("policy")).unwrap();
    for entry in fs::read_dir(from.join("policy")).into_iter().flatten().flatten() {
        fs::copy(entry.path(), to.join("policy").join(entry.file_name())).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn in_force_is_the_newest_set_ever_accepted_or_none(happenings in happenings()) {
        let mut node = Node::new();
        let (mut published, mut accepted) = (0, 0);
        let mut copies: Vec<std::path::PathBuf> = Vec::new();
        let log = node.place.path().join("log");
        for (now, happening) in (1..).zip(happenings) {
            let mut away = None;
            let heard = match happening {
                Happening::Publish => {
                    published += 1;
                    Some(Heard::Offer(offer(&format!("p{published}"), published)))
                }
                Happening::Replay(back) => {
                    let revision = published.saturating_sub(back as u64).max(1);
                    published = published.max(1);
                    Some(Heard::Offer(offer(&format!("p{revision}"), revision)))
                }
                Happening::Garbage => Some(Heard::Offer(Offer::of_objects(Texts::default(), 99))),
                Happening::Unchanged => Some(Heard::Unchanged),
                Happening::Failure => Some(Heard::Failed("away".into())),
                Happening::Restart => {
                    node.restart(at(now));
                    None
                }
                Happening::Restore(which) => {
                    fs::remove_dir_all(node.state()).ok();
                    if let Some(copied) = copies.get(which) {
                        copy(copied, &node.state());
                    }
                    node.restart(at(now));
                    None
                }
                Happening::Unwritable => {
                    let aside = node.place.path().join("aside");
                    fs::rename(&log, &aside).unwrap();
                    away = Some(aside);
                    published += 1;
                    Some(Heard::Offer(offer(&format!("p{published}"), published)))
                }
            };
            let event = heard.and_then(|heard| node.keeper.hear(heard, false, at(now)));
            if let Some(Event::Loaded(set)) = event {
                accepted = accepted.max(set.revision().unwrap());
            }
            if let Some(aside) = away {
                fs::rename(aside, &log).unwrap();
            } else if let Some(Event::Loaded(set)) = node.keeper.tick(at(now)) {
                accepted = accepted.max(set.revision().unwrap());
            }
            match node.current.snapshot(at(now)) {
                Ok(set) => prop_assert_eq!(set.revision(), Some(accepted)),
                Err(refusal) => prop_assert_eq!(refusal.code, Code::PolicyUnavailable),
            }
            let copied = node.place.path().join(format!("copy-{now}"));
            copy(&node.state(), &copied);
            copies.push(copied);
        }
    }
}
