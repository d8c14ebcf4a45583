//! The wire format: strict YAML, one or more `kind: ImagePolicy` or `kind: Revocation` a file.
//!
//! What is missing, empty, unknown, there twice or contradictory is an error that names file,
//! line, column and field. What the format defines and this version does not implement is
//! refused by name, never left out of the judgement.

mod authority;
mod break_glass;
mod revocation;

pub(super) use revocation::Revocation;

use std::num::NonZeroUsize;

use jiff::Timestamp;

use crate::{
    image::shorten,
    problem::{Position, Problem, Report},
};

use super::{
    ImagePolicy, Mode,
    fields::{Field, Reader},
    model::{Namespaces, ReferenceRule, Scope},
    yaml,
};

/// The only version of the format.
const API_VERSION: &str = "portcullis.dev/v1alpha1";
/// Largest policy file, in bytes.
pub(super) const MAX_FILE: usize = 1024 * 1024;
/// Longest name, in bytes (RFC 1123 subdomain, as Kubernetes names objects).
const MAX_NAME: usize = 253;

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
enum Kind {
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
    let top = reader.fields(field, &["apiVersion", "kind", "metadata", "spec"], &[])?;
    let version = reader.required(&top, "apiVersion");
    version.and_then(|field| reader.word(&field, &[(API_VERSION, ())], &[]));
    let kind = reader.required(&top, "kind")?;
    // Another kind has other fields; to report those as unknown would mislead.
    let kinds = [("ImagePolicy", Kind::Policy), ("Revocation", Kind::Revocation)];
    let kind = reader.word(&kind, &kinds, &["TrustRoot"])?;
    let metadata = reader.required(&top, "metadata");
    let name = metadata.and_then(|field| self::metadata(reader, &field));
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

fn metadata(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<(String, Position)> {
    let metadata = reader.fields(field, &["name", "labels", "annotations"], &[])?;
    for map in ["labels", "annotations"] {
        // They change no judgement, but the API server would refuse a bad one.
        metadata.get(map).and_then(|field| reader.texts(&field));
    }
    let field = reader.required(&metadata, "name")?;
    Some((name(reader, &field)?, field.at))
}

fn name(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    let name = reader.text(field)?;
    if is_subdomain(name) {
        return Some(name.to_owned());
    }
    let message = format!(
        "{:?} is no name: at most {MAX_NAME} lower-case letters, digits, '-' and '.' are \
         expected, each part beginning and ending with a letter or digit",
        shorten(name)
    );
    reader.wrong(field, message)
}

/// Whether a text is what Kubernetes takes for a "DNS subdomain" (RFC 1123).
fn is_subdomain(name: &str) -> bool {
    let edge = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9');
    let is_label = |label: &str| {
        label.bytes().all(|c| edge(c) || c == b'-')
            && label.bytes().next().is_some_and(edge)
            && label.bytes().last().is_some_and(edge)
    };
    name.len() <= MAX_NAME && name.split('.').all(is_label)
}

/// The `spec` of a policy, which has no name yet.
fn policy(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    field: &Field<'_>,
) -> Option<ImagePolicy> {
    let known = ["mode", "match", "reference", "atLeast", "authorities", "breakGlass"];
    let spec = reader.fields(field, &known, &["attestations"])?;
    let modes = [("Enforce", Mode::Enforce), ("Warn", Mode::Warn)];
    let mode =
        reader.or(&spec, "mode", Mode::Enforce, |reader, field| reader.word(field, &modes, &[]));
    let scope = reader.required(&spec, "match").and_then(|field| scope(reader, &field));
    let rules = [("Any", ReferenceRule::Any), ("Digest", ReferenceRule::Digest)];
    let reference = reader.or(&spec, "reference", ReferenceRule::Any, |reader, field| {
        reader.word(field, &rules, &[])
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
    let known = ["images", "excludeImages", "namespaces", "excludeNamespaces"];
    let scope = reader.fields(field, &known, &[])?;
    let images = reader.required(&scope, "images");
    let images = images.and_then(|field| reader.each(&field, Reader::parsed));
    let exclude_images =
        reader.or(&scope, "excludeImages", Vec::new(), |r, field| r.each(field, Reader::parsed));
    let namespaces = reader.or(&scope, "namespaces", Namespaces::All, |reader, field| {
        reader.each(field, Reader::parsed).map(Namespaces::Only)
    });
    let exclude_namespaces = reader
        .or(&scope, "excludeNamespaces", Vec::new(), |r, field| r.each(field, Reader::parsed));
    Some(Scope {
        images: images?,
        exclude_images: exclude_images?,
        namespaces: namespaces?,
        exclude_namespaces: exclude_namespaces?,
    })
}

/// A moment as Kubernetes writes it (RFC 3339), and nothing else that a parser of times takes.
fn moment(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Timestamp> {
    let text = reader.text(field)?;
    read_moment(text).map_err(|why| reader.wrong::<()>(field, why)).ok()
}

/// Reads such a moment; the error is a sentence.
pub(crate) fn read_moment(text: &str) -> Result<Timestamp, String> {
    let shape = text.len() <= 35
        && text.bytes().all(|c| c.is_ascii_digit() || b"TZ:.+-".contains(&c))
        && text.as_bytes().get(10) == Some(&b'T')
        && text.as_bytes().get(16) == Some(&b':');
    shape.then(|| text.parse().ok()).flatten().ok_or_else(|| {
        format!("{:?} is no time; write it as in 2026-01-01T00:00:00Z (RFC 3339)", shorten(text))
    })
}

#[cfg(test)]
mod tests;
