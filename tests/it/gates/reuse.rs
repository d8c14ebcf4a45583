//! Evidence is kept: across pulls, across processes, and while the registry is away.

use std::fs;

use portcullis::{
    evidence::{Entry, Known, Store},
    image::{Digest, Version},
    resolve::{Credentials, HostsDirectories, Registry},
};

use crate::support::{
    cri::{CREATE_CONTAINER, PULL_IMAGE, pull},
    registry::{Fault, IMAGE_MANIFEST, Match},
    sign::{self, Signer},
};

use super::{Node, creation, failing, invalid, pull_by, send, shown, swap, unasked};

/// What the registry is asked for signatures.
fn of_signatures(asked: &[String]) -> Vec<&String> {
    asked.iter().filter(|one| one.contains(".sig") || one.contains("/referrers/")).collect()
}

#[tokio::test]
async fn a_repeated_pull_asks_for_the_manifest_and_no_signature() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    assert!(!of_signatures(&node.registry.asked()).is_empty());
    let before = node.registry.asked().len();
    assert_eq!(pull_by(&client, &name).await, id);
    assert_eq!(node.registry.asked()[before..], ["GET /v2/app/manifests/v1"]);
    let records = gate.records("pull");
    assert_eq!(records[0]["policies"], records[1]["policies"]);
    assert_eq!(records[0]["message"], records[1]["message"]);
}

#[tokio::test]
async fn a_pull_by_digest_that_is_proven_here_asks_the_registry_for_nothing() {
    let node = Node::new();
    let mut gate = node.setup().start();
    let client = gate.client().await;
    let id = pull_by(&client, &node.name("app:v1")).await;
    let by_digest = node.name(&format!("app@{}", node.digest));
    let before = node.registry.asked().len();
    assert_eq!(pull_by(&client, &by_digest).await, id);
    let asked = node.registry.asked();
    assert_eq!(asked[before..], [] as [&str; 0]);
    let records = gate.records("pull");
    assert_eq!(records[1]["decision"], "allow");
    assert_eq!(records[1]["policies"], records[0]["policies"]);

    // Nor does a new process, which knows no more than the files.
    gate.crash_and_restart();
    let client = gate.client().await;
    assert_eq!(pull_by(&client, &by_digest).await, id);
    assert_eq!(node.registry.asked()[before..], [] as [&str; 0]);

    // Under another policy what is here is not enough: the registry is asked, and has no more.
    let other = Signer::new();
    swap(&gate, "app.yaml", &sign::policy("app", &node.name("app"), &[("other", &other)])).await;
    let told = client.unary(PULL_IMAGE, &pull(&by_digest, "shop")).await.status();
    assert_eq!(told.0, 2, "{told:?}");
    let asked = &node.registry.asked()[before..];
    assert_eq!(asked[0], format!("GET /v2/app/manifests/{}", node.digest), "{asked:?}");
    assert!(!of_signatures(asked).is_empty());
}

#[tokio::test]
async fn evidence_that_satisfies_no_more_asks_the_registry_again() {
    let node = Node::new();
    let (second, third) = (Signer::new(), Signer::new());
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    let policy = |keys: &[(&str, &Signer)]| {
        sign::policy("app", &node.name("app"), keys)
            .replace("  authorities", "  atLeast: 2\n  authorities")
    };
    swap(&gate, "app.yaml", &policy(&[("one", &node.key), ("two", &second)])).await;
    let before = node.registry.asked().len();
    let told = client.unary(PULL_IMAGE, &pull(&name, "shop")).await.status();
    assert_eq!(told.0, 2, "{told:?}");
    assert!(!of_signatures(&node.registry.asked()[before..]).is_empty());

    // The second signature; the tag of the first is overwritten, and what was seen is not unseen.
    second.sign_simple(&node.registry, "app", node.digest);
    assert_eq!(pull_by(&client, &name).await, id);
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
    let before = node.registry.asked().len();
    assert_eq!(pull_by(&client, &name).await, id);
    assert_eq!(node.registry.asked().len(), before + 1);

    swap(&gate, "app.yaml", &policy(&[("one", &node.key), ("three", &third)])).await;
    let told = client.unary(PULL_IMAGE, &pull(&name, "shop")).await.status();
    assert_eq!(told.0, 2, "{told:?}");
    let told = send(&client, &creation(&id, &name).message()).await.status();
    assert_eq!(told.0, 2, "{told:?}");
    assert_eq!(node.calls(CREATE_CONTAINER), 1);
}

