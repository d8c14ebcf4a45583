//! What refers to a manifest (OCI distribution specification 1.1, "Listing Referrers" and
//! "Unavailable Referrers API").

use std::collections::BTreeMap;

use serde::Deserialize;
use url::Url;

use crate::image::{Digest, shorten};

use super::{
    Descriptor,
    error::{Fault, Kind},
    header::next_link,
    registry::ACCEPT_MANIFEST,
    session::{Caller, Session, Wanted},
    transport::Answer,
};

/// Largest index of referrers, in bytes: what the specification has registries accept.
const MAX_INDEX: usize = 4 << 20;
/// Most pages that are followed.
const MAX_PAGES: usize = 64;
/// Longest media type that is kept, in bytes (RFC 6838, 4.2): pages could be full of longer ones.
const MAX_MEDIA_TYPE: usize = 255;
/// The media type of an index, the only one that the specification allows here.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Asks one host for at most `most` referrers. None is an answer too: the host has the API and
/// lists none, or has no API and no fallback tag.
pub(super) async fn list(
    session: &Session,
    caller: Caller<'_>,
    digest: &Digest,
    most: usize,
    last: bool,
) -> Result<Vec<Descriptor>, Fault> {
    let path = |kind: &str, name: &str| format!("{}/{kind}/{name}", caller.repository);
    let mut wanted = Wanted {
        path: path("referrers", &digest.to_string()),
        query: None,
        accept: INDEX,
        limit: MAX_INDEX,
    };
    let mut found = Vec::new();
    for page in 0..MAX_PAGES {
        let answer = match session.ask(&wanted, caller, last).await {
            Err(fault) if fault.kind == Kind::NotFound && page == 0 => {
                let tag = format!("sha256-{}", digest.hex());
                let (path, accept) = (path("manifests", &tag), ACCEPT_MANIFEST);
                let fallback = Wanted { path, accept, ..wanted };
                return by_tag(session.ask(&fallback, caller, last).await, most);
            }
            // A page that was announced is not there: the list is not whole.
            Err(fault) if fault.kind == Kind::NotFound => {
                return Err(Fault::new(Kind::Unreadable, "announced more referrers and has none"));
            }
            answer => answer?,
        };
        add(&mut found, &answer.body, most)?;
        match next_page(session, &answer, caller.repository)? {
            Some((path, query)) => wanted = Wanted { path, query, ..wanted },
            None => return Ok(found),
        }
    }
    let why = format!("lists referrers on more than {MAX_PAGES} pages, which is the limit");
    Err(Fault::new(Kind::LimitExceeded, why))
}

/// The referrers by the fallback tag. The specification takes a broken index for none; here that
/// would hide signatures, so it is an error.
fn by_tag(answer: Result<Answer, Fault>, most: usize) -> Result<Vec<Descriptor>, Fault> {
    let mut found = Vec::new();
    match answer {
        Err(fault) if fault.kind == Kind::NotFound => {}
        answer => add(&mut found, &answer?.body, most)?,
    }
    Ok(found)
}

/// Path and query of the next page. Only its way is taken from the answer, never its host.
fn next_page(
    session: &Session,
    answer: &Answer,
    repository: &str,
) -> Result<Option<(String, Option<String>)>, Fault> {
    let bad = |why: &str| Fault::new(Kind::Unreadable, format!("sent {why}"));
    // A field that is no text is one that cannot be read.
    let fields = answer.header.get_all(http::header::LINK).iter();
    let Some(link) = next_link(fields.map(|f| f.to_str().unwrap_or("\u{7f}"))).map_err(bad)? else {
        return Ok(None);
    };
    let next: Url =
        answer.url.join(&link).map_err(|_| bad("a next page of referrers that is no address"))?;
    if next.host_str() != answer.url.host_str() {
        return Err(bad("a next page of referrers at another host"));
    }
    let below = session.below_root(&next).filter(|path| {
        path.strip_prefix(repository).is_some_and(|rest| rest.starts_with("/referrers/"))
    });
    let below = below.ok_or_else(|| bad("a next page that is none of referrers"))?;
    Ok(Some((below.to_owned(), next.query().map(str::to_owned))))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u64,
    media_type: Option<String>,
    /// Go writes an empty list as `null`. Absent is an error: the attribute sees to that.
    #[serde(deserialize_with = "Option::deserialize")]
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    artifact_type: Option<String>,
}

/// Reads one page and adds what it lists.
fn add(found: &mut Vec<Descriptor>, body: &[u8], most: usize) -> Result<(), Fault> {
    let bad = |why: &str| Fault::new(Kind::Unreadable, format!("sent {why}"));
    let index: Index = serde_json::from_slice(body)
        .map_err(|_| bad("a list of referrers that is no OCI index"))?;
    if index.schema_version != 2 || index.media_type.is_some_and(|kind| kind != INDEX) {
        return Err(bad("a list of referrers that is no OCI index"));
    }
    for raw in index.manifests.unwrap_or_default() {
        // A digest of another algorithm names what we could not check: never a proof, so that to
        // leave it out can only refuse.
        if is_other_algorithm(&raw.digest) {
            continue;
        }
        // No manifest has such a type either.
        if raw.media_type.len() > MAX_MEDIA_TYPE {
            continue;
        }
        let digest = raw.digest.parse().map_err(|_| {
            bad(&format!("a list of referrers with the digest {}", shorten(&raw.digest)))
        })?;
        if found.len() == most {
            let why = format!("lists more than {most} referrers, which is the limit");
            return Err(Fault::new(Kind::LimitExceeded, why));
        }
        found.push(Descriptor {
            media_type: raw.media_type,
            digest,
            size: raw.size,
            artifact_type: raw.artifact_type.filter(|kind| kind.len() <= MAX_MEDIA_TYPE),
            platform: None,
            annotations: BTreeMap::new(),
        });
    }
    Ok(())
}

