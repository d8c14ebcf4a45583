//! Where policy sets come from: a directory of files.
//!
//! A set is read as a whole or not at all, and everything that is wrong with it is reported at
//! once. `watch` keeps a directory's set in force while it changes.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::fcntl::OFlag;

use crate::problem::{Problem, Problems, Report};

use super::{
    PolicySet, Text, Texts, file,
    texts::{MAX_POLICIES, MAX_SET, build},
};

/// Longest path in `publicKey.file`, in bytes (`PATH_MAX` in limits.h, without the final NUL).
const MAX_PATH: usize = 4095;
/// Largest file behind `publicKey.file`, in bytes.
const MAX_KEY_FILE: usize = 16 * 1024;
/// How often a directory that a ConfigMap update swaps meanwhile is read anew.
const MAX_SWAPS: usize = 3;

/// Reads every policy of a directory: `*.yaml` and `*.yml`, symbolic links followed, hidden
/// files and other names left out.
pub fn load(directory: &Path, now: Timestamp) -> Result<PolicySet, Problems> {
    read(directory, now).map(|(set, _texts)| set)
}

/// Reads every policy of a directory, and gives the texts that it read as well.
pub fn read(directory: &Path, now: Timestamp) -> Result<(PolicySet, Texts), Problems> {
    // A ConfigMap volume changes all files at once by swapping this link. Half of the one and
    // half of the other would be a set that nobody wrote.
    let generation = || fs::read_link(directory.join("..data")).ok();
    let mut before = generation();
    for _ in 0..MAX_SWAPS {
        let set = read_once(directory, now);
        let after = generation();
        if before == after {
            return set;
        }
        before = after;
    }
    Err(Problem::of_file(shown(directory), "changes faster than it can be read").into())
}

/// Reads a single file of policies, as if it were alone in its directory.
pub fn load_file(path: &Path, now: Timestamp) -> Result<PolicySet, Problems> {
    let mut report = Report::default();
    let file = read_file(path).map_err(|why| report.add(Problem::of_file(shown(path), why)));
    let files: Vec<_> = file.into_iter().collect();
    let read_key = keys_below(path.parent().unwrap_or(Path::new("")));
    let named = files.iter().map(|file| (shown(path), file));
    build(&shown(path), named, read_key, now, report).map(|(set, _keys)| set)
}

/// Reads the text of a file of policies. Keys must be in the text.
pub fn parse(name: &str, text: &str, now: Timestamp) -> Result<PolicySet, Problems> {
    let read_key = |_: &str| Err("cannot be read here; write the key itself as pem".to_owned());
    let file = Text { name: name.to_owned(), text: text.to_owned() };
    let files = [(name.to_owned(), &file)].into_iter();
    build(name, files, read_key, now, Report::default()).map(|(set, _keys)| set)
}

fn read_once(directory: &Path, now: Timestamp) -> Result<(PolicySet, Texts), Problems> {
    let mut report = Report::default();
    let mut files = Vec::new();
    let mut size = 0;
    for path in policy_files(directory)? {
        match read_file(&path) {
            Ok(file) => {
                size += file.text.len();
                files.push(file);
            }
            Err(why) => report.add(Problem::of_file(shown(&path), why)),
        }
        if size > MAX_SET {
            let message = format!("holds more than {MAX_SET} bytes of policies");
            return Err(Problem::of_file(shown(directory), message).into());
        }
    }
    if files.is_empty() && report.is_empty() {
        let message = "holds no policy (*.yaml, *.yml)";
        report.add(Problem::of_file(shown(directory), message));
    }
    let named = files.iter().map(|file| (shown(&directory.join(&file.name)), file));
    let (set, keys) = build(&shown(directory), named, keys_below(directory), now, report)?;
    Ok((set, Texts { files, keys }))
}

