//! The commands, as the shell sees them: exit codes, text for people, JSON for machines.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use portcullis::image::Digest;
use serde_json::{Value, json};

use crate::support::{
    registry::TestRegistry,
    sign::{Signer, policy},
};

struct Desk {
    registry: TestRegistry,
    signer: Signer,
    directory: tempfile::TempDir,
}

impl Desk {
    /// A registry, a key, and a policy `release` by that key for everything in the registry.
    fn new() -> Self {
        let (registry, signer) = (TestRegistry::start(), Signer::new());
        let directory = tempfile::tempdir().unwrap();
        let text =
            policy("release", &format!("{}/**", registry.host()), &[("release-2026", &signer)]);
        fs::create_dir(directory.path().join("policies")).unwrap();
        fs::write(directory.path().join("policies/release.yaml"), text).unwrap();
        fs::write(directory.path().join("cosign.pub"), signer.pem(0)).unwrap();
        Self { registry, signer, directory }
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}:v1", self.registry.host())
    }

    fn signed(&self, name: &str) -> Digest {
        let digest = self.registry.push_image(name, Some("v1"));
        self.signer.sign_bundle(&self.registry, name, digest);
        digest
    }

    /// Runs the program; files are named relative to the desk.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = program(arguments, self.directory.path());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

fn program(arguments: &[&str], directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .current_dir(directory)
        .env("HOME", directory)
        .env_remove("DOCKER_CONFIG")
        .output()
        .unwrap()
}

#[test]
fn verify_says_who_vouches() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let (exit, out, err) = desk.run(&["verify", "--policy", "policies", &desk.image("app")]);
    let key = out.rsplit_once("key sha256:").unwrap().1.trim();
    let expected = format!(
        "accepted {}/app@{digest}\n  policy \"release\": \"release-2026\", key sha256:{key}\n",
        desk.registry.host()
    );
    assert_eq!((exit, out.as_str(), err.as_str()), (0, expected.as_str(), ""));
    assert_eq!(desk.run(&["verify", "--key", "cosign.pub", &desk.image("app")]).0, 0);
}

#[test]
fn verify_refuses_and_says_why() {
    let desk = Desk::new();
    let digest = desk.registry.push_image("app", Some("v1"));
    let why = format!(
        "{}/app@{digest}: policy \"release\" requires 1 of 1 authority: \"release-2026\": no signature found",
        desk.registry.host()
    );
    let (exit, out, _) = desk.run(&["verify", "--policy", "policies", &desk.image("app")]);
    assert_eq!((exit, out), (1, format!("refused {why} (signature_missing)\n")));

    let (exit, out, _) = desk.run(&[
        "verify",
        "-o",
        "json",
        "--policy",
        "policies/release.yaml",
        &desk.image("app"),
    ]);
    let mut verdict: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(exit, 1);
    verdict.as_object_mut().unwrap().remove("policy_set").unwrap();
    let missed = json!({"name": "release-2026", "outcome": "signature_missing", "why": "no signature found"});
    let report =
        json!({"name": "release", "outcome": "refused", "at_least": 1, "authorities": [missed]});
    let expected = json!({
        "image": desk.image("app"), "digest": digest.to_string(), "decision": "deny", "reason": "signature_missing",
        "message": why, "policies": [report],
    });
    assert_eq!(verdict, expected);
}

#[test]
fn verify_tells_a_verdict_from_the_lack_of_one() {
    let desk = Desk::new();
    let (exit, out, _) = desk.run(&["verify", "--policy", "policies", &desk.image("nobody")]);
    assert_eq!(exit, 2, "{out}");
    assert!(out.starts_with("could not judge ") && out.ends_with(" (image_not_found)\n"), "{out}");
}

