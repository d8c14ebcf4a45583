//! `portcullis status`: what the daemon tells of itself.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::{
    containerd::Shelf,
    cri::{IMAGE_STATUS, PULL_IMAGE, VERSION, image_status, pull},
    gate::{Gate, Setup},
    grpc::{Client, framed},
    registry::TestRegistry,
    runtime::{FakeRuntime, constant},
    sign::{Signer, policy},
};

fn status(config: &Path, more: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["status", "--config"])
        .arg(config)
        .args(more)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn of(gate: &Gate) -> (i32, String) {
    let (exit, out, err) = status(&gate.path().join("config.toml"), &[]);
    assert_eq!(err, "");
    (exit, out)
}

fn json_of(gate: &Gate) -> (i32, Value) {
    let (exit, out, err) = status(&gate.path().join("config.toml"), &["-o", "json"]);
    assert_eq!(err, "");
    (exit, serde_json::from_str(&out).unwrap())
}

/// A gate before a runtime with a signed image `app`, an unsigned one `bad` and a sandbox image.
struct Node {
    registry: TestRegistry,
    runtime: FakeRuntime,
    gate: Gate,
}

impl Node {
    fn new() -> Self {
        let (registry, key) = (TestRegistry::start(), Signer::new());
        for image in ["app", "bad", "pause"] {
            let digest = registry.push_image(image, Some("v1"));
            if image != "bad" {
                key.sign_simple(&registry, image, digest);
            }
        }
        let shelf = Shelf::beside(&registry);
        let runtime = shelf.runtime();
        let images = format!("{}/**", registry.host());
        let pause = format!("{}/pause:v1", registry.host());
        shelf.pull(&pause);
        let gate = Setup::before(runtime.socket())
            .policy("release.yaml", &policy("release", &images, &[("release-2026", &key)]))
            .sandbox_image(Some(&pause))
            .start();
        Self { registry, runtime, gate }
    }

    fn name(&self, image: &str) -> String {
        format!("{}/{image}:v1", self.registry.host())
    }

    async fn pull(&self, image: &str) -> i32 {
        let client = self.gate.client().await;
        client.unary(PULL_IMAGE, &pull(&self.name(image), "shop")).await.status().0
    }

