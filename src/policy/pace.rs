//! When a source of policies is asked again: pure, with chance as a value.
//!
//! Ten thousand nodes have one control plane. What they do at the same moment, because it came
//! back or because they were started together, must not stay at the same moment.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// How far a steady interval is spread, as a part of it, to either side.
const SPREAD: f64 = 0.2;

/// How soon to ask again what has failed: exponential back-off with full jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Longest wait after the first failure; doubled after each further one.
    pub base: Duration,
    /// Longest wait after any.
    pub cap: Duration,
}

impl Pace {
    /// How long to wait after so many failures in a row: anything from nothing up to the bound
    /// that doubles with each. `random` is in `0.0..1.0`.
    pub fn delay(self, failures: u32, random: f64) -> Duration {
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
        self.base.saturating_mul(doubled).min(self.cap).mul_f64(part(random))
    }
}

/// An interval, up to 20 % shorter or longer. `random` is in `0.0..1.0`.
pub fn spread(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(1.0 + SPREAD * (2.0 * part(random) - 1.0))
}

/// A number in `0.0..1.0` that differs from node to node and from call to call. Good for waiting,
/// and not for secrets.
pub fn random() -> f64 {
    // As many bits as an f64 has.
    let bits = RandomState::new().hash_one(0u8) >> (u64::BITS - f64::MANTISSA_DIGITS);
    bits as f64 / (1u64 << f64::MANTISSA_DIGITS) as f64
}

/// Whatever comes, a part of the whole.
fn part(random: f64) -> f64 {
    if random.is_finite() { random.clamp(0.0, 1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PACE: Pace = Pace { base: SECOND, cap: Duration::from_secs(300) };

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let bounds = [0, 1, 2, 3, 9, 10, 33, u32::MAX].map(|n| PACE.delay(n, 1.0).as_secs());
        assert_eq!(bounds, [1, 1, 2, 4, 256, 300, 300, 300]);
        let long = Pace { base: Duration::MAX, cap: PACE.cap };
        assert_eq!(long.delay(u32::MAX, 1.0), PACE.cap);
    }

    #[test]
    fn chance_takes_any_part_of_it() {
        assert_eq!(PACE.delay(3, 0.0), Duration::ZERO);
        assert_eq!(PACE.delay(3, 0.5), 2 * SECOND);
        assert_eq!(spread(10 * SECOND, 0.0), 8 * SECOND);
        assert_eq!(spread(10 * SECOND, 0.5), 10 * SECOND);
        assert_eq!(spread(10 * SECOND, 1.0), 12 * SECOND);
    }

    #[test]
    fn what_is_no_chance_is_the_longest_wait_and_no_panic() {
        for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 7.0] {
            assert_eq!(PACE.delay(1, wrong), SECOND);
            assert_eq!(spread(10 * SECOND, wrong), 12 * SECOND);
        }
        assert_eq!(PACE.delay(1, -1.0), Duration::ZERO);
    }

    #[test]
    fn chance_is_a_part_and_differs() {
        let drawn: Vec<f64> = (0..1000).map(|_| random()).collect();
        assert!(drawn.iter().all(|one| (0.0..1.0).contains(one)));
        let mean = drawn.iter().sum::<f64>() / 1000.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
        assert!(drawn.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
