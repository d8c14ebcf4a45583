//! `audit-head` in the state directory: where the chain ended last.
//!
//! The head follows the log: it is written after the line is synced, and not synced itself. After
//! a crash it may lag, and it never leads. Two slots take turns, each with its own checksum, so
//! that a write cut short leaves the other one.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use crate::image::Digest;

use super::{
    Position,
    file::{LogError, create_directory, lock},
};

/// The file's name in the state directory.
pub const FILE_NAME: &str = "audit-head";
/// Bytes of a slot: a disk's smallest sector, which it writes as a whole.
const SLOT: usize = 512;
/// A slot that is just being written is looked at again, this many times.
const LOOKS: usize = 3;

/// What the head file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The end of the chain, where one is kept and readable.
    pub position: Option<Position>,
    /// How many of the two slots are damaged. With one, `position` may be the line before last.
    pub damaged: usize,
}

impl Reading {
    /// What is wrong with the head.
    pub(super) fn finding(&self) -> Option<String> {
        match (self.damaged, self.position) {
            (0, _) => None,
            (_, Some(position)) => Some(format!(
                "one of the two copies of its head is damaged, the other one says seq {}",
                position.seq
            )),
            (_, None) => Some("its head is damaged".to_owned()),
        }
    }
}

/// Reads the head of a log that may be in use.
pub fn read(state_directory: &Path) -> io::Result<Reading> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(state_directory.join(FILE_NAME))?;
    let mut reading = slots(&file)?.0;
    for _ in 1..LOOKS {
        if reading.damaged > 0 {
            reading = slots(&file)?.0;
        }
    }
    Ok(reading)
}

/// The head, open and locked: two daemons never share a state directory.
#[derive(Debug)]
pub(super) struct Head {
    file: File,
    path: PathBuf,
    next: Next,
}

/// Where the next position goes.
#[derive(Debug)]
enum Next {
    Slot(usize),
    /// Into both slots, since one of them holds nothing good.
    Both,
}

impl Head {
    /// Opens or creates the head and its directory.
    pub(super) fn open(state_directory: &Path) -> Result<(Self, Reading), LogError> {
        create_directory(state_directory)?;
        let path = state_directory.join(FILE_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path)
            .map_err(LogError::io("open", &path))?;
        lock(&file, &path)?;
        let (reading, next) = slots(&file).map_err(LogError::io("read", &path))?;
        Ok((Self { file, path, next }, reading))
    }

    /// Keeps the end of the chain. It survives the process at once, a power cut a little later.
    pub(super) fn write(&mut self, position: &Position) -> Result<(), LogError> {
        let slot = encode(position);
        let (bytes, offset) = match self.next {
            Next::Slot(turn) => (slot, turn * SLOT),
            Next::Both => ([&slot[..], &slot].concat(), 0),
        };
        self.file.write_all_at(&bytes, offset as u64).map_err(LogError::io("write", &self.path))?;
        self.next = match self.next {
            Next::Slot(turn) => Next::Slot(1 - turn),
            Next::Both => Next::Slot(0),
        };
        Ok(())
    }

    /// Whether the file is still the one at its path.
    pub(super) fn is_in_place(&self) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let ours = self.file.metadata().map(identity);
        let there = std::fs::symlink_metadata(&self.path).map(identity);
        ours.is_ok_and(|ours| there.is_ok_and(|there| ours == there))
    }

    /// Makes the head survive a power cut as well.
    pub(super) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_all().map_err(LogError::io("sync", &self.path))
    }
}

fn slots(file: &File) -> io::Result<(Reading, Next)> {
    // One byte more than there may be, so that a longer file shows.
    let mut bytes = [0; 2 * SLOT + 1];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if length == 0 {
        return Ok((Reading { position: None, damaged: 0 }, Next::Both));
    }
    if length != 2 * SLOT {
        return Ok((Reading { position: None, damaged: 2 }, Next::Both));
    }
    let (position, damaged, next) = match (decode(&bytes[..SLOT]), decode(&bytes[SLOT..2 * SLOT])) {
        (Some(a), Some(b)) if a.seq > b.seq => (Some(a), 0, Next::Slot(1)),
        (Some(_), Some(b)) => (Some(b), 0, Next::Slot(0)),
        (Some(one), None) | (None, Some(one)) => (Some(one), 1, Next::Both),
        (None, None) => (None, 2, Next::Both),
    };
    Ok((Reading { position, damaged }, next))
}

