//! Decides what is in force: of what was kept, of what the source says, of the floor and the time.
//!
//! Nothing here waits: what is heard comes with the moment at which it was heard. In force is the
//! newest set that was ever accepted, or nothing.

mod end;
mod floor;
mod tell;

use std::{path::PathBuf, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::{
    problem::Problems,
    refusal::{Code, Refusal},
};

use super::{
    Current, Heard, Offer, PolicySet, Texts,
    current::unavailable,
    floor::Floor,
    kept::{Kept, Kind, Last},
    source::shown,
    standing::{Standing, Trouble, TroubleKind},
    succession::{NoStep, Step, step},
};

use tell::{first_line, note};

/// What became of what was heard.
#[derive(Clone, Debug)]
pub enum Event {
    /// Another set than the one before is in force.
    Loaded(Arc<PolicySet>),
    /// The set that this node had last is in force, until the source is heard.
    Recalled(Arc<PolicySet>),
    /// What the source or the floor holds is not in force: why. The set that was in force, if any,
    /// still is.
    Rejected(String),
    /// The source was heard, and its set is the one in force: told when somebody asked, and after
    /// any trouble.
    Unchanged(Arc<PolicySet>),
    /// The source cannot be reached: why. The set that was in force, if any, still is.
    Unreachable(String),
    /// The source's set is in force no more: why.
    Expired(String),
}

/// How the keeper is set up.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub kind: Kind,
    /// The source, as people know it.
    pub source: String,
    /// How long a source is believed that is not heard of.
    pub max_age: Option<SignedDuration>,
    /// The floor's directory.
    pub floor: Option<PathBuf>,
}

impl Setup {
    /// The source, before a colon.
    fn name(&self) -> &str {
        self.source.trim_end_matches(':')
    }
}

/// What a directory holds.
pub(super) type Looked<T> = Result<(T, Texts), Problems>;

/// Decides what is in force.
#[derive(Debug)]
pub(super) struct Keeper {
    setup: Setup,
    kept: Kept,
    current: Current,
    standing: watch::Sender<Standing>,
    /// The source's newest set, whether its time is over or not.
    source: Option<Source>,
    /// The floor, or why there is none where there must be one.
    floor: Result<Option<Floor>, String>,
    /// Why the last offer is not in force.
    rejected: Option<Trouble>,
    /// Why the source was not heard.
    unreachable: Option<Trouble>,
    /// Why what the floor's directory holds is not in force.
    floor_rejected: Option<Trouble>,
    /// An offer that could not be kept, or was expired by a clock that may be wrong: for the next
    /// try.
    waiting: Option<Offer>,
    /// That the time of the set is over was told.
    expired: Option<Trouble>,
    /// Why policies could not be kept the last time.
    unkept: Option<String>,
}

#[derive(Debug)]
struct Source {
    set: Arc<PolicySet>,
    expires_at: Option<Timestamp>,
    /// When the source last said that this is its set.
    confirmed: Timestamp,
    since: Timestamp,
}

impl Keeper {
    /// Nothing is in force yet.
    pub(super) fn new(
        setup: Setup,
        kept: Kept,
        current: Current,
        standing: watch::Sender<Standing>,
    ) -> Self {
        let floor = match &setup.floor {
            Some(_) => Err("it has not been read yet".to_owned()),
            None => Ok(None),
        };
        let keeper = Self {
            setup,
            kept,
            current,
            standing,
            source: None,
            floor,
            rejected: None,
            unreachable: None,
            floor_rejected: None,
            waiting: None,
            expired: None,
            unkept: None,
        };
        keeper.compose(true);
        keeper
    }

