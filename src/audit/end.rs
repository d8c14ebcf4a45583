//! Where a log file ends, read from behind: what is whole, what is torn, and whether the line
//! that the head remembers is still the one that was written.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::image::Digest;

use super::{
    Position,
    line::{Link, MAX_LINE},
};

/// How far back the line of the head is looked for, in bytes. Beyond, `audit verify` finds it.
const MAX_WINDOW: u64 = 64 << 20;

/// The end of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Bytes up to and with the newline of the last record.
    pub(super) whole: u64,
    /// Bytes in the file.
    pub(super) length: u64,
    /// The last record.
    pub(super) last: Option<Position>,
    /// The line that was looked for.
    pub(super) known: Known,
}

/// What became of the line that the head remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is there, or the file begins right behind it.
    Same,
    /// The line of that number has another hash.
    Changed,
    /// There is no line of that number within reach.
    Absent,
}

/// Why a log file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Portcullis starts.
    Start,
    /// Another file, or none, stands at the path: log rotation.
    Rotated,
    /// The file is not as long as Portcullis left it.
    Altered,
}

impl End {
    /// After which line the chain goes on, and what is wrong with the file.
    ///
    /// Where the file does not agree with the head, the chain goes on from the head, so that
    /// `audit verify` shows the gap for ever.
    pub(super) fn go_on(
        &self,
        head: Option<&Position>,
        opening: Opening,
    ) -> (Position, Option<String>) {
        let (last, head) = match (self.last, head) {
            (None, None) => return (Position::genesis(), None),
            (None, Some(head)) => {
                let why = match opening {
                    Opening::Rotated => None,
                    Opening::Start => Some("was rotated or removed while Portcullis was down"),
                    Opening::Altered => Some("was emptied in place, which can lose records"),
                };
                let finding =
                    why.map(|why| format!("it {why}; the chain stands at seq {}", head.seq));
                return (*head, finding);
            }
            (Some(last), None) => {
                let finding = format!(
                    "no head is kept beside it, so that its own end, seq {}, is taken; whether \
                     lines behind it were cut off cannot be told",
                    last.seq
                );
                return (last, Some(finding));
            }
            (Some(last), Some(head)) => (last, head),
        };
        if last.seq < head.seq {
            let finding = format!(
                "it ends at seq {}, and seq {} was written: lines are missing",
                last.seq, head.seq
            );
            return (*head, Some(finding));
        }
        match self.known {
            Known::Same => (last, None),
            Known::Changed => (
                Position { seq: last.seq, hash: head.hash },
                Some(format!("the line of seq {} is not the one that was written", head.seq)),
            ),
            // The gap is in the file, or the file begins behind the head: nothing to add to it.
            Known::Absent => (
                last,
                Some(format!("the line of seq {}, which was written, is not found", head.seq)),
            ),
        }
    }
}

/// Reads the end of a file that nobody writes meanwhile. `None`: these are no audit records.
pub(super) fn read(file: &File, known: Option<&Position>) -> io::Result<Option<End>> {
    let length = file.metadata()?.len();
    let mut window = 4 * MAX_LINE as u64;
    loop {
        let start = length.saturating_sub(window);
        // No larger than MAX_WINDOW, which fits into memory.
        let mut bytes = vec![0; (length - start) as usize];
        file.read_exact_at(&mut bytes, start)?;
        match scan(&bytes, start, known) {
            Scan::Done(end) => return Ok(Some(end)),
            Scan::More(_) if start > 0 && window < MAX_WINDOW => window *= 4,
            Scan::More(Some(end)) => return Ok(Some(end)),
            Scan::More(None) if start == 0 && is_torn_first_line(&bytes) => {
                return Ok(Some(End { whole: 0, length, last: None, known: Known::Absent }));
            }
            Scan::More(None) => return Ok(None),
        }
    }
}

/// A first line cut short, or the zeros that a crash leaves in some file systems.
fn is_torn_first_line(bytes: &[u8]) -> bool {
    let start = br#"{"seq":"#;
    let common = bytes.len().min(start.len());
    bytes[..common] == start[..common] || bytes.iter().all(|byte| *byte == 0)
}

enum Scan {
    Done(End),
    /// The window holds too little to tell. This is the answer if there is nothing before it.
    More(Option<End>),
}

fn scan(bytes: &[u8], start: u64, known: Option<&Position>) -> Scan {
    let length = start + bytes.len() as u64;
    let newline_before = |end: usize| bytes[..end].iter().rposition(|byte| *byte == b'\n');
    let mut end: Option<End> = None;
    let mut earliest: Option<Link> = None;
    let mut newline = newline_before(bytes.len());
    while let Some(line_end) = newline {
        newline = newline_before(line_end);
        if newline.is_none() && start > 0 {
            // The window may have cut this line's beginning.
            return Scan::More(end);
        }
        let line = &bytes[newline.map_or(0, |newline| newline + 1)..line_end];
        let Some(link) = Link::read(line) else { continue };
        let here = Position { seq: link.seq, hash: Digest::of(line) };
        let end = end.get_or_insert(End {
            whole: start + line_end as u64 + 1,
            length,
            last: Some(here),
            known: Known::Absent,
        });
        match known {
            Some(known) if known.seq < here.seq => earliest = Some(link),
            Some(known) if *known == here => return Scan::Done(End { known: Known::Same, ..*end }),
            Some(known) if known.seq == here.seq => {
                return Scan::Done(End { known: Known::Changed, ..*end });
            }
            _ => return Scan::Done(*end),
        }
    }
    if let (Some(end), Some(first), Some(known)) = (&mut end, earliest, known)
        && first.seq == known.seq + 1
        && first.prev == known.hash
    {
        end.known = Known::Same;
    }
    Scan::More(end)
}
