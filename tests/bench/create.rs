//! How long the judgement of one `CreateContainer` takes, from its message to the decision: what
//! the product does before it writes the audit record. Of the disk, it shows the page cache.
#![allow(clippy::unwrap_used, reason = "as in tests")]

#[path = "../support/mod.rs"]
mod support;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use portcullis::{
    decode,
    evidence::{Entry, Known, Store, UntrustedBody, UntrustedClaim},
    image::Digest,
    local::{Local, Question},
    named::{ImageId, Named},
    policy::{PolicySet, source},
    resolve::Fetched,
};
use prost::Message;
use serde_json::json;
use support::{
    cri::{ContainerConfig, CreateContainerRequest, ImageSpec, PodConfig, PodSandboxMetadata},
    registry::IMAGE_MANIFEST,
    sign::{Signer, simple_payload},
};

const IMAGES: usize = 10_000;
const POLICIES: usize = 1_000;
const ROUNDS: usize = 4_000;

/// The image with this number: a manifest of twenty layers, and one signature of it.
fn known(number: usize, key: &Signer) -> Known {
    let blob = |kind: &str, content: String| {
        let digest = Digest::of(content.as_bytes());
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": 7_000_000})
    };
    let layers: Vec<_> =
        (0..20).map(|layer| blob("layer.v1.tar+gzip", format!("{number} {layer}"))).collect();
    let body = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": blob("config.v1+json", format!("config {number}")),
        "layers": layers,
    });
    let body = body.to_string().into_bytes();
    let digest = Digest::of(&body);
    let payload = simple_payload(digest);
    let signature = key.sign(&payload);
    let claim = UntrustedClaim {
        subject: digest,
        source: format!("sha256-{}.sig", digest.hex()),
        body: UntrustedBody::SimpleSigning { payload, signature },
    };
    let manifest = Fetched { digest, media_type: IMAGE_MANIFEST.into(), body: body.into() };
    Known::new(Entry { manifest, claims: vec![claim], whole: true }, None).unwrap()
}

fn name(number: usize) -> String {
    format!("registry.example.com/team-{}/app-{number}:v1", number % POLICIES)
}

/// A policy for each team, by this key.
fn policies(count: usize, key: &Signer) -> PolicySet {
    let one = |team: usize| {
        support::sign::policy(
            &format!("team-{team}"),
            &format!("registry.example.com/team-{team}/**"),
            &[("release", key)],
        )
    };
    let text: Vec<_> = (0..count).map(one).collect();
    source::parse("p.yaml", &text.join("---\n"), Timestamp::now()).unwrap()
}

/// As kubelet sends it.
fn message(number: usize, id: ImageId) -> Vec<u8> {
    let metadata =
        PodSandboxMetadata { namespace: "shop".into(), name: "web-0".into(), ..Default::default() };
    let image = ImageSpec {
        image: id.to_string(),
        user_specified_image: name(number),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: "pod".into(),
        config: Some(ContainerConfig { image: Some(image), ..Default::default() }),
        sandbox_config: Some(PodConfig { metadata: Some(metadata), ..Default::default() }),
    };
    request.encode_to_vec()
}

/// What `CreateContainer` asks of the local judgement.
fn question(message: &[u8], policies: &PolicySet) -> Question {
    let request = decode::create(message).unwrap();
    let image = &request.images[0];
    let (Named::Id(id), Ok(Named::Reference(name))) = (&image.named, image.user_specified.parse())
    else {
        panic!("kubelet names both")
    };
    Question { id: *id, names: vec![name], caller: request.caller.seen_by(policies) }
}

/// Times each round, and prints a row.
fn measure(what: &str, mut round: impl FnMut(usize)) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|number| {
            let begun = Instant::now();
            round(number);
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100].as_nanos() as f64 / 1000.0;
    println!("{what:<58} {:>8.1} {:>8.1} {:>8.1}", at(50), at(90), at(99));
}

fn main() {
    // What `cargo test --benches` passes: nothing is measured then.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let (key, other, now) = (Signer::new(), Signer::new(), Timestamp::now());
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    let messages: Vec<_> = (0..IMAGES)
        .map(|number| {
            let known = known(number, &key);
            store.keep(&known).unwrap();
            message(number, known.id())
        })
        .collect();
    let (one, many) = (policies(1, &key), policies(POLICIES, &key));
    let strict = policies(POLICIES, &other);
    let judged = |local: &Local, policies: &PolicySet, number: usize| {
        let question = question(&messages[number], policies);
        match local.remembered(policies, &question, now) {
            Some(judgement) => judgement,
            None => local.judge(policies, &question, now),
        }
    };

    println!(
        "{:<58} {:>8} {:>8} {:>8}",
        "CreateContainer, judgement alone, in us", "p50", "p90", "p99"
    );
    println!("{IMAGES} images known, {ROUNDS} rounds");
    let local = Local::new(store.clone());
    assert!(judged(&local, &one, 0).decision.is_ok());
    measure("remembered, 1 policy", |_| drop(black_box(judged(&local, &one, 0))));
    assert!(judged(&local, &many, 0).decision.is_ok());
    measure("remembered, 1,000 policies", |_| drop(black_box(judged(&local, &many, 0))));
    let local = Local::new(store.clone());
    measure("first after a restart: read, hashed, P-256, 1 policy", |_| {
        drop(black_box(judged(&Local::new(store.clone()), &one, 0)));
    });
    measure("first of each image after a restart, 1,000 policies", |number| {
        drop(black_box(judged(&local, &many, number)));
    });
    measure("each of these once more, remembered", |number| {
        assert!(judged(&local, &many, number).decision.is_ok());
    });
    measure("refused: signed by another key, 1,000 policies", |number| {
        assert!(judged(&local, &strict, number).decision.is_err());
    });
    let questions: Vec<_> = messages.iter().map(|message| question(message, &many)).collect();
    measure("of which the selection among 1,000 policies", |number| {
        black_box(many.select(&questions[number].names[0], Some("shop")).unwrap());
    });
    measure("of which the message is read", |number| {
        black_box(question(&messages[number], &many));
    });
}
