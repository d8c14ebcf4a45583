//! `portcullis preflight`: what a candidate policy would refuse of a node.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path, process::Command};

use portcullis::image::Digest;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::{
    containerd::{Container, Shelf},
    cri::{PULL_IMAGE, pull},
    gate::Setup,
    registry::{Fault, IMAGE_MANIFEST, Match, TestRegistry},
    runtime::FakeRuntime,
    sign::{Signer, policy},
};

/// A node whose runtime has pulled from a registry, and a candidate policy `release` by a key for
/// all of that registry.
struct Node {
    registry: TestRegistry,
    signer: Signer,
    shelf: Shelf,
    runtime: FakeRuntime,
    directory: tempfile::TempDir,
    threads: Runtime,
}

impl Node {
    fn new() -> Self {
        let (registry, signer) = (TestRegistry::start(), Signer::new());
        let shelf = Shelf::beside(&registry);
        let threads = Runtime::new().unwrap();
        let runtime = {
            let _here = threads.enter();
            shelf.runtime()
        };
        let directory = tempfile::tempdir().unwrap();
        let node = Self { registry, signer, shelf, runtime, directory, threads };
        fs::create_dir(node.path("policies")).unwrap();
        node.policy("release.yaml", &node.by_key("release", "**"));
        let config = format!(
            "[runtime]\nendpoint = {:?}\nregistry_config = ''\nsandbox_image = {:?}\n\
             [state]\ndirectory = {:?}\n",
            node.runtime.socket().display().to_string(),
            node.name("pause"),
            node.path("state"),
        );
        fs::write(node.path("config.toml"), config).unwrap();
        node.signed("pause");
        node
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn policy(&self, file: &str, text: &str) {
        fs::write(Path::new(&self.path("policies")).join(file), text).unwrap();
    }

    fn by_key(&self, name: &str, images: &str) -> String {
        let images = format!("{}/{images}", self.registry.host());
        policy(name, &images, &[("release-2026", &self.signer)])
    }

    /// `registry/image:v1`.
    fn name(&self, image: &str) -> String {
        format!("{}/{image}:v1", self.registry.host())
    }

    /// An image that was signed, and pulled before anybody judged.
    fn signed(&self, image: &str) -> Digest {
        let digest = self.unsigned(image);
        self.signer.sign_simple(&self.registry, image, digest);
        digest
    }

    fn unsigned(&self, image: &str) -> Digest {
        let digest = self.registry.push_image(image, Some("v1"));
        self.shelf.pull(&self.name(image));
        digest
    }

    /// A running container of an image that is there, in a pod `web-0`.
    fn run(&self, name: &str, image: &str, namespace: &str) {
        self.shelf.run(Container {
            id: format!("id-of-{name}"),
            name: name.into(),
            image: self.shelf.pull(&self.name(image)),
            user_specified: self.name(image),
            image_id: self.shelf.pull(&self.name(image)),
            exited: false,
            pod: [namespace.into(), "web-0".into(), "uid".into()],
        });
    }

    /// The digest by which the runtime has an image.
    fn pulled(&self, image: &str) -> Digest {
        let prefix = format!("{}/{image}@", self.registry.host());
        let names = self.shelf.names();
        names.iter().find_map(|name| name.strip_prefix(&prefix)).unwrap().parse().unwrap()
    }

    fn preflight(&self, more: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["preflight", "--config", "config.toml", "--policy", "policies"])
            .args(more)
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path())
            .env_remove("DOCKER_CONFIG")
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).unwrap().replace(self.registry.host(), "r.example.com")
        };
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn json(&self, more: &[&str]) -> (i32, Value) {
        let (exit, out, err) = self.preflight(&[more, &["-o", "json"]].concat());
        assert_eq!(err, "");
        (exit, serde_json::from_str(&out).unwrap())
    }
}

const UNSIGNED: &str =
    "policy \"release\" requires 1 of 1 authority: \"release-2026\": no signature found";

