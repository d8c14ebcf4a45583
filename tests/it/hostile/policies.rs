//! Policies that are not there, are broken, or speak of other images.

use std::fs;

use crate::support::{
    cri::{PULL_IMAGE, VERSION, pull},
    gate::{Gate, Setup},
    grpc::framed,
    registry::TestRegistry,
    runtime::{FakeRuntime, ok},
    sign::Signer,
};

use super::{Case, Scene, all_refused, wire};

#[tokio::test]
async fn an_image_without_a_policy_is_refused() {
    const OTHER: &str = "no policy matches this image in namespace \"shop\"; an ImagePolicy whose \
                         spec.match.images covers it is needed";
    const ELSEWHERE: &str = "no policy matches this image in namespace \"shop\"; policy \
                             \"{repository}\" covers it in other namespaces only";
    let case = |name: &str, policy: fn(&Scene) -> String, reason: &'static str, why: &str| {
        Case::new(name)
            .arrange(Scene::sign_simple)
            .policy(policy)
            .refused(reason, format!("{{image}}: {why}"))
    };
    all_refused(vec![
        case(
            "another image's policy",
            |s| s.policy("", &[("release", &s.key)]).replace("/case-", "/other-"),
            "no_policy_matches",
            OTHER,
        ),
        case(
            "the image is excluded",
            |s| {
                let exclude = "], excludeImages: ['**']}";
                s.policy("", &[("release", &s.key)]).replace("]}", exclude)
            },
            "no_policy_matches",
            OTHER,
        ),
        case(
            "another namespace",
            |s| {
                let only = "], namespaces: [sho, shop-*]}";
                s.policy("", &[("release", &s.key)]).replace("]}", only)
            },
            "no_policy_matches",
            ELSEWHERE,
        ),
        case(
            "the namespace is excluded",
            |s| {
                let exclude = "], excludeNamespaces: [shop]}";
                s.policy("", &[("release", &s.key)]).replace("]}", exclude)
            },
            "no_policy_matches",
            ELSEWHERE,
        ),
        case(
            "a tag where a digest is required",
            |s| s.policy("  reference: Digest\n", &[("release", &s.key)]),
            "digest_required",
            "policy \"{repository}\" accepts this image by digest only; name it in the pod as \
             {host}/{repository}@sha256:...",
        ),
    ])
    .await;
}

const REVOCATION: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: Revocation
metadata: {name: lost}
spec: {digests: ['sha256:1111111111111111111111111111111111111111111111111111111111111111']}
";

/// What is wrong with a daemon under which nothing at all may be pulled, for this reason.
async fn nothing_is_pulled(
    gate: &Gate,
    runtime: &FakeRuntime,
    image: &str,
    why: &str,
) -> Vec<String> {
    let message = format!(
        "no policy is in force on this node, so every image is refused: {why}; \"portcullis \
         check\" shows everything that is wrong with the policies"
    );
    let (code, prefix) = wire("policy_unavailable");
    let client = gate.client().await;
    let mut wrong = Vec::new();
    for namespace in ["shop", "kube-system"] {
        let told = client.unary(PULL_IMAGE, &pull(image, namespace)).await.status();
        if told != (code, format!("{prefix}{message}")) {
            wrong.push(format!("{told:?}"));
        }
    }
    assert_eq!(runtime.paths(), Vec::<String>::new());
    let records = gate.records("pull");
    assert_eq!(records.len(), 2);
    for record in records {
        assert_eq!(record["decision"], "deny");
        assert_eq!(record["reason"], "policy_unavailable");
        if record["message"] != message {
            wrong.push(format!("{record}"));
        }
    }
    let load = &gate.records("policy")[0]["message"];
    let load = load.as_str().unwrap();
    let headline = "policies are not loaded, and none is in force: every image is refused: ";
    assert!(load.starts_with(&format!("{headline}{why}")), "{load}");
    // The node's other calls go on.
    assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
    wrong
}

