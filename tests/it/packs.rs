//! Evidence from node to node: `portcullis evidence export` and `import`.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use portcullis::{evidence::Store, image::Digest, named::ImageId};
use serde_json::{Value, json};

use crate::support::{
    cri,
    registry::{Fault, Match, TestRegistry},
    runtime::{FakeRuntime, ok},
    sign::Signer,
};

struct Desk {
    registry: TestRegistry,
    signer: Signer,
    directory: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let (registry, signer) = (TestRegistry::start(), Signer::new());
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("empty.toml"), "").unwrap();
        for state in ["one", "two"] {
            fs::create_dir(directory.path().join(state)).unwrap();
        }
        Self { registry, signer, directory }
    }

    /// A signed image under this name.
    fn signed(&self, name: &str) -> Digest {
        let digest = self.registry.push_image(name, Some("v1"));
        self.signer.sign_bundle(&self.registry, name, digest);
        digest
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}:v1", self.registry.host())
    }

    /// Runs `evidence`; files are named relative to the desk.
    fn run(&self, arguments: &[&str], input: &[u8]) -> (i32, String, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .arg("evidence")
            .args(arguments)
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path())
            .env_remove("DOCKER_CONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input closes it.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn export(&self, arguments: &[&str]) -> (i32, String, String) {
        let usual = ["export", "--state", "one", "--config", "empty.toml"];
        self.run(&[&usual, arguments].concat(), b"")
    }

    fn import(&self, state: &str, pack: &str, more: &[&str]) -> (i32, String, String) {
        self.run(&[&["import", "-", "--state", state], more].concat(), pack.as_bytes())
    }

    fn names(&self, directory: &str) -> usize {
        fs::read_dir(self.directory.path().join(directory)).map_or(0, Iterator::count)
    }
}

