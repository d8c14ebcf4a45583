//! Asks registries for evidence about what is in the runtime already: preloaded, imported, or
//! pulled before Portcullis stood here.
//!
//! They are asked without credentials, since no pod stands behind the question, and for the digest
//! that is here: what a tag means there by now is another matter. What comes back is untrusted
//! like all evidence.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use crate::{
    evidence::{self, Entry, Evidence, Known, Store},
    image::{Digest, Repository},
    learn,
    refusal::Code,
    resolve::{Credentials, Registry},
};

/// Longest time that the questions about one image in one repository may take.
const QUESTION: Duration = Duration::from_secs(60);
/// How long a host that failed is not asked again.
const REST: Duration = Duration::from_secs(300);
/// Other policies come into force on all nodes at once: what a registry has answered before is asked
/// again after any wait up to this.
const SPREAD: Duration = Duration::from_secs(60);
/// Failures of a host in one look after which it is left alone: one that is down must not cost a
/// time-out for each image.
pub(crate) const MAX_FAILURES: usize = 3;

/// Who was asked about what. In memory: after a start, all are asked once more.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// By manifest and repository, the policy set under which an answer was last wanted.
    answered: BTreeMap<(Digest, Repository), Digest>,
    /// When a host last failed.
    failed: BTreeMap<String, Instant>,
    /// The policy set of the last look.
    set: Option<Digest>,
    /// Before this moment nobody is asked again about what was answered under another set.
    again: Option<Instant>,
}

impl Asked {
    /// Takes note of the policy set in force; `random` is in `0.0..1.0`.
    pub(super) fn under(&mut self, set: Digest, now: Instant, random: f64) {
        if self.set.replace(set).is_some_and(|before| before != set) {
            self.again = Some(now + SPREAD.mul_f64(random));
        }
    }

    /// How long nobody is asked again for the time being.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        self.again?.checked_duration_since(now)
    }

    /// The repositories to ask about a manifest: those that did not answer under this policy set
    /// and are not at a host that failed a moment ago. Those that answered under another one have
    /// time, since all evidence was wanted then: there may be new signatures, and no more.
    pub(super) fn due(
        &self,
        digest: Digest,
        lacking: &[Repository],
        set: Digest,
        now: Instant,
    ) -> Vec<Repository> {
        let rests = |host: &str| {
            self.failed.get(host).is_some_and(|at| now.saturating_duration_since(*at) < REST)
        };
        let waits = self.rest(now).is_some_and(|rest| !rest.is_zero());
        let due = lacking.iter().filter(|repository| {
            let answered = self.answered.get(&(digest, (*repository).clone()));
            answered.is_none_or(|under| *under != set && !waits) && !rests(repository.registry())
        });
        due.cloned().collect()
    }

    /// Takes note of what came of a question.
    pub(super) fn note(
        &mut self,
        digest: Digest,
        repository: Repository,
        outcome: Outcome,
        set: Digest,
        now: Instant,
    ) {
        match outcome {
            Outcome::Answered => {
                self.answered.insert((digest, repository), set);
            }
            Outcome::Failed => {
                self.failed.insert(repository.registry().to_owned(), now);
            }
            Outcome::LeftOut => {}
        }
    }

    /// Forgets what is not in the runtime any more, and failures that count no longer.
    pub(super) fn retain(&mut self, live: &BTreeSet<Digest>, now: Instant) {
        self.answered.retain(|(digest, _), _| live.contains(digest));
        self.failed.retain(|_, at| now.saturating_duration_since(*at) < REST);
    }
}

/// What came of the questions about an image in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Whatever there is was told, or will not be told to anybody without credentials.
    Answered,
    /// The host did not answer, or not everything.
    Failed,
    /// The host failed too often in this look, and was not asked.
    LeftOut,
}

/// How often each host failed in this look.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<String, usize>>);

impl Failures {
    fn gave_up(&self, host: &str) -> bool {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(host).is_some_and(|failures| *failures >= MAX_FAILURES)
    }

    fn add(&self, host: &str) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(host.to_owned()).or_default();
        *count += 1;
        if *count == MAX_FAILURES {
            tracing::warn!(
                %host,
                "the registry does not answer: it is not asked for evidence about more images now"
            );
        }
    }
}

