//! References beside what containerd's own parser makes of them
//! (`tests/fixtures/references/make`).

use std::{collections::BTreeMap, net::Ipv4Addr};

use portcullis::image::ImageRef;
use serde_json::Value;

use crate::support::fixtures::Fixtures;

/// Why we refuse what containerd takes for a reference. None: we must not.
fn refused_on_purpose(name: &str, canonical: &str) -> Option<&'static str> {
    let (repository, version) = canonical.split_once('@').unwrap_or((canonical, ""));
    let (registry, _) = canonical.split_once('/').unwrap();
    let port = registry.rsplit_once(':').map(|(_, port)| port).filter(|_| !registry.ends_with(']'));
    if !version.is_empty() && !version.starts_with("sha256:") {
        return Some(
            "every signature format names images by SHA-256, so no other digest is pinned",
        );
    }
    let is_id = |name: &str| name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit());
    if is_id(name.split([':', '@']).next().unwrap()) {
        return Some("the runtime looks for an image ID first; nobody means a name by it");
    }
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let is_digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if host.rsplit('.').next().is_some_and(is_digits) && host.parse::<Ipv4Addr>().is_err() {
        return Some("a URL takes it for an IPv4 address, and for another than is written");
    }
    if registry.contains('_') {
        return Some("no host's name has an underscore; containerd takes it for part of a path");
    }
    if registry.starts_with('[') {
        return Some("an address has one spelling, so that policies can name it");
    }
    if port.is_some_and(|port| port.starts_with('0') || port.parse::<u16>().is_err()) {
        return Some("there is no such port, or it is spelt in a second way");
    }
    (repository.len() > 255)
        .then_some("containerd 1.6 and 1.7 refuse a name of more than 255 characters")
}

#[test]
fn every_name_is_what_it_is_to_containerd() {
    let table: Value =
        serde_json::from_str(&Fixtures::load().file("references/table.json")).unwrap();
    let (mut agreed, mut refused) = (0, 0);
    let mut wrong = Vec::new();
    let mut on_purpose = BTreeMap::<&str, usize>::new();
    for row in table["rows"].as_array().unwrap() {
        let row = row.as_array().unwrap();
        let name = row[0].as_str().unwrap();
        let answers: Vec<Option<&str>> = row[1..].iter().map(Value::as_str).collect();
        let ours = name.parse::<ImageRef>().map(|image| image.to_string());
        match (ours, answers.last().copied().flatten()) {
            // Where the releases differ, the older one knows no such name.
            (Ok(ours), Some(newer))
                if ours != newer || answers[0].is_some_and(|it| it != newer) =>
            {
                wrong.push(format!("{name:?} is {ours} to us and {answers:?} to containerd"));
            }
            (Ok(_), Some(_)) => agreed += 1,
            (Ok(ours), None) => {
                wrong.push(format!("{name:?} is {ours} to us and nothing to containerd"));
            }
            (Err(error), Some(theirs)) => match refused_on_purpose(name, theirs) {
                Some(why) => *on_purpose.entry(why).or_default() += 1,
                None => wrong.push(format!("{name:?} is {theirs} to containerd: {error}")),
            },
            (Err(_), None) => refused += 1,
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(agreed > 250 && refused > 700, "{agreed} {refused}");
    assert_eq!(on_purpose.len(), 7, "{on_purpose:?}");
}
