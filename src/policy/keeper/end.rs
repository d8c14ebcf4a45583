//! The end of a set's time, and what is to be done without anything being heard.

use super::{Code, Event, Heard, Keeper, Refusal, Timestamp, TroubleKind, note};

impl Keeper {
    /// Tells that the time of the set in force is over, or that a clock that was set back gave it
    /// time again; else tries anew what could not be kept.
    pub(in crate::policy) fn tick(&mut self, now: Timestamp) -> Option<Event> {
        let over = self.end().filter(|(until, _)| *until <= now);
        if let Some((_, Refusal { message, .. })) = over {
            if note(&mut self.expired, TroubleKind::Expired, &message, now) {
                self.compose(true);
                self.publish();
                return Some(Event::Expired(message));
            }
        } else if self.expired.take().is_some() {
            self.compose(true);
            self.publish();
            return self.current.snapshot(now).ok().map(Event::Loaded);
        }
        let not_kept = self.rejected.as_ref().is_some_and(|it| it.kind == TroubleKind::NotKept);
        let offer = self.waiting.take_if(|_| not_kept)?;
        self.hear(Heard::Offer(offer), false, now)
    }

    /// When there is something to do without anything being heard.
    pub(in crate::policy) fn next(&self) -> Option<Timestamp> {
        self.end().map(|(until, _)| until).filter(|_| self.expired.is_none())
    }

    /// When the time of the source's set is over, and what is said from then on.
    pub(super) fn end(&self) -> Option<(Timestamp, Refusal)> {
        let source = self.source.as_ref()?;
        let name = &self.setup.source;
        let expired = |message: String| Refusal::new(Code::PolicyExpired, message);
        let by_itself = source.expires_at.map(|at| {
            let message = format!(
                "the policies of this node expired at {at:.0}; {name} must offer newer ones"
            );
            (at, expired(message))
        });
        let by_silence = self.setup.max_age.map(|max_age| {
            // Beyond the end of time is never.
            let at = source.confirmed.checked_add(max_age).unwrap_or(Timestamp::MAX);
            let message = format!(
                "{name} was not heard of for longer than policy.max_age, which is {max_age:#}; \
                 until it is, the policies of this node are not in force"
            );
            (at, expired(message))
        });
        by_itself.into_iter().chain(by_silence).min_by_key(|(at, _)| *at)
    }

    /// Forgets that the time was over, if it is not any more.
    pub(super) fn settle(&mut self, now: Timestamp) {
        if self.end().is_none_or(|(until, _)| now < until) {
            self.expired = None;
        }
    }
}
