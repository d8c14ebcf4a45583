//! Which Events are worth their cost. Pure; time is a value.
//!
//! kubelet tries an image that was refused again and again, in each pod that wants it.

use std::{collections::HashMap, time::Duration};

use crate::image::Digest;

/// The same is told again after this.
const REPEATED: Duration = Duration::from_secs(10 * 60);
/// Most that is remembered to have been told.
const MAX_TOLD: usize = 1024;
/// How many can be told at once.
const BURST: u32 = 25;
/// From one to the next after that.
const REFILL: Duration = Duration::from_secs(5);

/// What was told when. Times are counted from any one moment.
#[derive(Debug)]
pub(super) struct Ration {
    told: HashMap<Digest, Duration>,
    tokens: u32,
    /// The tokens are those of this moment.
    filled: Duration,
}

impl Ration {
    pub(super) fn new() -> Self {
        Self { told: HashMap::new(), tokens: BURST, filled: Duration::ZERO }
    }

    /// Whether this may be told now; it counts as told then.
    pub(super) fn allows(&mut self, what: Digest, now: Duration) -> bool {
        let is_told = |told: &Duration| now.saturating_sub(*told) < REPEATED;
        if self.told.get(&what).is_some_and(is_told) {
            return false;
        }
        let gained = now.saturating_sub(self.filled).as_secs() / REFILL.as_secs();
        let gained = gained.min(BURST.into()) as u32;
        self.tokens = BURST.min(self.tokens + gained);
        self.filled = if self.tokens == BURST { now } else { self.filled + REFILL * gained };
        let Some(tokens) = self.tokens.checked_sub(1) else { return false };
        self.tokens = tokens;
        if self.told.len() >= MAX_TOLD {
            self.told.retain(|_, told| is_told(told));
        }
        if self.told.len() >= MAX_TOLD {
            let oldest = self.told.iter().min_by_key(|(_, told)| **told);
            let oldest = oldest.map(|(what, _)| *what);
            oldest.and_then(|oldest| self.told.remove(&oldest));
        }
        self.told.insert(what, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn one(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    #[test]
    fn the_same_is_told_once_in_ten_minutes() {
        let mut ration = Ration::new();
        assert!(ration.allows(one(1), SECOND));
        for second in [1, 2, 300, 600] {
            assert!(!ration.allows(one(1), second * SECOND), "{second}");
        }
        assert!(ration.allows(one(2), 600 * SECOND));
        assert!(ration.allows(one(1), 601 * SECOND));
        assert!(!ration.allows(one(1), 602 * SECOND));
    }

    #[test]
    fn a_burst_is_told_and_then_one_in_five_seconds() {
        let mut ration = Ration::new();
        let told = |ration: &mut Ration, from: u32, second: u32| {
            (from..from + 100).filter(|number| ration.allows(one(*number), second * SECOND)).count()
        };
        assert_eq!(told(&mut ration, 0, 0), 25);
        assert_eq!(told(&mut ration, 100, 4), 0);
        assert_eq!(told(&mut ration, 200, 5), 1);
        assert_eq!(told(&mut ration, 300, 9), 0);
        assert_eq!(told(&mut ration, 400, 11), 1);
        // Time that no whole token has come of is not lost.
        assert_eq!(told(&mut ration, 500, 15), 1);
        assert_eq!(told(&mut ration, 600, 10_000), 25);
        // What was not told is not taken for told.
        assert!(ration.allows(one(150), 10_005 * SECOND));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_loses_the_oldest_first() {
        let mut ration = Ration::new();
        let most = MAX_TOLD as u32;
        // A second more than it takes for a token, and never ten minutes.
        for number in 0..=most {
            ration.tokens = BURST;
            assert!(ration.allows(one(number), SECOND + number * Duration::from_millis(100)));
        }
        assert_eq!(ration.told.len(), MAX_TOLD);
        let now = SECOND + most * Duration::from_millis(100);
        ration.tokens = BURST;
        assert!(!ration.allows(one(1), now) && ration.allows(one(0), now));
        ration.tokens = BURST;
        // What is over ten minutes old is forgotten first.
        assert!(ration.allows(one(most + 1), now + 700 * SECOND));
        assert_eq!(ration.told.len(), 1);
    }
}
