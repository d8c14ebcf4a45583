//! The reader of the chain: tells what was changed, dropped, repeated or reordered.
//!
//! A line vouches for the one before it, and the head for the last one. So a change shows at the
//! next line, and a cut tail only to who holds the head. Lines dropped from the beginning show
//! as a chain that begins later: log rotation does the same.

use std::io::{self, BufRead, Read as _};

use serde::Serialize;

use crate::image::Digest;

pub use super::head::{FILE_NAME as HEAD_FILE_NAME, Reading as HeadReading, read as read_head};
use super::{
    Position,
    line::{Link, MAX_LINE},
};

/// Most findings that are kept; the others are counted.
const MAX_FINDINGS: usize = 100;

/// What is wrong, in snake_case for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A line is not the one that the next line, or the head, was chained to.
    Changed,
    /// Numbers are left out.
    Missing,
    /// A line stands behind one with a higher number.
    OutOfOrder,
    /// Two lines have one number.
    Duplicate,
    /// A line is no audit record, or too long for one.
    Unreadable,
    /// The last line of a file has no end.
    Torn,
    /// The head is further than the last line.
    TailMissing,
    /// The head is before the first line.
    HeadBehind,
}

/// One break of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// The file, as the caller named it.
    pub file: String,
    /// The line, counted from one.
    pub line: u64,
    /// The number that the line has, or should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// For people.
    pub message: String,
}

/// What the files hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Lines that are audit records.
    pub records: u64,
    /// `seq` of the first record. Above one, earlier files were not read, or lines are dropped.
    pub first: Option<u64>,
    /// The highest `seq`.
    pub last: Option<u64>,
    /// The breaks, in the order of the lines.
    pub findings: Vec<Finding>,
    /// Breaks beyond those.
    pub more_findings: u64,
}

impl Report {
    /// Whether nothing is wrong. An empty log is whole too; look at `records`.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Reads the files of one log, oldest first, and keeps a few lines of memory at a time.
#[derive(Debug)]
pub struct Verifier {
    head: Option<Position>,
    head_met: bool,
    report: Report,
    /// The line with the highest number so far.
    last: Option<Last>,
    /// Unreadable lines since.
    unreadable: u64,
    file: String,
    line: u64,
}

#[derive(Debug)]
struct Last {
    position: Position,
    file: String,
    line: u64,
}

impl Verifier {
    /// Begins. The head, where the caller has it, must be read before the files are.
    pub fn new(head: Option<Position>) -> Self {
        Self {
            head,
            head_met: false,
            report: Report::default(),
            last: None,
            unreadable: 0,
            file: String::new(),
            line: 0,
        }
    }

    /// Reads the next file to its end. `name` is for findings.
    pub fn read(&mut self, name: &str, mut reader: impl BufRead) -> io::Result<()> {
        name.clone_into(&mut self.file);
        self.line = 0;
        let mut line = Vec::new();
        loop {
            self.line += 1;
            match read_line(&mut reader, &mut line)? {
                Read::Line => self.examine(&line),
                Read::Long => self.unreadable(format!("is longer than {MAX_LINE} bytes")),
                Read::Torn => {
                    let message = format!("ends after {} bytes, without a newline", line.len());
                    self.find(FindingKind::Torn, None, message);
                }
                Read::End => return Ok(()),
            }
        }
    }

    /// What was found in all files.
    pub fn finish(mut self) -> Report {
        let last = self.last.as_ref().map_or(0, |last| last.position.seq);
        if let Some(head) = self.head
            && !self.head_met
        {
            if head.seq > last {
                if let Some(last) = &self.last {
                    (self.file, self.line) = (last.file.clone(), last.line);
                }
                let message = format!("the log ends here, and its head is seq {}", head.seq);
                self.find(FindingKind::TailMissing, Some(last + 1), message);
            } else if self.report.first.is_some_and(|first| first > head.seq) {
                let message = format!(
                    "the head, seq {}, is before all lines: it is an older one, or of another log",
                    head.seq
                );
                self.find(FindingKind::HeadBehind, Some(head.seq), message);
            }
        }
        self.report
    }

