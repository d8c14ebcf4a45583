//! Portcullis is killed at any moment, again and again, with calls under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    hash::{BuildHasher, Hasher, RandomState},
    process::Command,
    time::Duration,
};

use http_body_util::BodyExt;
use prost::Message;

use crate::{
    lab::{FALLBACK, Lab},
    pod::{NAMESPACE, Pod, by_kubelet, plain},
    scene::{Scene, Shown, status_by},
    support::{
        cri::{CREATE_CONTAINER, PULL_IMAGE, REMOVE_CONTAINER, by_id, pull},
        grpc::{Client, framed},
    },
};

/// How often it is killed.
const ROUNDS: usize = 200;
/// The longest time from the first calls of a round to the end, in microseconds: in every other
/// round hardly a call is answered by then, in the others all may be.
const LONGEST: [u64; 2] = [60_000, 400_000];

/// SplitMix64: repeatable by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Tells the seed when the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- this was with PORTCULLIS_SEED={}", self.0);
        }
    }
}

/// A call, and what stands in the audit log of it once it was answered.
struct Call {
    path: &'static str,
    message: Vec<u8>,
    event: &'static str,
    image: String,
}

/// Event, image and decision of an answered call.
type Judged = (&'static str, String, &'static str);

/// The answer, if one came before the end.
async fn answered(client: Client, call: Call) -> Option<Judged> {
    let response = client.begin(call.path, &[], framed(&call.message)).await.ok()?;
    let (head, body) = response.into_parts();
    let collected = body.collect().await.ok()?;
    let status = collected.trailers().and_then(|trailers| trailers.get("grpc-status"));
    let status = status.or_else(|| head.headers.get("grpc-status"))?;
    let decision = if status == "0" { "allow" } else { "deny" };
    Some((call.event, call.image, decision))
}

fn create(pod: &Pod, id: &str, name: &str) -> Call {
    let message = pod.request(by_kubelet(id, name)).encode_to_vec();
    Call { path: CREATE_CONTAINER, message, event: "create", image: name.into() }
}

fn pull_of(name: &str) -> Call {
    let message = pull(name, NAMESPACE).encode_to_vec();
    Call { path: PULL_IMAGE, message, event: "pull", image: name.into() }
}

pub(crate) async fn killed_at_any_moment(lab: &Lab) {
    let seed = env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = Seed(seed.unwrap_or_else(|| RandomState::new().build_hasher().finish()));
    let mut random = Random(seed.0);
    let node = lab.another(&format!("{FALLBACK}/pause:v1")).await;
    let mut scene = Scene::on(lab, &node, "crash").await;
    let (signed, unsigned, absent) =
        (scene.signed("signed"), scene.unsigned("unsigned"), scene.unsigned("absent"));
    scene.pull(&signed.name).await.unwrap();
    scene.pull_around(&unsigned.name).await;
    let pod = Pod::run(&node, &scene.client, "crash").await;

    let mut proven = BTreeSet::from([signed.id.clone()]);
    let mut answers: BTreeMap<Judged, usize> = BTreeMap::new();
    let mut pulled: Vec<Shown> = Vec::new();
    for round in 0..ROUNDS {
        let fresh = scene.signed(&format!("fresh-{round}"));
        proven.insert(fresh.id.clone());
        let calls = [
            pull_of(&fresh.name),
            pull_of(&absent.name),
            pull_of(&unsigned.name),
            create(&pod, &signed.id, &signed.name),
            create(&pod, &unsigned.id, &unsigned.name),
            create(&pod, &unsigned.id, &signed.name),
        ];
        let calls = calls.map(|call| tokio::spawn(answered(scene.client.clone(), call)));
        // A moment of chance is what this is about; no event stands for it.
        tokio::time::sleep(Duration::from_micros(random.below(LONGEST[round % 2]))).await;
        scene.restart_gate().await;
        let mut was_pulled = false;
        for call in calls {
            let Some(judged) = call.await.unwrap() else { continue };
            let expected = match &judged {
                ("pull", image, decision) if *image == fresh.name => {
                    was_pulled = *decision == "allow";
                    "allow"
                }
                (_, image, _) if *image == unsigned.name || *image == absent.name => "deny",
                // Both creations go by this name; which was answered, the log does not tell.
                (_, _, decision) => decision,
            };
            assert_eq!(judged.2, expected, "round {round}: {judged:?}");
            *answers.entry(judged).or_default() += 1;
        }
        for container in pod.list(&scene.direct).await {
            let image = &container.image_ref;
            assert!(proven.contains(image), "round {round}: a container from {image}");
            let removed = by_id(1, &container.id);
            scene.direct.call(REMOVE_CONTAINER, &[], framed(&removed)).await;
        }
        if was_pulled {
            pulled.push(fresh);
        }
    }
    assert_eq!(status_by(&scene.direct, &absent.name).await, None);

    let audit = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["audit", "verify", "--state"])
        .arg(scene.gate.path().join("state"))
        .arg(scene.gate.audit_file())
        .output()
        .unwrap();
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    let mut recorded: BTreeMap<Judged, usize> = BTreeMap::new();
    for event in ["pull", "create"] {
        for record in scene.gate.records(event) {
            let image = record["image"]["requested"].as_str().unwrap().to_owned();
            let decision = if record["decision"] == "allow" { "allow" } else { "deny" };
            *recorded.entry((event, image, decision)).or_default() += 1;
        }
    }
    for (judged, times) in &answers {
        let on_record = recorded.get(judged).copied().unwrap_or_default();
        assert!(on_record >= *times, "{judged:?}: {times} answers, {on_record} records");
    }
    // Some of each, or the moments were badly chosen.
    assert!(!pulled.is_empty() && pulled.len() < ROUNDS, "{} pulled", pulled.len());
    let started = ("create", signed.name.clone(), "allow");
    assert!(answers.contains_key(&started), "{answers:?}");

    // What was proven still is, with nobody to ask.
    scene.stop_registry();
    for image in &pulled {
        let request = pod.request(by_kubelet(&image.id, &image.name));
        crate::pod::create(&scene.client, &request).await.unwrap_or_else(|(code, message)| {
            panic!("{}, which was pulled, does not start: {code}: {message}", image.name)
        });
    }
    let request = pod.request(by_kubelet(&signed.id, &signed.name));
    scene.accepts(&pod, &request, &signed.made.says).await;
    let reasons = &["not_proven_locally", "signature_missing"];
    scene.refuses(&pod, &pod.request(plain(&unsigned.name)), reasons).await;
    pod.remove(&scene.client).await;
    drop(seed);
}