    /// Waits for the first look at the node, and for the sandbox image.
    async fn settled(&self) {
        let look = async {
            loop {
                let (_, report) = json_of(&self.gate);
                if report["inventory"].is_object() && report["sandbox"]["proven"] == true {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::support::grpc::PATIENCE, look).await.unwrap();
    }

    /// `seq` of the last record.
    fn seq(&self) -> Value {
        let log = fs::read_to_string(self.gate.audit_file()).unwrap();
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        last["seq"].clone()
    }
}

/// Everything that differs from run to run.
fn steady(text: &str, gate: &Gate) -> String {
    let text = text.replace(&gate.path().display().to_string(), "DIR");
    let mut steady = String::new();
    for word in text.split_inclusive([' ', '\n', ',', ')', '(', ';']) {
        let end = word.trim_end_matches([' ', '\n', ',', ')', '(', ';']).len();
        let (word, rest) = word.split_at(end);
        let shown = match word {
            _ if word.starts_with("sha256:") => "DIGEST",
            _ if word.starts_with("2") && word.ends_with('Z') => "TIME",
            _ if word.starts_with("127.0.0.1:") => "IMAGE",
            _ if word.starts_with("/tmp/") => "SOCKET",
            word => word,
        };
        steady += shown;
        steady += rest;
    }
    steady
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_works_says_so() {
    let node = Node::new();
    node.settled().await;
    assert_eq!((node.pull("app").await, node.pull("bad").await), (0, 2));
    let (exit, report) = json_of(&node.gate);
    assert_eq!(exit, 0);
    assert_eq!(report["running"], true);
    assert_eq!(report["enforcing"], true);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["policies"]["count"], 1);
    assert_eq!(report["policies"]["only_warn"], 0);
    assert_eq!(report["policies"]["rejected"], Value::Null);
    let loaded = &node.gate.records("policy")[0]["policy_set"]["digest"];
    assert_eq!(&report["policies"]["digest"], loaded);
    assert_eq!(report["audit"]["seq"], node.seq());
    assert_eq!(report["decisions"]["pull"], json!({"allow": 1, "deny": 1, "warn": 0}));
    assert_eq!(report["inventory"]["images"]["total"], 1);
    assert_eq!(report["unrecorded"], 0);
    assert_eq!(
        report["sandbox"],
        json!({"image": node.name("pause"), "proven": true, "problem": null})
    );
    let denied = &node.gate.records("pull")[1];
    let refusals = report["refusals"].as_array().unwrap();
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0]["image"], node.name("bad"));
    assert_eq!(refusals[0]["pod"], "shop/web-0");
    assert_eq!(refusals[0]["event"], "pull");
    assert_eq!(refusals[0]["reason"], "signature_missing");
    assert_eq!(refusals[0]["message"], denied["message"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_read_it_at_a_glance() {
    let node = Node::new();
    node.settled().await;
    node.pull("bad").await;
    let (exit, out) = of(&node.gate);
    let (pid, seq) = (std::process::id(), node.seq());
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    let name = name.trim_end();
    let expected = format!(
        "Portcullis 0.1.0 is ready, and kubelet has not called yet, up 0 s
  policies   1 policy, set DIGEST, loaded 0 s ago from DIR/policies
  audit      seq {seq} in DIR/audit.jsonl
  kubelet    has not called; {name:?} did: pid {pid}, last call 0 s ago
             no kubelet has called since start (0 s): is containerRuntimeEndpoint set to unix://DIR/p.sock?
  runtime    containerd 2.1.9 at SOCKET
  sandbox    IMAGE, proven
  inventory  1 image, 0 not proven; 0 running containers, 0 not created through Portcullis; as of 0 s ago

since start      allowed    denied    warned
  pull                 0         1         0

last refusals
  TIME pull IMAGE for shop/web-0 signature_missing
    IMAGE policy \"release\" requires 1 of 1 authority: \"release-2026\": no signature found
"
    );
    let out = steady(&out, &node.gate);
    // Whether the daemon has pulled the sandbox image, or only asked for its signatures, is a race.
    let pulled = "  sandbox              1         0         0\n";
    let out = out.replace(pulled, "");
    // It may be a few seconds old by now.
    let young = |text: &str| {
        (1..60).fold(text.to_owned(), |text, age| {
            text.replace(&format!(" {age} s"), " 0 s").replace(&format!("({age} s"), "(0 s")
        })
    };
    assert_eq!((exit, young(&out)), (0, expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_policy_it_is_no_gate_that_enforces() {
    let runtime = FakeRuntime::start(constant([].into()));
    let gate = Setup::before(runtime.socket()).start();
    let (exit, report) = json_of(&gate);
    assert_eq!((exit, &report["enforcing"]), (1, &json!(false)));
    let empty = format!("{}/policies: holds no policy (*.yaml, *.yml)", gate.path().display());
    assert_eq!(report["policies"]["rejected"], empty);
    assert_eq!(report["policies"]["digest"], Value::Null);
    let (exit, out) = of(&gate);
    assert_eq!(exit, 1);
    assert!(
        out.starts_with("Portcullis 0.1.0 is refusing everything that it judges, up "),
        "{out}"
    );
    assert!(
        out.contains(&format!(
            "  policies   none in force, from {}/policies\n             {empty}\n",
            gate.path().display()
        )),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_takes_nothing_enforces_nothing() {
    let registry = TestRegistry::start();
    let runtime = Shelf::beside(&registry).runtime();
    let text = policy("release", "**", &[("release-2026", &Signer::new())]);
    // As with a full disk.
    let full = "trap '' XFSZ; ulimit -S -f 0; exec \"$0\" \"$@\"";
    let setup = Setup::before(runtime.socket()).policy("p.yaml", &text);
    let gate = setup.start_by(full, std::process::Stdio::null());
    let (exit, report) = json_of(&gate);
    assert_eq!((exit, &report["enforcing"]), (1, &json!(false)));
    assert_eq!(report["policies"]["count"], 1);
    let why = format!(
        "nothing is allowed unrecorded, and the audit log is not writable: cannot write {}: File \
         too large (os error 27): check the path, the disk and the kernel's log",
        gate.audit_file().display()
    );
    assert_eq!(report["audit"]["unavailable"], why);
    let before = report["unrecorded"].as_u64().unwrap();
    let client = gate.client().await;
    let image = format!("{}/app:v1", registry.host());
    assert_eq!(client.unary(PULL_IMAGE, &pull(&image, "shop")).await.status().0, 2);
    let (_, report) = json_of(&gate);
    assert!(report["unrecorded"].as_u64().unwrap() > before);
    assert_eq!(report["decisions"], json!({}));
    let (exit, out) = of(&gate);
    assert_eq!(exit, 1);
    let told =
        format!("  audit      seq 0 in {}\n             {why}\n", gate.audit_file().display());
    assert!(out.contains(&told), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_set_is_told_beside_the_one_in_force() {
    let node = Node::new();
    node.settled().await;
    fs::write(node.gate.path().join("policies/new.yaml"), "{}").unwrap();
    let look = async {
        loop {
            let (exit, report) = json_of(&node.gate);
            assert_eq!((exit, &report["enforcing"]), (0, &json!(true)));
            if let Some(why) = report["policies"]["rejected"].as_str() {
                break why.to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    let why = tokio::time::timeout(crate::support::grpc::PATIENCE, look).await.unwrap();
    let expected = format!("{}/policies/new.yaml:1:1: is empty", node.gate.path().display());
    assert_eq!(why, expected);
    let (_, out) = of(&node.gate);
    let told = format!(
        "             what is there now is not accepted, and the set in force stays:\n             \
         {expected}\n"
    );
    assert!(out.contains(&told), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_is_away_is_told() {
    let node = Node::new();
    let socket = node.runtime.socket().display().to_string();
    node.runtime.kill().await;
    let (exit, report) = json_of(&node.gate);
    assert_eq!((exit, &report["enforcing"]), (1, &json!(true)));
    assert_eq!(report["runtime"]["version"], Value::Null);
    let problem = report["runtime"]["problem"].as_str().unwrap();
    let expected =
        "the container runtime failed to tell: cannot connect to the container runtime at ";
    assert!(problem.starts_with(expected), "{problem}");
    assert_eq!(report["sandbox"]["proven"], false);
    assert_eq!(report["runtime"]["endpoint"], socket);
    let (exit, out) = of(&node.gate);
    let head = "Portcullis 0.1.0 is enforcing, and no pod can start: the container runtime does \
                not answer, up ";
    assert!(exit == 1 && out.starts_with(head), "{out}");
}

#[test]
fn without_a_daemon_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, config) = (directory.path().join("p.sock"), directory.path().join("config.toml"));
    fs::write(&config, format!("[listen]\nsocket = {:?}\n", socket.display().to_string())).unwrap();
    let why = format!(
        "not running: cannot connect to {}: No such file or directory (os error 2)",
        socket.display()
    );
    assert_eq!(status(&config, &[]), (2, format!("{why}\n"), String::new()));
    let (exit, out, _) = status(&config, &["-o", "json"]);
    assert_eq!(exit, 2);
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out, json!({"running": false, "problem": why}));
    fs::write(&config, "[listen").unwrap();
    assert_eq!(status(&config, &[]).0, 78);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_else_listens_is_no_portcullis() {
    let runtime = FakeRuntime::start(|_| {
        let headers = crate::support::runtime::headers(&[
            ("content-type", "application/grpc"),
            ("grpc-status", "12"),
            ("grpc-message", "unknown service"),
        ]);
        crate::support::runtime::Reply::whole(headers, Default::default(), Default::default())
    });
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    let socket = runtime.socket().display().to_string();
    fs::write(&config, format!("[listen]\nsocket = {socket:?}\n")).unwrap();
    let why = format!("{socket} is not answered by this version of Portcullis: unknown service\n");
    assert_eq!(status(&config, &[]), (2, why, String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelet_is_known_by_its_name() {
    let node = Node::new();
    assert_eq!(json_of(&node.gate).1["kubelet"], Value::Null);
    // This very program, under the name by which the system knows kubelet.
    let kubelet = node.gate.path().join("kubelet");
    symlink(std::env::current_exe().unwrap(), &kubelet).unwrap();
    let mut child = Command::new(&kubelet)
        .args(["--ignored", "--exact", "status::as_kubelet"])
        .env("PORTCULLIS_TEST_SOCKET", node.gate.socket())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    let (_, report) = json_of(&node.gate);
    assert_eq!(report["kubelet"]["pid"], pid);
    assert_eq!(report["kubelet"]["name"], "kubelet");
    let (_, out) = of(&node.gate);
    assert!(out.contains(&format!("  kubelet    pid {pid}, last call ")), "{out}");
    assert!(!out.contains("containerRuntimeEndpoint"), "{out}");
    assert!(out.starts_with("Portcullis 0.1.0 is enforcing, up "), "{out}");
    // Others do not take its place.
    let client = node.gate.client().await;
    client.unary(IMAGE_STATUS, &image_status(&node.name("app"))).await;
    let (_, report) = json_of(&node.gate);
    assert_eq!(report["kubelet"]["pid"], pid);
    assert_eq!(report["other_client"]["pid"], std::process::id());
}

/// Not a test: what the test above runs as another process.
#[tokio::test]
#[ignore = "is run by another test, as another process"]
async fn as_kubelet() {
    let Some(socket) = std::env::var_os("PORTCULLIS_TEST_SOCKET") else { return };
    let client = Client::connect(Path::new(&socket)).await;
    assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_that_only_warn_are_counted() {
    let runtime = FakeRuntime::start(constant([].into()));
    let key = Signer::new();
    let of = |name| policy(name, "**", &[("release-2026", &key)]);
    let warns = of("trial").replace("spec:\n", "spec:\n  mode: Warn\n");
    let gate = Setup::before(runtime.socket())
        .policy("p.yaml", &of("release"))
        .policy("w.yaml", &warns)
        .start();
    let (_, report) = json_of(&gate);
    assert_eq!(report["policies"]["rejected"], Value::Null);
    assert_eq!(
        (&report["policies"]["count"], &report["policies"]["only_warn"]),
        (&json!(2), &json!(1))
    );
}