#[test]
fn what_would_be_refused_comes_first() {
    let node = Node::new();
    let (bad, good) = (node.unsigned("bad"), node.signed("good"));
    node.run("app", "bad", "shop");
    node.run("main", "good", "shop");
    let exited = Container { id: "old".into(), exited: true, ..Container::default() };
    node.shelf.run(exited);
    let pause = node.pulled("pause");
    let (exit, out, err) = node.preflight(&[]);
    let expected = format!(
        "images
  refused r.example.com/bad:v1 ({bad})
  ├─ r.example.com/bad@{bad}: {UNSIGNED}
  └─ used by shop/web-0
  accepted r.example.com/good:v1 ({good})
  └─ used by shop/web-0
  accepted r.example.com/pause:v1 ({pause})

running containers
  refused shop/web-0, container \"app\": r.example.com/bad:v1
  └─ r.example.com/bad@{bad}: {UNSIGNED}
  accepted shop/web-0, container \"main\": r.example.com/good:v1

sandbox image
  accepted r.example.com/pause:v1 ({pause})

3 images, 2 running containers: 2 would be refused
",
    );
    assert_eq!((exit, out, err), (1, expected, String::new()));
}

#[test]
fn a_machine_reads_the_same() {
    let node = Node::new();
    let bad = node.unsigned("bad");
    node.run("app", "bad", "shop");
    let (exit, report) = node.json(&[]);
    assert_eq!(exit, 1);
    let message = format!("r.example.com/bad@{bad}: {UNSIGNED}");
    let id = &node.shelf.containers()[0].image_id;
    let policies = json!([{
        "name": "release", "outcome": "refused", "at_least": 1,
        "authorities": [{
            "name": "release-2026", "outcome": "signature_missing", "why": "no signature found",
        }],
    }]);
    let image = json!({
        "state": "refused", "reason": "signature_missing", "message": message,
        "policies": policies, "names": ["r.example.com/bad:v1", format!("r.example.com/bad@{bad}")],
        "digest": bad, "id": id, "used_by": ["shop/web-0"],
    });
    let container = json!({
        "state": "refused", "reason": "signature_missing", "message": message,
        "policies": policies, "id": "id-of-app", "name": "app",
        "pod": {"namespace": "shop", "name": "web-0"}, "image": "r.example.com/bad:v1",
        "image_id": id,
    });
    assert_eq!(report["images"][0], image);
    assert_eq!(report["images"][1]["state"], "accepted");
    assert_eq!(report["containers"], json!([container]));
    assert_eq!(report["sandbox"]["state"], "accepted");
    assert_eq!(report["sandbox"]["image"], "r.example.com/pause:v1");
    assert_eq!(report["sandbox"]["digest"], json!(node.pulled("pause")));
    let summary =
        json!({"images": 2, "containers": 1, "refused": 2, "not_judged": 0, "would_warn": 0});
    assert_eq!(report["summary"], summary);
    assert!(report["policy_set"]["digest"].as_str().unwrap().starts_with("sha256:"));
}

#[test]
fn a_node_that_satisfies_the_policy_has_nothing_to_fear() {
    let node = Node::new();
    node.signed("app");
    node.run("main", "app", "shop");
    let (exit, out, _) = node.preflight(&[]);
    assert_eq!(out.lines().last(), Some("2 images, 1 running container: 0 would be refused"));
    assert_eq!(exit, 0);
    // Without the network, nothing here is proven: nobody has kept any evidence.
    let before = node.registry.requests().len();
    let (exit, report) = node.json(&["--offline"]);
    assert_eq!((exit, &report["summary"]["refused"]), (1, &json!(4)));
    assert_eq!(report["images"][0]["reason"], "not_proven_locally");
    assert_eq!(node.registry.requests().len(), before);
}