#[tokio::test]
async fn what_was_proven_starts_after_a_restart_without_any_registry() {
    let node = Node::new();
    let mut gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    node.registry.push_image("app", "v2");
    let unproven = node.shelf.pull(&node.name("app:v2"));
    node.registry.fault(Match::any(), Fault::Status(503, Vec::new(), String::new()));
    gate.crash_and_restart();
    let client = gate.client().await;
    let before = node.registry.asked().len();
    for image in [&*id, &name] {
        assert_eq!(send(&client, &creation(image, &name).message()).await.status().0, 0);
    }
    assert_eq!(shown(&client, &name).await, id);
    let told = send(&client, &creation(&unproven, &name).message()).await.status();
    assert_eq!(told.0, 2);
    // A new policy is applied to what is kept.
    swap(&gate, "app.yaml", &node.policy("app", &Signer::new())).await;
    let told = send(&client, &creation(&id, &name).message()).await.status();
    let why = format!(
        "{}@{}: policy \"app\" requires 1 of 1 authority: \"release\": no signature by this key (1 \
         signature found)",
        node.name("app"),
        node.digest
    );
    assert_eq!(told, invalid(&why));
    assert_eq!(shown(&client, &name).await, "");
    assert_eq!(node.registry.asked().len(), before);
    assert_eq!(node.calls(CREATE_CONTAINER), 2);
}

#[tokio::test]
async fn what_is_kept_can_be_spoilt_and_proves_nothing_then() {
    let node = Node::new();
    let mut gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    let evil = node.registry.push_image("app", "v2");
    let evil_id = node.shelf.pull(&node.name("app:v2"));
    let evidence = gate.path().join("state/evidence");
    let file = |id: &str, digest: portcullis::image::Digest| {
        evidence.join(&id[7..]).join(format!("{}.json", digest.hex()))
    };
    let good = file(&id, node.digest);
    let text = fs::read_to_string(&good).unwrap();
    // The proof of one image in the place of another's.
    fs::create_dir_all(file(&evil_id, evil).parent().unwrap()).unwrap();
    for text in [&*text, &text.replace(&node.digest.to_string(), &evil.to_string())] {
        fs::write(file(&evil_id, evil), text).unwrap();
        gate.crash_and_restart();
        let client = gate.client().await;
        let told = send(&client, &creation(&evil_id, &name).message()).await.status();
        let why = unasked(&format!("{}@{evil}", node.name("app")), "app");
        assert_eq!(told, invalid(&why));
    }
    for spoilt in ["", "{}", &text[..text.len() / 2], &text.replace("signature", "payload")] {
        fs::write(&good, spoilt).unwrap();
        gate.crash_and_restart();
        let client = gate.client().await;
        let told = send(&client, &creation(&id, &name).message()).await.status();
        let why = unasked(&format!("{}@{}", node.name("app"), node.digest), "app");
        assert_eq!(told, invalid(&why), "{spoilt}");
    }
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
    // A pull mends it.
    let client = gate.client().await;
    pull_by(&client, &name).await;
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
}

