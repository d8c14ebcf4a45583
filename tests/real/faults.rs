//! containerd is killed, or becomes another one, under load; and the disks under Portcullis's own
//! files are full. After each: nothing unproven was started or pulled, calls work again without a
//! restart of the gate, the chain is whole, and there is one record for each judgement.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use prost::Message;
use tokio::task::JoinSet;

use crate::{
    lab::{FALLBACK, Lab, Node},
    pod::{NAMESPACE, Pod, by_kubelet},
    scene::{POLICY, Scene, Shown, pull_by, release, setup, status_by, until},
    support::{
        cri::{
            CREATE_CONTAINER, LIST_CONTAINERS, ListContainersResponse, PULL_IMAGE, VERSION, pull,
        },
        gate::{Gate, Setup, records, whole},
        grpc::{Client, framed},
    },
};

/// What was answered: method, image, code; and how often.
type Answers = BTreeMap<(&'static str, String, i32), usize>;

/// Calls on and on, each with its own connection now and then, until it is told to stop.
async fn load(
    socket: PathBuf,
    calls: Vec<(&'static str, String, Vec<u8>)>,
    stop: Arc<AtomicBool>,
) -> Answers {
    let mut answers = Answers::new();
    while !stop.load(Ordering::Relaxed) {
        // The gate stays: it answers whatever happens behind it.
        let client = Client::connect(&socket).await;
        for _ in 0..5 {
            for (path, image, message) in &calls {
                let (code, _) = client.call(path, &[], framed(message)).await.status();
                *answers.entry((path, image.clone(), code)).or_default() += 1;
            }
        }
    }
    answers
}

/// Some clients that pull what is signed and what is not, and have containers made of both.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Answers>,
}

impl Load {
    fn begin(socket: &Path, pod: &Pod, signed: &Shown, unsigned: &Shown, absent: &Shown) -> Self {
        let pulling = |shown: &Shown| {
            (PULL_IMAGE, shown.name.clone(), pull(&shown.name, NAMESPACE).encode_to_vec())
        };
        let creating = |id: &str, name: &str| {
            let request = pod.request(by_kubelet(id, name)).encode_to_vec();
            (CREATE_CONTAINER, format!("{id} as {name}"), request)
        };
        let calls = vec![
            pulling(signed),
            pulling(absent),
            creating(&unsigned.id, &unsigned.name),
            creating(&unsigned.id, &signed.name),
            creating(&signed.id, &signed.name),
            (VERSION, String::new(), Vec::new()),
        ];
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for _ in 0..4 {
            clients.spawn(load(socket.to_owned(), calls.clone(), stop.clone()));
        }
        Self { stop, clients }
    }

    async fn end(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Answers::new();
        for (answer, times) in self.clients.join_all().await.into_iter().flatten() {
            *all.entry(answer).or_default() += times;
        }
        all
    }
}

/// Nothing but the signed image was let through, and there is a record for each judgement.
#[track_caller]
fn held(answers: &Answers, signed: &Shown, gate: &Gate) {
    let allowed = [signed.name.clone(), format!("{} as {}", signed.id, signed.name)];
    for ((path, image, code), times) in answers {
        let may = *path == VERSION || allowed.contains(image);
        assert!(may || *code != 0, "{path} {image}: allowed {times} times");
    }
    for (path, event) in [(PULL_IMAGE, "pull"), (CREATE_CONTAINER, "create")] {
        let answered: usize = answers
            .iter()
            .filter(|((method, _, _), _)| *method == path)
            .map(|(_, times)| times)
            .sum();
        assert_eq!(gate.records(event).len(), answered, "records of {event}: {answers:#?}");
    }
    whole(&gate.audit_file(), &gate.path().join("state"));
}

/// The images that a containerd has containers of.
async fn made_of(direct: &Client) -> Vec<String> {
    let listed = direct.call(LIST_CONTAINERS, &[], framed(b"")).await;
    let containers = listed.message::<ListContainersResponse>().containers;
    containers.into_iter().map(|container| container.image_ref).collect()
}

/// How often a call of a load was answered with this code.
fn counted(answers: &Answers, code: i32) -> usize {
    answers.iter().filter(|((_, _, told), _)| *told == code).map(|(_, times)| times).sum()
}

pub(crate) async fn containerd_is_killed_under_load(lab: &Lab) {
    let node = lab.another(&format!("{FALLBACK}/pause:v1")).await;
    let mut scene = Scene::on(lab, &node, "killed").await;
    let (signed, unsigned, absent) =
        (scene.signed("signed"), scene.unsigned("unsigned"), scene.unsigned("absent"));
    scene.pull_around(&unsigned.name).await;
    let busy = Pod::run(&node, &scene.client, "killed").await;
    let before = scene.gate.resident();
    let load = Load::begin(&scene.gate.socket(), &busy, &signed, &unsigned, &absent);
    for _ in 0..3 {
        let pulls = scene.gate.records("pull").len();
        until("the load goes on", || scene.gate.records("pull").len() > pulls + 20).await;
        scene.restart_node().await;
    }
    let answers = load.end().await;
    held(&answers, &signed, &scene.gate);
    // Both were seen, or this was no fault under load.
    let (fine, away) = (counted(&answers, 0), counted(&answers, 14));
    assert!(fine > 0 && away > 0, "{answers:#?}");
    eprintln!("containerd killed: {fine} calls answered, {away} with UNAVAILABLE");

    // On the connection from before, without a restart of the gate.
    scene.pull(&signed.name).await.unwrap();
    let pod = Pod::run(&node, &scene.client, "after").await;
    let request = pod.request(by_kubelet(&signed.id, &signed.name));
    scene.accepts(&pod, &request, &signed.made.says).await;
    let request = pod.request(by_kubelet(&unsigned.id, &unsigned.name));
    scene.refuses(&pod, &request, &["not_proven_locally", "signature_missing"]).await;
    assert!(made_of(&scene.direct).await.iter().all(|image| *image == signed.id));
    assert_eq!(status_by(&scene.direct, &absent.name).await, None);
    let after = scene.gate.resident();
    assert!(after < before + (32 << 10), "{before} KiB, then {after} KiB");
    busy.remove(&scene.client).await;
    pod.remove(&scene.client).await;
}

/// Another containerd answers at the socket, which has other bytes under the signed name.
pub(crate) async fn containerd_becomes_another_one(lab: &Lab) {
    let (first, second) = (&lab.node, lab.another(&format!("{FALLBACK}/pause:v1")).await);
    let mut scene = Scene::on(lab, first, "becomes").await;
    let (signed, unsigned, absent) =
        (scene.signed("signed"), scene.unsigned("unsigned"), scene.unsigned("absent"));
    second.host(&scene.host, scene.registry.url());
    second.import(&unsigned.made, &signed.name);
    second.import(&unsigned.made, &unsigned.name);

    let sockets = tempfile::tempdir_in("/tmp").unwrap();
    let socket = sockets.path().join("s");
    symlink(first.socket(), &socket).unwrap();
    let pause = first.pause();
    let setup = Setup::before(&socket)
        .registry_config(&first.hosts())
        .sandbox_image(Some(&pause))
        .policy("pause.yaml", &lab.policy("pause", &format!("{FALLBACK}/pause")))
        .policy(POLICY, &release(&scene.host, &scene.signer));
    scene.gate = setup.start();
    scene.client = scene.gate.client().await;
    scene.pull(&signed.name).await.unwrap();
    let pod = Pod::run(first, &scene.client, "first").await;
    let pulls = scene.gate.records("pull").len();
    let load = Load::begin(&scene.gate.socket(), &pod, &signed, &unsigned, &absent);
    until("the load goes on", || scene.gate.records("pull").len() > pulls + 20).await;
    let swapped = sockets.path().join("new");
    symlink(second.socket(), &swapped).unwrap();
    fs::rename(&swapped, &socket).unwrap();
    let other = Client::connect(&second.socket()).await;
    until("the other one is reached", || scene.gate.records("pull").len() > pulls + 200).await;
    let mut answers = load.end().await;
    // The pull before the load.
    *answers.entry((PULL_IMAGE, signed.name.clone(), 0)).or_default() += 1;
    held(&answers, &signed, &scene.gate);

    // What the other one had under the signed name did not start, and was put right by a pull.
    let client = scene.gate.client().await;
    assert_eq!(pull_by(&client, &signed.name).await.unwrap(), signed.id);
    assert_eq!(status_by(&other, &signed.name).await.unwrap().id, signed.id);
    let pod_there = Pod::run(&second, &client, "second").await;
    let request = pod_there.request(by_kubelet(&unsigned.id, &signed.name));
    let (code, message) = crate::pod::create(&client, &request).await.unwrap_err();
    assert!(code == 2 && message.starts_with("SignatureValidationFailed: "), "{message}");
    let request = pod_there.request(by_kubelet(&signed.id, &signed.name));
    pod_there.request_starts(&client, &request, &signed.made.says).await;
    assert!(made_of(&other).await.iter().all(|image| *image == signed.id));
    pod_there.remove(&client).await;
    pod.remove(&scene.direct).await;
}

/// A gate with a small disk of its own, seen by nobody else, at a directory beside its files.
fn with_disk(lab: &Lab, node: &Node, scene: &Scene<'_>, at: &str) -> (Gate, PathBuf) {
    let setup = setup(lab, node).policy(POLICY, &release(&scene.host, &scene.signer));
    let disk = setup.path().join(at);
    fs::create_dir(&disk).unwrap();
    let setup = match at {
        "state" => setup,
        _ => setup.audit_file(&disk.join("audit.jsonl")),
    };
    let script = format!(
        "exec unshare --mount --propagation private sh -c 'mount -t tmpfs -o \
         size=256k,mode=0700 tmpfs {} && exec \"$0\" \"$@\"' \"$0\" \"$@\"",
        disk.display()
    );
    let gate = setup.start_by(&script, Stdio::null());
    let root = PathBuf::from(format!("/proc/{}/root", gate.pid()));
    (gate, root)
}

/// The path as a process in another mount namespace sees it.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap())
}

