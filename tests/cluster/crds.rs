//! The CRDs, and what an API server that has them makes of the corpus: the same as
//! `tests/it/crds/`, where a small model of an API server stands in.

use std::{collections::BTreeMap, fs, path::Path};

use http::Request;
use jiff::Timestamp;
use kube::Client;
use portcullis::policy::{Texts, objects};
use serde_json::Value;

use crate::cluster::{Cluster, Server};

const GROUP: &str = "/apis/portcullis.dev/v1alpha1";
/// Stands beside an object that would be no set alone.
const OTHER: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: ImagePolicy
metadata: {name: beside}
spec:
  match: {images: ['**']}
  authorities: [{name: a, unsigned: {reason: beside a revocation}}]
";

/// Creates the CRDs, and waits until their objects can be.
pub(crate) fn install(cluster: &Cluster) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes/crds");
    // What 1.20 does not know of a CRD, it drops.
    let validate = match cluster.server() {
        Server::Whole => "--validate=false",
        Server::Definitions => "--validate=strict",
    };
    let arguments = ["create", validate, "-f", folder.to_str().unwrap()];
    let output = cluster.kubectl(&arguments);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "warnings");
    cluster.ask(&["wait", "--for=condition=Established", "--all", "crd"]);
}

pub(crate) fn they_are_established(cluster: Cluster) {
    install(&cluster);
    let conditions = "{range .items[*]}{.metadata.name}: {range .status.conditions[*]}{.type}={.status} {end}\n{end}";
    let found = cluster.ask(&["get", "crd", "-o", &format!("jsonpath={conditions}")]);
    // Such as NonStructuralSchema.
    let expected = "imagepolicies.portcullis.dev: NamesAccepted=True Established=True \n\
                    revocations.portcullis.dev: NamesAccepted=True Established=True \n";
    assert_eq!(found, expected);
}

pub(crate) fn people_can_read_the_tables(cluster: Cluster) {
    install(&cluster);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/policies/accepted");
    for name in ["in-full.yaml", "revocation-of-both.yaml"] {
        cluster.apply(&fs::read_to_string(folder.join(name)).unwrap());
    }
    let head = |arguments: &[&str]| {
        let table = cluster.ask(&[&["get"], arguments].concat());
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 2, "{table}");
        let words: Vec<_> = lines[0].split("  ").map(str::trim).filter(|w| !w.is_empty()).collect();
        (words.join(", "), lines[1].to_owned())
    };
    let (columns, row) = head(&["imagepolicies"]);
    assert_eq!(columns, "NAME, MODE, AT LEAST, FIRST AUTHORITY, IMAGES, AGE");
    assert!(row.contains("registry.example.com"), "{row}");
    let (columns, _) = head(&["imgpol", "-o", "wide"]);
    let wide = "REFERENCE, NAMESPACES, BREAK GLASS";
    assert_eq!(columns, format!("NAME, MODE, AT LEAST, FIRST AUTHORITY, IMAGES, {wide}, AGE"));
    let (columns, row) = head(&["imgrev"]);
    assert_eq!(columns, "NAME, FIRST DIGEST, FIRST KEY, AGE");
    assert!(row.contains("sha256:"), "{row}");
}

pub(crate) fn what_is_accepted_is_accepted(cluster: Cluster) {
    all(&cluster, "accepted", |judged| judged.server.is_ok() && judged.node.is_ok());
}

pub(crate) fn what_is_refused_is_refused(cluster: Cluster) {
    // By what is wrong with the object, and by nothing else.
    all(&cluster, "refused", |judged| {
        judged.server.as_ref().is_err_and(|(code, _)| matches!(code, 400 | 422))
    });
}

pub(crate) fn what_only_the_node_knows_is_refused_by_the_node(cluster: Cluster) {
    all(&cluster, "node-only", |judged| judged.server.is_ok() && judged.node.is_err());
}

pub(crate) fn what_an_api_server_drops_does_no_harm(cluster: Cluster) {
    all(&cluster, "file-only", |judged| judged.server.is_ok() && judged.node.is_ok());
}

/// What is said of one object.
#[derive(Debug)]
struct Judged {
    /// The object as the API server would store it, or its code and message.
    server: Result<Value, (u16, String)>,
    /// What a node says of that.
    node: Result<(), String>,
}

/// Every object of a folder is judged as it should be.
#[track_caller]
fn all(cluster: &Cluster, folder: &str, expected: impl Fn(&Judged) -> bool) {
    install(cluster);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let others: Vec<_> = runtime.block_on(async {
        let client = cluster.client().await;
        let mut others = Vec::new();
        for (name, text) in corpus(folder) {
            let judged = judge(&client, &text).await;
            if !expected(&judged) {
                others.push(format!("{name}: {judged:?}\n"));
            }
        }
        others
    });
    assert!(others.is_empty(), "{}", others.concat());
}

fn corpus(folder: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/policies").join(folder);
    let files = fs::read_dir(&folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read_to_string(entry.path()).unwrap())
    });
    let corpus: BTreeMap<_, _> = files.collect();
    assert!(corpus.len() > 5, "{} has {} files", folder.display(), corpus.len());
    corpus
}

async fn judge(client: &Client, text: &str) -> Judged {
    let is_revocation = text.lines().any(|line| line.trim_end() == "kind: Revocation");
    let plural = if is_revocation { "revocations" } else { "imagepolicies" };
    // The text itself: kubectl would make JSON of it, and lose what is there twice.
    let request = Request::post(format!("{GROUP}/{plural}?fieldValidation=Strict&dryRun=All"))
        .header("content-type", "application/yaml")
        .body(text.as_bytes().to_vec())
        .unwrap();
    match client.request::<Value>(request).await {
        Ok(object) => Judged { node: node(&object), server: Ok(object) },
        Err(kube::Error::Api(status)) => {
            Judged { server: Err((status.code, status.message.clone())), node: Err(String::new()) }
        }
        Err(error) => panic!("{error}: {text}"),
    }
}

/// Whether a node takes an object from an API server.
fn node(object: &Value) -> Result<(), String> {
    let text = objects::text_of(object).map_err(|problem| problem.to_string())?;
    let beside = serde_saphyr::from_str(OTHER).unwrap();
    let files = vec![text, objects::text_of(&beside).unwrap()];
    let set = Texts { files, keys: Vec::new() }.read("objects", Timestamp::UNIX_EPOCH);
    set.map(|_| ()).map_err(|problems| problems.to_string())
}
