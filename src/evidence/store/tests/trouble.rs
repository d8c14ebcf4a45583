//! A disk that does not do what it should.

use std::os::unix::fs::symlink;

use super::*;

#[track_caller]
fn unusable(state: &Path, why: &str) -> Store {
    let (store, findings) = Store::open(state);
    let expected = format!(
        "the evidence store at {} cannot be used: {why}; what is learnt is lost with this process, \
         and what cannot be proven is refused",
        state.join("evidence").display()
    );
    assert_eq!(findings, [expected]);
    store
}

/// The store must be usable for as long as the process lives.
#[track_caller]
fn works_in_memory(store: &Store) {
    let pair = Pair::p256();
    let (one, two) = (alone("one", &pair), indexed("two", &pair));
    assert!(store.keep(&one).is_err() && store.keep(&two).is_err() && store.import(&two).is_err());
    assert_eq!(store.of_id(one.id()), from_ref(&one));
    assert_eq!(store.of_digest(two.digest()), from_ref(&two));
    assert_eq!(store.all().len(), 2);
    let _ = store.retain(&BTreeSet::new(), Timestamp::MAX);
}

#[test]
fn a_directory_that_is_none_is_said_and_left_alone() {
    let state = tempfile::tempdir().unwrap();
    let at = state.path().join("evidence");
    fs::write(&at, "mine").unwrap();
    works_in_memory(&unusable(state.path(), "it is no directory"));
    assert_eq!(fs::read(&at).unwrap(), b"mine");
    fs::remove_file(&at).unwrap();
    nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRWXU).unwrap();
    works_in_memory(&unusable(state.path(), "it is no directory"));
    fs::remove_file(&at).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), &at).unwrap();
    works_in_memory(&unusable(state.path(), "it is a symbolic link, not a directory"));
    assert_eq!(names(elsewhere.path()), [""; 0]);
    fs::remove_file(&at).unwrap();
    symlink(state.path().join("nowhere"), &at).unwrap();
    works_in_memory(&unusable(state.path(), "it is a symbolic link, not a directory"));
}

#[test]
fn a_state_directory_that_cannot_be_made_is_said() {
    let state = tempfile::tempdir().unwrap();
    fs::write(state.path().join("file"), "").unwrap();
    let store = unusable(&state.path().join("file/state"), "Not a directory (os error 20)");
    works_in_memory(&store);
}

#[test]
fn memory_is_bounded_and_the_last_one_stays() {
    let state = tempfile::tempdir().unwrap();
    fs::write(state.path().join("evidence"), "").unwrap();
    let (store, _) = Store::open(state.path());
    let large = |n: u8| {
        let manifest = manifest(&n.to_string(), "app");
        let body = UntrustedBody::Bundle { json: vec![n; 1 << 20] };
        let claim = crate::evidence::testing::claim(manifest.digest, body);
        Known::new(entry(manifest, &[claim], true), None).unwrap()
    };
    for n in 0..20 {
        assert!(store.keep(&large(n)).is_err());
    }
    // Each takes 1.3 MiB in base64.
    assert_eq!(store.all().len(), 11);
    assert!(store.of_id(large(0).id()).is_empty());
    assert_eq!(store.of_id(large(19).id()), [large(19)]);
}

#[test]
fn what_was_in_memory_goes_to_the_disk_when_it_is_back() {
    let state = tempfile::tempdir().unwrap();
    let at = state.path().join("evidence");
    fs::write(&at, "").unwrap();
    let (store, _) = Store::open(state.path());
    let pair = Pair::p256();
    let known = alone("app", &pair);
    assert!(store.keep(&known).is_err());
    fs::remove_file(&at).unwrap();
    store.keep(&known).unwrap();
    assert_eq!(store.of_id(known.id()), from_ref(&known));
    assert_eq!(Store::open(state.path()).0.of_id(known.id()), [known]);
}

#[test]
fn a_store_that_is_removed_while_in_use_is_made_again() {
    let desk = Desk::new();
    let (one, two) = (alone("one", &desk.pair), alone("two", &desk.pair));
    desk.store.keep(&one).unwrap();
    fs::remove_dir_all(desk.state.path()).unwrap();
    assert!(desk.store.of_id(one.id()).is_empty() && desk.store.of_digest(one.digest()).is_empty());
    assert_eq!(desk.store.retain(&BTreeSet::new(), Timestamp::UNIX_EPOCH).unwrap(), 0);
    desk.store.keep(&two).unwrap();
    assert_eq!(desk.another().of_id(two.id()), [two]);
}

#[test]
fn what_an_interrupted_write_left_is_removed_and_nothing_else() {
    let desk = Desk::new();
    let known = alone("app", &desk.pair);
    desk.store.keep(&known).unwrap();
    let whole = fs::read(desk.path(&known)).unwrap();
    for (name, content) in [(".new-1-0", &whole[..]), (".new-77-3", &whole[..9]), (".new-x", b"")] {
        fs::write(desk.top().join(name), content).unwrap();
    }
    fs::write(desk.top().join("notes"), "mine").unwrap();
    let (store, findings) = Store::open(desk.state.path());
    let expected = format!(
        "the evidence store at {} holds something else than evidence, such as \"notes\": it is \
         passed over",
        desk.top().display()
    );
    assert_eq!(findings, [expected]);
    assert_eq!(store.of_id(known.id()), from_ref(&known));
    assert_eq!(desk.names(""), [known.id().config().hex(), "notes".into()]);
}

#[test]
fn an_unfinished_file_is_never_written_over() {
    let desk = Desk::new();
    let elsewhere = desk.state.path().join("elsewhere");
    fs::write(&elsewhere, "mine").unwrap();
    // The name that comes next.
    let next = desk.top().join(format!(".new-{}-1", std::process::id()));
    fs::hard_link(&elsewhere, next).unwrap();
    desk.store.keep(&alone("app", &desk.pair)).unwrap();
    assert_eq!(fs::read(&elsewhere).unwrap(), b"mine");
}

#[test]
fn a_command_that_only_reads_makes_nothing() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::beside(&state.path().join("state"));
    let known = alone("app", &Pair::p256());
    assert!(store.of_id(known.id()).is_empty() && store.of_digest(known.digest()).is_empty());
    assert!(store.all().is_empty());
    assert_eq!(names(state.path()), [""; 0]);
}
