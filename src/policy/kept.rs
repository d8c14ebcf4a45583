//! The last good sets, on this node's disk, and the mark that says which they are.
//!
//! The state directory is not trusted: a set that is kept there counts only if it is the very one
//! that the mark names by its digest. The mark lies beside the audit log, so a state directory
//! that is edited, lost or restored from a copy can take policies away and never turn them back.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::image::Digest;

use super::source::shown;

/// Largest mark, in bytes.
const MAX_MARK: usize = 64 * 1024;
/// Largest set that is kept, in bytes: [`super::texts::MAX_SET`] and more, since JSON escapes.
const MAX_KEPT: usize = 64 * 1024 * 1024;
/// Most files that are looked at when old sets are removed.
const MAX_OLD: usize = 1024;
/// Most kept sets that are read where the mark is gone: one of each kind, and one half removed.
const MAX_FOUND: usize = 8;

/// The directory of kept sets, in the state directory.
const DIRECTORY: &str = "policy";
/// What the mark's name has behind the audit log's.
const MARK: &str = ".policy-mark";
/// The beginning of the name of a file that is still being written.
const UNFINISHED: &str = ".new-";

/// What a set comes from. Each kind has a mark of its own: their revisions count other things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Bundle,
    Directory,
    Floor,
    Kubernetes,
}

/// The newest set of a kind that this node accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Last {
    /// The source, as the configuration names it.
    pub source: String,
    pub revision: Option<u64>,
    /// The set's own digest.
    pub digest: Digest,
    /// When the source last said that this is its set.
    pub confirmed: Timestamp,
}

/// The mark's file: JSON, of maybe another version.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    accepted: BTreeMap<Kind, WrittenLast>,
}

#[derive(Serialize, Deserialize)]
struct WrittenLast {
    source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    digest: String,
    confirmed: String,
}

/// The version of the mark's format.
const VERSION: u32 = 1;

/// What is kept.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    mark: PathBuf,
    /// Why the mark is of no use; a mark that is not there is of use.
    accepted: Result<BTreeMap<Kind, Last>, String>,
}

impl Kept {
    /// What is kept in a state directory, by the mark beside an audit log.
    pub(super) fn open(state_directory: &Path, audit_file: &Path) -> Self {
        let mut mark = audit_file.as_os_str().to_owned();
        mark.push(MARK);
        let mark = PathBuf::from(mark);
        let accepted = read_mark(&mark).map_err(|why| {
            format!(
                "{} says which policies this node had last, and {why}; without it older ones could \
                 come back. Remove it if that is no danger, and start Portcullis anew",
                shown(&mark)
            )
        });
        Self { directory: state_directory.join(DIRECTORY), mark, accepted }
    }

    /// The newest set of a kind that was accepted.
    ///
    /// # Errors
    ///
    /// The mark cannot be read: what was accepted is not known.
    pub(super) fn last(&self, kind: Kind) -> Result<Option<&Last>, &str> {
        self.accepted.as_ref().map(|all| all.get(&kind)).map_err(|why| &**why)
    }

    /// The bytes that were kept for this set. Nothing says yet that they are this set.
    pub(super) fn bytes(&self, last: &Last) -> Result<Vec<u8>, String> {
        let path = self.path(last.digest);
        let bytes = self.must_be_ours().map_err(Unread::from).and_then(|()| read(&path, MAX_KEPT));
        bytes.map_err(|why| format!("{} {why}", shown(&path)))
    }

    /// The bytes of all sets that there are, up to [`MAX_FOUND`]. Nothing says what they are.
    pub(super) fn all(&self) -> impl Iterator<Item = Vec<u8>> {
        let entries = self.must_be_ours().and_then(|()| fs::read_dir(&self.directory));
        let entries = entries.into_iter().flatten().flatten();
        let sets = entries.filter(|entry| is_ours(&entry.file_name())).take(MAX_FOUND);
        sets.filter_map(|entry| read(&entry.path(), MAX_KEPT).ok())
    }

