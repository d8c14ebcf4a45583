//! Objects that show each rule, judged by an API server, by `portcullis check`, and by a node
//! that reads what the API server stores.

use std::{collections::BTreeMap, fs, path::Path};

use jiff::Timestamp;
use portcullis::policy::{PolicySet, Texts, objects, source};
use serde_json::Value;

use super::server::Server;

/// Stands beside an object that would be no set alone.
const OTHER: &str = "
---
apiVersion: portcullis.dev/v1alpha1
kind: ImagePolicy
metadata: {name: beside}
spec:
  match: {images: ['**']}
  authorities: [{name: a, unsigned: {reason: beside a revocation}}]
";

/// What the three say of one object. An error is all that is wrong.
pub(super) struct Judged {
    /// The API server.
    pub(super) server: Result<Value, String>,
    /// `portcullis check` on the file.
    pub(super) check: Result<(), String>,
    /// A node, of what the API server stores. If it stores nothing: of the object as it is.
    pub(super) node: Result<(), String>,
}

/// Whether the node would take an object from an API server.
pub(super) fn node(object: &Value) -> Result<(), String> {
    read(object).map(|_| ())
}

/// The set of an object and the one beside it.
fn read(object: &Value) -> Result<PolicySet, String> {
    let text = objects::text_of(object).map_err(|problem| problem.to_string())?;
    let beside = serde_saphyr::from_str(OTHER.trim_start_matches("\n---\n")).unwrap();
    let files = vec![text, objects::text_of(&beside).unwrap()];
    let set = Texts { files, keys: Vec::new() }.read("objects", Timestamp::UNIX_EPOCH);
    set.map_err(|problems| problems.to_string())
}

fn judge(server: &Server, text: &str) -> Judged {
    let check = source::parse("f.yaml", &format!("{text}{OTHER}"), Timestamp::UNIX_EPOCH);
    let check = check.map(|_| ()).map_err(|problems| problems.to_string());
    let object: Value = match serde_saphyr::from_str(text) {
        Ok(object) => object,
        // kubectl reads it no more than we do.
        Err(error) => {
            let error = error.to_string();
            return Judged { server: Err(error.clone()), check, node: Err(error) };
        }
    };
    let server = server.judge(&object).map_err(|errors| errors.join("\n"));
    let node = node(server.as_ref().unwrap_or(&object));
    Judged { server, check, node }
}

fn corpus(folder: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/policies").join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read_to_string(entry.path()).unwrap())
    });
    files.collect()
}

/// The judgements of a folder that are not as they should be.
#[track_caller]
fn all(folder: &str, expected: impl Fn(&str, &Judged) -> bool) {
    let server = Server::new();
    let corpus = corpus(folder);
    assert!(corpus.len() > 5, "{folder} has {} files", corpus.len());
    let others: Vec<_> = corpus
        .iter()
        .filter_map(|(name, text)| {
            let judged = judge(&server, text);
            let Judged { server, check, node } = &judged;
            (!expected(name, &judged)).then(|| {
                format!("{name}\n server: {server:?}\n check: {check:?}\n node: {node:?}\n")
            })
        })
        .collect();
    assert!(others.is_empty(), "{}", others.concat());
}

#[test]
fn what_is_accepted_is_accepted_by_all() {
    all("accepted", |_, judged| {
        judged.server.is_ok() && judged.check.is_ok() && judged.node.is_ok()
    });
}

/// What the API server fills in is what the parser takes for meant.
#[test]
fn what_an_api_server_fills_in_changes_no_policy() {
    let server = Server::new();
    let mut filled = 0;
    for (name, text) in corpus("accepted") {
        let object: Value = serde_saphyr::from_str(&text).unwrap();
        let stored = server.judge(&object).unwrap();
        filled += u32::from(stored != object);
        let [written, stored] = [object, stored].map(|object| {
            let set = read(&object).unwrap();
            format!("{:?} {:?}", set.policies(), set.revoked())
        });
        assert_eq!(written, stored, "{name}");
    }
    assert!(filled > 5, "{filled}");
}

#[test]
fn the_examples_are_accepted_by_all() {
    let server = Server::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/policies");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let judged = judge(&server, &fs::read_to_string(&path).unwrap());
            let results = (judged.server.map(|_| ()), judged.check, judged.node);
            assert_eq!(results, (Ok(()), Ok(()), Ok(())), "{}", path.display());
        }
    }
}

/// Whether a fault is in a part of the object that is no policy: a node leaves that part out.
fn is_outside(name: &str) -> bool {
    ["annotation-", "label-", "status."].iter().any(|part| name.starts_with(part))
}

#[test]
fn what_is_refused_is_refused_by_all() {
    all("refused", |name, judged| {
        judged.server.is_err() && judged.check.is_err() && judged.node.is_err() != is_outside(name)
    });
}

#[test]
fn what_only_the_node_knows_is_refused_by_the_node() {
    all("node-only", |_, judged| {
        judged.server.is_ok() && judged.check.is_err() && judged.node.is_err()
    });
}

#[test]
fn what_an_api_server_drops_is_refused_in_a_file() {
    all("file-only", |_, judged| {
        judged.server.is_ok() && judged.check.is_err() && judged.node.is_ok()
    });
}

/// The one thing that only a directory has.
#[test]
fn a_file_of_a_key_is_for_directories() {
    let text = corpus("accepted")["pem-on-one-line.yaml"].clone();
    let pem = text.lines().find(|line| line.contains("pem:")).unwrap();
    let text = text.replace(pem, "      file: release.pub");
    let judged = judge(&Server::new(), &text);
    assert!(judged.server.unwrap_err().contains("unknown field \"file\""));
    let why = "imagepolicies/p: spec.authorities[0].publicKey.file: is not there; write the key \
               itself as pem";
    assert_eq!(judged.node.unwrap_err(), why);
}