/// Leaves no room. What was written stays.
fn fill(directory: &Path) -> PathBuf {
    let filler = directory.join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    filler
}

pub(crate) async fn a_full_disk_under_the_audit_log_stops_what_is_judged(lab: &Lab) {
    let mut scene = Scene::new(lab, "full").await;
    let (signed, other) = (scene.signed("signed"), scene.signed("other"));
    let (gate, root) = with_disk(lab, &lab.node, &scene, "audit");
    (scene.client, scene.gate) = (gate.client().await, gate);
    let audit_file = below(&root, &scene.gate.audit_file());
    let pod = Pod::run(&lab.node, &scene.client, "full").await;
    scene.pull(&signed.name).await.unwrap();
    let filler = fill(audit_file.parent().unwrap());
    // There may be room for a line in the last page.
    let (code, message) = refused_at_last(&scene, &signed).await;
    let full = format!(
        "SignatureValidationFailed: nothing is allowed unrecorded, and the audit log is not \
         writable: cannot write {}: No space left on device (os error 28): make room there",
        scene.gate.audit_file().display()
    );
    assert_eq!((code, &message), (2, &full));
    let before = made_of(&scene.direct).await.len();
    let again = pod.request(by_kubelet(&signed.id, &signed.name));
    assert_eq!(crate::pod::create(&scene.client, &again).await.unwrap_err(), (2, full.clone()));
    assert_eq!(scene.pull(&other.name).await.unwrap_err(), (2, full.clone()));
    assert_eq!(Pod::try_run(&lab.node, &scene.client, "never").await.err(), Some((2, full)));
    assert_eq!(made_of(&scene.direct).await.len(), before);
    assert_eq!(status_by(&scene.direct, &other.name).await, None);
    assert_eq!(scene.client.call(VERSION, &[], framed(b"")).await.status().0, 0);

    fs::remove_file(filler).unwrap();
    scene.pull(&other.name).await.unwrap();
    let request = pod.request(by_kubelet(&other.id, &other.name));
    pod.request_starts(&scene.client, &request, &other.made.says).await;
    whole(&audit_file, &scene.gate.path().join("state"));
    assert!(records(&audit_file, "create").iter().all(|record| record["decision"] == "allow"));
    pod.remove(&scene.client).await;
}

