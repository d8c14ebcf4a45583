use serde_json::json;

use super::*;

fn item(kind: usize, name: &str, version: u64, text: &str) -> Item {
    let object = json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": KINDS[kind].name,
        "metadata": {"name": name, "resourceVersion": version.to_string()}, "spec": {"x": text},
    });
    Item { name: name.into(), version, object }
}

fn listed(items: Vec<Item>, version: u64) -> Listed {
    Listed { items, version }
}

/// Both kinds were listed, and told.
fn told() -> Set {
    let mut set = Set::new();
    set.listed(0, listed(vec![item(0, "a", 5, "1")], 10)).unwrap();
    set.listed(1, listed(vec![item(1, "r", 6, "1")], 12)).unwrap();
    assert!(matches!(set.take(true), Some(Heard::Offer(_))));
    set
}

/// What is told: names and revision, or a word.
fn tell(set: &mut Set) -> String {
    match set.take(true) {
        None => "nothing".into(),
        Some(Heard::Unchanged) => "unchanged".into(),
        Some(Heard::Failed(why)) => why,
        Some(Heard::Rejected(problems)) => problems.to_string(),
        Some(Heard::Offer(Offer { texts, revision, .. })) => {
            let names: Vec<_> = texts.files.iter().map(|text| &*text.name).collect();
            format!("{} at {}", names.join(" "), revision.unwrap())
        }
    }
}

#[test]
fn a_set_is_told_when_every_kind_was_listed() {
    let mut set = Set::new();
    assert_eq!(tell(&mut set), "nothing");
    set.listed(1, listed(vec![item(1, "r", 6, "1")], 12)).unwrap();
    assert_eq!(tell(&mut set), "nothing");
    set.listed(0, listed(vec![item(0, "b", 5, "1"), item(0, "a", 4, "1")], 10)).unwrap();
    // The lowest: one of the two lists may lag behind what was seen before the start.
    assert_eq!(tell(&mut set), "imagepolicies/a imagepolicies/b revocations/r at 10");
    assert_eq!(tell(&mut set), "nothing");
}

#[test]
fn an_empty_set_is_told_as_it_is() {
    let mut set = Set::new();
    set.listed(0, listed(vec![], 10)).unwrap();
    set.listed(1, listed(vec![], 10)).unwrap();
    assert_eq!(tell(&mut set), " at 10");
}

#[test]
fn changes_are_told_with_the_highest_version() {
    let mut set = told();
    set.apply(0, Event::Put(item(0, "b", 11, "1"))).unwrap();
    // Not lower than what the other kind has reached.
    assert_eq!(tell(&mut set), "imagepolicies/a imagepolicies/b revocations/r at 12");
    set.apply(1, Event::Gone(item(1, "r", 15, "1"))).unwrap();
    set.apply(0, Event::Put(item(0, "a", 13, "2"))).unwrap();
    assert_eq!(tell(&mut set), "imagepolicies/a imagepolicies/b at 15");
    // What changes no text is no other set.
    set.apply(0, Event::Put(item(0, "a", 20, "2"))).unwrap();
    set.apply(1, Event::Gone(item(1, "never", 21, "2"))).unwrap();
    assert_eq!(tell(&mut set), "nothing");
}

#[test]
fn what_is_older_is_not_taken_in() {
    let mut set = told();
    assert_eq!(set.listed(0, listed(vec![], 9)), Err(Unfit::Old));
    assert_eq!(set.apply(0, Event::Put(item(0, "a", 10, "2"))), Err(Unfit::Old));
    assert_eq!(set.apply(0, Event::Gone(item(0, "a", 10, "2"))), Err(Unfit::Old));
    assert_eq!(set.apply(0, Event::Bookmark(9)), Err(Unfit::Old));
    assert_eq!(set.apply(1, Event::Bookmark(11)), Err(Unfit::Old));
    // A list with an object from after it.
    assert_eq!(set.listed(0, listed(vec![item(0, "a", 12, "2")], 11)), Err(Unfit::Old));
    assert_eq!((tell(&mut set), set.version(0)), ("nothing".into(), Some(10)));
    set.apply(0, Event::Bookmark(10)).unwrap();
    set.apply(0, Event::Put(item(0, "a", 11, "2"))).unwrap();
    assert_eq!(set.apply(0, Event::Put(item(0, "a", 11, "3"))), Err(Unfit::Old));
    assert_eq!(tell(&mut set), "imagepolicies/a revocations/r at 12");
}

