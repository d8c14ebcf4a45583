//! Sources of signed bundles: asked again and again, and believed only where a pinned key signed.
//!
//! `https.rs` asks a server for a document, `oci.rs` a registry for an artifact. Both remember of
//! the last answer no more than its name and what became of it, so that an answer that is the same
//! again costs neither a download nor a verification. Neither decides what is in force: it tells
//! the keeper, which may refuse what is older than what it had.

mod https;
mod oci;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};

use crate::{
    image::ImageRef,
    problem::{Problem, Problems},
    resolve::{HttpsAddress, Patience, Registry},
    verify::PublicKey,
};

use super::{
    Heard, Offer,
    bundle::{BundleError, Sealed},
    pace::{self, Pace},
};

/// Longest `Retry-After` that is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Longest wait after a failure, where a source is asked more rarely than that.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// Longest wait after the first failure.
const BASE: Duration = Duration::from_secs(1);

/// Where a bundle is.
#[derive(Clone, Debug)]
pub enum Place {
    /// At an address.
    Https {
        /// The address.
        address: HttpsAddress,
        /// A PEM file with the CAs that are trusted, in place of those of the system.
        ca: Option<PathBuf>,
    },
    /// In a registry.
    Oci {
        /// The artifact, by tag or digest.
        image: ImageRef,
        /// Credentials in the form of Docker's config.json, read anew each time.
        credentials: Option<PathBuf>,
        /// The registries as the node knows them.
        registry: Registry,
    },
}

impl fmt::Display for Place {
    /// As it stands in the configuration, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Https { address, .. } => address.fmt(f),
            Place::Oci { image, .. } => write!(f, "oci://{image}"),
        }
    }
}

/// Asks one place, and holds what it says against the pinned keys.
#[derive(Debug)]
pub struct Fetcher {
    name: String,
    keys: Arc<[PublicKey]>,
    asker: Asker,
}

#[derive(Debug)]
enum Asker {
    Https(Box<https::Https>),
    Oci(oci::Oci),
}

/// What came of asking once.
#[derive(Debug)]
pub struct Answer {
    /// What the keeper is told.
    pub heard: Heard,
    /// How long the source asks not to be asked again.
    pub retry_after: Option<Duration>,
}

/// What a place holds, in the words of this module.
enum Found {
    /// A set that a pinned key signed.
    Offer(Box<Offer>),
    /// What was told last, offered or rejected: nothing has changed.
    Same(Outcome),
    /// No set that can be believed.
    Rejected(String),
    /// No answer.
    Failed { why: String, retry_after: Option<Duration> },
}

/// What became of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Offered,
    /// Why not.
    Rejected(String),
}

impl Found {
    fn failed(why: impl Into<String>) -> Self {
        Found::Failed { why: why.into(), retry_after: None }
    }

    /// What is to be remembered of it. None: it may be otherwise the next time.
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Found::Offer(_) => Some(Outcome::Offered),
            Found::Same(outcome) => Some(outcome.clone()),
            Found::Rejected(why) => Some(Outcome::Rejected(why.clone())),
            Found::Failed { .. } => None,
        }
    }
}

impl Fetcher {
    /// Asks this place. Without a key nothing that it says is believed.
    pub fn new(place: Place, keys: Arc<[PublicKey]>) -> Self {
        Self::with_patience(place, keys, Patience::default())
    }

    /// The same, with other limits of time for https.
    pub fn with_patience(place: Place, keys: Arc<[PublicKey]>, patience: Patience) -> Self {
        let name = place.to_string();
        let asker = match place {
            Place::Https { address, ca } => {
                Asker::Https(Box::new(https::Https::new(address, ca, patience)))
            }
            Place::Oci { image, credentials, registry } => {
                Asker::Oci(oci::Oci::new(image, credentials, registry))
            }
        };
        Self { name, keys, asker }
    }