/// Pulls until that is refused.
async fn refused_at_last(scene: &Scene<'_>, signed: &Shown) -> (i32, String) {
    for _ in 0..50 {
        if let Err(failure) = scene.pull(&signed.name).await {
            return failure;
        }
    }
    panic!("the disk is never full");
}

pub(crate) async fn a_full_disk_under_the_state_takes_no_proof_away(lab: &Lab) {
    let mut scene = Scene::new(lab, "state").await;
    let (signed, other, unsigned) =
        (scene.signed("signed"), scene.signed("other"), scene.unsigned("unsigned"));
    let (gate, root) = with_disk(lab, &lab.node, &scene, "state");
    (scene.client, scene.gate) = (gate.client().await, gate);
    let state = below(&root, &scene.gate.path().join("state"));
    let pod = Pod::run(&lab.node, &scene.client, "state").await;
    scene.pull(&signed.name).await.unwrap();
    scene.pull_around(&unsigned.name).await;
    let filler = fill(&state);

    // What was proven starts, what is proven now does as well, and what is not does not.
    scene.pull(&other.name).await.unwrap();
    for image in [&signed, &other] {
        let request = pod.request(by_kubelet(&image.id, &image.name));
        scene.accepts(&pod, &request, &image.made.says).await;
    }
    let request = pod.request(by_kubelet(&unsigned.id, &unsigned.name));
    scene.refuses(&pod, &request, &["not_proven_locally", "signature_missing"]).await;
    let log = scene.gate.log();
    assert!(log.contains("No space left on device"), "{log}");

    fs::remove_file(filler).unwrap();
    scene.pull(&other.name).await.unwrap();
    let request = pod.request(by_kubelet(&other.id, &other.name));
    scene.accepts(&pod, &request, &other.made.says).await;
    whole(&scene.gate.audit_file(), &state);
    pod.remove(&scene.client).await;
}
