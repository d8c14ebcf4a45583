//! One document: what is read back, and what is refused.

use serde_json::{Value, json};

use super::*;
use crate::evidence::document::{MAX_DOCUMENT, decode, encode};

fn json_of(known: &Known) -> Value {
    serde_json::from_slice(&encode(known).unwrap()).unwrap()
}

#[track_caller]
fn refuses(json: &Value, why: &str) {
    let error = decode(json.to_string().as_bytes()).unwrap_err().to_string();
    assert_eq!(error.split(" at line 1 column ").next(), Some(why));
}

#[test]
fn a_document_is_one_line_and_is_read_back_as_it_was() {
    let pair = Pair::p256();
    for known in [alone("app", &pair), indexed("app", &pair)] {
        let bytes = encode(&known).unwrap();
        assert!(!bytes.contains(&b'\n'));
        assert_eq!(decode(&bytes).unwrap(), known);
    }
}

#[test]
fn the_form_is_the_one_that_is_documented() {
    let known = indexed("app", &Pair::p256());
    let json = json_of(&known);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json), ["child", "manifest", "version"]);
    assert_eq!(keys(&json["manifest"]), ["body", "claims", "mediaType", "whole"]);
    assert_eq!(json["manifest"]["body"].as_str().unwrap().as_bytes(), known.top().manifest.body);
    assert_eq!(keys(&json["manifest"]["claims"][0]), ["bundle", "source"]);
    assert_eq!(keys(&json["manifest"]["claims"][1]), ["payload", "signature", "source"]);
    assert_eq!(keys(&json["child"]["claims"][0]), ["source", "unreadable"]);
    assert_eq!(json["version"], 1);
}

#[test]
fn what_is_a_little_different_is_refused() {
    let good = json_of(&indexed("app", &Pair::p256()));
    let change = |pointer: &str, to: Value| {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = to;
        json
    };
    refuses(&change("/version", json!(2)), "it is of version 2, and this program reads version 1");
    refuses(&change("/child", Value::Null), "invalid type: null, expected struct Part");
    refuses(
        &change("/manifest/mediaType", json!("text/plain")),
        "the registry sends the manifest as \"text/plain\", which is no image manifest or index",
    );
    refuses(
        &change("/child/body", good["manifest"]["body"].clone()),
        "the registry sends the manifest as \"application/vnd.oci.image.manifest.v1+json\", the \
         manifest says \"application/vnd.oci.image.index.v1+json\"",
    );
    let claim = "a claim has payload and signature, or a bundle, or is unreadable";
    for wrong in [
        json!({"source": "x"}),
        json!({"source": "x", "payload": ""}),
        json!({"source": "x", "bundle": "", "unreadable": ""}),
        json!({"source": "x", "bundle": "", "payload": "", "signature": ""}),
    ] {
        refuses(&change("/child/claims/0", wrong), claim);
    }
    for (wrong, why) in [
        (json!({"source": "x", "bundle": "?"}), "what must be base64 is not"),
        (json!({"source": "x", "bundle": null}), "invalid type: null, expected a string"),
        (json!({"source": "a\u{1b}b", "bundle": ""}), "\"a\\u{1b}b\" is no source of a claim"),
        (json!({"source": "x", "unreadable": "a\nb"}), "\"a\\nb\" is no reason of a claim"),
    ] {
        refuses(&change("/child/claims/0", wrong), why);
    }
    let many = vec![json!({"source": "x", "bundle": ""}); MAX_SIGNATURES + 1];
    refuses(
        &change("/child/claims", many.into()),
        "invalid length 101, expected a list of at most 100",
    );
    for pointer in ["", "/manifest", "/child", "/child/claims/0"] {
        let mut json = good.clone();
        json.pointer_mut(pointer).unwrap()["more"] = json!(1);
        let error = decode(json.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("unknown field `more`"), "{error}");
    }
    for field in ["manifest", "version"] {
        let mut json = good.clone();
        json.as_object_mut().unwrap().remove(field);
        refuses(&json, &format!("missing field `{field}`"));
    }
}

