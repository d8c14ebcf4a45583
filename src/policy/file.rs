//! The wire format: strict YAML, one or more `kind: ImagePolicy` a file.
//!
//! What is missing, empty, unknown, there twice or contradictory is an error that names file,
//! line, column and field. What the format defines and this version does not implement is
//! refused by name, never left out of the judgement.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
};

use jiff::Timestamp;

use crate::{
    image::{Digest, shorten},
    problem::{Position, Problem, Report},
    verify::PublicKey,
};

use super::{
    Authority, AuthorityKind, ImagePolicy, PublicKeyAuthority,
    fields::{Field, Fields, Reader},
    model::{Namespaces, ReferenceRule, Scope},
    yaml,
};

/// The only version of the format.
const API_VERSION: &str = "portcullis.dev/v1alpha1";
/// Largest policy file, in bytes.
pub(super) const MAX_FILE: usize = 1024 * 1024;
/// Longest name, in bytes (RFC 1123 subdomain, as Kubernetes names objects).
const MAX_NAME: usize = 253;
/// Longest reason of an `unsigned` authority, in bytes: it stands in every audit record.
const MAX_REASON: usize = 256;
/// Most authorities of one policy; each costs a look at every signature.
const MAX_AUTHORITIES: usize = 64;

/// Authority kinds of this version.
const KINDS: [&str; 3] = ["publicKey", "digests", "unsigned"];
/// Authority kinds of the format that this version does not implement.
const LATER_KINDS: [&str; 5] = ["keyless", "certificate", "notation", "ociVault", "gpg"];

/// Reads the text behind `publicKey.file`; its error is a sentence.
pub(super) type ReadKey<'a> = dyn FnMut(&str) -> Result<String, String> + 'a;

/// A policy of a file.
pub(super) struct Document {
    pub name: String,
    /// Where the name stands.
    pub at: Position,
    /// Absent where the report says what is wrong with it. The report can say so of one that is
    /// there, too: only a set without any problem is used.
    pub policy: Option<ImagePolicy>,
}

/// Reads every policy of a file; what is wrong goes into the report.
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
    let whole = documents.iter().filter(|document| document.policy.is_some()).count();
    if whole < nodes.len() && report.is_empty() {
        // A policy must never be left out in silence.
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
    reader.word(&kind, &[("ImagePolicy", ())], &["Revocation", "TrustRoot"])?;
    let metadata = reader.required(&top, "metadata");
    let name = metadata.and_then(|field| self::metadata(reader, &field));
    let spec = reader.required(&top, "spec");
    let spec = spec.and_then(|field| self::spec(reader, read_key, &field));
    let (name, at) = name?;
    let policy = spec.map(|policy| ImagePolicy { name: name.clone(), ..policy });
    Some(Document { name, at, policy })
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
    let edge = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9');
    let is_label = |label: &str| {
        label.bytes().all(|c| edge(c) || c == b'-')
            && label.bytes().next().is_some_and(edge)
            && label.bytes().last().is_some_and(edge)
    };
    if name.len() <= MAX_NAME && name.split('.').all(is_label) {
        return Some(name.to_owned());
    }
    let message = format!(
        "{:?} is no name: at most {MAX_NAME} lower-case letters, digits, '-' and '.' are \
         expected, each part beginning and ending with a letter or digit",
        shorten(name)
    );
    reader.wrong(field, message)
}

