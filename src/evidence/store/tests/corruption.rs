//! What others do to the files. Whatever it is: an image is known as it was, or as something that
//! no key accepts, or not at all; nothing panics or waits; and what was wrong is counted.

use std::os::unix::{fs::symlink, net::UnixListener};

use nix::{
    sys::stat::{Mode, SFlag, mknod},
    unistd::mkfifo,
};

use super::*;
use crate::evidence::{document, testing::accepts};

/// A node that knows a signed image, and one that is signed by somebody else.
struct Node {
    desk: Desk,
    good: Known,
    bad: Known,
    /// A key that signed neither.
    stranger: Pair,
}

impl Node {
    fn new() -> Self {
        let desk = Desk::new();
        let good = indexed("good", &desk.pair);
        let bad = alone("bad", &Pair::p256());
        desk.store.keep(&good).unwrap();
        desk.store.keep(&bad).unwrap();
        let node = Self { desk, good, bad, stranger: Pair::p256() };
        assert!(accepts(&node.desk.pair, &node.good) && !accepts(&node.desk.pair, &node.bad));
        node
    }

    fn path(&self) -> PathBuf {
        self.desk.path(&self.good)
    }

    fn content(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    /// What must hold after anything. Returns whether the good image is known as it was.
    #[track_caller]
    fn holds(&self) -> bool {
        let stores = [self.desk.store.clone(), self.desk.another()];
        let mut as_it_was = true;
        for store in stores {
            for known in [store.of_id(self.bad.id()), store.of_digest(self.bad.digest())].concat() {
                assert!(!accepts(&self.desk.pair, &known), "{known:?}");
                assert_eq!(known.id(), self.bad.id());
            }
            let of_id = store.of_id(self.good.id());
            for known in &of_id {
                assert_eq!(known.id(), self.good.id());
                assert!(!accepts(&self.stranger, known));
                let signed = known.digest() == self.good.digest();
                assert!(signed || !accepts(&self.desk.pair, known), "{known:?}");
            }
            let of_digest = store.of_digest(self.good.digest());
            assert!(of_digest.iter().all(|known| known.digest() == self.good.digest()));
            as_it_was &= of_id.contains(&self.good);
            store.retain(&BTreeSet::from([self.good.id()]), Timestamp::UNIX_EPOCH).unwrap();
        }
        as_it_was
    }

    /// The file was of no use, is out of the way, and the store goes on.
    #[track_caller]
    fn is_set_aside(&self) {
        assert!(!self.holds());
        assert_eq!(self.desk.store.broken(), 1);
        assert_eq!(self.desk.names("broken").len(), 1);
        self.desk.store.keep(&self.good).unwrap();
        assert_eq!(self.desk.store.of_id(self.good.id()), from_ref(&self.good));
        assert_eq!(self.desk.store.broken(), 1);
        assert_eq!(self.desk.another().of_id(self.good.id()), from_ref(&self.good));
    }
}

#[test]
fn a_flipped_bit_makes_nothing_acceptable_that_was_not() {
    let pair = Pair::p256();
    let (stranger, good) = (Pair::p256(), indexed("good", &pair));
    let bytes = document::encode(&good).unwrap();
    let (mut refused, mut same) = (0, 0);
    for place in (0..bytes.len()).step_by(3) {
        let mut bad = bytes.clone();
        bad[place] ^= 1 << (place % 8);
        match document::decode(&bad) {
            Ok(known) if (known.id(), known.digest()) == (good.id(), good.digest()) => {
                assert!(!accepts(&stranger, &known), "byte {place}");
                same += 1;
            }
            // The store compares with the file's name, and sets it aside.
            Ok(known) => assert!(!accepts(&pair, &known) || known.digest() == good.digest()),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 300 && same > 30, "{refused} refused, {same} about the same image");
}

#[test]
fn an_entry_cut_anywhere_is_set_aside() {
    let length = Node::new().content().len();
    for length in [0, 1, 9, length / 4, length / 2, length - 2, length - 1] {
        let node = Node::new();
        fs::write(node.path(), &node.content()[..length]).unwrap();
        node.is_set_aside();
    }
    let good = indexed("good", &Pair::p256());
    let bytes = document::encode(&good).unwrap();
    assert!((0..bytes.len()).all(|length| document::decode(&bytes[..length]).is_err()));
}

#[test]
fn entries_swapped_between_images_are_set_aside() {
    let node = Node::new();
    let (good, bad) = (node.path(), node.desk.path(&node.bad));
    let between = node.desk.top().join("between");
    fs::rename(&good, &between).unwrap();
    fs::rename(&bad, &good).unwrap();
    fs::rename(&between, &bad).unwrap();
    assert!(!node.holds());
    assert_eq!((node.desk.store.broken(), node.desk.names("broken").len()), (2, 2));
}

#[test]
fn an_entry_under_another_digest_or_image_is_set_aside() {
    for of_id in [true, false] {
        let node = Node::new();
        let content = node.content();
        let place = match of_id {
            // A bad image, with the good one's signatures.
            true => node.desk.path(&node.bad),
            false => node.path().with_file_name(format!("{}.json", Digest::of(b"x").hex())),
        };
        fs::write(&place, content).unwrap();
        assert!(node.holds());
        assert_eq!(node.desk.store.broken(), 1);
        assert!(!place.exists());
    }
}

#[test]
fn an_entry_of_another_node_is_as_good_as_ones_own() {
    let (node, other) = (Node::new(), Desk::new());
    let elsewhere = alone("elsewhere", &node.desk.pair);
    other.store.keep(&elsewhere).unwrap();
    let to = node.desk.path(&elsewhere);
    fs::create_dir(to.parent().unwrap()).unwrap();
    fs::copy(other.path(&elsewhere), to).unwrap();
    assert!(node.holds());
    assert_eq!(node.desk.store.of_id(elsewhere.id()), from_ref(&elsewhere));
    assert!(accepts(&node.desk.pair, &elsewhere));
}

#[test]
fn a_forged_manifest_has_another_digest_and_no_signature() {
    let node = Node::new();
    // The bad image's configuration under the claims of the good one.
    let forged = manifest("bad", "other layers");
    let claims = node.good.top().claims.iter().cloned();
    let claims: Vec<_> =
        claims.map(|claim| UntrustedClaim { subject: forged.digest, ..claim }).collect();
    let forged = Known::new(entry(forged, &claims, true), None).unwrap();
    let place = node.desk.path(&forged);
    fs::write(&place, document::encode(&forged).unwrap()).unwrap();
    assert!(node.holds());
    // It is a manifest of that image, as it says; what is claimed of it is not so.
    assert!(node.desk.store.of_id(node.bad.id()).contains(&forged));
    assert!(!accepts(&node.desk.pair, &forged));
}

#[test]
fn a_signature_of_another_image_is_no_signature() {
    let node = Node::new();
    let text = String::from_utf8(node.content()).unwrap();
    let good: serde_json::Value = serde_json::from_str(&text).unwrap();
    let place = node.desk.path(&node.bad);
    let mut bad: serde_json::Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
    bad["manifest"]["claims"] = good["manifest"]["claims"].clone();
    fs::write(&place, bad.to_string()).unwrap();
    assert!(node.holds());
    assert_eq!(node.desk.store.broken(), 0);
}

#[test]
fn what_is_no_document_is_set_aside() {
    let good = String::from_utf8(Node::new().content()).unwrap();
    let claim = r#"{"source":"x","bundle":""},"#;
    let claims =
        good.replacen(r#""claims":["#, &format!(r#""claims":[{}"#, claim.repeat(1_000_000)), 1);
    for bad in [
        good.replacen(r#"{"version":1,"#, r#"{"version":1,"version":1,"#, 1),
        good.replacen(r#""whole":true"#, r#""whole":true,"whole":false"#, 1),
        good.replacen(r#"{"version""#, r#"{"more":0,"version""#, 1),
        good.replacen("sha256:", "sha256:\0", 1),
        format!("{good}\0"),
        format!("{good}{good}"),
        "[".repeat(1_000_000),
        format!("{}{}", r#"{"version":"#.repeat(100_000), "}".repeat(100_000)),
        "\0".repeat(4096),
        claims,
    ] {
        let node = Node::new();
        fs::write(node.path(), bad).unwrap();
        node.is_set_aside();
    }
}

/// Whoever goes back to an older release may come forward again.
#[test]
fn what_a_later_release_wrote_stays_where_it_is_and_proves_nothing_here() {
    let node = Node::new();
    let text = String::from_utf8(node.content()).unwrap();
    let later = text.replacen(r#""version":1"#, r#""version":2"#, 1);
    fs::write(node.path(), &later).unwrap();
    assert!(node.desk.store.of_id(node.good.id()).is_empty());
    assert_eq!(fs::read_to_string(node.path()).unwrap(), later);
    assert_eq!(node.desk.names("broken").len(), 0);
}

#[test]
fn a_huge_file_is_not_read() {
    let node = Node::new();
    fs::File::create(node.path()).unwrap().set_len(1 << 40).unwrap();
    node.is_set_aside();
}

#[test]
fn what_is_no_file_is_set_aside() {
    type Put = fn(&Path);
    let kinds: [Put; 6] = [
        |path| fs::create_dir(path).unwrap(),
        |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("x"), "").unwrap();
        },
        |path| symlink("/dev/zero", path).unwrap(),
        |path| symlink("nowhere", path).unwrap(),
        |path| mkfifo(path, Mode::S_IRWXU).unwrap(),
        |path| drop(UnixListener::bind(path).unwrap()),
    ];
    for put in kinds {
        let node = Node::new();
        fs::remove_file(node.path()).unwrap();
        // Paths of sockets are short.
        let short = node.desk.state.path().join("s");
        put(&short);
        fs::rename(&short, node.path()).unwrap();
        node.is_set_aside();
    }
}

#[test]
fn a_device_is_set_aside() {
    let node = Node::new();
    fs::remove_file(node.path()).unwrap();
    // The zero device; not everybody may make one.
    let device = nix::sys::stat::makedev(1, 5);
    if mknod(&node.path(), SFlag::S_IFCHR, Mode::S_IRWXU, device).is_ok() {
        node.is_set_aside();
    }
}

#[test]
fn a_link_to_a_good_entry_is_not_followed_and_a_hard_link_is_one() {
    let node = Node::new();
    let elsewhere = node.desk.state.path().join("elsewhere");
    fs::rename(node.path(), &elsewhere).unwrap();
    symlink(&elsewhere, node.path()).unwrap();
    node.is_set_aside();
    let node = Node::new();
    let elsewhere = node.desk.state.path().join("elsewhere");
    fs::hard_link(node.path(), &elsewhere).unwrap();
    assert!(node.holds());
    let content = node.content();
    // What is learnt goes into a file of its own.
    let more =
        Known::new(entry(node.good.top().manifest.clone(), &[], true), node.good.child().cloned());
    node.desk.store.keep(&more.unwrap()).unwrap();
    assert_eq!(fs::read(&elsewhere).unwrap(), content);
    // A link to another image's entry is that image's.
    let place = node.desk.path(&node.bad);
    fs::remove_file(&place).unwrap();
    fs::hard_link(&elsewhere, &place).unwrap();
    assert!(node.holds());
    assert_eq!(node.desk.store.broken(), 1);
    assert!(elsewhere.exists() && !place.exists());
}

#[test]
fn what_is_no_directory_of_an_image_is_none() {
    type Put = fn(&Path, &Path);
    let kinds: [Put; 4] = [
        |path, _| fs::write(path, "x").unwrap(),
        |path, other| symlink(other, path).unwrap(),
        |path, _| mkfifo(path, Mode::S_IRWXU).unwrap(),
        |path, _| symlink("nowhere", path).unwrap(),
    ];
    for put in kinds {
        let node = Node::new();
        let directory = node.path().parent().unwrap().to_owned();
        let other = node.desk.state.path().join("other");
        fs::rename(&directory, &other).unwrap();
        put(&directory, &other);
        assert!(!node.holds());
        let (_, findings) = Store::open(node.desk.state.path());
        assert!(findings[0].contains(&node.good.id().config().hex()), "{findings:?}");
        // The next entry needs the place.
        node.desk.store.keep(&node.good).unwrap();
        assert_eq!(node.desk.store.of_id(node.good.id()), from_ref(&node.good));
        assert_eq!(node.desk.names("broken").len(), 1);
        assert_eq!(names(&other).len(), 1);
    }
}

#[test]
fn names_that_are_none_are_passed_over() {
    let node = Node::new();
    let directory = node.path().parent().unwrap().to_owned();
    for name in ["x", ".json", "a.json", &format!("{}.JSON", node.good.digest().hex())] {
        fs::write(directory.join(name), node.content()).unwrap();
    }
    fs::write(directory.join(node.good.digest().hex().to_uppercase() + ".json"), "").unwrap();
    assert!(node.holds());
    assert_eq!(node.desk.store.broken(), 0);
}

#[test]
fn what_cannot_be_used_is_not_piled_up() {
    let node = Node::new();
    for round in 0..80 {
        fs::write(node.path(), round.to_string()).unwrap();
        assert!(node.desk.store.of_id(node.good.id()).is_empty());
    }
    assert_eq!(node.desk.store.broken(), 80);
    let kept = node.desk.names("broken");
    assert_eq!(kept.len(), 64);
    let last = kept.iter().find(|name| name.ends_with(".json.80")).unwrap();
    assert_eq!(fs::read(node.desk.top().join("broken").join(last)).unwrap(), b"79");
    assert!(!kept.iter().any(|name| name.ends_with(".json.16")));
}

#[test]
fn what_cannot_be_moved_away_is_still_of_no_use() {
    let node = Node::new();
    fs::write(node.desk.top().join("broken"), "no directory").unwrap();
    fs::write(node.path(), "broken").unwrap();
    assert!(node.desk.store.of_id(node.good.id()).is_empty());
    assert!(!node.holds());
    node.desk.store.keep(&node.good).unwrap();
    assert!(node.holds());
}
