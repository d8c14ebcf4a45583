//! What was measured, and the table of it.

use std::{fs, time::Duration};

use crate::load::Block;

/// All blocks of one contender in one cell, in the order of the rounds.
#[derive(Default)]
pub(crate) struct Measured {
    latencies: Vec<Duration>,
    /// Of each round: the median latency and the calls a second.
    rounds: Vec<(f64, f64)>,
    /// What its process ran for them.
    cpu: Duration,
}

impl Measured {
    pub(crate) fn add(&mut self, mut block: Block, cpu: Duration) {
        self.cpu += cpu;
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
        let cpu = micros(self.cpu) / self.latencies.len() as f64;
        format!("{:.0} | {:.0} | {rates:.0} | {added:+.0} | {ratio:.2} | {cpu:.1}", at(50), at(99))
    }

    pub(crate) fn rounds(&self) -> Vec<(f64, f64)> {
        self.rounds.clone()
    }
}

/// How long the threads of a process have run. None: there is none to ask of.
pub(crate) fn cpu_time(process: Option<u32>) -> Duration {
    let threads = process.and_then(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    let ran = |thread: fs::DirEntry| {
        // The first number is nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst).
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(" ").next()?.parse::<u64>().ok()
    };
    let ran = threads.into_iter().flatten().flatten().filter_map(ran);
    Duration::from_nanos(ran.sum())
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