#[test]
fn who_proved_an_image_stays_on_the_node() {
    let desk = Desk::new();
    let known = indexed("app", &desk.pair);
    let [by, other] = ["key", "other"].map(|name| Digest::of(name.as_bytes()));
    desk.store.keep(&known.clone().noted([by])).unwrap();
    let noted = || desk.another().of_id(known.id())[0].proven_by().clone();
    assert_eq!(noted(), BTreeSet::from([by]));
    // Neither new evidence nor a pack touches the note, and it says all who did.
    desk.store.keep(&known).unwrap();
    desk.store.import(&known.clone().noted([other])).unwrap();
    assert_eq!(noted(), BTreeSet::from([by]));
    desk.store.keep(&known.clone().noted([other])).unwrap();
    assert_eq!(noted(), BTreeSet::from([by, other]));
    // There are no more than sixteen, and those who were first stay.
    let many = (0..20u8).map(|n| Digest::of(&[n]));
    desk.store.keep(&known.clone().noted(many)).unwrap();
    assert_eq!(noted().len(), 16);
    assert!(noted().is_superset(&BTreeSet::from([by, other])));
    let mut pack = Vec::new();
    crate::evidence::pack::write(&mut pack, desk.store.of_id(known.id()).into_iter()).unwrap();
    assert!(!String::from_utf8(pack).unwrap().contains("provenBy"));
    let json = json_of(&known.noted([by]));
    assert_eq!(json["provenBy"], json!([by.to_string()]));
    let refuses = |wrong: Value, why| {
        let mut json = json.clone();
        json["provenBy"] = wrong;
        refuses(&json, why);
    };
    refuses(json!(["sha256:1"]), "provenBy is no list of digests");
    // What is behind that is not even read.
    let many: Vec<_> = vec![json!(by.to_string()); 17].into_iter().chain([json!({})]).collect();
    refuses(many.into(), "invalid length 17, expected a list of at most 16");
}

#[test]
fn documents_whose_manifests_do_not_belong_together_are_refused() {
    let pair = Pair::p256();
    let (one, two) = (json_of(&indexed("one", &pair)), json_of(&indexed("two", &pair)));
    let child = indexed("two", &pair).child().unwrap().manifest.digest;
    let join = |manifest: &Value, child: &Value| json!({"version": 1, "manifest": manifest, "child": child});
    refuses(&join(&one["manifest"], &two["child"]), &format!("the index does not list {child}"));
    let shape = "an image manifest is needed, alone or with an index that lists it";
    refuses(&join(&one["child"], &one["child"]), shape);
    refuses(&join(&one["manifest"], &one["manifest"]), shape);
    refuses(&json!({"version": 1, "manifest": one["manifest"]}), shape);
}

#[test]
fn text_that_is_no_document_is_refused_shortly() {
    let good = encode(&alone("app", &Pair::p256())).unwrap();
    let twice = [&good[..good.len() - 1], br#","version":1}"#].concat();
    let behind = [&good[..], b"{}"].concat();
    let deep = "[".repeat(1 << 20).into_bytes();
    let deeper = [br#"{"version":1,"manifest":"#, &deep[..]].concat();
    for bad in [&twice[..], &behind, &deep, &deeper, b"", b"{}", b"null", b"\0\0", &[0xff; 9]] {
        let error = decode(bad).unwrap_err().to_string();
        assert!(error.len() < 400, "{error}");
    }
    let error = decode(&vec![b' '; MAX_DOCUMENT + 1]).unwrap_err().to_string();
    assert_eq!(error, "it has 33554433 bytes, 33554432 are allowed");
}

#[test]
fn whatever_is_kept_can_be_read_again() {
    let desk = Desk::new();
    let long = format!("a\nb{}", "x".repeat(2000));
    let known = with(&[&long], true);
    desk.store.keep(&known).unwrap();
    let [found] = &desk.store.of_id(known.id())[..] else { panic!("set aside") };
    let said = why(&found.top().claims[0]);
    assert!(said.starts_with("a bxx") && said.len() == 1000, "{said}");
}

#[test]
fn the_largest_that_can_be_kept_can_be_read_again() {
    use crate::{
        evidence::testing::claim,
        resolve::{Fetched, MAX_MANIFEST},
    };
    let desk = Desk::new();
    // White space that is escaped in a string, up to the bound.
    let fill = |manifest: Fetched| {
        let mut body = manifest.body.to_vec();
        body.resize(MAX_MANIFEST, b'\n');
        Fetched { digest: Digest::of(&body), body: body.into(), ..manifest }
    };
    let claims = |subject| {
        (0..8)
            .map(|n| claim(subject, UntrustedBody::Bundle { json: vec![n; 1 << 20] }))
            .collect::<Vec<_>>()
    };
    let child = fill(manifest("app", "app"));
    let list = fill(index(&[&child]));
    let (top, below) = (claims(list.digest), claims(child.digest));
    let known = Known::new(entry(list, &top, true), Some(entry(child, &below, true))).unwrap();
    desk.store.keep(&known).unwrap();
    let [found] = &desk.store.of_id(known.id())[..] else { panic!("set aside") };
    assert_eq!((&found.top().claims[..], found.top().whole), (&top[..4], false));
}