    fn examine(&mut self, line: &[u8]) {
        let Some(link) = Link::read(line) else {
            return self.unreadable("is no audit record".to_owned());
        };
        let here = Position { seq: link.seq, hash: Digest::of(line) };
        self.report.records += 1;
        self.compare_with_head(&link, &here);
        let unreadable = std::mem::take(&mut self.unreadable);
        let Some(last) = &self.last else {
            self.report.first = Some(link.seq);
            if link.seq == 1 && link.prev != Position::genesis().hash {
                let message = "is the first one, and its prev is not that of a first line";
                self.find(FindingKind::Changed, Some(1), message.to_owned());
            }
            return self.step(here);
        };
        let before = last.position;
        if link.seq > before.seq {
            self.compare_with_last(&link, unreadable);
            return self.step(here);
        }
        if link.seq < before.seq {
            let message = format!("seq {} stands behind seq {}", link.seq, before.seq);
            return self.find(FindingKind::OutOfOrder, Some(link.seq), message);
        }
        let message = match here.hash == before.hash {
            true => format!("repeats seq {}", link.seq),
            false => format!("is another line with seq {}", link.seq),
        };
        self.find(FindingKind::Duplicate, Some(link.seq), message);
    }

    /// A line with a higher number than all before it.
    fn compare_with_last(&mut self, link: &Link, unreadable: u64) {
        let Some(last) = &self.last else { return };
        let due = last.position.seq + 1;
        if link.seq == due {
            if link.prev != last.position.hash {
                let message = format!(
                    "seq {} is not the line that was written: seq {due} holds the hash of another",
                    last.position.seq
                );
                let (file, line) = (last.file.clone(), last.line);
                self.find_at(FindingKind::Changed, file, line, Some(due - 1), message);
            }
        } else if link.seq - due > unreadable {
            // Otherwise the unreadable lines stand where these lines were.
            let until = link.seq - 1;
            let message = match until == due {
                true => format!("seq {due} is missing before it"),
                false => format!("seq {due} to {until} are missing before it"),
            };
            self.find(FindingKind::Missing, Some(due), message);
        }
    }

    fn compare_with_head(&mut self, link: &Link, here: &Position) {
        let Some(head) = self.head else { return };
        if link.seq == head.seq {
            if here.hash != head.hash {
                let message = format!("seq {} is not the line that the head stands for", head.seq);
                self.find(FindingKind::Changed, Some(head.seq), message);
            }
            self.head_met = true;
        } else if self.last.is_none() && link.seq == head.seq + 1 && link.prev == head.hash {
            // Rotated right behind the head, which lags by a moment.
            self.head_met = true;
        }
    }

    fn step(&mut self, position: Position) {
        self.report.last = Some(position.seq);
        self.last = Some(Last { position, file: self.file.clone(), line: self.line });
    }

    fn unreadable(&mut self, message: String) {
        self.unreadable += 1;
        self.find(FindingKind::Unreadable, None, message);
    }

    fn find(&mut self, kind: FindingKind, seq: Option<u64>, message: String) {
        self.find_at(kind, self.file.clone(), self.line, seq, message);
    }

    fn find_at(
        &mut self,
        kind: FindingKind,
        file: String,
        line: u64,
        seq: Option<u64>,
        message: String,
    ) {
        match self.report.findings.len() < MAX_FINDINGS {
            true => self.report.findings.push(Finding { kind, file, line, seq, message }),
            false => self.report.more_findings += 1,
        }
    }
}

/// What [`read_line`] met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// A line, now in the buffer without its newline.
    Line,
    /// A line longer than [`MAX_LINE`], skipped.
    Long,
    /// Bytes without a newline at the end of the file, now in the buffer.
    Torn,
    /// Nothing more.
    End,
}

/// Reads a line into the buffer, whatever its length, in bounded memory.
pub(crate) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Read> {
    line.clear();
    reader.take(MAX_LINE as u64).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Read::Line);
    }
    match line.len() {
        0 => return Ok(Read::End),
        length if length < MAX_LINE => return Ok(Read::Torn),
        _ => {}
    }
    loop {
        let chunk = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            chunk => chunk?,
        };
        let (skipped, ended) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(newline) => (newline + 1, true),
            None => (chunk.len(), chunk.is_empty()),
        };
        reader.consume(skipped);
        if ended {
            return Ok(Read::Long);
        }
    }
}
