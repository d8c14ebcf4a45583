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
