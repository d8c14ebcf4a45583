//! One [`Known`] as a text: a file of the store, and a line of a pack.
//!
//! ```json
//! {"version":1,"manifest":{"mediaType":"…","body":"…","claims":[…],"whole":true},"child":{…}}
//! ```
//!
//! `body` is the manifest itself; a claim has a `source`, and `payload` with `signature`, or
//! `bundle` (all three in base64), or `unreadable` with the reason. No digest stands in it: the
//! reader computes them all, so a document is about the image that its manifests make it be about.
//! A file of the store may have `provenBy` beside them, a note of hashes that proves nothing.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    image::{Digest, shorten},
    json::{self, JsonError},
    resolve::Fetched,
};

use super::{
    Entry, Known, KnownError, MAX_SIGNATURES, UntrustedBody, UntrustedClaim, known::MAX_PROVERS,
};

/// Most bytes of a document. Two manifests of the largest size, each byte escaped, take 16 MiB,
/// and the claims that the store keeps 11 MiB.
pub(crate) const MAX_DOCUMENT: usize = 32 << 20;
/// Most bytes of the text that says where a claim was found: a tag or a digest.
const MAX_SOURCE: usize = 256;
/// Most characters of the text that says why a claim cannot be read: it comes into messages.
const MAX_WHY: usize = 1000;

/// The only version there is.
const VERSION: u32 = 1;

/// Why a text is no document, or what is known cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// More bytes than any document has.
    #[error("it has {0} bytes, {MAX_DOCUMENT} are allowed")]
    Long(usize),
    /// It is not the JSON that is expected.
    #[error("{0}")]
    Json(String),
    /// Made by a later release of Portcullis, or by nobody.
    #[error("it is of version {0}, and this program reads version {VERSION}")]
    Later(u32),
    /// A manifest that is no text.
    #[error("manifest {0} is not UTF-8")]
    Text(Digest),
    /// The manifests do not belong together.
    #[error(transparent)]
    Known(#[from] KnownError),
}

impl From<JsonError> for DocumentError {
    fn from(error: JsonError) -> Self {
        Self::Json(error.to_string())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    version: u32,
    manifest: Part,
    #[serde(default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    child: Option<Part>,
    #[serde(default, deserialize_with = "provers", skip_serializing_if = "Vec::is_empty")]
    proven_by: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Part {
    media_type: String,
    body: String,
    #[serde(deserialize_with = "claims")]
    claims: Vec<Claim>,
    whole: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    source: String,
    #[serde(default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    payload: Option<Base64>,
    #[serde(default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    signature: Option<Base64>,
    #[serde(default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    bundle: Option<Base64>,
    #[serde(default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(|_| D::Error::custom("what must be base64 is not"))
    }
}

fn claims<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    json::at_most::<MAX_SIGNATURES, T, D>(d)
}

fn provers<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    json::at_most::<MAX_PROVERS, String, D>(d)
}

/// Writes a document, on one line and without the newline.
///
/// Claims about another digest than their manifest's are left out: they are about something else.
pub(crate) fn encode(known: &Known) -> Result<Vec<u8>, DocumentError> {
    let manifest = part(known.top())?;
    let child = known.child().map(part).transpose()?;
    let proven_by = known.proven_by().iter().map(Digest::to_string).collect();
    let document = Document { version: VERSION, manifest, child, proven_by };
    let bytes = serde_json::to_vec(&document).map_err(JsonError::from)?;
    match bytes.len() {
        long if long > MAX_DOCUMENT => Err(DocumentError::Long(long)),
        _ => Ok(bytes),
    }
}

fn part(entry: &Entry) -> Result<Part, DocumentError> {
    let Fetched { digest, media_type, body } = &entry.manifest;
    let body = str::from_utf8(body).map_err(|_| DocumentError::Text(*digest))?;
    let own = entry.claims.iter().filter(|claim| claim.subject == *digest);
    Ok(Part {
        media_type: media_type.clone(),
        body: body.to_owned(),
        claims: own.map(claim).collect(),
        whole: entry.whole,
    })
}

fn claim(claim: &UntrustedClaim) -> Claim {
    let source = claim.source.clone();
    let base64 = |bytes: &[u8]| Some(Base64(bytes.to_vec()));
    match &claim.body {
        UntrustedBody::SimpleSigning { payload, signature } => Claim {
            source,
            payload: base64(payload),
            signature: base64(signature),
            ..Claim::default()
        },
        UntrustedBody::Bundle { json } => {
            Claim { source, bundle: base64(json), ..Claim::default() }
        }
        UntrustedBody::Unreadable { why } => {
            // As it is read again.
            let plain = |c: char| if c.is_control() { ' ' } else { c };
            let why = why.chars().take(MAX_WHY).map(plain).collect();
            Claim { source, unreadable: Some(why), ..Claim::default() }
        }
    }
}

/// Reads a document, and nothing beside it.
pub(crate) fn decode(json: &[u8]) -> Result<Known, DocumentError> {
    if json.len() > MAX_DOCUMENT {
        return Err(DocumentError::Long(json.len()));
    }
    // Structs all through that deny unknown fields; serde refuses equal ones.
    let document: Document = json::parse(json)?;
    if document.version != VERSION {
        return Err(DocumentError::Later(document.version));
    }
    let child = document.child.map(entry).transpose()?;
    let proven_by: Result<Vec<Digest>, _> =
        document.proven_by.iter().map(|one| one.parse()).collect();
    match proven_by {
        Ok(by) => Ok(Known::new(entry(document.manifest)?, child)?.noted(by)),
        Err(_) => Err(DocumentError::Json("provenBy is no list of digests".into())),
    }
}

fn entry(part: Part) -> Result<Entry, DocumentError> {
    let body = part.body.into_bytes();
    let digest = Digest::of(&body);
    let claims: Result<_, _> =
        part.claims.into_iter().map(|claim| untrusted(claim, digest)).collect();
    let manifest = Fetched { digest, media_type: part.media_type, body: body.into() };
    Ok(Entry { manifest, claims: claims?, whole: part.whole })
}

fn untrusted(claim: Claim, subject: Digest) -> Result<UntrustedClaim, DocumentError> {
    let Claim { source, payload, signature, bundle, unreadable } = claim;
    let wrong = |why: &str| Err(DocumentError::Json(why.to_owned()));
    if source.len() > MAX_SOURCE || source.chars().any(char::is_control) {
        return wrong(&format!("\"{}\" is no source of a claim", shorten(&source)));
    }
    let body = match (payload, signature, bundle, unreadable) {
        (Some(payload), Some(signature), None, None) => {
            UntrustedBody::SimpleSigning { payload: payload.0, signature: signature.0 }
        }
        (None, None, Some(bundle), None) => UntrustedBody::Bundle { json: bundle.0 },
        (None, None, None, Some(why)) => {
            if why.chars().nth(MAX_WHY).is_some() || why.chars().any(char::is_control) {
                return wrong(&format!("\"{}\" is no reason of a claim", shorten(&why)));
            }
            UntrustedBody::Unreadable { why }
        }
        _ => return wrong("a claim has payload and signature, or a bundle, or is unreadable"),
    };
    Ok(UntrustedClaim { subject, source, body })
}
