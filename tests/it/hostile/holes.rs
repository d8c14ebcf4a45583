//! Holes of other verifiers, where no other table has them. SECURITY.md lists all of them, by the
//! same names.

use std::sync::Arc;

use serde_json::json;

use super::{Case, all_refused};
use crate::support::{registry::TestRegistry, sign::simple_payload};

#[tokio::test]
async fn b29_no_address_in_a_descriptor_is_asked() {
    let elsewhere = Arc::new(TestRegistry::start());
    let lure = elsewhere.clone();
    let unreadable = "no readable signature; 1 of 1 unreadable: it is listed, and the registry \
                      does not have it";
    all_refused(vec![
        Case::new("a payload that is said to be elsewhere")
            .arrange(move |s| {
                // A good signature, but for the registry that has its payload.
                let payload = lure.push_blob("app", simple_payload(s.digest));
                let mut layer = s.key.simple_layer(&lure, "app", &simple_payload(s.digest));
                layer["urls"] = json!([format!("{}/v2/app/blobs/{payload}", lure.url())]);
                s.sign_with(vec![layer]);
            })
            .judged("signature_invalid", unreadable),
    ])
    .await;
    assert_eq!(elsewhere.asked(), Vec::<String>::new());
}
