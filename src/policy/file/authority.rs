//! `spec.authorities`: who may vouch, and how many must.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
};

use crate::{
    policy::{
        Authority, AuthorityKind, PublicKeyAuthority,
        fields::{Field, Fields, Reader},
    },
    problem::Position,
    verify::PublicKey,
};

use super::{ReadKey, moment::moment, name::name};

/// Longest reason of an `unsigned` authority, in bytes: it stands in every audit record.
pub(in crate::policy) const MAX_REASON: usize = 256;
/// Most authorities of one policy; each costs a look at every signature.
pub(in crate::policy) const MAX_AUTHORITIES: usize = 64;
/// Most digests of one authority.
pub(in crate::policy) const MAX_DIGESTS: usize = 1000;
/// Most signed annotations that a key asks for.
pub(in crate::policy) const MAX_ANNOTATIONS: usize = 64;
/// Longest key of one, in characters. YAML takes keys up to 1024 with all their escapes.
pub(in crate::policy) const MAX_ANNOTATION_KEY: usize = 128;
/// Longest value of one, in characters.
pub(in crate::policy) const MAX_ANNOTATION: usize = 1024;

/// Authority kinds of this version.
pub(in crate::policy) const KINDS: [&str; 3] = ["publicKey", "digests", "unsigned"];
/// Authority kinds of the format that this version does not implement.
pub(super) const LATER_KINDS: [&str; 5] = ["keyless", "certificate", "notation", "ociVault", "gpg"];

/// Fields of `publicKey`. A `file` has its place beside policies that are files, too.
pub(in crate::policy) const PUBLIC_KEY: [&str; 5] =
    ["pem", "file", "notBefore", "notAfter", "annotations"];
/// Fields of `unsigned`.
pub(in crate::policy) const UNSIGNED: [&str; 1] = ["reason"];

/// Never more than there are distinct identities: two authorities with the same key are one.
pub(super) fn at_least(
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

/// Every authority of a policy.
pub(super) fn each(
    reader: &mut Reader<'_>,
    read_key: &mut ReadKey<'_>,
    field: &Field<'_>,
) -> Option<Vec<Authority>> {
    let mut names: BTreeMap<String, Position> = BTreeMap::new();
    reader.each(field, MAX_AUTHORITIES, |reader, field| {
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
    })
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
        "digests" => reader.distinct(&field, MAX_DIGESTS).map(AuthorityKind::Digests),
        "unsigned" => {
            let unsigned = reader.fields(&field, &UNSIGNED, &[])?;
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
    let fields = reader.fields(field, &PUBLIC_KEY, &[])?;
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
    let annotations = reader.or(&fields, "annotations", BTreeMap::new(), signed_annotations);
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

/// What must be signed beside the digest.
fn signed_annotations(
    reader: &mut Reader<'_>,
    field: &Field<'_>,
) -> Option<BTreeMap<String, String>> {
    let annotations = reader.texts(field)?;
    if annotations.len() > MAX_ANNOTATIONS {
        let message = format!("has {} entries, {MAX_ANNOTATIONS} are allowed", annotations.len());
        return reader.wrong(field, message);
    }
    let is_long = |text: &str, max| text.chars().nth(max).is_some();
    if annotations.keys().any(|key| is_long(key, MAX_ANNOTATION_KEY)) {
        let message = format!("has a key of more than {MAX_ANNOTATION_KEY} characters");
        return reader.wrong(field, message);
    }
    if annotations.values().any(|value| is_long(value, MAX_ANNOTATION)) {
        let message = format!("has a value of more than {MAX_ANNOTATION} characters");
        return reader.wrong(field, message);
    }
    Some(annotations)
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