/// The ID of the first image in a pack.
fn id_of(pack: &str) -> ImageId {
    let document: Value = serde_json::from_str(pack.lines().nth(1).unwrap()).unwrap();
    let part = document.get("child").unwrap_or(&document["manifest"]);
    let manifest: Value = serde_json::from_str(part["body"].as_str().unwrap()).unwrap();
    manifest["config"]["digest"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_state_directory_that_is_not_there_is_not_made() {
    let desk = Desk::new();
    desk.signed("app");
    let (_, pack, _) = desk.export(&["--from", "registry", &desk.image("app")]);
    let (exit, out, err) = desk.import("tow", &pack, &[]);
    assert_eq!((exit, &*out), (78, ""));
    assert_eq!(err, "portcullis: --state tow: there is no such directory\n");
    assert!(!desk.directory.path().join("tow").exists());
}

#[test]
fn a_pack_made_anywhere_is_known_on_a_node() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let image = desk.image("app");
    let (exit, pack, err) = desk.export(&["--from", "registry", &image]);
    assert_eq!((exit, err), (0, format!("{image} {digest}: 1 signature\n")));
    let id = id_of(&pack);
    assert_eq!(pack.lines().next(), Some(r#"{"portcullis":"evidence","version":1}"#));
    // A command that only looks leaves nothing.
    assert_eq!(desk.names("one"), 0);

    let (exit, out, err) = desk.import("two", &pack, &[]);
    assert_eq!((exit, out), (0, format!("{digest} image {id}: 1 signature, new\n")));
    assert_eq!(err, "portcullis: -: 1 of 1 images kept, 1 new\n");
    let (exit, out, err) = desk.import("two", &pack, &[]);
    assert_eq!((exit, out), (0, format!("{digest} image {id}: 1 signature, known\n")));
    assert_eq!(err, "portcullis: -: 1 of 1 images kept, 0 new\n");

    let (store, findings) = Store::open(&desk.directory.path().join("two"));
    assert_eq!(findings, [""; 0]);
    let [known] = &store.of_id(id)[..] else { panic!("not one entry") };
    assert_eq!((known.digest(), known.top().claims.len(), known.top().whole), (digest, 1, false));
}

#[test]
fn what_a_node_knows_is_taken_from_its_store() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let (_, pack, _) = desk.export(&[&desk.image("app")]);
    desk.import("one", &pack, &[]);
    let id = id_of(&pack);
    let asked = desk.registry.asked().len();
    let pinned = format!("{}/app@{digest}", desk.registry.host());
    let (exit, first, err) = desk.export(&["--all"]);
    assert_eq!((exit, err), (0, format!("{id} {digest}: 1 signature\n")));
    for name in [&*id.to_string(), &digest.to_string(), &pinned] {
        let (exit, pack, err) = desk.export(&[name, "--from", "store"]);
        assert_eq!((exit, err), (0, format!("{name} {digest}: 1 signature\n")));
        assert_eq!(pack, first);
    }
    // Twice the same is once.
    assert_eq!(desk.export(&[&pinned, &id.to_string()]).1, first);
    assert_eq!(desk.registry.asked().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_means_what_the_runtime_says() {
    use prost::Message;
    let desk = Desk::new();
    let digest = desk.signed("app");
    let (_, pack, _) = desk.export(&[&desk.image("app")]);
    desk.import("one", &pack, &[]);
    let id = id_of(&pack);
    let runtime = FakeRuntime::start(move |_| {
        let image = cri::Image { id: id.to_string(), ..Default::default() };
        ok(&cri::ImageStatusResponse { image: Some(image) }.encode_to_vec())
    });
    let socket = runtime.socket().display();
    fs::write(
        desk.directory.path().join("config.toml"),
        format!("[runtime]\nendpoint = \"{socket}\"\n"),
    )
    .unwrap();
    for name in ["app:v1", "sha256:1234"] {
        let run = ["export", "--state", "one", "--config", "config.toml", name];
        let (exit, _, err) = tokio::task::block_in_place(|| desk.run(&run, b""));
        assert_eq!((exit, err), (0, format!("{name} {digest}: 1 signature\n")));
    }
}

#[test]
fn of_an_index_the_child_for_this_platform_is_packed() {
    let desk = Desk::new();
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let child = desk.registry.push_image("app", None);
    let foreign = desk.registry.push_image("app", None);
    let index = desk.registry.push_index("app", Some("v1"), &[(foreign, "mips"), (child, own)]);
    desk.signer.sign_simple(&desk.registry, "app", index);
    desk.signer.sign_bundle(&desk.registry, "app", child);
    let (exit, pack, err) = desk.export(&["--from", "registry", &desk.image("app")]);
    assert_eq!((exit, err), (0, format!("{} {index}: 2 signatures\n", desk.image("app"))));
    let document: Value = serde_json::from_str(pack.lines().nth(1).unwrap()).unwrap();
    let body = document["child"]["body"].as_str().unwrap();
    assert_eq!(Digest::of(body.as_bytes()), child);
    assert_eq!(document["manifest"]["whole"], true);
    let (_, out, _) = desk.import("two", &pack, &[]);
    let id = id_of(&pack);
    assert_eq!(out, format!("{index} image {id}: 2 signatures, new\n"));

    desk.registry.push_index("app", Some("v1"), &[(foreign, "mips")]);
    let (exit, pack, err) = desk.export(&["--from", "registry", &desk.image("app")]);
    let why = format!(
        "{}: it has no image, or several, for this machine's platform: name the one by its digest\n\
         portcullis: there is nothing to export\n",
        desk.image("app")
    );
    assert_eq!((exit, pack.as_str(), err), (1, "", why));
}

#[test]
fn what_is_missing_is_told_from_what_could_not_be_asked() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let bare = desk.registry.push_image("bare", Some("v1"));
    let (app, nobody) = (desk.image("app"), desk.image("nobody"));
    // An image without signatures can be accepted by its digest.
    let (exit, pack, err) = desk.export(&["--from", "registry", &desk.image("bare"), &app]);
    assert_eq!(exit, 1);
    assert_eq!(
        err,
        format!("{} {bare}: 0 signatures\n{app} {digest}: 1 signature\n", desk.image("bare"))
    );
    assert_eq!(pack.lines().count(), 3);

    let (exit, pack, err) = desk.export(&["--from", "registry", &nobody, &app]);
    assert_eq!((exit, pack.lines().count()), (1, 2));
    assert!(err.starts_with(&format!("{nobody}: ")), "{err}");

    let (exit, pack, err) = desk.export(&["--from", "store", &app]);
    assert_eq!((exit, pack.as_str()), (2, ""));
    assert!(err.starts_with(&format!("{app}: the container runtime failed to tell: ")), "{err}");

    let (exit, _, err) = desk.export(&[&digest.to_string()]);
    let why = "this node has no evidence about it; name it by its repository for its registry to \
               be asked";
    assert_eq!(exit, 1);
    assert_eq!(err, format!("{digest}: {why}\nportcullis: there is nothing to export\n"));

    let broken = || Fault::Status(500, vec![], String::new());
    let referrers = Match::when(|target| target.contains("/referrers/"));
    desk.registry.fault(referrers, broken());
    let (exit, pack, err) = desk.export(&["--from", "registry", &app]);
    assert_eq!((exit, pack.lines().count()), (2, 2));
    assert!(err.contains(&format!("\n{app}: not every signature could be looked up: ")), "{err}");
    let document: Value = serde_json::from_str(pack.lines().nth(1).unwrap()).unwrap();
    assert_eq!(document["manifest"]["whole"], false);

    desk.registry.fault(Match::manifest("app", "v1"), broken());
    let (exit, pack, _) = desk.export(&["--from", "registry", &app]);
    assert_eq!((exit, pack.as_str()), (2, ""));

    let (exit, pack, err) = desk.export(&["--all"]);
    let why = "portcullis: there is nothing to export: this node knows no image\n";
    assert_eq!((exit, pack.as_str(), err.as_str()), (1, "", why));
}

#[test]
fn a_registry_that_is_asked_unbidden_is_told() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let image = desk.image("app");
    let (exit, _, err) = desk.export(&[&image]);
    let note = format!(
        "portcullis: {image}: not in the store of this node; asking its registry\n\
         {image} {digest}: 1 signature\n"
    );
    assert_eq!((exit, err), (0, note));
}

#[test]
fn a_bad_line_keeps_the_whole_pack_out() {
    let desk = Desk::new();
    desk.signed("app");
    let (_, pack, _) = desk.export(&[&desk.image("app")]);
    for (bad, why) in [
        (format!("{pack}{{}}\n"), "line 3: missing field `version` at line 1 column 2"),
        (
            pack.replace("\"version\":1,", "\"version\":7,"),
            "line 2: it is of version 7, and this program reads version 1",
        ),
        (String::new(), "line 1: this is no pack, as \"portcullis evidence export\" writes it"),
    ] {
        let (exit, out, err) = desk.import("two", &bad, &[]);
        assert_eq!((exit, out.as_str()), (78, ""));
        assert_eq!(err, format!("portcullis: -: {why}; nothing was imported\n"));
        assert_eq!(desk.names("two"), 0);
    }
    let (exit, out, err) = desk.run(&["import", "nowhere.pack", "--state", "two"], b"");
    let why = "portcullis: nowhere.pack: cannot be read: No such file or directory (os error 2); \
               nothing was imported\n";
    assert_eq!((exit, out.as_str(), err.as_str()), (78, "", why));
}

#[test]
fn a_node_that_cannot_keep_it_says_so() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let (_, pack, _) = desk.export(&[&desk.image("app")]);
    fs::write(desk.directory.path().join("two/evidence"), "").unwrap();
    let (exit, out, err) = desk.import("two", &pack, &[]);
    assert_eq!((exit, out.as_str()), (2, ""));
    let why = format!(
        "portcullis: the evidence store at two/evidence cannot be used: it is no directory; what is \
         learnt is lost with this process, and what cannot be proven is refused\n\
         portcullis: {digest} cannot be kept: it is no directory\n\
         portcullis: -: 0 of 1 images kept, 0 new\n"
    );
    assert_eq!(err, why);
    let (exit, _, err) = desk.run(&["import", "-", "--config", "none.toml"], pack.as_bytes());
    assert_eq!(exit, 78);
    assert!(
        err.contains("none.toml: cannot be read") && err.contains("; or name --state"),
        "{err}"
    );
}

#[test]
fn machines_read_json() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let image = desk.image("app");
    let (exit, pack, err) = desk.export(&["-o", "json", &image, "sha256:12"]);
    assert_eq!(exit, 1);
    let lines: Vec<Value> = err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let id = id_of(&pack);
    let first = json!({"image": image, "digest": digest, "id": id, "signatures": 1});
    let second = json!({
        "image": "sha256:12",
        "problem": "this node has no evidence about it; name it by its repository for its registry \
                    to be asked",
    });
    assert_eq!(lines, [first, second]);
    let (exit, out, _) = desk.import("two", &pack, &["-o", "json"]);
    let line: Value = serde_json::from_str(&out).unwrap();
    let expected = json!({"digest": digest, "id": id, "signatures": 1, "new": true});
    assert_eq!((exit, line), (0, expected));
}