#[test]
fn nothing_on_the_node_is_changed() {
    let node = Node::new();
    let app = node.signed("app");
    let names = node.shelf.names();
    node.runtime.take();
    assert_eq!(node.preflight(&[]).0, 0);
    assert_eq!(node.shelf.names(), names);
    assert!(!Path::new(&node.path("state")).exists());
    // Evidence that cannot be read is for the daemon to set aside.
    let id = node.shelf.pull(&node.name("app")).replace("sha256:", "");
    let directory = Path::new(&node.path("state")).join("evidence").join(id);
    for private in [directory.parent().unwrap(), &directory] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(private).unwrap();
    }
    let broken = directory.join(format!("{}.json", app.hex()));
    fs::write(&broken, "broken").unwrap();
    assert_eq!(node.preflight(&[]).0, 0);
    assert_eq!(fs::read(&broken).unwrap(), b"broken");
    let evidence = fs::read_dir(directory.parent().unwrap()).unwrap();
    assert_eq!(evidence.count(), 1);
    let mut paths = node.runtime.paths();
    paths.sort();
    paths.dedup();
    let reads = [
        "/containerd.services.content.v1.Content/Read",
        "/containerd.services.images.v1.Images/List",
        "/runtime.v1.RuntimeService/ListContainers",
        "/runtime.v1.RuntimeService/Status",
    ];
    assert_eq!(paths, reads);
}

#[test]
fn a_silent_registry_is_no_refusal() {
    let node = Node::new();
    node.signed("app");
    node.registry.fault(Match::when(|_| true), Fault::Status(503, Vec::new(), String::new()));
    let (exit, report) = node.json(&[]);
    let states: Vec<_> =
        report["images"].as_array().unwrap().iter().map(|image| &image["state"]).collect();
    assert_eq!(states, ["not_judged", "not_judged"]);
    assert_eq!(report["images"][0]["reason"], "registry_unreachable");
    assert_eq!(exit, 2);
    // What no registry could make good is a refusal all the same.
    node.policy("release.yaml", &node.by_key("release", "app"));
    let (exit, report) = node.json(&[]);
    assert_eq!(report["summary"]["not_judged"], 1);
    assert_eq!(report["sandbox"]["reason"], "no_policy_matches");
    assert_eq!(exit, 1);
}

#[test]
fn a_registry_that_is_down_does_not_cost_a_time_out_for_each_image() {
    let node = Node::new();
    let names: Vec<_> = (0..24).map(|number| format!("app-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let image = json!({"schemaVersion": 2, "mediaType": IMAGE_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{number:064x}"), "size": 1},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{number:064x}"), "size": 1}]});
        node.registry.push_json(name, Some("v1"), &image);
        node.shelf.pull(&node.name(name));
    }
    node.registry.fault(Match::when(|_| true), Fault::Status(503, Vec::new(), String::new()));
    let (exit, report) = node.json(&[]);
    assert_eq!((exit, &report["summary"]["not_judged"]), (2, &json!(26)));
    let asked = node.registry.asked();
    let repository = |path: &String| path.split('/').nth(2).unwrap().to_owned();
    let asked: std::collections::BTreeSet<_> = asked.iter().map(repository).collect();
    // Three, and those that were under way.
    assert!(asked.len() <= 10, "{asked:?}");
    let messages =
        report["images"].as_array().unwrap().iter().map(|image| image["message"].as_str());
    let told = "r.example.com failed for 3 other images, and was not asked";
    assert!(messages.flatten().any(|message| message.contains(told)), "{report}");
}

#[test]
fn a_policy_that_warns_refuses_nothing() {
    let node = Node::new();
    let app = node.unsigned("app");
    let text = node.by_key("release", "**").replace("spec:\n", "spec:\n  mode: Warn\n");
    node.policy("release.yaml", &text);
    node.run("main", "app", "shop");
    let (exit, out, _) = node.preflight(&[]);
    let why = format!("r.example.com/app@{app}: {UNSIGNED}");
    assert!(
        out.contains(&format!(
            "  would warn shop/web-0, container \"main\": r.example.com/app:v1\n  └─ {why}\n"
        )),
        "{out}"
    );
    assert!(
        out.ends_with(
            "2 images, 1 running container: 0 would be refused, 2 would be warned about\n"
        ),
        "{out}"
    );
    assert_eq!(exit, 0);
}