    /// Puts in force what was kept of the source; `open` reads it.
    pub(super) fn recall(
        &mut self,
        open: impl Fn(&[u8]) -> Result<Offer, String>,
        now: Timestamp,
    ) -> Option<Event> {
        if self.setup.kind == Kind::Bundle && self.kept.last(Kind::Bundle) == Ok(None) {
            self.assume(&open, now);
        }
        let event = match self.recalled(open) {
            Ok(None) => return None,
            Ok(Some((set, expires_at, confirmed))) => {
                let set = Arc::new(set);
                self.source = Some(Source { set, expires_at, confirmed, since: now });
                self.compose(true);
                Some(self.told(Event::Recalled, now))
            }
            Err(why) => self.reject(TroubleKind::NotKept, why, false, now),
        };
        self.publish();
        event
    }

    /// Without the mark, what is kept tells that nothing older may come into force: whoever wiped
    /// the logs has not turned this node back. Nothing tells that it was the newest itself.
    fn assume(&mut self, open: impl Fn(&[u8]) -> Result<Offer, String>, now: Timestamp) {
        let last = |bytes: Vec<u8>| {
            let offer = open(&bytes).ok()?;
            let digest = offer.read("", now).ok()?.digest();
            Some(Last { source: String::new(), revision: offer.revision, digest, confirmed: now })
        };
        let found = self.kept.all().filter_map(last).max_by_key(|last| last.revision);
        if let Some(last) = found {
            tracing::warn!(
                revision = last.revision,
                "there is no mark beside the audit log of the policies that this node had last; \
                 none are accepted that are older than what is kept here"
            );
            self.kept.assume(Kind::Bundle, last);
        }
    }

    fn recalled(
        &self,
        open: impl Fn(&[u8]) -> Result<Offer, String>,
    ) -> Result<Option<(PolicySet, Option<Timestamp>, Timestamp)>, String> {
        let last = self.kept.last(self.setup.kind)?;
        let Some(last) = last.filter(|last| last.source == self.setup.source) else {
            return Ok(None);
        };
        let why = |why| format!("the policies that were kept on this node are of no use: {why}");
        let mut offer = self.kept.bytes(last).and_then(|bytes| open(&bytes)).map_err(why)?;
        if self.setup.kind != Kind::Bundle {
            // The mark says it, and names exactly this set.
            offer.revision = last.revision;
        }
        let set = offer.texts.read(self.setup.name(), last.confirmed);
        let set = set.map_err(|problems| why(problems.to_string()))?;
        // A crash can have left the same set with a later revision, and that is no harm.
        if set.digest() != last.digest || offer.revision < last.revision {
            return Err(why("they are not those that this node had last".into()));
        }
        Ok(Some((set.with_revision(offer.revision), offer.expires_at, last.confirmed)))
    }

    /// Takes in what the source says. `asked`: somebody waits for an answer.
    pub(super) fn hear(&mut self, heard: Heard, asked: bool, now: Timestamp) -> Option<Event> {
        let heard = match (heard, self.waiting.take()) {
            // It still holds what could not come into force, which may be otherwise by now.
            (Heard::Unchanged, Some(offer)) => Heard::Offer(offer),
            (failed @ Heard::Failed(_), waiting) => {
                self.waiting = waiting;
                failed
            }
            (heard, _) => heard,
        };
        let event = match heard {
            Heard::Offer(offer) => match offer.texts.read(self.setup.name(), now) {
                Ok(set) => self.offered(offer, set, asked, now),
                Err(problems) => {
                    self.reject(TroubleKind::Rejected, problems.to_string(), asked, now)
                }
            },
            Heard::Unchanged => self.confirmed(asked, now),
            Heard::Rejected(problems) => {
                self.reject(TroubleKind::Rejected, problems.to_string(), asked, now)
            }
            Heard::Failed(why) => {
                // The API server names itself; a host is not yet the bundle that it has.
                let why = match self.setup.kind {
                    Kind::Bundle => format!("{}: {why}", self.setup.name()),
                    _ => why,
                };
                let told = note(&mut self.unreachable, TroubleKind::Unreachable, &why, now);
                self.compose(false);
                (asked || told).then_some(Event::Unreachable(why))
            }
        };
        self.publish();
        event
    }