    /// Takes this for the newest of its kind that was accepted, where no mark says any.
    pub(super) fn assume(&mut self, kind: Kind, last: Last) {
        if let Ok(accepted) = &mut self.accepted {
            accepted.entry(kind).or_insert(last);
        }
    }

    /// Whether there is a file for this set. Nothing says yet that it is this set.
    pub(super) fn has(&self, digest: Digest) -> bool {
        let found = self.must_be_ours().and_then(|()| fs::symlink_metadata(self.path(digest)));
        found.is_ok_and(|found| found.is_file())
    }

    /// Accepts a set: its bytes, then the mark, each durable before the next. What the state
    /// directory does not take is returned, and does not keep the mark from being written.
    ///
    /// # Errors
    ///
    /// The mark is not written. The set must not come into force: a restart would turn it back.
    pub(super) fn keep(
        &mut self,
        kind: Kind,
        last: Last,
        bytes: &[u8],
    ) -> Result<Option<String>, String> {
        let path = self.path(last.digest);
        let kept = self.write_set(&path, bytes);
        let kept = kept.map_err(|error| format!("{} cannot be written: {error}", shown(&path)));
        self.mark(kind, last)?;
        if kept.is_ok() {
            self.remove_old();
        }
        Ok(kept.err())
    }

    /// Removes the bytes of the set that the mark names, so that no start recalls it.
    pub(super) fn forget(&self, kind: Kind) {
        if let (Ok(Some(last)), Ok(())) = (self.last(kind), self.must_be_ours()) {
            let _ = fs::remove_file(self.path(last.digest));
        }
    }

    /// Writes the mark alone.
    ///
    /// # Errors
    ///
    /// The mark is as it was.
    pub(super) fn mark(&mut self, kind: Kind, last: Last) -> Result<(), String> {
        let mut accepted = self.accepted.clone()?;
        accepted.insert(kind, last);
        write(&self.mark, &text(&accepted))
            .map_err(|error| format!("{} cannot be written: {error}", shown(&self.mark)))?;
        self.accepted = Ok(accepted);
        Ok(())
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.directory.join(format!("{}.json", digest.hex()))
    }

    fn write_set(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > MAX_KEPT {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "it is too large to be kept"));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        self.must_be_ours()?;
        write(path, bytes)
    }

    /// Whoever may write the state directory may put a link in the place of ours.
    fn must_be_ours(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.directory)?.is_dir() {
            true => Ok(()),
            false => Err(io::Error::new(ErrorKind::NotADirectory, "it is no directory")),
        }
    }

    /// Removes the sets that no mark names. What cannot be removed stays, and does no harm; nor is
    /// anything removed that is not named as a set, wherever this leads in the last moment.
    fn remove_old(&self) {
        let entries = self.must_be_ours().and_then(|()| fs::read_dir(&self.directory));
        let (Ok(accepted), Ok(entries)) = (&self.accepted, entries) else {
            return;
        };
        let names: Vec<_> = accepted.values().map(|last| self.path(last.digest)).collect();
        for entry in entries.take(MAX_OLD).flatten() {
            if is_ours(&entry.file_name()) && !names.contains(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Whether a set, finished or not, could have this name.
fn is_ours(name: &OsStr) -> bool {
    let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
    let hex = name.map(|name| name.strip_prefix(UNFINISHED).unwrap_or(name));
    hex.is_some_and(|hex| format!("sha256:{hex}").parse::<Digest>().is_ok())
}

fn read_mark(path: &Path) -> Result<BTreeMap<Kind, Last>, String> {
    let bytes = match read(path, MAX_MARK) {
        Err(Unread::Absent) => return Ok(BTreeMap::new()),
        read => read.map_err(|why| why.to_string())?,
    };
    let written: Written =
        serde_json::from_slice(&bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if written.version != VERSION {
        return Err(format!("is of version {}; this release knows {VERSION}", written.version));
    }
    let last = |(kind, last): (Kind, WrittenLast)| {
        let WrittenLast { source, revision, digest, confirmed } = last;
        let digest = digest.parse().ok()?;
        Some((kind, Last { source, revision, digest, confirmed: confirmed.parse().ok()? }))
    };
    let all = written.accepted.into_iter().map(last).collect::<Option<_>>();
    all.ok_or_else(|| "names no digest or no time".into())
}

fn text(accepted: &BTreeMap<Kind, Last>) -> Vec<u8> {
    let last = |last: &Last| WrittenLast {
        source: last.source.clone(),
        revision: last.revision,
        digest: last.digest.to_string(),
        confirmed: last.confirmed.to_string(),
    };
    let accepted = accepted.iter().map(|(kind, one)| (*kind, last(one))).collect();
    let mut text = serde_json::to_vec(&Written { version: VERSION, accepted }).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("is not there")]
    Absent,
    #[error("is no regular file")]
    Irregular,
    #[error("is larger than {0} bytes")]
    Large(usize),
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::Absent,
            _ => Self::Io(error),
        }
    }
}

fn read(path: &Path, limit: usize) -> Result<Vec<u8>, Unread> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Unread::Irregular);
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit { Err(Unread::Large(limit)) } else { Ok(bytes) }
}