/// Whether this is a digest by the grammar of the image specification, and not by SHA-256.
fn is_other_algorithm(digest: &str) -> bool {
    let Some((algorithm, encoded)) = digest.split_once(':') else { return false };
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    algorithm != "sha256"
        && !algorithm.is_empty()
        && algorithm.bytes().all(|c| word(c) || b"+._-".contains(&c))
        && !encoded.is_empty()
        && encoded.bytes().all(|c| c.is_ascii_alphanumeric() || b"=_-".contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";

    type Read = Result<Vec<(String, Option<String>)>, (Kind, String)>;

    fn read(body: &str, most: usize) -> Read {
        let mut found = Vec::new();
        add(&mut found, body.as_bytes(), most).map_err(|fault| (fault.kind, fault.why))?;
        Ok(found.into_iter().map(|d| (d.digest.to_string(), d.artifact_type)).collect())
    }

    fn index(manifests: &str) -> String {
        format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":{manifests}}}"#)
    }

    fn descriptor(digest: &str) -> String {
        format!(r#"{{"mediaType":"m","digest":"{digest}","size":1,"artifactType":"a"}}"#)
    }

    #[test]
    fn indexes() {
        let sha256 = format!("sha256:{HEX}");
        let one = vec![(sha256.clone(), Some("a".to_owned()))];
        assert_eq!(read(&index(&format!("[{}]", descriptor(&sha256))), 1), Ok(one.clone()));
        assert_eq!(read(r#"{"schemaVersion":2,"manifests":[],"x":{}}"#, 0), Ok(vec![]));
        assert_eq!(read(&index("null"), 0), Ok(vec![]));
        let mixed = format!(
            "[{},{},{}]",
            descriptor(&format!("sha512:{HEX}{HEX}")),
            descriptor(&sha256),
            descriptor("blake3+b64:aB-_=")
        );
        assert_eq!(read(&index(&mixed), 1), Ok(one));
    }

    #[test]
    fn broken_indexes_are_errors() {
        let no_index =
            (Kind::Unreadable, "sent a list of referrers that is no OCI index".to_owned());
        for body in [
            "",
            "null",
            "[]",
            "<html>",
            "{}",
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":1,"manifests":[]}"#,
            r#"{"manifests":[]}"#,
            r#"{"schemaVersion":2,"mediaType":"application/json","manifests":[]}"#,
            r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#,
            r#"{"schemaVersion":2,"manifests":{}}"#,
            r#"{"schemaVersion":2,"manifests":[{}]}"#,
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"m","digest":"d","size":-1}]}"#,
            r#"{"schemaVersion":2,"manifests":[]} x"#,
        ] {
            assert_eq!(read(body, 9), Err(no_index.clone()), "{body}");
        }
        for digest in ["sha256:00", "sha256", "", ":x", "SHA512:00", "sha512:", "sha512:a b"] {
            let why = format!("sent a list of referrers with the digest {digest}");
            let body = index(&format!("[{}]", descriptor(digest)));
            assert_eq!(read(&body, 9), Err((Kind::Unreadable, why)), "{digest}");
        }
    }

    #[test]
    fn what_is_kept_of_a_referrer_is_short() {
        let digest = format!("sha256:{HEX}");
        let with = |media_type: &str, artifact_type: &str| {
            let one = descriptor(&digest)
                .replace(r#""m""#, &format!("{media_type:?}"))
                .replace(r#""a""#, &format!("{artifact_type:?}"));
            read(&index(&format!("[{one}]")), 9)
        };
        let (exact, over) = ("x".repeat(MAX_MEDIA_TYPE), "x".repeat(MAX_MEDIA_TYPE + 1));
        assert_eq!(with(&exact, &exact), Ok(vec![(digest.clone(), Some(exact.clone()))]));
        assert_eq!(with(&over, &exact), Ok(vec![]));
        // Like one that does not say what it is: it is looked at.
        assert_eq!(with(&exact, &over), Ok(vec![(digest.clone(), None)]));
    }

    #[test]
    fn no_more_than_asked() {
        let two = format!("[{0},{0}]", descriptor(&format!("sha256:{HEX}")));
        assert_eq!(read(&index(&two), 2).unwrap().len(), 2);
        let why = "lists more than 1 referrers, which is the limit".to_owned();
        assert_eq!(read(&index(&two), 1), Err((Kind::LimitExceeded, why)));
    }
}
