//! The wire format: strict YAML, one or more `kind: ImagePolicy` or `kind: Revocation` a file.
//!
//! What is missing, empty, unknown, there twice or contradictory is an error that names file,
//! line, column and field. What the format defines and this version does not implement is
//! refused by name, never left out of the judgement.

pub(super) mod authority;
pub(super) mod break_glass;
pub(super) mod moment;
pub(super) mod name;
pub(super) mod revocation;

pub(super) use revocation::Revocation;

use std::num::NonZeroUsize;

use crate::problem::{Position, Problem, Report};

use super::{
    ImagePolicy, Mode,
    fields::{Field, Reader},
    model::{Namespaces, ReferenceRule, Scope},
    yaml,
};

/// The only version of the format.
pub(super) const API_VERSION: &str = "portcullis.dev/v1alpha1";
/// Largest policy file, in bytes.
pub(super) const MAX_FILE: usize = 1024 * 1024;
/// Most patterns in one list.
pub(super) const MAX_PATTERNS: usize = 1000;

/// Fields of an object.
pub(super) const OBJECT: [&str; 4] = ["apiVersion", "kind", "metadata", "spec"];
/// Fields of a policy's `spec`.
pub(super) const SPEC: [&str; 6] =
    ["mode", "match", "reference", "atLeast", "authorities", "breakGlass"];
/// Fields of `spec.match`.
pub(super) const SCOPE: [&str; 4] = ["images", "excludeImages", "namespaces", "excludeNamespaces"];
/// Words of `kind`.
pub(super) const KINDS: [(&str, Kind); 2] =
    [("ImagePolicy", Kind::Policy), ("Revocation", Kind::Revocation)];
/// Words of `spec.mode`; the first is meant where there is none.
pub(super) const MODES: [(&str, Mode); 2] = [("Enforce", Mode::Enforce), ("Warn", Mode::Warn)];
/// Words of `spec.reference`; the first is meant where there is none.
pub(super) const REFERENCES: [(&str, ReferenceRule); 2] =
    [("Any", ReferenceRule::Any), ("Digest", ReferenceRule::Digest)];

/// Reads the text behind `publicKey.file`; its error is a sentence.
pub(super) type ReadKey<'a> = dyn FnMut(&str) -> Result<String, String> + 'a;

/// An object of a file.
pub(super) struct Document {
    pub name: String,
    /// Where the name stands.
    pub at: Position,
    pub object: Object,
}

/// What an object says. Absent where the report says what is wrong with it. The report can say so
/// of one that is there, too: only a set without any problem is used.
pub(super) enum Object {
    Policy(Option<ImagePolicy>),
    Revocation(Option<Revocation>),
}

impl Object {
    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Object::Policy(_) => "policy",
            Object::Revocation(_) => "revocation",
        }
    }

    fn is_whole(&self) -> bool {
        match self {
            Object::Policy(policy) => policy.is_some(),
            Object::Revocation(revocation) => revocation.is_some(),
        }
    }
}

/// `kind`.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Policy,
    Revocation,
}

/// Reads every object of a file; what is wrong goes into the report.
pub(super) fn read(
    file: &str,
    text: &str,
    read_key: &mut ReadKey<'_>,
    report: &mut Report,
) -> Vec<Document> {
    let nodes = match yaml::parse(text) {
        Ok(nodes) => nodes,
        Err((at, message)) => {
            report.add(match at {
                Some(at) => Problem::at(file, text, at, None, message),
                None => Problem::of_file(file, message),
            });
            return Vec::new();
        }
    };
    if nodes.is_empty() {
        report.add(Problem::of_file(file, "holds no policy; fill the file or remove it"));
    }
    let mut reader = Reader { file, text, report };
    let document = |node| document(&mut reader, read_key, &Field::new("", node));
    let documents: Vec<_> = nodes.iter().filter_map(document).collect();
    let whole = documents.iter().filter(|document| document.object.is_whole()).count();
    if whole < nodes.len() && report.is_empty() {
        // A policy or a revocation must never be left out in silence.
        report.add(Problem::of_file(file, "was not understood; this is a fault in Portcullis"));
    }
    documents
}

fn document(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    field: &Field<'_>,
) -> Option<Document> {
    let top = reader.fields(field, &OBJECT, &[])?;
    let version = reader.required(&top, "apiVersion");
    version.and_then(|field| reader.word(&field, &[(API_VERSION, ())], &[]));
    let kind = reader.required(&top, "kind")?;
    // Another kind has other fields; to report those as unknown would mislead.
    let kind = reader.word(&kind, &KINDS, &["TrustRoot"])?;
    let metadata = reader.required(&top, "metadata");
    let name = metadata.and_then(|field| name::metadata(reader, &field));
    let spec = reader.required(&top, "spec");
    let mut object = match kind {
        Kind::Policy => Object::Policy(spec.and_then(|field| policy(reader, read_key, &field))),
        Kind::Revocation => {
            Object::Revocation(spec.and_then(|field| revocation::read(reader, &field)))
        }
    };
    let (name, at) = name?;
    if let Object::Policy(Some(policy)) = &mut object {
        policy.name.clone_from(&name);
    }
    Some(Document { name, at, object })
}

/// The `spec` of a policy, which has no name yet.
fn policy(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    field: &Field<'_>,
) -> Option<ImagePolicy> {
    let spec = reader.fields(field, &SPEC, &["attestations"])?;
    let mode =
        reader.or(&spec, "mode", MODES[0].1, |reader, field| reader.word(field, &MODES, &[]));
    let scope = reader.required(&spec, "match").and_then(|field| scope(reader, &field));
    let reference = reader.or(&spec, "reference", REFERENCES[0].1, |reader, field| {
        reader.word(field, &REFERENCES, &[])
    });
    let authorities = reader.required(&spec, "authorities");
    let authorities = authorities.and_then(|field| authority::each(reader, read_key, &field));
    let at_least = reader.or(&spec, "atLeast", NonZeroUsize::MIN, |reader, field| {
        authority::at_least(reader, field, authorities.as_deref())
    });
    let break_glass = reader
        .or(&spec, "breakGlass", None, |reader, field| break_glass::read(reader, field).map(Some));
    Some(ImagePolicy {
        name: String::new(),
        mode: mode?,
        scope: scope?,
        reference: reference?,
        at_least: at_least?,
        authorities: authorities?,
        break_glass: break_glass?,
    })
}

fn scope(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Scope> {
    let scope = reader.fields(field, &SCOPE, &[])?;
    let images = reader.required(&scope, "images");
    let images = images.and_then(|field| patterns(reader, &field));
    let exclude_images = reader.or(&scope, "excludeImages", Vec::new(), patterns);
    let namespaces = reader.or(&scope, "namespaces", Namespaces::All, |reader, field| {
        patterns(reader, field).map(Namespaces::Only)
    });
    let exclude_namespaces = reader.or(&scope, "excludeNamespaces", Vec::new(), patterns);
    Some(Scope {
        images: images?,
        exclude_images: exclude_images?,
        namespaces: namespaces?,
        exclude_namespaces: exclude_namespaces?,
    })
}

fn patterns<T>(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Vec<T>>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    reader.each(field, MAX_PATTERNS, Reader::parsed)
}

#[cfg(test)]
mod tests;