#[test]
fn explain_draws_the_road() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let image = desk.image("app");
    let (exit, out, _) =
        desk.run(&["explain", "--policy", "policies", "--namespace", "shop", &image]);
    let key = out.split_once("key sha256:").unwrap().1.split_once('\n').unwrap().0;
    let expected = format!(
        "{image}\n├─ for namespace \"shop\"\n├─ is {digest}\n├─ 1 of 1 policy matches\n\
         ├─ policy \"release\" wants 1 of 1: satisfied\n│  └─ ✓ \"release-2026\": key sha256:{key}\n└─ accepted\n"
    );
    assert_eq!((exit, out), (0, expected));

    let other = "registry.example.com/app:v1";
    let (exit, out, _) = desk.run(&["explain", "--policy", "policies", other]);
    assert_eq!(exit, 1);
    assert!(
        out.contains(
            "├─ 0 of 1 policy matches\n├─ was not resolved\n└─ refused (no_policy_matches): "
        ),
        "{out}"
    );
}

#[test]
fn a_warning_is_no_plain_acceptance() {
    let desk = Desk::new();
    let digest = desk.registry.push_image("app", Some("v1"));
    let file = desk.directory.path().join("policies/release.yaml");
    let text = fs::read_to_string(&file).unwrap().replace("spec:\n", "spec:\n  mode: Warn\n");
    fs::write(file, text).unwrap();
    let (image, host) = (desk.image("app"), desk.registry.host());
    let why = format!(
        "{host}/app@{digest}: policy \"release\" requires 1 of 1 authority: \"release-2026\": no \
         signature found"
    );
    let (exit, out, _) = desk.run(&["verify", "--policy", "policies", &image]);
    let told = format!("accepted {host}/app@{digest}\n  warned of: {why} (signature_missing)\n");
    assert_eq!((exit, out), (0, told));
    let (exit, out, _) = desk.run(&["verify", "-o", "json", "--policy", "policies", &image]);
    let verdict: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (exit, &verdict["decision"], &verdict["reason"], &verdict["message"]),
        (0, &json!("warn"), &json!("signature_missing"), &json!(why))
    );
    let (exit, out, _) = desk.run(&["explain", "--policy", "policies", &image]);
    let policy = "├─ policy \"release\" wants 1 of 1: not satisfied, and it only warns\n";
    assert!(out.contains(policy), "{out}");
    assert!(
        out.ends_with(&format!("└─ accepted, with a warning (signature_missing): {why}\n")),
        "{out}"
    );
    assert_eq!(exit, 0);
}

#[test]
fn explain_says_which_policies_match_what_is_revoked() {
    let desk = Desk::new();
    let digest = desk.signed("app");
    let text = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: bad-build}}\n\
         spec: {{digests: ['{digest}']}}\n"
    );
    fs::write(desk.directory.path().join("policies/revoked.yaml"), text).unwrap();
    let image = desk.image("app");
    let (exit, out, _) = desk.run(&["explain", "--policy", "policies", &image]);
    let expected = format!(
        "{image}\n├─ for no namespace: policies with spec.match.namespaces do not match\n\
         ├─ is {digest}\n├─ 1 of 1 policy matches: \"release\"\n└─ refused (revoked): \
         {}/app@{digest}: {digest} is revoked by \"bad-build\"\n",
        desk.registry.host()
    );
    assert_eq!((exit, out), (1, expected));
}

#[test]
fn explain_says_which_policies_match_without_a_registry() {
    let desk = Desk::new();
    let (exit, out, _) = desk.run(&["explain", "--policy", "policies", &desk.image("nobody")]);
    assert_eq!(exit, 2);
    let road = "├─ 1 of 1 policy matches: \"release\"\n├─ was not resolved\n└─ could not judge ";
    assert!(out.contains(road), "{out}");
}

#[test]
fn check_notes_what_may_not_be_meant() {
    let desk = Desk::new();
    let policy = policy("old", "r.example.com/**", &[("gone", &desk.signer)]);
    let gone = format!("{policy}        notAfter: 2020-01-01T00:00:00Z\n");
    let open = gone.replace("name: old", "name: open")
        + "    - name: any\n      unsigned: {reason: trial}\n";
    fs::write(desk.directory.path().join("old.yaml"), gone).unwrap();
    fs::write(desk.directory.path().join("open.yaml"), open).unwrap();
    let (exit, out, _) = desk.run(&["check", "old.yaml", "open.yaml"]);
    let expected = "ok: old.yaml: 1 policy, 1 authority\n  \
        note: policy \"old\": \"gone\": key expired 2020-01-01\n  \
        note: policy \"old\": accepts no image today\n\
        ok: open.yaml: 1 policy, 2 authorities\n  \
        note: policy \"open\": accepts any image that it matches without proof, whatever its other \
        authorities say (\"trial\")\n  \
        note: policy \"open\": \"gone\": key expired 2020-01-01\n";
    assert_eq!((exit, out.as_str()), (0, expected));
}