#[tokio::test]
async fn of_an_index_the_signature_and_the_child_are_kept() {
    let node = Node::new();
    let child = node.registry.push_image("app", None);
    let other = node.registry.push_image("app", None);
    let index =
        node.registry.push_index("app", Some("multi"), &[(other, "arm64"), (child, "amd64")]);
    node.key.sign_simple(&node.registry, "app", index);
    let mut gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:multi");
    let id = pull_by(&client, &name).await;
    let before = node.registry.asked().len();
    assert_eq!(pull_by(&client, &name).await, id);
    assert_eq!(node.registry.asked()[before..], ["GET /v2/app/manifests/multi"]);
    node.registry.fault(Match::any(), Fault::CloseConnection);
    gate.crash_and_restart();
    let client = gate.client().await;
    let by_index = node.name(&format!("app@{index}"));
    let by_child = node.name(&format!("app@{child}"));
    for user in [&name, &by_index, &by_child] {
        assert_eq!(send(&client, &creation(&id, user).message()).await.status().0, 0, "{user}");
    }
    let record = gate.records("create").pop().unwrap();
    assert_eq!(record["image"]["digest"], index.to_string());
    assert_eq!(record["image"]["id"], id);
}

#[tokio::test]
async fn proof_that_came_for_another_platform_is_kept_for_this_one_too() {
    let node = Node::new();
    let child = node.registry.push_image("app", None);
    let other = node.registry.push_image("app", None);
    let index =
        node.registry.push_index("app", Some("multi"), &[(other, "arm64"), (child, "amd64")]);
    node.key.sign_simple(&node.registry, "app", index);
    let mut gate = node.setup().start();
    let name = node.name("app:multi");
    let id = pull_by(&gate.client().await, &name).await;
    // As from a pack that was made on a machine of the other kind.
    let state = gate.path().join("state");
    let known = Store::beside(&state).of_id(id.parse().unwrap()).remove(0);
    let repository = node.name("app").parse().unwrap();
    let hosts = Registry::new(HostsDirectories::parse(""));
    let hosts = hosts.repo(&repository, &Credentials::Anonymous);
    let manifest = hosts.manifest(&Version::Digest(other), 1 << 20).await.unwrap();
    let other = Entry { manifest, claims: Vec::new(), whole: true };
    let foreign = Known::new(known.top().clone(), Some(other)).unwrap();
    fs::remove_dir_all(state.join("evidence")).unwrap();
    Store::open(&state).0.keep(&foreign).unwrap();
    gate.crash_and_restart();
    let client = gate.client().await;
    let before = node.registry.asked().len();
    assert_eq!(pull_by(&client, &name).await, id);
    assert!(of_signatures(&node.registry.asked()[before..]).is_empty());
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
}

/// Whoever may pull anything at all can make manifests that name another one's configuration. Of an
/// image, 16 are kept: what the runtime did not even pull must push out none that proves something.
#[tokio::test]
async fn pulls_that_fail_push_out_no_proof_of_another_image() {
    let node = Node::new();
    let evil = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: evil}}\nspec:\n  \
         match: {{images: [\"{}\"]}}\n  authorities: [{{name: all, unsigned: {{reason: \"a test\"}}}}]\n",
        node.name("evil")
    );
    let gate = node.setup().policy("evil.yaml", &evil).start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    node.instead(PULL_IMAGE, |_| Some(failing("5")));
    for n in 0..16 {
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": IMAGE_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": 2},
            "layers": [], "annotations": {"n": n.to_string()},
        });
        node.registry.push_json("evil", Some("v1"), &manifest);
        let told = client.unary(PULL_IMAGE, &pull(&node.name("evil:v1"), "shop")).await.status();
        assert_eq!(told.0, 5, "{told:?}");
    }
    // They were begun to be kept beside pulls that had ended by then.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
}

/// So that the store can tell whose proofs there are too many of.
#[tokio::test]
async fn who_proved_an_image_is_noted_when_it_is_pulled() {
    let node = Node::new();
    let gate = node.setup().start();
    let id = pull_by(&gate.client().await, &node.name("app:v1")).await;
    let directory = gate.path().join("state/evidence").join(id.trim_start_matches("sha256:"));
    let file = directory.join(format!("{}.json", node.digest.hex()));
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let record = &gate.records("pull")[0];
    let identity = record["policies"][0]["authorities"][0]["identity"].as_str().unwrap();
    let hashed = Digest::of(identity.as_bytes()).to_string();
    assert_eq!(kept["provenBy"], serde_json::json!([hashed]));
}