    /// Takes in what a directory of policies holds.
    pub(super) fn look(
        &mut self,
        looked: Looked<PolicySet>,
        asked: bool,
        now: Timestamp,
    ) -> Option<Event> {
        let event = match looked {
            Ok((set, texts)) => self.offered(Offer::of_files(texts), set, asked, now),
            Err(problems) => self.reject(TroubleKind::Rejected, problems.to_string(), asked, now),
        };
        self.publish();
        event
    }

    fn offered(
        &mut self,
        offer: Offer,
        set: PolicySet,
        asked: bool,
        now: Timestamp,
    ) -> Option<Event> {
        let kind = self.setup.kind;
        if kind == Kind::Bundle && offer.sealed.is_none() {
            let why = "was not signed; this is a fault in Portcullis".to_owned();
            return self.reject(TroubleKind::Rejected, why, asked, now);
        }
        let (source, digest) = (self.setup.source.clone(), set.digest());
        let offered = Last { source, revision: offer.revision, digest, confirmed: now };
        // A directory is its own proof: a mark that is of no use takes nothing from it.
        let last = match self.kept.last(kind) {
            Ok(last) => last.cloned(),
            Err(_) if kind == Kind::Directory => None,
            Err(why) => {
                let why = why.to_owned();
                return self.reject(TroubleKind::NotKept, why, asked, now);
            }
        };
        let step = match step(kind, last.as_ref(), &offered, offer.expires_at, now) {
            Ok(step) => step,
            Err(no) => {
                let why = format!("{}: {no}", self.setup.name());
                self.waiting = matches!(no, NoStep::Expired(_)).then_some(offer);
                return self.reject(TroubleKind::Rejected, why, asked, now);
            }
        };
        let same = |source: &Source| source.set.digest() == digest;
        let in_force = self.source.as_ref().is_some_and(same);
        let longer = |source: &Source| in_force && source.expires_at != offer.expires_at;
        let renewed = self.source.as_ref().is_some_and(longer)
            || last.is_none_or(|last| {
                last.revision != offered.revision || last.source != offered.source
            });
        if (step == Step::Next || renewed || !self.kept.has(digest))
            && let Err(why) = self.keep(kind, offered, &offer)
            && kind != Kind::Directory
        {
            self.waiting = Some(offer);
            return self.reject(TroubleKind::NotKept, why, asked, now);
        }
        let (revision, expires_at) = (offer.revision, offer.expires_at);
        let since = match &self.source {
            Some(source) if in_force => source.since,
            _ => now,
        };
        let set = Arc::new(set.with_revision(revision));
        let was_expired = self.expired.is_some();
        self.source = Some(Source { set, expires_at, confirmed: now, since });
        self.settle(now);
        let recovered = self.rejected.take().is_some() | self.unreachable.take().is_some();
        let new = !in_force || was_expired && self.expired.is_none();
        self.compose(new);
        match new {
            true => Some(self.told(Event::Loaded, now)),
            false => (asked || recovered).then(|| self.told(Event::Unchanged, now)),
        }
    }

    /// The source was reached, and holds what it offered last.
    fn confirmed(&mut self, asked: bool, now: Timestamp) -> Option<Event> {
        let recovered = self.unreachable.take().is_some();
        if let Some(rejected) = &self.rejected {
            // What it offered last is not in force, so this says nothing for what is.
            return (asked || recovered).then(|| Event::Rejected(rejected.message.clone()));
        }
        let source = self.source.as_mut()?;
        source.confirmed = now;
        self.mark_confirmed(now);
        let was_expired = self.expired.is_some();
        self.settle(now);
        let again = was_expired && self.expired.is_none();
        self.compose(again);
        match again {
            true => Some(self.told(Event::Loaded, now)),
            false => (asked || recovered).then(|| self.told(Event::Unchanged, now)),
        }
    }