#[test]
fn credentials_come_from_a_file_and_stay_out_of_sight() {
    let desk = Desk::new();
    let registry = TestRegistry::builder().basic("robot", "s3cret").start();
    let digest = registry.push_image("app", Some("v1"));
    desk.signer.sign_simple(&registry, "app", digest);
    let image = format!("{}/app:v1", registry.host());
    let verify =
        |more: &[&str]| desk.run(&[&["verify", "--key", "cosign.pub", &image], more].concat());
    let (exit, out, _) = verify(&[]);
    assert_eq!(exit, 2, "{out}");
    assert!(out.ends_with("(registry_unauthorized)\n"), "{out}");
    let auths = json!({"auths": {registry.host(): {"auth": "cm9ib3Q6czNjcmV0"}}});
    fs::write(desk.directory.path().join("auth.json"), auths.to_string()).unwrap();
    assert_eq!(verify(&["--auth-file", "auth.json"]).0, 0);
    fs::create_dir(desk.directory.path().join(".docker")).unwrap();
    fs::rename(
        desk.directory.path().join("auth.json"),
        desk.directory.path().join(".docker/config.json"),
    )
    .unwrap();
    assert_eq!(verify(&[]).0, 0);
    assert_eq!(
        verify(&["--auth-file", "none.json"]),
        (
            78,
            String::new(),
            "portcullis: none.json: cannot be read: No such file or directory (os error 2)\n"
                .into()
        )
    );
}

#[test]
fn the_log_that_is_followed_is_that_of_the_configuration() {
    let desk = Desk::new();
    let log = desk.directory.path().join("elsewhere.jsonl");
    fs::write(desk.directory.path().join("c.toml"), format!("[audit]\nfile = {log:?}\n")).unwrap();
    let tail = || desk.run(&["audit", "tail", "--config", "c.toml", "-o", "json"]);
    let missing = format!("portcullis: cannot read {}: ", log.display());
    let (exit, out, err) = tail();
    assert_eq!((exit, &*out), (2, ""));
    assert!(err.starts_with(&missing), "{err}");
    fs::write(&log, "{}\n").unwrap();
    assert_eq!(tail(), (0, "{}\n".into(), String::new()));
    let (exit, _, err) = desk.run(&["audit", "tail", "--config", "none.toml"]);
    assert_eq!(exit, 78);
    assert!(err.starts_with("portcullis: none.toml: cannot be read"), "{err}");
}

