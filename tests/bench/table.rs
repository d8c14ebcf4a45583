//! What every benchmark shares: samples, and tables in Markdown on standard output. Progress goes
//! to standard error.

use std::time::Duration;

/// Durations of one kind.
#[derive(Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The sample that so many percent are not above, in microseconds.
    pub(crate) fn at(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted[sorted.len() * percent / 100].as_nanos() as f64 / 1000.0
    }
}

/// A heading of `RESULTS.md`.
pub(crate) fn heading(text: &str) {
    println!("\n### {text}\n");
    progress(text);
}

/// A line of a table; the first one is its head.
pub(crate) fn row(cells: &[&str]) {
    println!("| {} |", cells.join(" | "));
}

/// The first line of a table, and what stands below.
pub(crate) fn head(cells: &[&str]) {
    row(cells);
    println!("|{}", " --- |".repeat(cells.len()));
}

/// Tells who waits what is going on.
pub(crate) fn progress(what: &str) {
    eprintln!("bench: {what}");
}

/// Whether a figure is within its budget, for the last column.
pub(crate) fn verdict(figure: f64, budget: f64) -> &'static str {
    if figure <= budget { "yes" } else { "**no**" }
}

/// Microseconds, as many digits as mean something.
pub(crate) fn us(figure: f64) -> String {
    format!("{figure:.1}")
}

/// Microseconds as milliseconds.
pub(crate) fn ms(figure: f64) -> String {
    format!("{:.2}", figure / 1000.0)
}
