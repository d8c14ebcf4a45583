//! A bundle at an https address.

use std::{path::PathBuf, sync::Arc};

use http::HeaderValue;

use crate::{
    image::Digest,
    policy::bundle::{MAX_BUNDLE, Sealed},
    resolve::{Download, Downloaded, HttpsAddress, Patience},
    verify::PublicKey,
};

use super::{Found, Outcome, open};

/// How often in a row a server is believed that the document has not changed. Then it must show it:
/// one whose `ETag` stands still would hide every change for ever.
const MAX_NOT_MODIFIED: u32 = 60;

/// An address, and what it had last.
#[derive(Debug)]
pub(super) struct Https {
    download: Download,
    last: Option<Last>,
}

/// The last document that came whole.
#[derive(Debug)]
struct Last {
    digest: Digest,
    /// Sent with that very document.
    etag: Option<HeaderValue>,
    /// How often in a row the server said that it is still the one.
    not_modified: u32,
    outcome: Outcome,
}

impl Https {
    pub(super) fn new(address: HttpsAddress, ca: Option<PathBuf>, patience: Patience) -> Self {
        Self { download: Download::new(address, ca, patience), last: None }
    }

    pub(super) async fn ask(&mut self, keys: &Arc<[PublicKey]>, anew: bool) -> Found {
        let last = self.last.as_ref().filter(|last| !anew && last.not_modified < MAX_NOT_MODIFIED);
        let held = last.and_then(|last| last.etag.as_ref());
        let (body, etag) = match (self.download.ask(held, MAX_BUNDLE).await, &mut self.last) {
            (Ok(Downloaded::Document { body, etag }), _) => (body, etag),
            (Ok(Downloaded::NotModified), Some(last)) => {
                last.not_modified += 1;
                return Found::Same(last.outcome.clone());
            }
            (Ok(Downloaded::NotModified), None) => {
                return Found::failed("the server says that nothing changed, and nothing is held");
            }
            (Err(fault), _) if fault.too_large => return Found::Rejected(fault.why),
            (Err(fault), _) => {
                return Found::Failed { why: fault.why, retry_after: fault.retry_after };
            }
        };
        let digest = Digest::of(&body);
        if let Some(last) = self.last.as_mut().filter(|last| !anew && last.digest == digest) {
            (last.etag, last.not_modified) = (etag, 0);
            return Found::Same(last.outcome.clone());
        }
        let found = open(keys, move || Sealed::parse(&body[..])).await;
        let last = |outcome| Last { digest, etag, not_modified: 0, outcome };
        if let Some(outcome) = found.outcome() {
            self.last = Some(last(outcome));
        }
        found
    }
}
