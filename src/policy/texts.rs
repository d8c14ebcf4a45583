//! The texts that a policy set is read from, wherever they come from.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    image::Digest,
    problem::{Position, Problem, Problems, Report},
};

use super::{
    ImagePolicy, PolicySet, Revoked,
    file::{self, Object, Revocation},
};

/// Largest set, in bytes of policy texts.
pub(super) const MAX_SET: usize = 16 * 1024 * 1024;
/// Most policies in a set.
pub(super) const MAX_POLICIES: usize = 10_000;
/// Most digests and keys that the revocations of a set name.
pub(super) const MAX_REVOKED: usize = 10_000;

/// A text and the name that it has at its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// A file's name without its directory, or kind and name of an object.
    pub name: String,
    /// What stands there.
    pub text: String,
}

/// Everything that a set is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Policies and revocations.
    pub files: Vec<Text>,
    /// What the names in `publicKey.file` stand for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Text>,
}

impl Texts {
    /// The set of these texts, which come from a source of this name.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of them.
    pub fn read(&self, source: &str, now: Timestamp) -> Result<PolicySet, Problems> {
        let size: usize = self.files.iter().map(|file| file.text.len()).sum();
        if size > MAX_SET {
            let message = format!("holds more than {MAX_SET} bytes of policies");
            return Err(Problem::of_file(source, message).into());
        }
        let mut report = Report::default();
        if self.files.is_empty() {
            report.add(Problem::of_file(source, "holds no policy"));
        }
        let key = |name: &str| {
            let key = self.keys.iter().find(|key| key.name == name);
            let key = key.ok_or("is not there; write the key itself as pem")?;
            Ok(key.text.clone())
        };
        let files = self.files.iter().map(|file| (file.name.clone(), file));
        build(source, files, key, now, report).map(|(set, _keys)| set)
    }
}

/// The set of these files, each with its name for people, and the keys that they named. A key
/// that is named twice is read once.
pub(super) fn build<'a>(
    source: &str,
    texts: impl Iterator<Item = (String, &'a Text)>,
    read_key: impl Fn(&str) -> Result<String, String>,
    now: Timestamp,
    mut report: Report,
) -> Result<(PolicySet, Vec<Text>), Problems> {
    let (mut files, mut keys) = (Listing::default(), Listing::default());
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut policies: BTreeMap<String, Arc<ImagePolicy>> = BTreeMap::new();
    let mut revocations: BTreeMap<String, Revocation> = BTreeMap::new();
    let mut names: BTreeMap<(&str, String), (String, Position)> = BTreeMap::new();
    for (file, Text { name, text }) in texts {
        files.add(name, text);
        let before = report.len();
        let mut read_key = |name: &str| {
            let text = match known.entry(name.to_owned()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(read_key(name)?),
            };
            keys.add(name, text);
            Ok(text.clone())
        };
        for document in file::read(&file, text, &mut read_key, &mut report) {
            let (name, kind) = (document.name, document.object.kind());
            if let Some((other, Position { line, .. })) = names.get(&(kind, name.clone())) {
                let message = format!(
                    "{name:?} is already the name of a {kind}, in {other}:{line}; \
                     names are unique within a set"
                );
                let field = Some("metadata.name".into());
                report.add_with(|| Problem::at(&file, text, document.at, field, message));
            }
            names.insert((kind, name.clone()), (file.clone(), document.at));
            match document.object {
                Object::Policy(policy) => {
                    policies.extend(policy.map(|policy| (name, Arc::new(policy))));
                }
                Object::Revocation(revocation) => revocations.extend(revocation.map(|r| (name, r))),
            }
        }
        // A file's name has no slash, an object's has: nobody has seen its text.
        if name.contains('/') {
            report.forget_places(before);
        }
    }
    let wrong = |message: String| Problem::of_file(source, message);
    if policies.len() > MAX_POLICIES {
        let message = format!("holds {} policies, {MAX_POLICIES} are allowed", policies.len());
        report.add(wrong(message));
    }
    let revoked = revocations.values().map(Revocation::len).sum::<usize>();
    if revoked > MAX_REVOKED {
        let message = format!("revokes {revoked} digests and keys, {MAX_REVOKED} are allowed");
        report.add(wrong(message));
    }
    if policies.is_empty() && report.is_empty() {
        let message = "holds revocations alone; without an ImagePolicy no image is accepted";
        report.add(wrong(message.to_owned()));
    }
    let digest = [files.0, keys.0].map(|listing| Digest::of(&listing).hex()).concat();
    let digest = Digest::of(digest.as_bytes());
    let policies: Vec<_> = policies.into_values().collect();
    let keys = known.into_iter().map(|(name, text)| Text { name, text }).collect();
    let set = PolicySet::new(policies, collected(revocations), digest, now);
    report.finish((set, keys))
}

/// Everything that is revoked; where several objects name the same, the first of their names.
fn collected(revocations: BTreeMap<String, Revocation>) -> Revoked {
    let mut revoked = Revoked::default();
    for (name, Revocation { digests, keys }) in revocations {
        for digest in digests {
            revoked.digests.entry(digest).or_insert_with(|| name.clone());
        }
        for key in keys {
            revoked.keys.entry(key).or_insert_with(|| name.clone());
        }
    }
    revoked
}

/// Names and contents, so written that no two lists of them are the same bytes.
#[derive(Default)]
struct Listing(Vec<u8>);

impl Listing {
    fn add(&mut self, name: &str, text: &str) {
        for bytes in [name.as_bytes(), Digest::of(text.as_bytes()).hex().as_bytes()] {
            self.0.extend((bytes.len() as u64).to_be_bytes());
            self.0.extend(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::testing::Pair;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn text(name: &str, text: &str) -> Text {
        Text { name: name.into(), text: text.into() }
    }

    fn policy(authority: &str) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: p}}\n\
             spec: {{match: {{images: ['**']}}, authorities: [{{name: a, {authority}}}]}}\n"
        )
    }

    fn wrong(texts: &Texts) -> String {
        texts.read("the source", NOW).unwrap_err().to_string()
    }

    #[test]
    fn keys_stand_beside_the_files_that_name_them() {
        let file = text("p.yaml", &policy("publicKey: {file: key.pub}"));
        let mut texts = Texts { files: vec![file], keys: Vec::new() };
        assert_eq!(
            wrong(&texts),
            "p.yaml:4:75: spec.authorities[0].publicKey.file: is not there; write the key itself \
             as pem"
        );
        texts.keys.push(text("key.pub", &Pair::p256().pem()));
        let first = texts.read("", NOW).unwrap().digest();
        texts.keys[0].text = Pair::p256().pem();
        assert_ne!(texts.read("", NOW).unwrap().digest(), first);
    }

    #[test]
    fn without_a_file_there_is_no_set() {
        assert_eq!(wrong(&Texts::default()), "the source: holds no policy");
        let long = format!("# {}\n", "x".repeat(1_000_000));
        let files = vec![text("p.yaml", &long); 17];
        let message = "the source: holds more than 16777216 bytes of policies";
        assert_eq!(wrong(&Texts { files, keys: Vec::new() }), message);
    }
}
