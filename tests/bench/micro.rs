//! Single steps, measured with criterion: `cargo bench --bench micro`.
#![allow(clippy::unwrap_used, reason = "as in tests")]

#[allow(dead_code, reason = "each benchmark uses a part")]
mod full;
#[path = "../support/mod.rs"]
mod support;

use std::{hint::black_box, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use criterion::Criterion;
use full::{POLICIES, known, name, policies_for, policies_text, set};
use portcullis::{
    audit::{Config, Event, Log, Outcome, Record, RequestedImage},
    decode,
    evidence::Store,
    verify::PublicKey,
};
use prost::Message;
use serde_json::Value;
use support::{cri, fixtures::Fixtures, sign::Signer};

fn main() {
    // What `cargo test --benches` passes: nothing is measured then.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    selection(&mut criterion);
    keys(&mut criterion);
    wire(&mut criterion);
    evidence(&mut criterion);
    audit(&mut criterion);
    criterion.final_summary();
}

fn selection(criterion: &mut Criterion) {
    let key = Signer::new();
    let image = name(7).parse().unwrap();
    let mut group = criterion.benchmark_group("selection among 1,000 policies");
    for (what, policies) in [
        ("a prefix for each", set(&policies_text(POLICIES, &key))),
        ("all match", set(&policies_for(POLICIES, &key, |_| "registry.example.com/**".into()))),
    ] {
        group.bench_function(what, |bench| {
            bench.iter(|| policies.select(&image, Some("shop")).unwrap())
        });
    }
}

/// One signature of each kind, as cosign and openssl made them.
fn keys(criterion: &mut Criterion) {
    let fixtures = Fixtures::load();
    let mut group = criterion.benchmark_group("verification");
    for (kind, fixture) in [
        ("ECDSA P-256", "cosign2/ecdsa-p256"),
        ("ECDSA P-384", "cosign2/ecdsa-p384"),
        ("ECDSA P-521", "cosign2/ecdsa-p521"),
        ("RSA 2048, PKCS #1", "cosign2/rsa-2048"),
        ("RSA 4096, PKCS #1", "cosign2/rsa-4096"),
        ("RSA 2048, PSS", "cosign2/rsa-2048-pss"),
        ("Ed25519", "cosign2/ed25519"),
        ("Ed25519ph", "cosign2/ed25519ph"),
    ] {
        let repository = fixtures.repository(fixture);
        let tag = format!("sha256-{}.sig", repository.image().hex());
        let manifest: Value =
            serde_json::from_slice(&fixtures.blob(&repository.tags[&tag])).unwrap();
        let layer = &manifest["layers"][0];
        let payload = fixtures.blob(layer["digest"].as_str().unwrap());
        let signature = &layer["annotations"]["dev.cosignproject.cosign/signature"];
        let signature = STANDARD.decode(signature.as_str().unwrap()).unwrap();
        let key = repository.facts["key"].as_str().unwrap_or("keys/ecdsa-p256.pub");
        let key = PublicKey::from_pem(&fixtures.file(key)).unwrap();
        assert!(key.verify(&payload, &signature).is_ok(), "{fixture}");
        group.bench_function(kind, |bench| {
            bench.iter(|| black_box(key.verify(&payload, &signature)));
        });
    }
}

/// A pull as kubelet sends it: read, and with its image pinned.
fn wire(criterion: &mut Criterion) {
    let bytes = cri::pull(&name(7), "shop").encode_to_vec();
    let pinned =
        format!("registry.example.com/team-7/app-7@{}", portcullis::image::Digest::of(b""));
    let mut group = criterion.benchmark_group("a pull on the wire");
    group.bench_function("read", |bench| bench.iter(|| decode::pull(&bytes).unwrap()));
    let request = decode::pull(&bytes).unwrap();
    group.bench_function("patched", |bench| {
        bench.iter(|| black_box(request.message.with_names(|_, _| pinned.clone())));
    });
}

fn evidence(criterion: &mut Criterion) {
    let (key, state) = (Signer::new(), tempfile::tempdir().unwrap());
    let store = Store::open(state.path()).0;
    let known: Vec<_> = (0..1000).map(|number| known(number, &key)).collect();
    known.iter().for_each(|one| store.keep(one).unwrap());
    let mut group = criterion.benchmark_group("evidence of one of 1,000 images");
    let mut numbers = (0..known.len()).cycle();
    group.bench_function("by ID", |bench| {
        bench.iter(|| black_box(store.of_id(known[numbers.next().unwrap()].id())));
    });
    group.bench_function("by digest", |bench| {
        bench.iter(|| black_box(store.of_digest(known[numbers.next().unwrap()].digest())));
    });
    group.bench_function("by ID, none", |bench| {
        let none = full::known(1000, &key).id();
        bench.iter(|| assert!(store.of_id(none).is_empty()));
    });
    group.bench_function("kept once more, unchanged", |bench| {
        bench.iter(|| store.keep(&known[numbers.next().unwrap()]).unwrap());
    });
    let mut number = 1000;
    group.bench_function("kept, new, with its syncs", |bench| {
        bench.iter(|| {
            number += 1;
            store.keep(&full::known(number, &key)).unwrap();
        });
    });
}

/// A record of a pull, appended and synced.
fn audit(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    let config = Config {
        file: scratch.path().join("audit.jsonl"),
        state_directory: scratch.path().join("state"),
        node: "node-1".into(),
    };
    let log = Log::open(config).unwrap().0;
    let record = || Record {
        decision: Some(Outcome::Allow),
        image: Some(RequestedImage { requested: name(7), ..Default::default() }),
        duration_us: Some(1500),
        ..Record::new(Event::Pull, "accepted")
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("audit, appended and synced");
    for at_once in [1, 64] {
        group.bench_function(format!("{at_once} at once"), |bench| {
            bench.iter(|| {
                let all = (0..at_once).map(|_| log.record(record(), ()));
                runtime.block_on(futures_util::future::join_all(all));
            });
        });
    }
}
