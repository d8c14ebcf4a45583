//! The store as its users see it; what others do to its files is in `corruption`.

mod corruption;
mod documents;
mod trouble;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    slice::from_ref,
};

use jiff::Timestamp;

use super::*;
use crate::{
    evidence::{
        MAX_SIGNATURES, UntrustedBody, UntrustedClaim,
        testing::{alone, entry, index, indexed, manifest, signed, unreadable},
    },
    verify::testing::Pair,
};

struct Desk {
    state: tempfile::TempDir,
    store: Store,
    pair: Pair,
}

impl Desk {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let (store, findings) = Store::open(state.path());
        assert_eq!(findings, [""; 0]);
        Self { state, store, pair: Pair::p256() }
    }

    fn top(&self) -> PathBuf {
        self.state.path().join("evidence")
    }

    fn path(&self, known: &Known) -> PathBuf {
        path(&self.top(), known)
    }

    /// Opened anew, as by another process.
    fn another(&self) -> Store {
        Store::open(self.state.path()).0
    }

    /// The names in a directory below `evidence`, sorted.
    fn names(&self, below: &str) -> Vec<String> {
        names(&self.top().join(below))
    }
}

fn path(top: &Path, known: &Known) -> PathBuf {
    top.join(known.id().config().hex()).join(format!("{}.json", known.digest().hex()))
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Sets the time at which a file was last used, in seconds since 1970.
fn used(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// An image manifest with these claims.
fn with(claims: &[&str], whole: bool) -> Known {
    let manifest = manifest("app", "app");
    let claims: Vec<_> = claims.iter().map(|name| unreadable(manifest.digest, name)).collect();
    Known::new(entry(manifest, &claims, whole), None).unwrap()
}

#[track_caller]
fn says(store: &Store, known: &Known, claims: &[&str], whole: bool) {
    let [found] = &store.of_id(known.id())[..] else { panic!("not one entry") };
    let found_claims: Vec<_> = found.top().claims.iter().map(why).collect();
    assert_eq!((found_claims, found.top().whole), (claims.to_vec(), whole));
}

fn why(claim: &UntrustedClaim) -> &str {
    match &claim.body {
        UntrustedBody::Unreadable { why } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_kept_is_found_by_id_and_digest_and_after_a_restart() {
    let desk = Desk::new();
    let (one, two) = (alone("one", &desk.pair), indexed("two", &desk.pair));
    for known in [&one, &two] {
        assert!(desk.store.of_id(known.id()).is_empty());
        assert!(desk.store.of_digest(known.digest()).is_empty());
        desk.store.keep(known).unwrap();
    }
    for store in [&desk.store, &desk.another(), &Store::beside(desk.state.path())] {
        for known in [&one, &two] {
            assert_eq!(store.of_id(known.id()), from_ref(known));
            assert_eq!(store.of_digest(known.digest()), from_ref(known));
        }
        // Only the index is what an image is pulled by.
        assert!(store.of_digest(two.child().unwrap().manifest.digest).is_empty());
        let mut ids = [one.id(), two.id()];
        ids.sort();
        assert_eq!((store.all(), store.broken()), (ids.to_vec(), 0));
    }
}

#[test]
fn files_are_for_the_owner_alone() {
    let desk = Desk::new();
    let known = alone("app", &desk.pair);
    desk.store.keep(&known).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let path = desk.path(&known);
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    fs::set_permissions(desk.top(), fs::Permissions::from_mode(0o755)).unwrap();
    desk.another();
    assert_eq!(mode(&desk.top()), 0o700);
}

#[test]
fn several_manifests_of_one_image_are_all_known_the_last_one_first() {
    let desk = Desk::new();
    let child = manifest("app", "app");
    let list = index(&[&child]);
    let below = entry(child.clone(), &[], true);
    let one = Known::new(below.clone(), None).unwrap();
    let two = Known::new(entry(list, &[], true), Some(below)).unwrap();
    desk.store.keep(&one).unwrap();
    desk.store.keep(&two).unwrap();
    used(&desk.path(&one), 1000);
    assert_eq!(desk.store.of_id(one.id()), [two.clone(), one.clone()]);
    used(&desk.path(&two), 999);
    assert_eq!(desk.store.of_id(one.id()), [one.clone(), two.clone()]);
    assert_eq!(desk.store.all(), [one.id()]);
}

#[test]
fn only_so_many_manifests_of_an_image_are_kept() {
    let desk = Desk::new();
    let nth =
        |n: usize| Known::new(entry(manifest("app", &n.to_string()), &[], true), None).unwrap();
    for n in 0..MAX_MANIFESTS {
        desk.store.keep(&nth(n)).unwrap();
        used(&desk.path(&nth(n)), 1000 + n as u64);
    }
    assert_eq!(desk.store.of_id(nth(0).id()).len(), MAX_MANIFESTS);
    desk.store.keep(&nth(MAX_MANIFESTS)).unwrap();
    let found = desk.store.of_id(nth(0).id());
    assert_eq!((found.len(), &found[0]), (MAX_MANIFESTS, &nth(MAX_MANIFESTS)));
    assert!(!found.contains(&nth(0)) && found.contains(&nth(1)));
}

#[test]
fn what_is_new_comes_first_and_nothing_old_is_lost() {
    let desk = Desk::new();
    let keep = |claims: &[&str], whole| desk.store.keep(&with(claims, whole)).unwrap();
    let known = with(&[], false);
    keep(&["a", "b"], true);
    says(&desk.store, &known, &["a", "b"], true);
    keep(&["c", "a"], true);
    says(&desk.store, &known, &["c", "a", "b"], true);
    // Not everybody answered, and the claims are of those who did.
    keep(&["d"], false);
    says(&desk.store, &known, &["d", "c", "a", "b"], false);
    keep(&["a"], true);
    says(&desk.store, &known, &["a", "d", "c", "b"], true);
    // The runtime has it, and nobody was asked.
    keep(&[], false);
    says(&desk.store, &known, &["a", "d", "c", "b"], true);
}

#[test]
fn the_old_claims_are_cut_and_the_image_stays_whole() {
    let desk = Desk::new();
    let names: Vec<_> = (0..MAX_SIGNATURES + 1).map(|n| n.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    desk.store.keep(&with(&names[..60], true)).unwrap();
    desk.store.keep(&with(&names[60..], true)).unwrap();
    let expected = [&names[60..], &names[..59]].concat();
    says(&desk.store, &with(&[], true), &expected, true);
    // Of what was just learnt, nothing may be missing unsaid.
    desk.store.keep(&with(&names, true)).unwrap();
    says(&desk.store, &with(&[], true), &names[..MAX_SIGNATURES], false);
}

#[test]
fn claims_about_something_else_are_not_kept() {
    let desk = Desk::new();
    let manifest = manifest("app", "app");
    let claims = [signed(&desk.pair, Digest::of(b"other")), signed(&desk.pair, manifest.digest)];
    let known = Known::new(entry(manifest, &claims, true), None).unwrap();
    desk.store.keep(&known).unwrap();
    let [found] = &desk.store.of_id(known.id())[..] else { panic!("not one entry") };
    assert_eq!(found.top().claims, claims[1..]);
}

#[test]
fn a_pack_adds_behind_what_is_known_and_makes_nothing_whole() {
    let desk = Desk::new();
    let import = |claims: &[&str]| desk.store.import(&with(claims, true)).unwrap();
    let known = with(&[], false);
    assert!(import(&["a"]));
    says(&desk.store, &known, &["a"], false);
    assert!(!import(&["a"]));
    assert!(!import(&[]));
    assert!(import(&["b", "a"]));
    says(&desk.store, &known, &["a", "b"], false);
    desk.store.keep(&with(&["c"], true)).unwrap();
    assert!(import(&["d"]));
    says(&desk.store, &known, &["c", "a", "b", "d"], true);
}

#[test]
fn a_pack_does_not_replace_the_child() {
    let desk = Desk::new();
    let (one, two) = (manifest("app", "1"), manifest("app", "2"));
    let list = index(&[&one, &two]);
    let known = |child: &crate::resolve::Fetched| {
        let child = entry(child.clone(), &[unreadable(child.digest, "x")], true);
        Known::new(entry(list.clone(), &[], true), Some(child)).unwrap()
    };
    desk.store.keep(&known(&one)).unwrap();
    assert!(!desk.store.import(&known(&two)).unwrap());
    assert_eq!(desk.store.of_id(known(&one).id()), [known(&one)]);
    // What the runtime has now is what counts.
    desk.store.keep(&known(&two)).unwrap();
    assert_eq!(desk.store.of_id(known(&one).id()), [known(&two)]);
}

#[test]
fn nothing_is_written_when_nothing_changes() {
    let desk = Desk::new();
    let known = indexed("app", &desk.pair);
    desk.store.keep(&known).unwrap();
    let inode = || fs::metadata(desk.path(&known)).unwrap().ino();
    let before = inode();
    used(&desk.path(&known), 1000);
    desk.store.keep(&known).unwrap();
    assert_eq!(inode(), before);
    // It was used, though.
    assert!(fs::metadata(desk.path(&known)).unwrap().mtime() > 1_000_000_000);
}

#[test]
fn what_is_forgotten_is_forgotten_everywhere() {
    let desk = Desk::new();
    let (one, two) = (alone("one", &desk.pair), alone("two", &desk.pair));
    for known in [&one, &two] {
        desk.store.keep(known).unwrap();
        used(&desk.path(known), 1000);
    }
    let later = Timestamp::from_second(1000 + 7 * 24 * 60 * 60 + 1).unwrap();
    let live = BTreeSet::from([one.id()]);
    assert_eq!(desk.store.retain(&live, later).unwrap(), 1);
    assert_eq!(desk.store.all(), [one.id()]);
    assert!(desk.store.of_id(two.id()).is_empty() && desk.store.of_digest(two.digest()).is_empty());
    assert_eq!(desk.store.of_digest(one.digest()), from_ref(&one));
    assert_eq!(desk.names(""), [one.id().config().hex()]);
    assert_eq!(desk.store.retain(&BTreeSet::new(), later).unwrap(), 1);
    assert_eq!(desk.names(""), [""; 0]);
}

#[test]
fn files_that_another_process_brings_are_seen() {
    let desk = Desk::new();
    let (one, two) = (alone("one", &desk.pair), alone("two", &desk.pair));
    let other = desk.another();
    other.import(&one).unwrap();
    assert_eq!(desk.store.of_id(one.id()).len(), 1);
    assert_eq!(desk.store.of_digest(one.digest()).len(), 1);
    // From now on the directory is looked through once a second.
    other.import(&two).unwrap();
    assert_eq!(desk.store.of_id(two.id()).len(), 1);
    lock(&desk.store.0.index).listed = Instant::now().checked_sub(RELIST);
    assert_eq!(desk.store.of_digest(two.digest()).len(), 1);
}
