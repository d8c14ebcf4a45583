//! `portcullis policy`, as the shell sees it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use portcullis::policy::bundle::Sealed;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::support::{ca::TestCa, fixtures::Fixtures};

const POLICY: &str = "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {name: prod}\n\
                      spec: {match: {images: ['**']}, authorities: [{name: a, publicKey: {file: image.pub}}]}\n";

/// A directory with policies and the keys of the fixtures.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = tempfile::tempdir().unwrap();
        fs::create_dir(desk.path().join("policies")).unwrap();
        fs::write(desk.path().join("policies/p.yaml"), POLICY).unwrap();
        let keys = Fixtures::load().path("keys");
        fs::copy(keys.join("ecdsa-p256.pub"), desk.path().join("policies/image.pub")).unwrap();
        for name in ["ed25519.key", "ed25519.pub", "rsa-2048.key", "rsa-2048.pub", "other.pub"] {
            fs::copy(keys.join(name), desk.path().join(name)).unwrap();
        }
        Self(desk)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// Exit code, standard output, standard error.
    fn run(&self, arguments: &str) -> (i32, String, String) {
        self.fed(arguments, b"")
    }

    fn fed(&self, arguments: &str, input: &[u8]) -> (i32, String, String) {
        let mut program = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        program.stdin.take().unwrap().write_all(input).unwrap();
        let output = program.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// What is said where all is well.
    #[track_caller]
    fn says(&self, arguments: &str) -> String {
        let (exit, out, err) = self.run(arguments);
        assert_eq!((exit, &*err), (0, ""));
        out
    }

    /// What is said, with this exit code, on standard error.
    #[track_caller]
    fn refuses(&self, arguments: &str, exit: i32) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!((code, &*out), (exit, ""), "{err}");
        err
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn id(name: &str) -> String {
    key(name).public().id().to_string()
}

#[test]
fn a_directory_becomes_a_bundle_that_a_key_opens() {
    let desk = Desk::new();
    let said = desk.says("policy bundle policies --revision 7 -o prod.payload");
    let (first, set) = said.trim().split_once("\nset ").unwrap();
    assert_eq!(
        first,
        "revision 7, 1 policy, does not expire; nobody has signed it yet (portcullis policy sign)"
    );
    let checked = desk.says("check policies -o json");
    assert!(checked.contains(set), "{set} is not what the daemon calls it: {checked}");
    let said = desk.says("policy sign prod.payload --key ed25519.key -o prod.bundle");
    assert_eq!(said, format!("signed by key {}, 1 signature\n", id("ed25519")));
    let bundle = Sealed::parse(fs::read(desk.path("prod.bundle")).unwrap()).unwrap();
    let offer = bundle.open(&pinned("ed25519")).unwrap();
    assert_eq!((offer.revision, offer.texts.files[0].text.as_str()), (Some(7), POLICY));
    assert_eq!(offer.texts.keys[0].name, "image.pub");
    let loaded = offer.texts.read("", jiff::Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(loaded.digest().to_string(), set);
    assert_eq!(
        desk.says("policy show prod.bundle --key ed25519.pub"),
        format!(
            "signed by key {}\nrevision 7, 1 policy, does not expire\nset {set}\n  policy prod\n",
            id("ed25519")
        )
    );
}

#[test]
fn the_same_directory_makes_the_same_bytes() {
    let desk = Desk::new();
    let asked = "policy bundle policies --revision 7 --expires-at 2199-01-01T00:00:00Z -o";
    desk.says(&format!("{asked} a"));
    let (exit, out, err) = desk.run(&format!("{asked} -"));
    assert_eq!((exit, out.as_bytes()), (0, &*fs::read(desk.path("a")).unwrap()));
    assert!(
        err.starts_with("revision 7, 1 policy, expires 2199-01-01T00:00:00Z; nobody has"),
        "{err}"
    );
    let said = desk.says("policy bundle policies --revision 7 --expires-in 30d --format json -o b");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["revision"], &said["policies"]), (&json!(7), &json!(["prod"])));
    assert!(said["expiresAt"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn the_fixtures_are_what_the_command_makes() {
    let desk = Desk::new();
    let fixtures = Fixtures::load();
    for name in ["release.yaml", "release.pub"] {
        let file = fixtures.file(&format!("bundles/policies/{name}"));
        fs::create_dir_all(desk.path("made")).unwrap();
        fs::write(desk.path("made").join(name), file).unwrap();
    }
    desk.says("policy bundle made --revision 7 -o payload.json");
    let made = fs::read_to_string(desk.path("payload.json")).unwrap();
    assert_eq!(made, fixtures.file("bundles/payload.json"));
}

#[test]
fn a_key_is_rotated_by_a_second_signature() {
    let desk = Desk::new();
    desk.says("policy bundle policies --revision 7 -o p");
    desk.says("policy sign p --key rsa-2048.key -o b");
    let said = desk.says("policy sign b --key ed25519.key -o b");
    assert_eq!(said, format!("signed by key {}, 2 signatures\n", id("ed25519")));
    let said = desk.says("policy sign b --key ed25519.key -o b");
    assert_eq!(said, format!("was signed by key {} before, 2 signatures\n", id("ed25519")));
    let shown =
        desk.says("policy show b --key ed25519.pub --key rsa-2048.pub --key other.pub -o json");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["signedBy"], json!([id("ed25519"), id("rsa-2048")]));
    assert_eq!((&shown["signatures"], &shown["expired"]), (&json!(2), &json!(false)));
    // A signature from standard input to standard output.
    let (exit, out, err) =
        desk.fed("policy sign - --key rsa-2048.key -o -", &fs::read(desk.path("p")).unwrap());
    assert_eq!((exit, &*err), (0, &*format!("signed by key {}, 1 signature\n", id("rsa-2048"))));
    assert!(Sealed::parse(out.into_bytes()).unwrap().open(&pinned("rsa-2048")).is_ok());
}

#[test]
fn what_nobody_signed_is_shown_as_such() {
    let desk = Desk::new();
    desk.says("policy bundle policies --revision 7 -o p");
    desk.says("policy sign p --key ed25519.key -o b");
    assert!(desk.says("policy show p").starts_with("not signed by anybody\nrevision 7, "));
    let shown = desk.says("policy show b");
    assert!(
        shown.starts_with("not verified: it carries 1 signature; name --key to verify\n"),
        "{shown}"
    );
    let (exit, out, _) = desk.run("policy show b --key other.pub");
    assert_eq!(exit, 1);
    let why = "not verified: it is not signed by a pinned key: it carries 1 signature\n";
    assert!(out.starts_with(why), "{out}");
    assert_eq!(desk.run("policy show p --key other.pub").0, 1);
    fs::write(desk.path("junk"), "{}").unwrap();
    let error = desk.refuses("policy show junk", 78);
    assert!(error.starts_with("portcullis: junk: is no signed bundle of policies"), "{error}");
}

#[test]
fn what_is_expired_is_told() {
    let desk = Desk::new();
    let expires_at = Some("2020-01-01T00:00:00Z".parse().unwrap());
    let old = Payload { expires_at, ..Payload::read(&payload(7)).unwrap() };
    let signed = sign(&old.write().unwrap(), &key("ed25519")).unwrap();
    fs::write(desk.path("b"), signed.bytes).unwrap();
    let shown = desk.says("policy show b --key ed25519.pub");
    let told =
        "revision 7, 1 policy, expires 2020-01-01T00:00:00Z\nexpired: nodes refuse everything";
    assert!(shown.contains(told), "{shown}");
    let shown = desk.says("policy show b -o json");
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["expired"], json!(true));
}

#[test]
fn what_does_not_load_is_neither_written_nor_signed() {
    let desk = Desk::new();
    fs::write(desk.path("policies/q.yaml"), "kind: Pod\n").unwrap();
    let error = desk.refuses("policy bundle policies --revision 7 -o p", 78);
    assert!(error.starts_with("portcullis: policies/q.yaml:"), "{error}");
    assert!(!desk.names().contains(&"p".to_owned()));
    fs::remove_file(desk.path("policies/q.yaml")).unwrap();
    desk.says("policy bundle policies --revision 7 -o p");
    let broken = fs::read_to_string(desk.path("p")).unwrap().replace("ImagePolicy", "ImagePolity");
    fs::write(desk.path("p"), broken).unwrap();
    let error = desk.refuses("policy sign p --key ed25519.key -o b", 78);
    assert!(error.starts_with("portcullis: p.yaml:"), "{error}");
    assert!(!desk.names().contains(&"b".to_owned()));
    let error = desk.refuses("policy sign policies/p.yaml --key ed25519.key -o b", 78);
    assert!(error.starts_with("portcullis: policies/p.yaml: has a payload that is no"), "{error}");
}

#[test]
fn wrong_questions_are_answered_with_the_remedy() {
    let desk = Desk::new();
    let of = "policy bundle policies -o p";
    for (arguments, why) in [
        (
            "--revision 7 --expires-at 2020-01-01T00:00:00Z",
            "a bundle that expired at 2020-01-01T00:00:00Z would refuse everything",
        ),
        (
            "--revision 7 --expires-at tomorrow",
            "--expires-at: \"tomorrow\" is no time; write it as in 2026-01-01T00:00:00Z (RFC 3339)",
        ),
        (
            "--revision 7 --expires-in 30",
            "--expires-in: \"30\" is no time to come; write a number and s, m, h, d or w, as in 30d",
        ),
        ("--revision 7 --expires-in 0d", "a bundle that expired at "),
        ("--revision 0", "error: invalid value '0' for '--revision <N>'"),
        (
            "--revision 7 --expires-in 1d --expires-at x",
            "error: the argument '--expires-in <DURATION>' cannot be used with",
        ),
        ("", "error: the following required arguments were not provided"),
    ] {
        let error = desk.refuses(format!("{of} {arguments}").trim(), 64);
        assert!(error.trim_start_matches("portcullis: ").starts_with(why), "{error}");
    }
    desk.says("policy bundle policies --revision 7 -o p");
    let error = desk.refuses("policy sign p --key ed25519.pub -o b", 78);
    assert!(error.contains("a PEM block \"PUBLIC KEY\" is no private key"), "{error}");
    let error = desk.refuses("policy show p --key ed25519.key", 78);
    assert!(error.contains("this is a private key"), "{error}");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(desk.path("locked.key"), encrypted).unwrap();
    let error = desk.refuses("policy sign p --key locked.key -o b", 78);
    assert!(error.contains("`openssl pkey -in KEY -out PLAIN` decrypts it"), "{error}");
    assert!(desk.refuses("policy sign gone --key ed25519.key -o b", 78).contains("cannot be read"));
    assert!(
        desk.refuses("policy bundle policies/p.yaml --revision 1 -o b", 78)
            .contains("name its directory")
    );
}

#[test]
fn a_file_is_replaced_as_a_whole_or_not_at_all() {
    let desk = Desk::new();
    let error = desk.refuses("policy bundle policies --revision 7 -o nowhere/p", 2);
    assert!(error.starts_with("portcullis: nowhere/p: cannot be written: No such file"), "{error}");
    fs::write(desk.path("real"), "old").unwrap();
    std::os::unix::fs::symlink("real", desk.path("link")).unwrap();
    desk.says("policy bundle policies --revision 7 -o link");
    assert!(desk.path("link").is_symlink());
    assert!(fs::read_to_string(desk.path("real")).unwrap().contains("PolicyBundle"));
    desk.says("policy bundle policies --revision 7 -o /dev/null");
    assert!(!Path::new("/dev/null").is_file());
    assert!(desk.names().iter().all(|name| !name.ends_with(".new")));
}

#[test]
fn keys_of_other_kinds_are_told_apart() {
    let desk = Desk::new();
    desk.says("policy bundle policies --revision 7 -o p");
    fs::write(desk.path("ca.pem"), TestCa::new().pem()).unwrap();
    let error = desk.refuses("policy sign p --key ca.pem -o b", 78);
    assert!(error.contains("a PEM block \"CERTIFICATE\" is no private key"), "{error}");
}
