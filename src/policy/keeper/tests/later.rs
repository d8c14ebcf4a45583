//! What could not come into force when it was offered, and moments that pass meanwhile.

use super::*;

/// Takes the place away where the mark is written; gives it back when it is called.
fn unwritable(node: &Node) -> impl FnOnce() + use<> {
    let (log, away) = (node.place.path().join("log"), node.place.path().join("away"));
    fs::rename(&log, &away).unwrap();
    move || fs::rename(&away, &log).unwrap()
}

fn until(name: &str, revision: u64, second: i64) -> Heard {
    Heard::Offer(Offer { expires_at: Some(at(second)), ..offer(name, revision) })
}

#[test]
fn what_could_not_be_kept_is_not_forgotten_because_nothing_changed_since() {
    let mut node = Node::new();
    node.offer("one", 1, 1);
    let writable = unwritable(&node);
    assert!(node.offer("two", 2, 2).contains("policy-mark cannot be written"));
    assert_eq!(node.hear(Heard::Unchanged, 3), "");
    assert_eq!(node.in_force(3), Ok(digest("one")));
    writable();
    assert_eq!(node.hear(Heard::Unchanged, 4), "loaded two");
    assert_eq!((node.in_force(4), node.trouble()), (Ok(digest("two")), None));
}

#[test]
fn a_set_that_was_expired_by_a_wrong_clock_comes_into_force_when_the_clock_is_right() {
    let mut node = Node::new();
    assert!(node.hear(until("one", 1, 100), 5000).contains("it expired at"));
    assert_eq!(told(node.keeper.tick(at(5001))), "");
    assert_eq!(node.hear(Heard::Unchanged, 5002), "");
    assert_eq!(node.hear(Heard::Unchanged, 10), "loaded one");
    assert_eq!((node.in_force(10), node.trouble()), (Ok(digest("one")), None));
}

#[test]
fn the_end_of_a_set_is_told_though_the_next_one_cannot_be_kept() {
    let mut node = Node::new();
    node.hear(until("one", 1, 50), 1);
    let writable = unwritable(&node);
    assert!(node.offer("two", 2, 2).contains("policy-mark cannot be written"));
    assert_eq!(node.keeper.next(), Some(at(50)));
    assert!(told(node.keeper.tick(at(50))).starts_with("expired "));
    // Else the watch would come back at once, over and over.
    assert_eq!(node.keeper.next(), None);
    assert_eq!(told(node.keeper.tick(at(51))), "");
    writable();
    assert_eq!(told(node.keeper.tick(at(52))), "loaded two");
}

#[test]
fn a_clock_that_is_set_back_gives_a_set_time_again_and_that_is_told() {
    let mut node = Node::with(None, true);
    node.hear(until("one", 1, 50), 1);
    assert!(told(node.keeper.tick(at(60))).starts_with("expired "));
    assert_eq!(told(node.keeper.tick(at(40))), "loaded floor/pause one");
    assert_eq!((node.trouble(), node.keeper.next()), (None, Some(at(50))));
    assert!(told(node.keeper.tick(at(50))).starts_with("expired "));
}

#[test]
fn the_same_set_for_longer_is_kept_for_longer() {
    let mut node = Node::new();
    node.hear(until("one", 1, 50), 1);
    let kept = node.state().join("policy").join(format!("{}.json", digest("one").hex()));
    fs::write(&kept, "of another time").unwrap();
    node.hear(until("one", 1, 50), 2);
    assert_eq!(fs::read(&kept).unwrap(), b"of another time");
    node.hear(until("one", 1, 99), 3);
    assert_ne!(fs::read(&kept).unwrap(), b"of another time");
}

#[test]
fn with_a_floor_what_is_told_is_the_set_of_both() {
    let mut node = Node::with(Some(SignedDuration::from_secs(1000)), true);
    assert_eq!(node.offer("one", 1, 1), "loaded floor/pause one");
    assert!(told(node.keeper.tick(at(1001))).starts_with("expired "));
    assert_eq!(node.hear(Heard::Unchanged, 1002), "loaded floor/pause one");
    let unchanged = node.keeper.hear(Heard::Unchanged, true, at(1003));
    assert_eq!(told(unchanged), "unchanged floor/pause one");
}

/// A bundle is whatever says `signed`, in these tests.
fn opened(bytes: &[u8]) -> Result<Offer, String> {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| text.strip_prefix("signed "));
    let (revision, name) = text.and_then(|text| text.split_once(' ')).ok_or("not signed")?;
    Ok(offer(name, revision.parse().unwrap()))
}

#[test]
fn without_the_mark_a_kept_bundle_tells_how_far_this_node_was() {
    let node = Node::new();
    let sets = node.state().join("policy");
    fs::create_dir_all(&sets).unwrap();
    let start = |kind| {
        let setup = Setup { kind, source: "B".into(), max_age: None, floor: None };
        let kept = Kept::open(&node.state(), &node.place.path().join("log/audit.jsonl"));
        let standing = watch::channel(Standing::default()).0;
        let mut keeper = Keeper::new(setup, kept, Current::default(), standing);
        assert!(keeper.recall(opened, at(1)).is_none());
        let last = keeper.kept.last(kind).unwrap().cloned();
        (last.and_then(|last| last.revision), keeper.current.snapshot(at(1)).is_err())
    };
    assert_eq!(start(Kind::Bundle), (None, true));
    for (name, text) in [("one", "signed 6 one"), ("two", "signed 7 two"), ("three", "9 three")] {
        let name = format!("{}.json", Digest::of(name.as_bytes()).hex());
        fs::write(sets.join(name), text).unwrap();
    }
    // Nothing says that it was the newest, so that it does not come into force.
    assert_eq!(start(Kind::Bundle), (Some(7), true));
    // What nobody signs may have been written by anybody.
    assert_eq!(start(Kind::Kubernetes), (None, true));
}

#[test]
fn a_directory_whose_change_could_not_be_marked_does_not_come_back_as_it_was_before() {
    let node = Node::new();
    let (policies, floor) = (node.place.path().join("policies"), node.place.path().join("floor"));
    fs::create_dir(&policies).unwrap();
    let start = || {
        let setup = Setup {
            kind: Kind::Directory,
            source: "D".into(),
            max_age: None,
            floor: Some(floor.clone()),
        };
        let kept = Kept::open(&node.state(), &node.place.path().join("log/audit.jsonl"));
        Keeper::new(setup, kept, Current::default(), watch::channel(Standing::default()).0)
    };
    let change = |keeper: &mut Keeper, name: &str| {
        fs::write(policies.join("p.yaml"), policy(name, "**")).unwrap();
        fs::write(floor.join("f.yaml"), policy(name, "**")).unwrap();
        keeper.look_at_floor(Floor::read(&floor, at(1)), at(1));
        keeper.look(source::read(&policies, at(1)), false, at(1));
        let set = keeper.current.snapshot(at(1)).unwrap();
        assert_eq!(set.policies()[1].name, name);
    };
    let recalled = |keeper: &mut Keeper| {
        let floor = keeper.recall_floor(at(2)).is_some();
        (floor, matches!(keeper.recall(Offer::of_kept_files, at(2)), Some(Event::Recalled(_))))
    };
    let mut keeper = start();
    change(&mut keeper, "one");
    assert_eq!(recalled(&mut start()), (true, true));
    let writable = unwritable(&node);
    change(&mut keeper, "two");
    writable();
    assert_eq!(recalled(&mut start()), (false, false));
    change(&mut keeper, "three");
    assert_eq!(recalled(&mut start()), (true, true));
}
