//! What was measured, and the table of it.

use std::time::Duration;

use crate::load::Block;

/// All blocks of one contender in one cell, in the order of the rounds.
#[derive(Default)]
pub(crate) struct Measured {
    latencies: Vec<Duration>,
    /// Of each round: the median latency and the calls a second.
    rounds: Vec<(f64, f64)>,
}

impl Measured {
    pub(crate) fn add(&mut self, mut block: Block) {
        block.latencies.sort_unstable();
        let median = micros(block.latencies[block.latencies.len() / 2]);
        self.rounds.push((median, block.latencies.len() as f64 / block.took.as_secs_f64()));
        self.latencies.extend(block.latencies);
    }

    /// The row of this contender. Differences and ratios are those of each round to the same
    /// round of `direct`, and then the median of these.
    pub(crate) fn row(&mut self, direct: &[(f64, f64)]) -> String {
        self.latencies.sort_unstable();
        let at = |share: usize| micros(self.latencies[self.latencies.len() * share / 100]);
        let rates = median(self.rounds.iter().map(|(_, rate)| *rate));
        let paired = || self.rounds.iter().zip(direct);
        let added = median(paired().map(|(own, direct)| own.0 - direct.0));
        let ratio = median(paired().map(|(own, direct)| own.1 / direct.1));
        format!("{:.0} | {:.0} | {rates:.0} | {added:+.0} | {ratio:.2}", at(50), at(99))
    }

    pub(crate) fn rounds(&self) -> Vec<(f64, f64)> {
        self.rounds.clone()
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
