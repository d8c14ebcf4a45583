//! The reader of the chain: what was written is found again, or its loss is.

use std::{io::BufReader, sync::LazyLock};

use crate::{
    audit::{
        Position,
        chain::{Report, Verifier},
    },
    image::Digest,
};

/// A log as it was written, with `seq` from 1.
const GENUINE: &[u8] = include_bytes!("../seeds/audit/genuine");

/// Where it ends.
static HEAD: LazyLock<Position> = LazyLock::new(|| {
    let lines: Vec<_> = GENUINE.split(|byte| *byte == b'\n').collect();
    let [.., last, b""] = lines[..] else { panic!("the last line has no end") };
    Position { seq: lines.len() as u64 - 1, hash: Digest::of(last) }
});

fn read(files: &[&[u8]], head: Option<Position>, capacity: usize) -> Report {
    let mut verifier = Verifier::new(head);
    for file in files {
        verifier.read("log", BufReader::with_capacity(capacity, *file)).unwrap();
    }
    verifier.finish()
}

/// A log, whoever wrote it.
pub(super) fn chain(input: &[u8]) {
    let report = read(&[input], None, 8192);
    assert_eq!(read(&[input], None, 3), report, "it hangs on how the bytes come");
    let lines: Vec<_> = input.split_inclusive(|byte| *byte == b'\n').collect();
    assert!(report.records <= lines.len() as u64 && report.findings.len() <= 100);
    assert!(report.first <= report.last);
    for finding in &report.findings {
        assert!(finding.message.len() < 400, "{finding:?}");
        assert!(finding.message.chars().all(|c| !c.is_control()), "{finding:?}");
        assert!((1..=lines.len() as u64).contains(&finding.line), "{finding:?}");
    }
    // Rotated anywhere between two lines, it is the same log.
    let middle = lines.len() / 2;
    let (before, behind) = input.split_at(lines[..middle].concat().len());
    let rotated = read(&[before, behind], None, 8192);
    let kinds =
        |report: &Report| report.findings.iter().map(|f| (f.kind, f.seq)).collect::<Vec<_>>();
    assert_eq!(kinds(&rotated), kinds(&report));
    assert_eq!((rotated.first, rotated.last), (report.first, report.last));
    if report.is_whole() {
        let count = report.last.zip(report.first).map_or(0, |(last, first)| last - first + 1);
        assert_eq!((report.records, lines.len() as u64), (count, count));
        assert_eq!(report.more_findings, 0);
    }

    // Beside the head it is whole as it was written, or not at all.
    let held = read(&[input], Some(*HEAD), 8192);
    if !held.is_whole() {
        assert_ne!(input, GENUINE, "what was written is not found again");
        return;
    }
    assert!(report.is_whole());
    let first = report.first.expect("an empty log lacks its tail");
    let written: Vec<_> = GENUINE.split_inclusive(|byte| *byte == b'\n').collect();
    let from = usize::try_from(first).unwrap() - 1;
    assert!(from <= written.len(), "it begins behind the head");
    let kept = &written[from..];
    assert_eq!(lines[..kept.len()], *kept, "a change that the head does not show");
}
