//! Good objects, changed in one place by chance: an API server and a node say the same of them.

use std::{cell::Cell, fs, path::Path};

use proptest::{
    option,
    prelude::*,
    sample::{Index, select},
    string::string_regex,
    test_runner::TestRunner,
};
use serde_json::{Value, json};

use super::{corpus::node, server::Server};

/// Objects tried, unless `PROPTEST_CASES` asks for more.
const CASES: u32 = 1_000;

/// Places that are changed more often: the rules for texts stand in one place each.
const LIKELY: [&str; 9] = [
    "/spec/match/images/0",
    "/spec/match/images/0",
    "/spec/match/excludeImages/0",
    "/spec/match/namespaces/0",
    "/spec/authorities/0/name",
    "/spec/authorities/0/publicKey/notAfter",
    "/spec/authorities/0/unsigned/reason",
    "/spec/breakGlass/annotation",
    "/spec/digests/0",
];

/// A text of each kind that fields have, most of them nearly well formed.
#[derive(Clone, Debug)]
struct Words {
    repository: String,
    namespace: String,
    name: String,
    moment: String,
    annotation: String,
    reason: String,
    digest: String,
}

fn words() -> impl Strategy<Value = Words> {
    let registry = "(\\*{1,3}|[a1*.A-]{1,6}|docker\\.i[o*]|(index\\.)?docker\\.io|localhost|\
                    [0-9*]{1,3}(\\.[0-9*]{1,3}){1,4}|(a\\.)?0[xX][0-9a-g*]{0,3}|\
                    \\[[0-9a-f:*]{1,6}\\]?)";
    let path = "(/(\\*\\*|[a1*]{1,3}|[a1*._-]{1,5})){0,3}";
    let repository = format!("({registry}(:[0-9*]{{0,6}})?{path}|.{{0,4}}|x{{254,256}})");
    let moment = "([0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,10})?\
                  (Z|z|[+-][0-2][0-9]:?[0-6][0-9])?|.{0,4})";
    let like = |regex: &str| string_regex(regex).unwrap();
    let texts = (
        like(&repository),
        like("([a*-]{0,5}|[a-c*.A-]{0,5}|.{0,3}|[a*]{62,65})"),
        like("([a0.-]{0,5}|[a-c_/.A-]{0,5}|.{0,3}|a{252,254})"),
        like(moment),
        like("(([a0.-]{0,3}/){0,2}[aA0._-]{0,4}|.{0,3}|a{62,65}|a{252,254}/b)"),
        like("((.|[ \\t\\n\u{85}\u{a0}\u{2028}\u{7f}x]){0,5}|é{127,129})"),
        like("sha(256|512):([0-9a-f]{63,65}|[0-9A-F]{64})"),
    );
    texts.prop_map(|(repository, namespace, name, moment, annotation, reason, digest)| Words {
        repository,
        namespace,
        name,
        moment,
        annotation,
        reason,
        digest,
    })
}

