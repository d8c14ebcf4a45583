//! How long the judgement of one `CreateContainer` takes, from its message to the decision: what
//! the product does before it writes the audit record. Of the disk, it shows the page cache.
#![allow(clippy::unwrap_used, reason = "as in tests")]

mod full;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "each benchmark uses a part")]
mod table;

use std::{hint::black_box, time::Instant};

use full::{IMAGES, POLICIES, known, name, policies_for, policies_text, set};
use jiff::Timestamp;
use portcullis::{
    decode,
    evidence::Store,
    local::{Local, Question},
    named::{ImageId, Named},
    policy::PolicySet,
};
use prost::Message;
use support::{
    cri::{ContainerConfig, CreateContainerRequest, ImageSpec, PodConfig, PodSandboxMetadata},
    sign::Signer,
};
use table::{Samples, head, heading, progress, row, us, verdict};

const ROUNDS: usize = 4_000;

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

/// Budget in microseconds: of the median, and of the 99th percentile.
type Budget = Option<(f64, f64)>;

/// Times each round, and prints a row.
fn measure(what: &str, budget: Budget, mut round: impl FnMut(usize)) {
    let mut times = Samples::default();
    for number in 0..ROUNDS {
        let begun = Instant::now();
        round(number);
        times.add(begun.elapsed());
    }
    let [p50, p90, p99] = [50, 90, 99].map(|percent| times.at(percent));
    let (allowed, within) = match budget {
        None => Default::default(),
        Some((most, last)) => {
            let worse = if p50 <= most { verdict(p99, last) } else { verdict(p50, most) };
            (format!("{most:.0} / {last:.0}"), worse)
        }
    };
    row(&[what, &us(p50), &us(p90), &us(p99), &allowed, within]);
}

fn begin(title: &str) {
    heading(title);
    println!("{IMAGES} images known, {ROUNDS} rounds; us\n");
    head(&["case", "p50", "p90", "p99", "budget p50 / p99", "within"]);
}

fn main() {
    // What `cargo test --benches` passes: nothing is measured then.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let (key, other, now) = (Signer::new(), Signer::new(), Timestamp::now());
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    progress("keeping 10,000 images");
    let messages: Vec<_> = (0..IMAGES)
        .map(|number| {
            let known = known(number, &key);
            store.keep(&known).unwrap();
            message(number, known.id())
        })
        .collect();
    let (one, many) = (set(&policies_text(1, &key)), set(&policies_text(POLICIES, &key)));
    let strict = set(&policies_text(POLICIES, &other));
    let judged = |local: &Local, policies: &PolicySet, number: usize| {
        let question = question(&messages[number], policies);
        match local.remembered(policies, &question, now) {
            Some(judgement) => judgement,
            None => local.judge(policies, &question, now),
        }
    };
    let budget = Some((100.0, 1000.0));

    begin("`CreateContainer`: from the message to the decision, from local evidence");
    let local = Local::new(store.clone());
    assert!(judged(&local, &one, 0).decision.is_ok());
    measure("remembered, 1 policy", budget, |_| drop(black_box(judged(&local, &one, 0))));
    assert!(judged(&local, &many, 0).decision.is_ok());
    measure("remembered, 1,000 policies", budget, |_| drop(black_box(judged(&local, &many, 0))));
    let local = Local::new(store.clone());
    measure("first after a start: one image, 1 policy", budget, |_| {
        drop(black_box(judged(&Local::new(store.clone()), &one, 0)));
    });
    measure("first after a start: each of 4,000 images, 1,000 policies", budget, |number| {
        drop(black_box(judged(&local, &many, number)));
    });
    measure("each of these once more, remembered", budget, |number| {
        assert!(judged(&local, &many, number).decision.is_ok());
    });
    measure("refused: signed by another key, 1,000 policies", budget, |number| {
        assert!(judged(&local, &strict, number).decision.is_err());
    });
    measure("of which the message is read", None, |number| {
        black_box(question(&messages[number], &many));
    });

    begin("Selection among 1,000 policies");
    let all = set(&policies_for(POLICIES, &key, |_| "registry.example.com/**".into()));
    let wild = set(&policies_for(POLICIES, &key, |team| format!("**/team-{team}/**")));
    let questions: Vec<_> = messages.iter().map(|message| question(message, &many)).collect();
    let budget = Some((50.0, 1000.0));
    for (what, policies) in [
        ("a prefix for each; one matches", &many),
        ("no prefix to tell them apart (`**/team-N/**`); one matches", &wild),
        ("all 1,000 match", &all),
    ] {
        measure(what, budget, |number| {
            drop(black_box(policies.select(&questions[number].names[0], Some("shop")).unwrap()));
        });
    }
}