#[test]
fn what_is_asked_wrongly_is_told_on_standard_error() {
    let desk = Desk::new();
    fs::write(desk.directory.path().join("broken.yaml"), "kind: ImagePolicy\n").unwrap();
    let cases: [(&[&str], i32, &str); 11] = [
        (&["run", "-o", "json"], 64, "-o json is for the other commands"),
        (
            &["verify", "--key", "cosign.pub", "--registry-config", "nope", "app"],
            64,
            "nope is no directory",
        ),
        (&["explain", "app"], 78, "or name --policy or --key"),
        (&["verify"], 64, "required arguments"),
        (&["bogus"], 64, "unrecognized subcommand"),
        (&["verify", "--key", "cosign.pub", "UPPER"], 64, "is no repository"),
        (
            &["verify", "--key", "cosign.pub", "--policy", "policies", "app"],
            64,
            "cannot be used with",
        ),
        (&["verify", "--key", "broken.yaml", "app"], 78, "broken.yaml: "),
        (&["verify", "--policy", "broken.yaml", "app"], 78, "broken.yaml:1:1: "),
        (&["verify", "--config", "none.toml", "app"], 78, "none.toml: cannot be read"),
        (&["run", "--config", "none.toml"], 78, "none.toml: cannot be read"),
    ];
    for (arguments, code, said) in cases {
        let (exit, out, err) = desk.run(arguments);
        assert_eq!((exit, out.as_str()), (code, ""), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}

#[test]
fn help_has_examples_and_goes_to_standard_output() {
    let desk = Desk::new();
    for command in [
        &["run"][..],
        &["check"],
        &["verify"],
        &["explain"],
        &["status"],
        &["preflight"],
        &["audit", "verify"],
        &["audit", "tail"],
        &["evidence", "export"],
        &["evidence", "import"],
    ] {
        let (exit, out, err) = desk.run(&[command, &["--help"]].concat());
        assert_eq!((exit, err.as_str()), (0, ""));
        assert!(out.contains("Examples:\n  portcullis "), "{command:?}: {out}");
    }
}

#[test]
fn check_reads_as_the_daemon_does() {
    let desk = Desk::new();
    let (exit, out, _) = desk.run(&["check", "policies"]);
    assert_eq!((exit, out.as_str()), (0, "ok: policies: 1 policy, 1 authority\n"));
    fs::write(desk.directory.path().join("policies/typo.yml"), "kind: ImagePolicy\nspce: {}\n")
        .unwrap();
    let (exit, out, _) = desk.run(&["check", "policies"]);
    assert_eq!(exit, 78);
    assert!(
        out.starts_with("wrong: policies: ") && out.contains("typo.yml:2:1: spce: is unknown"),
        "{out}"
    );
}

#[test]
fn a_level_of_the_log_that_is_none_silences_no_error() {
    for (value, warned) in [("", false), ("loud", true)] {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["run", "-c", "/nope.toml"])
            .env("PORTCULLIS_LOG", value)
            .output()
            .unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{err}");
        assert!(err.contains("ERROR /nope.toml: cannot be read: No such file"), "{err}");
        let warning = "WARN PORTCULLIS_LOG: \"loud\" is not understood, and the level is info; ";
        assert_eq!(err.contains(warning), warned, "{err}");
        assert_eq!(err.lines().count(), 1 + usize::from(warned), "{err}");
    }
}

#[test]
fn a_source_that_the_daemon_cannot_read_is_not_read_here_either() {
    let desk = Desk::new();
    let directory = desk.directory.path();
    let file = directory.join("policies/release.yaml");
    let text = format!("policy.source = 'file://{}'\nstate.directory = '/none'\n", file.display());
    fs::write(directory.join("c.toml"), text).unwrap();
    desk.signed("app");
    let why =
        format!("portcullis: policy.source: {} is a file; name its directory\n", file.display());
    let image = desk.image("app");
    for command in [&["verify", &*image][..], &["explain", &image], &["preflight"]] {
        let arguments = [command, &["--config", "c.toml"]].concat();
        assert_eq!(desk.run(&arguments), (78, String::new(), why.clone()), "{command:?}");
    }
    // One that is named here may be a file.
    let named = ["verify", "--config", "c.toml", "--policy", "policies/release.yaml", &image];
    assert_eq!(desk.run(&named).0, 0);
}

#[test]
fn help_offers_what_there_is() {
    let desk = Desk::new();
    let (exit, help, _) = desk.run(&["run", "--help"]);
    assert_eq!(exit, 0);
    assert!(
        help.starts_with("Serve CRI: judge what is pulled and what starts, relay every other call"),
        "{help}"
    );
    assert!(!help.contains("--output"), "{help}");
    assert!(
        help.contains("PORTCULLIS_LOG")
            && help.contains("error, warn, info (the default), debug or trace"),
        "{help}"
    );
    assert!(desk.run(&["verify", "--help"]).1.contains("--output"));
    for wrong in [&["run", "-o", "json"][..], &["-o", "json", "run"]] {
        let (exit, _, err) = desk.run(wrong);
        assert_eq!((exit, err.contains("-o json is for the other commands")), (64, true), "{err}");
    }
}