#[tokio::test]
async fn a_hostile_namespace_is_told_in_part() {
    let runtime = FakeRuntime::start(|_| ok(b""));
    let text =
        crate::support::sign::policy("app", "registry.example.com/**", &[("a", &Signer::new())]);
    let gate = Setup::before(runtime.socket()).policy("p.yaml", &text).start();
    let namespace = format!("\x1b[31m\"\n{}", "x".repeat(500 << 10));
    let told = gate.client().await.unary(PULL_IMAGE, &pull("app:v1", &namespace)).await.status();
    let shown = format!(r#"\u{{1b}}[31m\"\n{}…"#, "x".repeat(93));
    let message = format!(
        "docker.io/library/app:v1: no policy matches this image in namespace \"{shown}\"; an \
         ImagePolicy whose spec.match.images covers it is needed"
    );
    assert_eq!(told, (2, format!("SignatureValidationFailed: {message}")));
    let records = gate.records("pull");
    assert_eq!((records.len(), &records[0]["message"]), (1, &message.into()));
    assert!(records[0].to_string().len() < 64 << 10);
}

#[tokio::test]
async fn without_policies_nothing_is_pulled() {
    let (registry, key) = (TestRegistry::start(), Signer::new());
    let digest = registry.push_image("app", "v1");
    key.sign_simple(&registry, "app", digest);
    let image = format!("{}/app:v1", registry.host());
    let good = crate::support::sign::policy("app", "**", &[("release", &key)]);
    let one_key = crate::support::sign::policy("app", "**", &[("a", &key), ("b", &key)]);
    let one_key = one_key.replace("spec:\n", "spec:\n  atLeast: 2\n");

    #[allow(clippy::type_complexity, reason = "a table")]
    let table: Vec<(&str, Box<dyn Fn(Setup) -> Setup>, &str)> = vec![
        (
            "an empty directory",
            Box::new(|setup| setup),
            "{policies}: holds no policy (*.yaml, *.yml)",
        ),
        (
            "no directory",
            Box::new(|setup| {
                fs::remove_dir(setup.path().join("policies")).unwrap();
                setup
            }),
            "{policies}: cannot be read: No such file or directory (os error 2)",
        ),
        (
            "a file instead of a directory",
            Box::new(|setup| {
                fs::remove_dir(setup.path().join("policies")).unwrap();
                fs::write(setup.path().join("policies"), "").unwrap();
                setup
            }),
            "{policies}: cannot be read: Not a directory (os error 20)",
        ),
        (
            "a hidden policy",
            Box::new(|setup| setup.policy(".p.yaml", &good)),
            "{policies}: holds no policy (*.yaml, *.yml)",
        ),
        (
            "a broken policy",
            Box::new(|setup| setup.policy("p.yaml", "kind: [")),
            "{policies}/p.yaml:1:7: unclosed bracket '['",
        ),
        (
            "a good policy beside a broken one",
            Box::new(|setup| setup.policy("a.yaml", &good).policy("p.yaml", "")),
            "{policies}/p.yaml: holds no policy; fill the file or remove it",
        ),
        (
            "a policy with a field of a later version",
            Box::new(|setup| {
                setup.policy("p.yaml", &good.replace("spec:\n", "spec:\n  attestations: []\n"))
            }),
            "{policies}/p.yaml:5:3: spec.attestations: is not supported by this version",
        ),
        (
            "a revocation alone",
            Box::new(|setup| setup.policy("r.yaml", REVOCATION)),
            "{policies}: holds revocations alone; without an ImagePolicy no image is accepted",
        ),
        (
            "a good policy beside a revocation that cannot be read",
            Box::new(|setup| {
                let revocation = REVOCATION.replace("sha256:", "sha1:");
                setup.policy("p.yaml", &good).policy("r.yaml", &revocation)
            }),
            "{policies}/r.yaml:4:18: spec.digests[0]: \"sha1:1111111111111111111111111111111111111111111111111111111111111111\" is no digest: \"sha256:\" and 64 lower-case hexadecimal characters are expected",
        ),
        (
            "one key under two names",
            Box::new(|setup| setup.policy("p.yaml", &one_key)),
            "{policies}/p.yaml:5:12: spec.atLeast: 2 is more than there are distinct authorities, 1 (authorities with the same public key count once); no image could ever be accepted",
        ),
    ];
    let mut gates = Vec::new();
    for (_, arrange, why) in &table {
        let runtime = FakeRuntime::start(|_| ok(b""));
        let gate = arrange(Setup::before(runtime.socket())).start();
        let policies = gate.path().join("policies").display().to_string();
        gates.push((gate, runtime, why.replace("{policies}", &policies)));
    }
    let mut wrong = Vec::new();
    for ((name, ..), (gate, runtime, why)) in table.iter().zip(&gates) {
        let told = nothing_is_pulled(gate, runtime, &image, why).await;
        wrong.extend(told.into_iter().map(|told| format!("{name}: {told}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(registry.requests().is_empty(), "{:?}", registry.asked());
}