#[test]
fn what_is_asked_wrongly_is_told() {
    let desk = Desk::new();
    for (arguments, code, said) in [
        (&["export"][..], 64, "required arguments"),
        (&["export", "--all", "app"], 64, "cannot be used with"),
        (&["export", "--config", "empty.toml", "UPPER"], 64, "is no repository"),
        (&["export", "--config", "none.toml", "app"], 78, "none.toml: cannot be read"),
        (&["export", "--registry-config", "nope", "app"], 64, "nope is no directory"),
        (&["import"], 64, "required arguments"),
    ] {
        let (exit, out, err) = desk.run(arguments, b"");
        assert_eq!((exit, out.as_str()), (code, ""), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
    for command in ["export", "import"] {
        let (exit, out, _) = desk.run(&[command, "--help"], b"");
        assert_eq!(exit, 0);
        assert!(out.contains("Examples:\n  portcullis evidence "), "{out}");
    }
}

#[test]
fn a_store_that_cannot_be_read_is_not_one_that_knows_nothing() {
    let desk = Desk::new();
    let export =
        |more: &[&str]| desk.run(&[&["export", "--config", "empty.toml"], more].concat(), b"");
    let gone = (78, String::new(), "portcullis: --state tow: there is no such directory\n".into());
    assert_eq!(export(&["--all", "--state", "tow"]), gone);
    // One that was never written to does know nothing.
    let nothing = "portcullis: there is nothing to export: this node knows no image\n";
    assert_eq!(export(&["--all", "--state", "one"]), (1, String::new(), nothing.into()));
    fs::write(desk.directory.path().join("two/evidence"), "").unwrap();
    let why = "portcullis: two/evidence cannot be read: Not a directory (os error 20)\n";
    for more in [&["--all"][..], &["--from", "store", "app"]] {
        let arguments = [more, &["--state", "two"]].concat();
        assert_eq!(export(&arguments), (2, String::new(), why.into()));
    }
}

#[test]
fn a_pack_cut_short_is_called_that() {
    let desk = Desk::new();
    desk.signed("app");
    let (_, pack, _) = desk.export(&["--from", "registry", &desk.image("app")]);
    let why =
        "portcullis: -: line 2: the pack ends too soon; export it again; nothing was imported\n";
    let cut = &pack[..pack.len() - 40];
    assert_eq!(desk.import("two", cut, &[]), (78, String::new(), why.into()));
    assert_eq!(desk.names("two"), 0);
}