#[test]
fn that_nothing_changed_is_told_when_every_kind_says_so() {
    let mut set = told();
    set.apply(0, Event::Bookmark(20)).unwrap();
    assert_eq!(tell(&mut set), "nothing");
    set.apply(1, Event::Bookmark(20)).unwrap();
    assert!(set.take(false).is_none());
    assert_eq!(tell(&mut set), "unchanged");
    assert_eq!(tell(&mut set), "nothing");
    set.listed(0, listed(vec![item(0, "a", 5, "1")], 30)).unwrap();
    set.listed(1, listed(vec![item(1, "r", 6, "1")], 30)).unwrap();
    assert_eq!(tell(&mut set), "unchanged");
}

#[test]
fn trouble_with_one_kind_holds_back_the_other() {
    let mut set = told();
    set.failed(1, "why".into());
    set.apply(0, Event::Put(item(0, "b", 13, "1"))).unwrap();
    assert_eq!(tell(&mut set), "why");
    assert_eq!(tell(&mut set), "nothing");
    set.apply(0, Event::Bookmark(14)).unwrap();
    assert_eq!(tell(&mut set), "nothing");
    set.failed(0, "other".into());
    assert_eq!(tell(&mut set), "other");
    set.watching(0);
    assert_eq!(tell(&mut set), "why");
    set.watching(1);
    assert_eq!(tell(&mut set), "imagepolicies/a imagepolicies/b revocations/r at 14");
}

#[test]
fn recovery_is_told() {
    let mut set = told();
    set.failed(0, "why".into());
    assert_eq!(tell(&mut set), "why");
    set.watching(0);
    // Also where it is early for another word that nothing has changed.
    assert!(matches!(set.take(false), Some(Heard::Unchanged)));
    assert_eq!(tell(&mut set), "nothing");
    // Trouble that was over before it was told is none.
    set.failed(0, "why".into());
    set.watching(0);
    assert_eq!(tell(&mut set), "nothing");
}

#[test]
fn whoever_asks_is_told_again() {
    let mut set = told();
    set.ask();
    assert_eq!(tell(&mut set), "nothing");
    set.listed(0, listed(vec![item(0, "a", 5, "1")], 30)).unwrap();
    assert_eq!(tell(&mut set), "nothing");
    set.listed(1, listed(vec![item(1, "r", 6, "1")], 31)).unwrap();
    assert_eq!(tell(&mut set), "imagepolicies/a revocations/r at 31");
    set.failed(0, "why".into());
    assert_eq!(tell(&mut set), "why");
    set.ask();
    set.failed(0, "why".into());
    assert_eq!(tell(&mut set), "why");
    set.failed(1, "why".into());
    assert_eq!(tell(&mut set), "nothing");
}

#[test]
fn what_is_no_policy_object_is_rejected_until_it_is_gone() {
    let mut set = told();
    let mut bad = item(0, "b", 13, "");
    bad.object["spec"] = json!("x".repeat(2_000_000));
    set.apply(0, Event::Put(bad)).unwrap();
    assert_eq!(tell(&mut set), "imagepolicies/b: is larger than 1048576 bytes");
    assert_eq!(tell(&mut set), "nothing");
    // It is no confirmation of the set before.
    set.apply(0, Event::Bookmark(14)).unwrap();
    set.apply(1, Event::Bookmark(14)).unwrap();
    assert_eq!(tell(&mut set), "nothing");
    set.failed(0, "why".into());
    assert_eq!(tell(&mut set), "why");
    set.watching(0);
    assert_eq!(tell(&mut set), "imagepolicies/b: is larger than 1048576 bytes");
    set.apply(0, Event::Gone(item(0, "b", 15, ""))).unwrap();
    assert_eq!(tell(&mut set), "imagepolicies/a revocations/r at 15");
}

#[test]
fn what_is_held_is_bounded() {
    let mut set = told();
    let long = "x".repeat(1_000_000);
    let mut refused = None;
    for number in 0..40u64 {
        let event = Event::Put(item(0, &format!("n{number}"), 100 + number, &long));
        if let Err(unfit) = set.apply(0, event) {
            refused.get_or_insert((number, unfit));
        }
    }
    assert_eq!(refused, Some((33, Unfit::Much)));
    let all = (0..40).map(|number| item(0, &format!("n{number}"), 100, &long)).collect();
    assert_eq!(set.listed(0, listed(all, 200)), Err(Unfit::Much));
    // A change of what is there needs only the difference.
    set.apply(0, Event::Put(item(0, "n0", 300, "short"))).unwrap();
    set.apply(0, Event::Put(item(0, "n99", 301, &"x".repeat(900_000)))).unwrap();
}
