//! Finds what is claimed about an image.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{
    StreamExt,
    future::{join, join_all},
    stream,
};

use crate::{
    image::{Digest, Tag, Version},
    refusal::{Code, Refusal},
    resolve::{RegistryError, Repo, Resolved},
};

use super::{
    Evidence, MAX_SIGNATURES, UntrustedBody, UntrustedClaim,
    shape::{self, Blob, Lead},
};

/// Most bytes of a manifest that holds signatures.
const MAX_SIGNATURE_MANIFEST: usize = 1 << 20;
/// Most referrers of one image that are listed, of whatever kind.
const MAX_REFERRERS: usize = 1000;
/// Most bytes of payloads and bundles for one image. Signatures have a few KiB each.
const MAX_EVIDENCE: usize = 16 << 20;
/// Requests of one kind under way at a time for one digest.
const CONCURRENCY: usize = 8;

/// A lead, the digest it was found for, and where.
struct Found {
    subject: Digest,
    source: String,
    lead: Lead,
}

/// What came of one or more questions to a registry.
#[derive(Default)]
struct Answers {
    found: Vec<Found>,
    gaps: Vec<Refusal>,
}

impl Answers {
    /// Adds leads, one more at most than are looked at: that there are more is all that has to
    /// be known of the rest, and a manifest has room for ten thousand.
    fn add(&mut self, subject: Digest, source: &str, leads: Vec<Lead>) {
        let room = (MAX_SIGNATURES + 1).saturating_sub(self.found.len());
        let found =
            leads.into_iter().map(|lead| Found { subject, source: source.to_owned(), lead });
        self.found.extend(found.take(room));
    }

    fn append(&mut self, mut more: Self) {
        self.found.append(&mut more.found);
        self.gaps.append(&mut more.gaps);
    }
}

/// Asks the registry for everything that is claimed about an image and its child for this
/// platform. Never fails: what could not be asked is a gap in the answer.
///
/// The order is the same for the same content of the registry: of the image's own digest first
/// the `.sig` tag, then the referrers by digest; then the same of the child. Where there is more
/// than the bounds allow, the first claims are looked at and the rest is a gap: a good signature
/// among the first ones counts, and what is behind them is never taken for absent.
pub async fn gather(repo: &Repo, image: &Resolved) -> Evidence {
    let mut answers = Answers::default();
    for part in join_all(image.subjects().map(|subject| about(repo, subject))).await {
        answers.append(part);
    }
    bound(&mut answers);
    let blobs = fetch(repo, &answers.found).await;
    let mut evidence = Evidence { claims: Vec::new(), gaps: answers.gaps };
    for Found { subject, source, lead } in answers.found {
        match body(lead, &blobs) {
            Ok(body) => evidence.claims.push(UntrustedClaim { subject, source, body }),
            Err(gap) => evidence.gaps.push(gap),
        }
    }
    // A registry that is down leaves every question open for one reason.
    let mut told = Vec::new();
    evidence.gaps.retain(|gap| {
        let new = !told.contains(gap);
        if new {
            told.push(gap.clone());
        }
        new
    });
    evidence
}

/// Everything about one digest.
async fn about(repo: &Repo, subject: Digest) -> Answers {
    let (mut tagged, referring) = join(tagged(repo, subject), referring(repo, subject)).await;
    tagged.append(referring);
    tagged
}

/// The signatures under the tag that cosign 2 writes.
async fn tagged(repo: &Repo, subject: Digest) -> Answers {
    let name = format!("sha256-{}.sig", subject.hex());
    let tag: Tag = name.parse().expect("hexadecimal characters, dashes and dots make a tag");
    let leads = match repo.tagged(&tag, MAX_SIGNATURE_MANIFEST).await {
        Ok(manifest) => shape::tagged(&manifest),
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => match unusable(error) {
            Ok(why) => vec![Lead::Unreadable(why)],
            Err(gap) => return Answers { gaps: vec![gap], ..Answers::default() },
        },
    };
    let mut answers = Answers::default();
    answers.add(subject, &name, leads);
    answers
}