/// Writes a file as a whole, and returns when it is durable. A crash leaves the old or the new one.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut name = OsString::from(UNFINISHED);
    name.push(OsStr::from_bytes(path.file_name().unwrap_or_default().as_bytes()));
    let unfinished = directory.join(name);
    // Of a process that was killed: the lock on the audit log keeps others away.
    let _ = fs::remove_file(&unfinished);
    let flags = OFlag::O_NOFOLLOW.bits();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(flags);
    let finish = |mut file: File| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        File::open(directory)?.sync_all()
    };
    options.open(&unfinished).and_then(finish).inspect_err(|_| {
        let _ = fs::remove_file(&unfinished);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    struct Scene(TempDir);

    impl Scene {
        fn new() -> Self {
            let scene = Self(TempDir::new().unwrap());
            fs::create_dir(scene.path("log")).unwrap();
            scene
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn open(&self) -> Kept {
            Kept::open(&self.path("state"), &self.path("log/audit.jsonl"))
        }

        fn mark(&self) -> PathBuf {
            self.path("log/audit.jsonl.policy-mark")
        }
    }

    fn last(name: &str, revision: u64) -> Last {
        let digest = Digest::of(name.as_bytes());
        let confirmed = Timestamp::from_second(1).unwrap();
        Last { source: "the source".into(), revision: Some(revision), digest, confirmed }
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart_and_older_sets_are_not() {
        let scene = Scene::new();
        let mut kept = scene.open();
        assert_eq!(kept.last(Kind::Bundle), Ok(None));
        for (name, revision) in [("one", 1), ("two", 2)] {
            assert_eq!(kept.keep(Kind::Bundle, last(name, revision), name.as_bytes()), Ok(None));
        }
        kept.keep(Kind::Floor, last("floor", 0), b"floor").unwrap();
        let kept = scene.open();
        assert_eq!(kept.last(Kind::Bundle), Ok(Some(&last("two", 2))));
        assert_eq!(kept.last(Kind::Kubernetes), Ok(None));
        assert_eq!(kept.bytes(&last("two", 2)).unwrap(), b"two");
        assert_eq!(kept.bytes(&last("floor", 0)).unwrap(), b"floor");
        let gone = kept.bytes(&last("one", 1)).unwrap_err();
        assert!(gone.ends_with(".json is not there"), "{gone}");
        assert_eq!(fs::read_dir(scene.path("state/policy")).unwrap().count(), 2);
    }

    #[test]
    fn a_state_directory_that_takes_nothing_does_not_hold_up_the_mark() {
        let scene = Scene::new();
        fs::write(scene.path("state"), "").unwrap();
        let why = scene.open().keep(Kind::Bundle, last("one", 1), b"one").unwrap().unwrap();
        assert!(why.contains(".json cannot be written: "), "{why}");
        assert_eq!(scene.open().last(Kind::Bundle), Ok(Some(&last("one", 1))));
    }

    #[test]
    fn what_is_not_marked_is_not_accepted() {
        let scene = Scene::new();
        fs::create_dir(scene.mark()).unwrap();
        let mut kept = scene.open();
        let why = kept.last(Kind::Bundle).unwrap_err().to_owned();
        assert!(why.contains("audit.jsonl.policy-mark says which policies"), "{why}");
        assert!(why.contains("is no regular file"), "{why}");
        assert_eq!(kept.keep(Kind::Bundle, last("one", 1), b"one"), Err(why));
        fs::remove_dir(scene.mark()).unwrap();
        let mut kept = scene.open();
        fs::remove_dir_all(scene.path("log")).unwrap();
        let why = kept.keep(Kind::Bundle, last("one", 1), b"one").unwrap_err();
        assert!(why.contains("policy-mark cannot be written: No such file"), "{why}");
        assert_eq!(kept.last(Kind::Bundle), Ok(None));
    }

    #[test]
    fn a_mark_that_is_broken_is_no_mark_of_nothing() {
        let scene = Scene::new();
        let good = {
            scene.open().keep(Kind::Bundle, last("one", 1), b"one").unwrap();
            fs::read_to_string(scene.mark()).unwrap()
        };
        for broken in [
            "",
            "{}",
            &good[..good.len() / 2],
            &good.replace("sha256:", "md5:"),
            &good.replace("1970", "soon"),
            &good.replace("\"version\":1", "\"version\":2"),
            &good.replace("bundle", "bundles"),
            &" ".repeat(MAX_MARK + 1),
        ] {
            fs::write(scene.mark(), broken).unwrap();
            assert!(scene.open().last(Kind::Bundle).is_err(), "{broken}");
        }
        fs::remove_file(scene.mark()).unwrap();
        symlink(scene.path("elsewhere"), scene.mark()).unwrap();
        assert!(scene.open().last(Kind::Bundle).is_err());
        // What a later release adds does not matter.
        fs::remove_file(scene.mark()).unwrap();
        fs::write(scene.mark(), good.replace("{\"source\"", "{\"more\":1,\"source\"")).unwrap();
        assert_eq!(scene.open().last(Kind::Bundle), Ok(Some(&last("one", 1))));
    }

    #[test]
    fn what_is_removed_is_a_set_in_our_own_directory() {
        let scene = Scene::new();
        let mut kept = scene.open();
        kept.keep(Kind::Bundle, last("one", 1), b"one").unwrap();
        let (sets, other) = (scene.path("state/policy"), scene.path("other"));
        fs::create_dir(&other).unwrap();
        let set = format!("{}.json", Digest::of(b"x").hex());
        let unfinished = format!(".new-{set}");
        for name in [&*set, &unfinished, "audit.jsonl"] {
            fs::write(other.join(name), name).unwrap();
            fs::write(sets.join(name), name).unwrap();
        }
        fs::write(sets.join(".new-audit"), "").unwrap();
        kept.remove_old();
        assert!(sets.join("audit.jsonl").exists() && sets.join(".new-audit").exists());
        assert!(!sets.join(&set).exists() && !sets.join(&unfinished).exists());
        // Whoever may write the state directory leads to files that are not ours.
        fs::remove_dir_all(&sets).unwrap();
        symlink(&other, &sets).unwrap();
        kept.remove_old();
        assert_eq!(fs::read_dir(&other).unwrap().count(), 3);
        assert!(!kept.has(Digest::of(b"x")));
        fs::write(kept.path(Digest::of(b"one")), b"one").unwrap();
        assert!(kept.bytes(&last("one", 1)).is_err());
    }

    #[test]
    fn a_write_that_was_cut_short_is_begun_anew() {
        let scene = Scene::new();
        fs::write(scene.path("log/.new-audit.jsonl.policy-mark"), "half").unwrap();
        scene.open().keep(Kind::Bundle, last("one", 1), b"one").unwrap();
        assert_eq!(scene.open().last(Kind::Bundle), Ok(Some(&last("one", 1))));
    }
}