/// Asks these repositories for evidence about a manifest, and keeps what they say.
pub(super) async fn ask(
    registry: &Registry,
    store: &Store,
    failures: &Failures,
    digest: Digest,
    repositories: Vec<Repository>,
) -> Vec<(Repository, Outcome)> {
    let from = store.clone();
    let known = tokio::task::spawn_blocking(move || from.of_digest(digest)).await;
    let known = known.unwrap_or_default();
    let mut outcomes: BTreeMap<Repository, Outcome> = BTreeMap::new();
    let mut kept = Vec::new();
    for known in known {
        let (mut found, mut whole) = (Evidence::default(), true);
        for repository in &repositories {
            let (evidence, outcome) = question(registry, failures, &known, repository).await;
            whole &= outcome == Outcome::Answered && evidence.gaps.is_empty();
            found.add(evidence);
            // One that failed for one of an index's children failed.
            let all = outcomes.entry(repository.clone()).or_insert(outcome);
            if outcome != Outcome::Answered {
                *all = outcome;
            }
        }
        kept.extend(with(&known, found, whole));
    }
    learn::keep(store, kept).await;
    outcomes.into_iter().collect()
}

async fn question(
    registry: &Registry,
    failures: &Failures,
    known: &Known,
    repository: &Repository,
) -> (Evidence, Outcome) {
    let host = repository.registry();
    if failures.gave_up(host) {
        return (Evidence::default(), Outcome::LeftOut);
    }
    let asked = registry.repo(repository, &Credentials::Anonymous);
    let image = known.resolved(repository);
    let answer = timeout(QUESTION, evidence::gather(&asked, &image)).await;
    let failed = match &answer {
        Ok(evidence) => evidence.gaps.iter().any(|gap| gap.code == Code::RegistryUnreachable),
        Err(_) => true,
    };
    if failed {
        failures.add(host);
    }
    let outcome = if failed { Outcome::Failed } else { Outcome::Answered };
    tracing::debug!(image = %image.image, ?outcome, "asked for evidence");
    (answer.unwrap_or_default(), outcome)
}

/// What is known, with more evidence.
fn with(known: &Known, mut found: Evidence, whole: bool) -> Option<Known> {
    found.add(known.evidence());
    let entry = |entry: &Entry| {
        let digest = entry.manifest.digest;
        let about = found.claims.iter().filter(|claim| claim.subject == digest);
        let claims = about.cloned().collect();
        Entry { manifest: entry.manifest.clone(), claims, whole: whole || entry.whole }
    };
    // The documents are those that belonged together before.
    Known::new(entry(known.top()), known.child().map(entry)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_asked_once_a_policy_set_and_a_host_rests_after_a_failure() {
        let (image, set, other) = (Digest::of(b"image"), Digest::of(b"set"), Digest::of(b"other"));
        let at = |name: &str| format!("{name}/app").parse::<Repository>().unwrap();
        let lacking = [at("a.io"), at("b.io"), at("c.io")];
        let (mut asked, now) = (Asked::default(), Instant::now());
        assert_eq!(asked.due(image, &lacking, set, now), lacking);
        asked.note(image, at("a.io"), Outcome::Answered, set, now);
        asked.note(image, at("b.io"), Outcome::Failed, set, now);
        asked.note(image, at("c.io"), Outcome::LeftOut, set, now);
        assert_eq!(asked.due(image, &lacking, set, now), [at("c.io")]);
        assert_eq!(asked.due(image, &lacking, other, now), [at("a.io"), at("c.io")]);
        assert_eq!(asked.due(Digest::of(b"x"), &lacking, set, now), [at("a.io"), at("c.io")]);
        let rested = now + REST;
        assert_eq!(asked.due(image, &lacking, set, rested), [at("b.io"), at("c.io")]);
        asked.retain(&BTreeSet::new(), rested);
        assert_eq!(asked.due(image, &lacking, set, now), lacking);
    }

    #[test]
    fn after_a_change_of_policies_nodes_ask_again_at_moments_of_their_own() {
        let (image, set, other) = (Digest::of(b"image"), Digest::of(b"set"), Digest::of(b"other"));
        let lacking = ["a.io/app", "b.io/app"].map(|name| name.parse::<Repository>().unwrap());
        let (mut asked, now) = (Asked::default(), Instant::now());
        asked.under(set, now, 0.5);
        assert_eq!(asked.rest(now), None, "the first policies are no change");
        asked.note(image, lacking[0].clone(), Outcome::Answered, set, now);
        asked.under(other, now, 0.5);
        asked.under(other, now + SPREAD / 4, 1.0);
        assert_eq!(asked.rest(now), Some(SPREAD / 2));
        // Who never answered is asked at once.
        assert_eq!(asked.due(image, &lacking, other, now), [lacking[1].clone()]);
        assert_eq!(asked.due(image, &lacking, other, now + SPREAD / 2), lacking);
    }

    #[test]
    fn a_host_is_given_up_after_three_failures() {
        let failures = Failures::default();
        for _ in 0..MAX_FAILURES {
            assert!(!failures.gave_up("a.io"));
            failures.add("a.io");
        }
        assert!(failures.gave_up("a.io") && !failures.gave_up("b.io"));
    }
}