#[test]
fn an_image_is_for_some_pods_and_a_container_for_its_own() {
    let node = Node::new();
    node.unsigned("app");
    let loose = "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {name: lab}\n\
                 spec:\n  match: {images: ['HOST/app'], namespaces: [lab]}\n  \
                 authorities: [{name: a, unsigned: {reason: test}}]\n";
    node.policy("lab.yaml", &loose.replace("HOST", node.registry.host()));
    let strict = node.by_key("release", "**").replace("]}", "], excludeNamespaces: [lab]}");
    node.policy("release.yaml", &strict);
    node.run("one", "app", "lab");
    node.run("two", "app", "shop");
    let (exit, report) = node.json(&[]);
    assert_eq!(report["images"][0]["state"], "accepted_for_some");
    let containers = report["containers"].as_array().unwrap();
    let states: Vec<_> = containers.iter().map(|one| (&one["name"], &one["state"])).collect();
    assert_eq!(states, [(&json!("two"), &json!("refused")), (&json!("one"), &json!("accepted"))]);
    assert_eq!(report["summary"]["refused"], 1);
    assert_eq!(exit, 1);
}

#[test]
fn what_only_broken_glass_would_let_through_is_refused() {
    let node = Node::new();
    let app = node.unsigned("app");
    let glass = "spec:\n  breakGlass: {annotation: a, namespaces: [incident]}\n";
    node.policy("release.yaml", &node.by_key("release", "**").replace("spec:\n", glass));
    let (exit, report) = node.json(&[]);
    assert_eq!(report["images"][0]["state"], "refused");
    assert_eq!(report["images"][0]["message"], format!("r.example.com/app@{app}: {UNSIGNED}"));
    assert_eq!((exit, &report["summary"]["refused"]), (1, &json!(1)));
}

#[test]
fn every_repository_of_an_image_is_judged() {
    let node = Node::new();
    node.signed("app");
    node.shelf.name("other.example.com/app:v1", &node.name("app"));
    // Asked for by its ID alone: it must be right under all of its names.
    let id = node.shelf.pull(&node.name("app"));
    node.shelf.run(Container { image: id.clone(), image_id: id, ..Container::default() });
    let (exit, report) = node.json(&[]);
    let none = "other.example.com/app:v1: no policy matches this image in a call that names no \
                namespace; an ImagePolicy whose spec.match.images covers it is needed";
    assert_eq!(report["images"][0]["names"], json!(["other.example.com/app:v1"]));
    assert_eq!(report["images"][0]["message"], none);
    assert_eq!(report["images"][1]["state"], "accepted");
    assert_eq!(report["containers"][0]["message"], none);
    assert_eq!(report["containers"][0]["pod"], Value::Null);
    assert_eq!(exit, 1);
}

#[test]
fn what_is_no_image_is_refused() {
    let node = Node::new();
    let app = node.signed("app");
    node.shelf.spoil(app, None);
    node.shelf.put("sha256:00", "application/vnd.oci.image.manifest.v1+json", "{}");
    let (exit, report) = node.json(&[]);
    let why = format!(
        "r.example.com/app@{app}: the container runtime does not have its manifest, or none that \
         it lists"
    );
    let message = |number: usize| report["images"][number]["message"].as_str();
    let nameless = Digest::of(b"{}");
    let expected = format!(
        "{nameless}: no image can be started from it: the manifest has no \"schemaVersion\": 2"
    );
    assert_eq!(message(0), Some(expected.as_str()));
    assert_eq!(message(1), Some(why.as_str()));
    assert_eq!(exit, 1);
}