/// The signatures that cosign 3 writes.
async fn referring(repo: &Repo, subject: Digest) -> Answers {
    let listed = match repo.referrers(&subject, MAX_REFERRERS).await {
        Ok(listed) => listed,
        Err(error) if error.is_not_found() => return Answers::default(),
        Err(error) => return Answers { gaps: vec![error.into()], ..Answers::default() },
    };
    let mut digests: Vec<_> =
        listed.iter().filter(|one| shape::may_be_signature(one)).map(|one| one.digest).collect();
    // Registries list in any order, and the pages and the fallback tag may overlap.
    digests.sort_unstable();
    digests.dedup();
    let mut answers = Answers::default();
    if digests.len() > MAX_SIGNATURES {
        answers.gaps.push(too_many());
        digests.truncate(MAX_SIGNATURES);
    }
    let mut manifests = stream::iter(digests)
        .map(|digest| async move {
            let version = Version::Digest(digest);
            (digest, repo.manifest(&version, MAX_SIGNATURE_MANIFEST).await)
        })
        .buffered(CONCURRENCY);
    while let Some((digest, manifest)) = manifests.next().await {
        let leads = match manifest.map_err(unusable) {
            Ok(manifest) => shape::referrer(&manifest, subject),
            Err(Ok(why)) => vec![Lead::Unreadable(why)],
            Err(Err(gap)) => {
                answers.gaps.push(gap);
                continue;
            }
        };
        answers.add(subject, &digest.to_string(), leads);
    }
    answers
}

/// Tells an answer that says what the registry holds, and that it is of no use, from no answer.
fn unusable(error: RegistryError) -> Result<String, Refusal> {
    let gone = error.is_not_found();
    let refusal = Refusal::from(error);
    match refusal.code {
        _ if gone => Ok("it is listed, and the registry does not have it".into()),
        Code::DigestMismatch | Code::LimitExceeded => Ok(refusal.message),
        _ => Err(refusal),
    }
}

/// Keeps the first claims within the bounds.
fn bound(answers: &mut Answers) {
    let mut bytes = 0;
    let mut fits = |(number, found): (usize, &Found)| {
        bytes += found.lead.blob().map_or(0, |blob| blob.size);
        number < MAX_SIGNATURES && bytes <= MAX_EVIDENCE
    };
    let kept = answers.found.iter().enumerate().take_while(|one| fits(*one)).count();
    if kept < answers.found.len() {
        answers.found.truncate(kept);
        answers.gaps.push(too_many());
    }
}

fn too_many() -> Refusal {
    Refusal::new(
        Code::LimitExceeded,
        format!(
            "there are more signatures than Portcullis looks at, {MAX_SIGNATURES} or {} MiB: \
             remove those that no policy asks for",
            MAX_EVIDENCE >> 20
        ),
    )
}

type Fetched = Result<Vec<u8>, Result<String, Refusal>>;

/// Fetches each blob once: several keys often sign one payload.
async fn fetch(repo: &Repo, found: &[Found]) -> BTreeMap<Blob, Fetched> {
    let wanted: BTreeSet<Blob> = found.iter().filter_map(|one| one.lead.blob()).collect();
    stream::iter(wanted)
        .map(|blob| async move {
            let bytes = match repo.blob(&blob.digest, blob.size).await {
                Ok(bytes) if bytes.len() == blob.size => Ok(bytes.to_vec()),
                // Content must have the size that leads to it (image-spec, "Descriptors").
                Ok(bytes) => Err(Ok(format!(
                    "its manifest says that it has {} bytes, and it has {}",
                    blob.size,
                    bytes.len()
                ))),
                Err(error) => Err(unusable(error)),
            };
            (blob, bytes)
        })
        .buffered(CONCURRENCY)
        .collect()
        .await
}

/// The claim that a lead leads to.
fn body(lead: Lead, blobs: &BTreeMap<Blob, Fetched>) -> Result<UntrustedBody, Refusal> {
    // `fetch` has an entry for the blob of each lead.
    let bytes = match lead.blob().map(|blob| &blobs[&blob]) {
        None => Vec::new(),
        Some(Ok(bytes)) => bytes.clone(),
        Some(Err(Ok(why))) => return Ok(UntrustedBody::Unreadable { why: why.clone() }),
        Some(Err(Err(gap))) => return Err(gap.clone()),
    };
    Ok(match lead {
        Lead::Simple { signature, .. } => {
            UntrustedBody::SimpleSigning { payload: bytes, signature }
        }
        Lead::Bundle(_) => UntrustedBody::Bundle { json: bytes },
        Lead::Unreadable(why) => UntrustedBody::Unreadable { why },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_leads_is_not_kept_and_leaves_a_gap() {
        let mut answers = Answers::default();
        let subject = Digest::of(b"image");
        for _ in 0..3 {
            answers.add(subject, "somewhere", vec![Lead::Unreadable("x".into()); 90]);
        }
        assert_eq!(answers.found.len(), MAX_SIGNATURES + 1);
        bound(&mut answers);
        assert_eq!((answers.found.len(), answers.gaps), (MAX_SIGNATURES, vec![too_many()]));
    }
}