/// A file of policies and its name; the error is a sentence.
fn read_file(path: &Path) -> Result<Text, String> {
    let name = path.file_name().unwrap_or_default();
    let name = name.to_str().ok_or("has a name that is not UTF-8; rename it")?.to_owned();
    Ok(Text { name, text: read_text(path, file::MAX_FILE)? })
}

/// Reads keys; relative paths begin at the policies' directory.
fn keys_below(directory: &Path) -> impl Fn(&str) -> Result<String, String> {
    move |name| {
        if name.len() > MAX_PATH {
            return Err(format!("is longer than {MAX_PATH} bytes"));
        }
        let path = directory.join(name);
        read_text(&path, MAX_KEY_FILE).map_err(|why| format!("{} {why}", shown(&path)))
    }
}

/// The policy files of a directory, in the order of their names.
fn policy_files(directory: &Path) -> Result<Vec<PathBuf>, Problems> {
    let unreadable = |error: io::Error| {
        Problems::from(Problem::of_file(shown(directory), format!("cannot be read: {error}")))
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
        if !hidden && is_policy_file(&path) {
            paths.push(path);
        }
        if paths.len() > MAX_POLICIES {
            let message = format!("holds more than {MAX_POLICIES} policy files");
            return Err(Problem::of_file(shown(directory), message).into());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Whether a file of this name holds policies.
pub(crate) fn is_policy_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// The text of a regular file of at most `limit` bytes; the error is a sentence.
pub(crate) fn read_text(path: &Path, limit: usize) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    // To open a pipe that nobody writes to would wait for ever.
    let options = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).clone();
    let file = options.open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("is no regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > limit {
        return Err(format!("is larger than {limit} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".into())
}

/// A path in a message: what a terminal would act on is escaped.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use tempfile::TempDir;

    use super::*;
    use crate::{image::Digest, policy::texts::MAX_REVOKED};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\n\
             metadata: {{name: {name}}}\nspec:\n  match: {{images: ['**']}}\n  \
             authorities: [{{name: a, unsigned: {{reason: test}}}}]\n"
        )
    }

    fn with_key(name: &str, file: &str) -> String {
        policy(name).replace("unsigned: {reason: test}", &format!("publicKey: {{file: {file}}}"))
    }

    fn key() -> String {
        crate::verify::testing::Pair::p256().pem()
    }

    fn directory(files: &[(&str, &str)]) -> TempDir {
        let directory = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn names(set: &PolicySet) -> Vec<&str> {
        set.policies().iter().map(|policy| &*policy.name).collect()
    }

    /// What is wrong, with the directory's path as `D`.
    fn wrong(directory: &TempDir) -> String {
        let path = directory.path();
        let problems = load(path, NOW).unwrap_err().to_string();
        problems.replace(path.to_str().unwrap(), "D")
    }

    /// What is wrong with a text that is alone in a file, with its path as `F`.
    fn load_alone(text: &str) -> String {
        let directory = directory(&[("f.yaml", text)]);
        let path = directory.path().join("f.yaml");
        load_file(&path, NOW).unwrap_err().to_string().replace(path.to_str().unwrap(), "F")
    }

    #[test]
    fn a_directory_is_one_set() {
        let directory = directory(&[
            ("b.yaml", &format!("{}---\n{}", policy("z"), policy("m"))),
            ("a.yml", &policy("a")),
            (".hidden.yaml", "not read"),
            ("notes.txt", "not read"),
            ("yaml", "not read"),
        ]);
        fs::create_dir(directory.path().join("more")).unwrap();
        let set = load(directory.path(), NOW).unwrap();
        assert_eq!((names(&set), set.loaded()), (vec!["a", "m", "z"], NOW));
    }

    #[test]
    fn a_mounted_config_map_is_read_through_its_links() {
        let directory = directory(&[]);
        let mount = |name: &str| directory.path().join(name);
        fs::create_dir(mount("..2026")).unwrap();
        fs::write(mount("..2026/a.yaml"), policy("a")).unwrap();
        symlink("..2026", mount("..data")).unwrap();
        symlink("..data/a.yaml", mount("a.yaml")).unwrap();
        assert_eq!(names(&load(directory.path(), NOW).unwrap()), ["a"]);
    }

    #[test]
    fn without_a_policy_there_is_no_set() {
        let empty = directory(&[("a.txt", "")]);
        let message = "D: holds no policy (*.yaml, *.yml)";
        assert_eq!(wrong(&empty), message);
        let gone = load(&empty.path().join("gone"), NOW).unwrap_err().to_string();
        assert!(gone.ends_with("/gone: cannot be read: No such file or directory (os error 2)"));
    }

    #[test]
    fn everything_wrong_with_all_files_is_reported_at_once() {
        let directory = directory(&[
            ("a.yaml", &policy("a")),
            ("b.yaml", &policy("a").replace("['**']", "[]")),
            ("c.yaml", ""),
            ("e.yaml", "a: ["),
            ("f.yaml", &with_key("f", "gone.pub")),
            ("g.yaml", &with_key("g", ".")),
        ]);
        fs::write(directory.path().join("d.yaml"), b"\xff").unwrap();
        fs::write(directory.path().join("h.yaml"), vec![b' '; file::MAX_FILE + 1]).unwrap();
        fs::create_dir(directory.path().join("i.yaml")).unwrap();
        symlink("nowhere", directory.path().join("j.yaml")).unwrap();
        nix::unistd::mkfifo(&directory.path().join("k.yaml"), Mode::S_IRWXU).unwrap();
        assert_eq!(
            wrong(&directory),
            "D/d.yaml: is not UTF-8 text\n\
             D/h.yaml: is larger than 1048576 bytes\n\
             D/i.yaml: is no regular file\n\
             D/j.yaml: cannot be read: No such file or directory (os error 2)\n\
             D/k.yaml: is no regular file\n\
             D/b.yaml:5:19: spec.match.images: is an empty list; remove the field or fill the \
             list\n\
             D/b.yaml:3:18: metadata.name: \"a\" is already the name of a policy, in D/a.yaml:3; \
             names are unique within a set\n\
             D/c.yaml: holds no policy; fill the file or remove it\n\
             D/e.yaml:1:4: unclosed bracket '['\n\
             D/f.yaml:6:45: spec.authorities[0].publicKey.file: D/gone.pub cannot be read: No such file or \
             directory (os error 2)\n\
             D/g.yaml:6:45: spec.authorities[0].publicKey.file: D/. is no regular file"
        );
    }

    #[test]
    fn keys_are_read_below_the_directory_or_from_anywhere() {
        let elsewhere = directory(&[("key.pub", &key())]);
        let path = elsewhere.path().join("key.pub");
        let directory = directory(&[
            ("a.yaml", &with_key("a", "key.pub")),
            ("b.yaml", &with_key("b", path.to_str().unwrap())),
            ("key.pub", &key()),
        ]);
        assert_eq!(names(&load(directory.path(), NOW).unwrap()), ["a", "b"]);
        let alone = load_file(&directory.path().join("a.yaml"), NOW).unwrap();
        assert_eq!(names(&alone), ["a"]);
        assert_eq!(
            parse("a.yaml", &with_key("a", "key.pub"), NOW).unwrap_err().to_string(),
            "a.yaml:6:45: spec.authorities[0].publicKey.file: cannot be read here; write the key \
             itself as pem"
        );
        let long = with_key("a", &"x".repeat(4096));
        assert_eq!(
            load_alone(&long),
            "F:6:45: spec.authorities[0].publicKey.file: is longer than 4095 bytes"
        );
        fs::write(directory.path().join("key.pub"), vec![b' '; MAX_KEY_FILE + 1]).unwrap();
        assert_eq!(
            wrong(&directory),
            "D/a.yaml:6:45: spec.authorities[0].publicKey.file: D/key.pub is larger than 16384 bytes"
        );
    }

    #[test]
    fn the_digest_names_the_texts_and_where_they_stand() {
        let digest = |files: &[(&str, &str)]| load(directory(files).path(), NOW).unwrap().digest();
        let (a, b, key, other_key) = (policy("a"), policy("b"), key(), key());
        let with_key = with_key("k", "key.pub");
        let digests = [
            digest(&[("a.yaml", &a)]),
            digest(&[("b.yaml", &a)]),
            digest(&[("a.yaml", &b)]),
            digest(&[("a.yaml", &a), ("b.yaml", &b)]),
            digest(&[("a.yaml", &format!("{a}---\n{b}"))]),
            digest(&[("a.yaml", &with_key), ("key.pub", &key)]),
            digest(&[("a.yaml", &with_key), ("key.pub", &other_key)]),
        ];
        let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
        assert_eq!(digest(&[("a.yaml", &a), ("x.txt", "")]), digests[0]);
    }

    #[test]
    fn a_set_has_a_bound() {
        let policies: Vec<_> =
            (0..=MAX_POLICIES).map(|n| policy(&format!("p{n}")) + "---\n").collect();
        let directory = directory(&[]);
        for (n, texts) in policies.chunks(2_000).enumerate() {
            fs::write(directory.path().join(format!("{n}.yaml")), texts.concat()).unwrap();
        }
        assert_eq!(wrong(&directory), "D: holds 10001 policies, 10000 are allowed");
    }

    fn revocation(name: &str, digests: &[Digest]) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: {name}}}\n\
             spec: {{digests: {:?}}}\n",
            digests.iter().map(Digest::to_string).collect::<Vec<_>>()
        )
    }

    #[test]
    fn revocations_stand_beside_policies() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let revocations =
            format!("{}---\n{}", revocation("m", &[one]), revocation("b", &[one, two]));
        let files = [("r.yaml", &*revocations), ("s.yaml", &revocation("a", &[two]))];
        let alone = directory(&files);
        let message = "D: holds revocations alone; without an ImagePolicy no image is accepted";
        assert_eq!(wrong(&alone), message);
        // A policy of the same name is another object.
        fs::write(alone.path().join("p.yaml"), policy("a")).unwrap();
        let set = load(alone.path(), NOW).unwrap();
        assert_eq!(names(&set), ["a"]);
        let revoked = [(one, "b"), (two, "a")].map(|(digest, by)| (digest, by.to_owned()));
        assert_eq!(set.revoked().digests, revoked.into());
        fs::write(alone.path().join("t.yaml"), revocation("b", &[two])).unwrap();
        assert_eq!(
            wrong(&alone),
            "D/t.yaml:3:18: metadata.name: \"b\" is already the name of a revocation, in \
             D/r.yaml:8; names are unique within a set"
        );
    }

    #[test]
    fn what_is_revoked_has_a_bound() {
        let digests = |range: std::ops::Range<usize>| {
            range.map(|n| Digest::of(&n.to_be_bytes())).collect::<Vec<_>>()
        };
        let half = revocation("a", &digests(0..MAX_REVOKED / 2));
        let directory = directory(&[("p.yaml", &policy("p")), ("a.yaml", &half)]);
        let rest = |count| revocation("b", &digests(0..count));
        fs::write(directory.path().join("b.yaml"), rest(MAX_REVOKED / 2)).unwrap();
        assert_eq!(load(directory.path(), NOW).unwrap().revoked().digests.len(), MAX_REVOKED / 2);
        fs::write(directory.path().join("b.yaml"), rest(MAX_REVOKED / 2 + 1)).unwrap();
        assert_eq!(wrong(&directory), "D: revokes 10001 digests and keys, 10000 are allowed");
    }

    #[test]
    fn names_of_files_cannot_act_on_a_terminal() {
        let directory = directory(&[("\u{1b}[2J.yaml", "")]);
        assert_eq!(
            wrong(&directory),
            "D/\\u{1b}[2J.yaml: holds no policy; fill the file or remove it"
        );
    }
}