#[test]
fn an_id_that_stands_for_a_checkpoint_as_well_is_refused() {
    let node = Node::new();
    let app = node.signed("app");
    node.run("main", "app", "shop");
    let manifest = node.shelf.manifest(app);
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["annotations"] = json!({"org.criu.checkpoint.container.name": "x"});
    let checkpoint = node.shelf.put(
        "checkpoint.example.com/x:v1",
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string(),
    );
    let (exit, report) = node.json(&[]);
    let why = format!(
        "r.example.com/app:v1: the container runtime also has the checkpoint {checkpoint} under \
         this image's ID, and might restore that instead: remove it from the runtime"
    );
    assert_eq!(report["containers"][0]["message"], why);
    assert_eq!(exit, 1);
}

#[test]
fn a_sandbox_image_that_is_not_there_would_be_pulled() {
    let node = Node::new();
    let pause = node.pulled("pause");
    for name in node.shelf.names() {
        node.shelf.forget(&name);
    }
    let sandbox = |arguments: &[&str]| node.json(arguments).1["sandbox"].clone();
    assert_eq!(sandbox(&[])["state"], "accepted");
    let missing = "r.example.com/pause:v1: the sandbox image is not on this node, and no registry \
                   was asked";
    assert_eq!(sandbox(&["--offline"])["message"], missing);
    assert_eq!(sandbox(&["--offline"])["digest"], Value::Null);
    let (exit, out, _) = node.preflight(&[]);
    let expected = format!(
        "sandbox image\n  accepted r.example.com/pause:v1 ({pause})\n\n\
         0 images, 0 running containers: 0 would be refused\n"
    );
    assert_eq!((exit, out), (0, expected));
}

#[test]
fn evidence_that_is_kept_here_needs_no_registry() {
    let node = Node::new();
    let setup = Setup::before(node.runtime.socket())
        .policy("release.yaml", &node.by_key("release", "**"))
        .sandbox_image(Some(&node.name("pause")));
    node.signed("app");
    let gate = setup.start();
    let request = pull(&node.name("app"), "shop");
    let answer =
        node.threads.block_on(async { gate.client().await.unary(PULL_IMAGE, &request).await });
    assert_eq!(answer.status(), (0, String::new()));
    fs::copy(gate.path().join("config.toml"), node.path("config.toml")).unwrap();
    let log = fs::read(gate.audit_file()).unwrap();
    let (_, report) = node.json(&["--offline"]);
    let images = report["images"].as_array().unwrap();
    let app = images.iter().find(|image| image["names"][0] == "r.example.com/app:v1").unwrap();
    assert_eq!(app["state"], "accepted", "{app}");
    assert_eq!(fs::read(gate.audit_file()).unwrap(), log);
}

#[test]
fn what_cannot_be_asked_is_told() {
    let node = Node::new();
    let socket = node.runtime.socket().display().to_string();
    fs::write(node.path("policies/broken.yaml"), "{}").unwrap();
    let (exit, out, err) = node.preflight(&[]);
    assert_eq!((exit, out.as_str()), (78, ""));
    assert_eq!(err, "portcullis: policies/broken.yaml:1:1: is empty\n");
    fs::remove_file(node.path("policies/broken.yaml")).unwrap();
    let (exit, _, err) = node.preflight(&["--auth-file", "none.json"]);
    assert_eq!(exit, 78);
    let none = "portcullis: none.json: cannot be read: No such file or directory (os error 2)\n";
    assert_eq!(err, none);
    let config = fs::read_to_string(node.path("config.toml")).unwrap();
    fs::write(node.path("config.toml"), config.replace(&socket, "/nonexistent/c.sock")).unwrap();
    let (exit, out, err) = node.preflight(&[]);
    assert_eq!((exit, out.as_str()), (2, ""));
    let why = "portcullis: the container runtime failed to tell: cannot connect to the container \
               runtime at /nonexistent/c.sock: No such file or directory (os error 2)\n";
    assert_eq!(err, why);
}