/// A policy that has no name yet.
fn spec(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    field: &Field<'_>,
) -> Option<ImagePolicy> {
    let known = ["mode", "match", "reference", "atLeast", "authorities"];
    let spec = reader.fields(field, &known, &["attestations", "breakGlass"])?;
    let enforce = [("Enforce", ())];
    reader.or(&spec, "mode", (), |reader, field| reader.word(field, &enforce, &["Warn"]));
    let scope = reader.required(&spec, "match").and_then(|field| scope(reader, &field));
    let rules = [("Any", ReferenceRule::Any), ("Digest", ReferenceRule::Digest)];
    let reference = reader.or(&spec, "reference", ReferenceRule::Any, |reader, field| {
        reader.word(field, &rules, &[])
    });
    let authorities = reader.required(&spec, "authorities");
    let authorities = authorities.and_then(|field| authorities_of(reader, read_key, &field));
    let at_least = reader.or(&spec, "atLeast", NonZeroUsize::MIN, |reader, field| {
        at_least(reader, field, authorities.as_deref())
    });
    Some(ImagePolicy {
        name: String::new(),
        mode: super::Mode::Enforce,
        scope: scope?,
        reference: reference?,
        at_least: at_least?,
        authorities: authorities?,
        break_glass: None,
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

/// Never more than there are distinct identities: two authorities with the same key are one.
fn at_least(
    reader: &mut Reader<'_>,
    field: &Field<'_>,
    authorities: Option<&[Authority]>,
) -> Option<NonZeroUsize> {
    let wanted = reader.count(field)?;
    let Some(wanted) = usize::try_from(wanted).ok().and_then(NonZeroUsize::new) else {
        return reader.wrong(field, "must be at least 1");
    };
    let authorities = authorities?;
    let keys: BTreeSet<_> = authorities
        .iter()
        .filter_map(|authority| match &authority.kind {
            AuthorityKind::PublicKey(wanted) => Some(wanted.key.id()),
            _ => None,
        })
        .collect();
    let is_key = |authority: &&Authority| matches!(authority.kind, AuthorityKind::PublicKey(_));
    let distinct = keys.len() + authorities.len() - authorities.iter().filter(is_key).count();
    if wanted.get() <= distinct {
        return Some(wanted);
    }
    let twice = match distinct < authorities.len() {
        true => " (authorities with the same public key count once)",
        false => "",
    };
    let message = format!(
        "{wanted} is more than there are distinct authorities, {distinct}{twice}; \
         no image could ever be accepted"
    );
    reader.wrong(field, message)
}

fn authorities_of(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    field: &Field<'_>,
) -> Option<Vec<Authority>> {
    let mut names: BTreeMap<String, Position> = BTreeMap::new();
    let authorities = reader.each(field, |reader, field| {
        let (authority, at) = authority(reader, read_key, field)?;
        match names.insert(authority.name.clone(), at) {
            None => Some(authority),
            Some(first) => {
                let path = format!("{}.name", field.path);
                let message = format!(
                    "{:?} is already the name of an authority, at line {}; names are unique \
                     within a policy",
                    authority.name, first.line
                );
                reader.note(at, &path, message)
            }
        }
    })?;
    if authorities.len() > MAX_AUTHORITIES {
        let message = format!("has {} entries, {MAX_AUTHORITIES} are allowed", authorities.len());
        return reader.wrong(field, message);
    }
    Some(authorities)
}

fn authority(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    field: &Field<'_>,
) -> Option<(Authority, Position)> {
    let known: Vec<_> = ["name"].into_iter().chain(KINDS).collect();
    let authority = reader.fields(field, &known, &LATER_KINDS)?;
    let name_field = reader.required(&authority, "name");
    let name = name_field.as_ref().and_then(|field| name(reader, field));
    let kind = kind(reader, read_key, &authority);
    let (name, kind) = (name?, kind?);
    Some((Authority { name, kind }, name_field?.at))
}

fn kind(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    authority: &Fields<'_>,
) -> Option<AuthorityKind> {
    let kinds = KINDS.iter().chain(&LATER_KINDS).copied();
    let kinds: Vec<_> = kinds.filter(|kind| authority.has(kind)).collect();
    let [kind] = kinds[..] else {
        let message = match kinds.is_empty() {
            true => format!("has no kind; one of {} is needed", KINDS.join(", ")),
            false => format!(
                "has several kinds ({}); give each an authority of its own",
                kinds.join(", ")
            ),
        };
        return reader.note(authority.at, &authority.path, message);
    };
    let field = authority.get(kind)?;
    match kind {
        "publicKey" => public_key(reader, read_key, &field).map(AuthorityKind::PublicKey),
        "digests" => digests(reader, &field).map(AuthorityKind::Digests),
        "unsigned" => {
            let unsigned = reader.fields(&field, &["reason"], &[])?;
            let reason = reader.required(&unsigned, "reason")?;
            Some(AuthorityKind::Unsigned { reason: self::reason(reader, &reason)? })
        }
        // Noted as not supported where the fields were read.
        _ => None,
    }
}

fn public_key(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    field: &Field<'_>,
) -> Option<PublicKeyAuthority> {
    let known = ["pem", "file", "notBefore", "notAfter", "annotations"];
    let fields = reader.fields(field, &known, &[])?;
    let key = match (fields.get("pem"), fields.get("file")) {
        (Some(pem), None) => match reader.text(&pem).map(PublicKey::from_pem) {
            Some(Ok(key)) => Some(key),
            Some(Err(error)) => reader.wrong_secret(&pem, error.to_string()),
            None => None,
        },
        (None, Some(file)) => {
            let pem = reader.text(&file).map(read_key);
            let key = pem.map(|pem| PublicKey::from_pem(&pem?).map_err(|error| error.to_string()));
            match key {
                Some(Ok(key)) => Some(key),
                Some(Err(message)) => reader.wrong(&file, message),
                None => None,
            }
        }
        (None, None) => reader.wrong(field, "names no key; one of pem, file is needed"),
        (Some(_), Some(_)) => reader.wrong(field, "has both pem and file; keep one of the two"),
    };
    let not_before = reader.or(&fields, "notBefore", None, |r, field| moment(r, field).map(Some));
    let not_after = reader.or(&fields, "notAfter", None, |r, field| moment(r, field).map(Some));
    let annotations = reader.or(&fields, "annotations", BTreeMap::new(), |r, field| r.texts(field));
    if let (Some(Some(before)), Some(Some(after)), Some(field)) =
        (not_before, not_after, fields.get("notAfter"))
        && before >= after
    {
        return reader.wrong(&field, "must be later than notBefore; the key would never count");
    }
    Some(PublicKeyAuthority {
        key: key?,
        not_before: not_before?,
        not_after: not_after?,
        annotations: annotations?,
    })
}

/// A moment as Kubernetes writes it (RFC 3339), and nothing else that a parser of times takes.
fn moment(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Timestamp> {
    let text = reader.text(field)?;
    let shape = text.len() <= 35
        && text.bytes().all(|c| c.is_ascii_digit() || b"TZ:.+-".contains(&c))
        && text.as_bytes().get(10) == Some(&b'T')
        && text.as_bytes().get(16) == Some(&b':');
    let moment = shape.then(|| text.parse().ok()).flatten();
    moment.or_else(|| {
        let message = format!(
            "{:?} is no time; write it as in 2026-01-01T00:00:00Z (RFC 3339)",
            shorten(text)
        );
        reader.wrong(field, message)
    })
}

fn digests(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<BTreeSet<Digest>> {
    let mut digests = BTreeSet::new();
    reader.each(field, |reader, field| {
        let digest = reader.parsed::<Digest>(field)?;
        match digests.insert(digest) {
            true => Some(()),
            false => reader.wrong(field, "is listed twice; remove one of the two"),
        }
    })?;
    Some(digests)
}

fn reason(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    let reason = reader.text(field)?;
    let fits = reason.len() <= MAX_REASON
        && !reason.trim().is_empty()
        && !reason.chars().any(char::is_control);
    match fits {
        true => Some(reason.to_owned()),
        false => {
            let message = format!("must be one line of at most {MAX_REASON} bytes");
            reader.wrong(field, message)
        }
    }
}

#[cfg(test)]
mod tests;