    /// What problems and logs call the place.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks once. With `anew`, nobody's word is taken for it that nothing has changed: it is fetched
    /// again.
    pub async fn ask(&mut self, anew: bool) -> Answer {
        let found = match &mut self.asker {
            Asker::Https(https) => https.ask(&self.keys, anew).await,
            Asker::Oci(oci) => oci.ask(&self.keys, anew).await,
        };
        let rejected =
            |why: String| Heard::Rejected(Problems::from(Problem::of_file(self.name.clone(), why)));
        let (heard, retry_after) = match found {
            Found::Offer(offer) => (Heard::Offer(*offer), None),
            Found::Same(Outcome::Offered) => (Heard::Unchanged, None),
            Found::Same(Outcome::Rejected(why)) | Found::Rejected(why) => (rejected(why), None),
            Found::Failed { why, retry_after } => (Heard::Failed(why), retry_after),
        };
        Answer { heard, retry_after }
    }
}

/// Asks a place every `interval`, give or take a fifth, and tells what it heard; after a failure
/// sooner, with exponential back-off. Asks anew and at once whenever `asked` is notified (by
/// `notify_one`, which is not lost while an answer is awaited). Ends when nobody listens.
pub async fn run(
    mut fetcher: Fetcher,
    interval: Duration,
    tell: mpsc::Sender<Heard>,
    asked: Arc<Notify>,
) {
    let (mut failures, mut anew) = (0, true);
    loop {
        let Answer { heard, retry_after } = fetcher.ask(anew).await;
        failures = match heard {
            Heard::Failed(_) => failures + 1,
            _ => 0,
        };
        if tell.send(heard).await.is_err() {
            return;
        }
        let wait = pause(interval, failures, retry_after, pace::random());
        anew = tokio::select! {
            () = sleep(wait) => false,
            () = asked.notified() => true,
            () = tell.closed() => return,
        };
    }
}

/// How long to wait before a place is asked again, after so many failures in a row.
fn pause(
    interval: Duration,
    failures: u32,
    retry_after: Option<Duration>,
    random: f64,
) -> Duration {
    if failures == 0 {
        return pace::spread(interval, random);
    }
    // Whoever may be asked often need not be left alone for longer because of a failure.
    let pace = Pace { base: BASE, cap: interval.clamp(BASE, MAX_BACKOFF) };
    retry_after.unwrap_or_default().min(MAX_RETRY_AFTER) + pace.delay(failures, random)
}

/// Holds a bundle against the keys, away from the threads that must not wait for that.
async fn open(
    keys: &Arc<[PublicKey]>,
    read: impl FnOnce() -> Result<Sealed, BundleError> + Send + 'static,
) -> Found {
    let keys = keys.clone();
    let opened = tokio::task::spawn_blocking(move || read()?.open(&keys));
    match opened.await {
        Ok(Ok(offer)) => Found::Offer(Box::new(offer)),
        Ok(Err(error)) => Found::Rejected(error.to_string()),
        Err(_) => Found::failed("the bundle could not be read: the program failed at it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_place_is_asked_steadily_and_after_failures_with_care() {
        let minute = 60 * SECOND;
        assert_eq!(pause(minute, 0, None, 0.0), 48 * SECOND);
        assert_eq!(pause(minute, 0, Some(minute), 0.5), minute);
        let longest = |failures| pause(minute, failures, None, 1.0).as_secs();
        assert_eq!([1, 2, 3, 7, 100].map(longest), [1, 2, 4, 60, 60]);
        let rare = |failures| pause(60 * minute, failures, None, 1.0).as_secs();
        assert_eq!([1, 9, 10, 100].map(rare), [1, 256, 300, 300]);
        assert_eq!(pause(Duration::ZERO, 5, None, 1.0), SECOND);
    }

    #[test]
    fn a_server_that_asks_for_time_gets_it_within_bounds() {
        let asks = |seconds| pause(SECOND, 1, Some(seconds * SECOND), 0.0).as_secs();
        assert_eq!([0, 30, 600, u32::MAX].map(asks), [0, 30, 600, 600]);
        // And the nodes do not come back together.
        assert_eq!(pause(SECOND, 1, Some(30 * SECOND), 0.5), 30 * SECOND + SECOND / 2);
    }
}
