//! Every kind of signature, made by the real tools, through a real pull.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::Value;

use crate::{
    lab::{FALLBACK, Lab, REFERRERS},
    support::{
        cri::{
            IMAGE_STATUS, ImageStatusResponse, PULL_IMAGE, PullImageResponse, image_status, pull,
        },
        docker_registry::program,
        fixtures::{Fixture, Fixtures},
        grpc::Client,
    },
};

/// Fixtures whose verdict depends on how the registry tells referrers: the lie is in an index of
/// the fallback tag, which a registry with the referrers API does not ask for.
const FALLBACK_ONLY: &[&str] = &["hostile/index-other-subject"];

pub(crate) async fn every_signature_of_the_fixtures_is_judged_as_expected(lab: &Lab) {
    let mut setup = lab.gate();
    for (number, (name, fixture)) in lab.fixtures.repositories.iter().enumerate() {
        setup =
            setup.policy(&format!("{number}.yaml"), &policy(&lab.fixtures, number, name, fixture));
    }
    let gate = setup.start();
    let (client, direct) = (gate.client().await, lab.direct().await);
    let mut judged = BTreeMap::new();
    for (name, fixture) in &lab.fixtures.repositories {
        let hosts: &[&str] = if FALLBACK_ONLY.contains(&name.as_str()) {
            &[FALLBACK]
        } else {
            &[FALLBACK, REFERRERS]
        };
        for host in hosts {
            for tag in fixture.tags.keys().filter(|tag| !tag.starts_with("sha256-")) {
                let image = format!("{host}/{name}:{tag}");
                let expected = fixture.facts["expect"].as_str().unwrap();
                match expected {
                    "accept" => accepted(&client, &direct, &image).await,
                    "refuse" => refused(&client, &direct, &image).await,
                    other => panic!("{name}: no such expectation: {other}"),
                }
                judged.insert(image, if expected == "accept" { "allow" } else { "deny" });
            }
        }
    }
    assert!(judged.len() >= 80, "{}", judged.len());
    let records = gate.records("pull").into_iter().map(|record| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&record["image"]["requested"]), text(&record["decision"]))
    });
    let expected = judged.into_iter().map(|(image, decision)| (image, decision.to_owned()));
    let sorted = |mut all: Vec<_>| {
        all.sort();
        all
    };
    // Exactly one line a pull.
    assert_eq!(sorted(records.collect::<Vec<_>>()), expected.collect::<Vec<_>>());
}

/// A policy for one fixture: its key; all its keys, where it has several.
fn policy(fixtures: &Fixtures, number: usize, name: &str, fixture: &Fixture) -> String {
    let keys: Vec<&str> = match (&fixture.facts["keys"], &fixture.facts["key"]) {
        (Value::Array(keys), _) => keys.iter().map(|key| key.as_str().unwrap()).collect(),
        (_, Value::String(key)) => vec![key],
        _ => vec!["keys/ecdsa-p256.pub"],
    };
    let mut text = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: p{number}}}\nspec:\n  \
         match: {{images: [\"{FALLBACK}/{name}\", \"{REFERRERS}/{name}\"]}}\n  atLeast: {}\n  authorities:\n",
        keys.len()
    );
    for key in keys {
        let pem = fixtures.file(key).replace('\n', "\n          ");
        let annotations = match &fixture.facts["annotations"] {
            Value::Object(annotations) => {
                format!("        annotations: {}\n", Value::Object(annotations.clone()))
            }
            _ => String::new(),
        };
        let key_name = key.trim_start_matches("keys/").trim_end_matches(".pub");
        text += &format!(
            "    - name: {key_name}\n      publicKey:\n        pem: |\n          {}\n{annotations}",
            pem.trim_end()
        );
    }
    text
}

async fn accepted(client: &Client, direct: &Client, image: &str) {
    let answer = client.unary(PULL_IMAGE, &pull(image, "shop")).await;
    assert_eq!(answer.status(), (0, String::new()), "{image}");
    let pulled: PullImageResponse = answer.message();
    let shown: ImageStatusResponse =
        direct.unary(IMAGE_STATUS, &image_status(image)).await.message();
    let shown = shown.image.unwrap_or_else(|| panic!("{image} is not shown"));
    assert_eq!(shown.id, pulled.image_ref, "{image}");
    assert!(shown.repo_tags.iter().any(|tag| tag == image), "{image}: {:?}", shown.repo_tags);
}

async fn refused(client: &Client, direct: &Client, image: &str) {
    let (code, message) = client.unary(PULL_IMAGE, &pull(image, "shop")).await.status();
    assert_eq!(code, 2, "{image}: {message}");
    assert!(message.starts_with("SignatureValidationFailed: "), "{image}: {message}");
    let shown: ImageStatusResponse =
        direct.unary(IMAGE_STATUS, &image_status(image)).await.message();
    assert_eq!(shown.image, None, "{image}");
}

/// The tool of the day, not of the day when the fixtures were made.
pub(crate) async fn real_cosign_signs_and_the_image_is_pulled(lab: &Lab) {
    let scratch = tempfile::tempdir().unwrap();
    let cosign = |arguments: &[&str]| {
        let output = Command::new(program("cosign-2", "usr/bin/cosign"))
            .args(arguments)
            .current_dir(scratch.path())
            .env("COSIGN_PASSWORD", "")
            .env("HOME", scratch.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "cosign {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let host = lab.registry.host();
    let digest = lab.registry.push_image("live/cosign", Some("v1"));
    let image = format!("{REFERRERS}/live/cosign:v1");
    cosign(&["generate-key-pair"]);
    let key = fs::read_to_string(scratch.path().join("cosign.pub"))
        .unwrap()
        .replace('\n', "\n          ");
    let gate = lab
        .gate()
        .policy(
            "live.yaml",
            &format!(
                "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: live}}\nspec:\n  \
                 match: {{images: [\"{REFERRERS}/live/*\"]}}\n  authorities:\n    - name: live\n      \
                 publicKey:\n        pem: |\n          {}\n",
                key.trim_end()
            ),
        )
        .start();
    let (client, direct) = (gate.client().await, lab.direct().await);
    refused(&client, &direct, &image).await;
    cosign(&[
        "sign",
        "--yes",
        "--key",
        "cosign.key",
        "--tlog-upload=false",
        "--allow-insecure-registry",
        "--allow-http-registry",
        &format!("{host}/live/cosign@{digest}"),
    ]);
    accepted(&client, &direct, &image).await;
}