fn encode(position: &Position) -> Vec<u8> {
    let place = format!("portcullis audit head 1: seq {} {}", position.seq, position.hash);
    let line = format!("{place} check {}", Digest::of(place.as_bytes()).hex());
    format!("{line:<width$}\n", width = SLOT - 1).into_bytes()
}

/// Only what [`encode`] writes is a slot, to the last space.
fn decode(slot: &[u8]) -> Option<Position> {
    let mut words = str::from_utf8(slot).ok()?.split(' ').skip(5);
    let position = Position { seq: words.next()?.parse().ok()?, hash: words.next()?.parse().ok()? };
    (encode(&position) == slot).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Position {
        Position { seq, hash: Digest::of(&seq.to_be_bytes()) }
    }

    fn reading(position: Option<Position>, damaged: usize) -> Reading {
        Reading { position, damaged }
    }

    #[test]
    fn the_last_position_written_is_read_back() {
        let state = tempfile::tempdir().unwrap();
        let (mut head, found) = Head::open(state.path()).unwrap();
        assert_eq!(found, reading(None, 0));
        let mut before = 1;
        for seq in [1, 2, 7, 10, u64::MAX] {
            head.write(&at(seq)).unwrap();
            assert_eq!(read(state.path()).unwrap(), reading(Some(at(seq)), 0));
            // The other slot holds the position before.
            let bytes = std::fs::read(state.path().join(FILE_NAME)).unwrap();
            assert!(bytes.chunks(SLOT).any(|slot| slot == encode(&at(before))), "{seq}");
            before = seq;
        }
        drop(head);
        let (mut head, found) = Head::open(state.path()).unwrap();
        assert_eq!(found, reading(Some(at(u64::MAX)), 0));
        head.write(&at(u64::MAX)).unwrap();
        head.sync().unwrap();
    }

    #[test]
    fn a_flip_anywhere_shows_and_never_makes_another_position() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE_NAME);
        let (mut head, _) = Head::open(state.path()).unwrap();
        head.write(&at(1)).unwrap();
        head.write(&at(2)).unwrap();
        drop(head);
        let good = std::fs::read(&path).unwrap();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1 << (place % 8);
            std::fs::write(&path, &bad).unwrap();
            // The first write fills both slots, the second the first.
            let other = if place < SLOT { at(1) } else { at(2) };
            assert_eq!(read(state.path()).unwrap(), reading(Some(other), 1), "byte {place}");
        }
    }

    #[test]
    fn a_write_cut_short_leaves_the_other_slot() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE_NAME);
        let old = [encode(&at(8)), encode(&at(9))].concat();
        let new = encode(&at(10));
        // Behind the text, both are spaces.
        let text = new.iter().rposition(|byte| !byte.is_ascii_whitespace()).unwrap();
        for written in 0..=text {
            let mut torn = old.clone();
            torn[..written].copy_from_slice(&new[..written]);
            std::fs::write(&path, &torn).unwrap();
            let (mut head, found) = Head::open(state.path()).unwrap();
            assert_eq!(found.position, Some(at(9)), "{written}");
            head.write(&at(11)).unwrap();
            assert_eq!(read(state.path()).unwrap(), reading(Some(at(11)), 0), "{written}");
        }
    }

    #[test]
    fn a_file_of_another_size_is_damaged() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE_NAME);
        let whole = [encode(&at(8)), encode(&at(9)), vec![b' ']].concat();
        for length in (1..=whole.len()).filter(|length| *length != 2 * SLOT) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read(state.path()).unwrap(), reading(None, 2), "{length}");
        }
        std::fs::write(&path, b"").unwrap();
        assert_eq!(read(state.path()).unwrap(), reading(None, 0));
    }

    #[test]
    fn a_second_daemon_is_turned_away() {
        let state = tempfile::tempdir().unwrap();
        let _first = Head::open(state.path()).unwrap();
        let error = Head::open(state.path()).unwrap_err().to_string();
        let path = state.path().join(FILE_NAME);
        assert_eq!(
            error,
            format!(
                "{} is in use by another process: stop it, or give each daemon an audit file and \
                 a state directory of its own",
                path.display()
            )
        );
    }
}
