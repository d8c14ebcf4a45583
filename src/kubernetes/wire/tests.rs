use serde_json::json;

use super::*;
use crate::kubernetes::kinds::KINDS;

fn policy(version: &str) -> Value {
    json!({"apiVersion": API_VERSION, "kind": "ImagePolicy",
           "metadata": {"name": "p", "resourceVersion": version}, "spec": {}})
}

fn list(change: impl FnOnce(&mut Value)) -> Result<Page, String> {
    let mut list = json!({"apiVersion": API_VERSION, "kind": "ImagePolicyList",
                          "metadata": {"resourceVersion": "9"}, "items": [policy("7")]});
    change(&mut list);
    page(&KINDS[0], list.to_string().as_bytes())
}

fn line(event_type: &str, object: Value) -> Result<Event, String> {
    event(&KINDS[0], json!({"type": event_type, "object": object}).to_string().as_bytes())
}

#[test]
fn a_page_is_read() {
    let item = Item { name: "p".into(), version: 7, object: policy("7") };
    assert_eq!(list(|_| ()), Ok(Page { items: vec![item], version: 9, more: None }));
    let more = list(|list| list["metadata"]["continue"] = json!("a-_.~=")).unwrap().more;
    assert_eq!(more.as_deref(), Some("a-_.~="));
    assert_eq!(list(|list| list["items"] = json!([])).unwrap().items, []);
    assert_eq!(list(|list| list["metadata"]["continue"] = json!("")).unwrap().more, None);
}

#[test]
fn what_is_no_list_is_not_an_empty_one() {
    for missing in ["items", "metadata", "kind", "apiVersion"] {
        let why = list(|list| drop(list.as_object_mut().unwrap().remove(missing))).unwrap_err();
        assert!(why.starts_with(&format!("missing field `{missing}`")), "{why}");
    }
    assert!(list(|list| list["items"] = json!(null)).is_err());
    assert!(list(|list| list["items"] = json!([null])).is_err());
    let whole = json!({"kind": "ImagePolicyList"}).to_string();
    assert!(page(&KINDS[0], &whole.as_bytes()[..9]).is_err());
    let twice = br#"{"apiVersion":"portcullis.dev/v1alpha1","kind":"ImagePolicyList","items":[],
                     "metadata":{"resourceVersion":"1"},"items":[]}"#;
    assert!(page(&KINDS[0], twice).is_err());
}

#[test]
fn a_list_of_something_else_is_refused() {
    let why = list(|list| list["kind"] = json!("RevocationList")).unwrap_err();
    assert_eq!(why, "it is a list of another kind, \"RevocationList\"");
    assert!(list(|list| list["apiVersion"] = json!("portcullis.dev/v2")).is_err());
    let why = list(|list| list["items"][0]["kind"] = json!("Pod\u{1b}")).unwrap_err();
    assert_eq!(why, "an object in it is of another kind, \"Pod\\u{1b}\"");
    let why = list(|list| list["items"][0]["metadata"]["name"] = json!("")).unwrap_err();
    assert_eq!(why, "an object in it has no name");
    assert!(list(|list| list["items"][0]["metadata"]["name"] = json!("n".repeat(254))).is_err());
}

#[test]
fn a_token_that_could_change_the_question_is_refused() {
    for token in ["a&resourceVersion=0", "a b", "a/..", "a#", "é", &"a".repeat(MAX_TOKEN + 1)] {
        let why = list(|list| list["metadata"]["continue"] = json!(token)).unwrap_err();
        assert_eq!(why, "its token for the next page is none");
    }
}

#[test]
fn versions_are_numbers_that_grow() {
    assert_eq!(version("18446744073709551615"), Ok(u64::MAX));
    for wrong in ["", "0", "01", "-1", "+1", "1.0", "0x1", "18446744073709551616", "abc", " 1"] {
        let why = "its resourceVersion is no decimal number that could grow, ";
        assert_eq!(version(wrong), Err(format!("{why}\"{wrong}\"")));
    }
    assert!(list(|list| list["metadata"]["resourceVersion"] = json!(9)).is_err());
}

#[test]
fn events_are_read() {
    let item =
        |version: u64| Item { name: "p".into(), version, object: policy(&version.to_string()) };
    assert_eq!(line("ADDED", policy("8")), Ok(Event::Put(item(8))));
    assert_eq!(line("MODIFIED", policy("8")), Ok(Event::Put(item(8))));
    assert_eq!(line("DELETED", policy("8")), Ok(Event::Gone(item(8))));
    let bookmark = json!({"apiVersion": API_VERSION, "kind": "ImagePolicy",
                          "metadata": {"resourceVersion": "8", "creationTimestamp": null}});
    assert_eq!(line("BOOKMARK", bookmark), Ok(Event::Bookmark(8)));
    assert_eq!(line("ERROR", json!({"kind": "Status", "code": 410})), Ok(Event::Expired));
    assert_eq!(line("ERROR", json!({"kind": "Status", "code": 500})), Ok(Event::Error(500)));
}

#[test]
fn half_an_event_is_none() {
    let whole = json!({"type": "ADDED", "object": policy("8")}).to_string();
    assert!(event(&KINDS[0], whole.as_bytes()).is_ok());
    for length in 0..whole.len() {
        assert!(event(&KINDS[0], &whole.as_bytes()[..length]).is_err(), "{length}");
    }
    assert!(event(&KINDS[0], format!("{whole}{whole}").as_bytes()).is_err());
}

#[test]
fn an_event_of_something_else_is_refused() {
    let why = line("SYNC", policy("8")).unwrap_err();
    assert_eq!(why, "its type is unknown, \"SYNC\"");
    assert!(line("added", policy("8")).is_err());
    assert_eq!(line("ERROR", json!({"kind": "Status"})).unwrap_err(), "its error has no code");
    for (field, value) in [("kind", "Revocation"), ("apiVersion", "portcullis.dev/v1")] {
        for event_type in ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"] {
            let mut other = policy("8");
            other[field] = json!(value);
            assert!(line(event_type, other).is_err(), "{event_type} {field}");
        }
    }
    assert!(line("ADDED", json!(null)).is_err());
}