    /// What is told of the set that is in force now, or why there is none although the source has
    /// one.
    fn told(&mut self, event: fn(Arc<PolicySet>) -> Event, now: Timestamp) -> Event {
        match (self.current.snapshot(now), self.without_floor()) {
            (Ok(set), _) => event(set),
            (Err(_), Some(why)) => Event::Rejected(why),
            (Err(refusal), None) => {
                note(&mut self.expired, TroubleKind::Expired, &refusal.message, now);
                Event::Expired(refusal.message)
            }
        }
    }

    /// Why there is no floor where there must be one.
    fn without_floor(&self) -> Option<String> {
        let why = self.floor.as_ref().err()?;
        let floor = self.setup.floor.as_deref().map(shown).unwrap_or_default();
        Some(format!("the floor {floor} is not known: {why}"))
    }

    /// Keeps on disk when the source was heard, so that a restart makes no old set young. Not each
    /// time: a twentieth of what it is measured by is close enough.
    fn mark_confirmed(&mut self, now: Timestamp) {
        let (Some(max_age), Ok(Some(last))) = (self.setup.max_age, self.kept.last(self.setup.kind))
        else {
            return;
        };
        let since = now.duration_since(last.confirmed);
        if since >= max_age / 20 || since.is_negative() {
            let last = Last { confirmed: now, ..last.clone() };
            if let Err(why) = self.kept.mark(self.setup.kind, last) {
                tracing::warn!("{why}; after a restart the policies seem older than they are");
            }
        }
    }

    fn reject(
        &mut self,
        kind: TroubleKind,
        why: String,
        asked: bool,
        now: Timestamp,
    ) -> Option<Event> {
        self.unreachable = None;
        let told = note(&mut self.rejected, kind, &why, now);
        self.compose(false);
        (asked || told).then_some(Event::Rejected(why))
    }

    /// Keeps a set; the error is a sentence, and was logged.
    fn keep(&mut self, kind: Kind, last: Last, offer: &Offer) -> Result<(), String> {
        match self.kept.keep(kind, last, &offer.to_bytes()) {
            Ok(None) => {
                self.unkept = None;
                Ok(())
            }
            Ok(Some(why)) => {
                self.warn(&why);
                Ok(())
            }
            Err(why) => {
                // A directory is in force all the same, and must not come back as it was before.
                if matches!(kind, Kind::Directory | Kind::Floor) {
                    self.kept.forget(kind);
                }
                self.warn(&why);
                Err(why)
            }
        }
    }

    /// Logs once why policies are not kept.
    fn warn(&mut self, why: &str) {
        if self.unkept.as_deref() != Some(why) {
            tracing::warn!("policies are not kept for the next start: {why}");
            self.unkept = Some(why.to_owned());
        }
    }

    /// Puts in force what follows from all of it. `told`: that is another set than before.
    fn compose(&self, told: bool) {
        let (now, later) = match (&self.source, &self.floor) {
            (_, Err(_)) => (Err(unavailable(&self.without_floor().unwrap_or_default())), None),
            (None, Ok(None)) => (Err(unavailable(&self.why())), None),
            (None, Ok(Some(floor))) => {
                let message = format!(
                    "of the policies on this node there is the floor alone, which does not match \
                     this image: {}",
                    self.why()
                );
                let refusal = Refusal::new(Code::PolicyUnavailable, message);
                (Ok(Arc::new(floor.alone(None, refusal))), None)
            }
            (Some(source), Ok(floor)) => {
                let set = match floor {
                    Some(floor) => Arc::new(floor.beside(&source.set)),
                    None => source.set.clone(),
                };
                let later = self.end().map(|(at, refusal)| {
                    let left = match floor {
                        Some(floor) => Ok(Arc::new(floor.alone(Some(&source.set), refusal))),
                        None => Err(refusal),
                    };
                    (at, left)
                });
                (Ok(set), later)
            }
        };
        self.current.put(now, later, told);
    }
}

#[cfg(test)]
mod tests;