impl Words {
    /// A text for the field that a pointer leads to.
    fn of(&self, pointer: &str) -> &str {
        let part = |part: &str| pointer.contains(part);
        match pointer.rsplit('/').next() {
            Some("name") => &self.name,
            Some("notBefore" | "notAfter") => &self.moment,
            Some("annotation") => &self.annotation,
            _ if part("mages/") => &self.repository,
            _ if part("amespaces/") => &self.namespace,
            _ if part("digests/") || part("keys/") => &self.digest,
            _ => &self.reason,
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    /// Puts another text there.
    Text(Words),
    /// Puts something else there.
    Other(Value),
    /// Puts a character into the text.
    Insert(Index, char),
    /// Takes a character out of the text.
    Delete(Index),
    /// Takes it away.
    Remove,
    /// Adds it to its list once more, or beside itself in its mapping by another name.
    Again(String),
}

fn change() -> impl Strategy<Value = Change> {
    let others = [json!(null), json!([]), json!({}), json!(""), json!(true), json!(0), json!(1)];
    let more = [json!(2), json!(1.5), json!(-1), json!(65), json!([null]), json!([""]), json!("x")];
    prop_oneof![
        6 => words().prop_map(Change::Text),
        2 => select([others, more].concat()).prop_map(Change::Other),
        2 => (any::<Index>(), any::<char>()).prop_map(|(at, c)| Change::Insert(at, c)),
        2 => (any::<Index>(), select("*/.-_:[]0aA \n\u{2028}é".chars().collect::<Vec<_>>()))
            .prop_map(|(at, c)| Change::Insert(at, c)),
        1 => any::<Index>().prop_map(Change::Delete),
        1 => Just(Change::Remove),
        1 => select(vec!["reason", "digests", "mode", "x", ""])
            .prop_map(|key| Change::Again(key.to_owned())),
    ]
}

/// Pointers (RFC 6901) to everything below a value.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
            fields.iter().map(|(key, value)| (escaped(key), value)).collect()
        }
        Value::Array(entries) => {
            entries.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in below {
        let at = format!("{at}/{key}");
        pointers(value, &at, found);
        found.push(at);
    }
}

fn apply(object: &mut Value, pointer: &str, change: &Change) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    let text = |value: &Value| value.as_str().map(|text| text.chars().collect::<Vec<_>>());
    let value = object.pointer(pointer).unwrap();
    let new = match change {
        Change::Text(words) => Some(json!(words.of(pointer))),
        Change::Other(other) => Some(other.clone()),
        Change::Insert(at, c) => text(value).map(|mut text| {
            text.insert(at.index(text.len() + 1), *c);
            json!(text.into_iter().collect::<String>())
        }),
        Change::Delete(at) => text(value).filter(|text| !text.is_empty()).map(|mut text| {
            text.remove(at.index(text.len()));
            json!(text.into_iter().collect::<String>())
        }),
        Change::Remove | Change::Again(_) => None,
    };
    let value = value.clone();
    match (object.pointer_mut(parent).unwrap(), change, new) {
        (Value::Object(fields), _, Some(new)) => drop(fields.insert(key, new)),
        (Value::Array(entries), _, Some(new)) => entries[key.parse::<usize>().unwrap()] = new,
        (Value::Object(fields), Change::Remove, None) => drop(fields.remove(&key)),
        (Value::Array(entries), Change::Remove, None) => {
            drop(entries.remove(key.parse().unwrap()));
        }
        (Value::Object(fields), Change::Again(name), None) => {
            fields.entry(name.as_str()).or_insert(value);
        }
        (Value::Array(entries), Change::Again(_), None) => entries.push(value),
        _ => {}
    }
}

/// Whether the node may refuse what the API server accepts: for what only it can know.
fn is_for_the_node(object: &Value, why: &str) -> bool {
    let is_address = |pattern: &str| {
        let registry = pattern.split('/').next().unwrap();
        let host = registry.split(':').next().unwrap();
        let last = host.rsplit(['.', '*']).next().unwrap().trim_start_matches(['0', 'x', 'X']);
        registry.starts_with('[')
            || host.contains('*') && last.chars().all(|c| c.is_ascii_hexdigit())
    };
    let scope = &object["spec"]["match"];
    let mut patterns = ["images", "excludeImages"]
        .iter()
        .filter_map(|list| scope[list].as_array())
        .flatten()
        .filter_map(Value::as_str);
    why.contains("publicKey.pem: ")
        || why.contains("(authorities with the same public key count once)")
        || why.contains("is no pattern for repositories") && patterns.any(is_address)
}

#[test]
fn one_change_is_judged_alike() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/policies/accepted");
    let texts =
        ["in-full", "minimal", "window-no-end", "two-names-of-one-key", "revocation-of-both"]
            .map(|name| fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap());
    let objects = texts.map(|text| serde_saphyr::from_str::<Value>(&text).unwrap());
    let server = Server::new();
    let (accepted, refused, node_only) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let cases = ProptestConfig::default().cases.max(CASES);
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let changes = (select(objects.to_vec()), option::of(select(&LIKELY)), any::<Index>(), change());
    let result = runner.run(&changes, |(mut object, likely, at, change)| {
        let mut places = Vec::new();
        pointers(&object["spec"], "/spec", &mut places);
        let likely = likely.filter(|place| object.pointer(place).is_some());
        let place = likely.map_or_else(|| at.get(&places).clone(), str::to_owned);
        apply(&mut object, &place, &change);
        let server = server.judge(&object);
        let node = node(server.as_ref().unwrap_or(&object));
        let counted = match (&server, &node) {
            (Ok(_), Ok(())) => &accepted,
            (Ok(_), Err(_)) => &node_only,
            (Err(_), _) => &refused,
        };
        counted.set(counted.get() + 1);
        match (&server, &node) {
            (Ok(stored), Err(why)) => prop_assert!(is_for_the_node(stored, why), "{}", why),
            (Err(why), Ok(())) => prop_assert!(false, "only the API server: {:?}", why),
            _ => {}
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // Neither answer is the rule, or little would be shown.
    let (accepted, refused) = (accepted.get(), refused.get());
    assert!(accepted > cases / 10 && refused > cases / 4, "{accepted} {refused} {node_only:?}");
    println!("accepted {accepted}, refused {refused}, by the node alone {}", node_only.get());
}
