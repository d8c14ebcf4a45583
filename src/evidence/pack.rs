//! Packs: evidence that is carried from node to node in a file.
//!
//! JSON Lines. The first line says what the file is, `{"portcullis":"evidence","version":1}`;
//! each other one is a document as the store keeps it (`document.rs`). Nobody
//! vouches for a pack, and nobody has to: a line is about the image that its manifests say, and
//! its claims count when a signature holds.

use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};

use crate::json;

use super::{
    Known,
    document::{self, DocumentError, MAX_DOCUMENT},
    store::MAX_IMAGES,
};

/// Most images in a pack.
const MAX_PACKED: usize = MAX_IMAGES;
/// Most bytes of a pack, as many as the store keeps.
const MAX_PACK: u64 = 256 << 20;

const KIND: &str = "evidence";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    portcullis: String,
    version: u32,
}

/// Why a pack is not read any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct PackError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// Writes a pack. Fails with the output, or where something that is known is too large.
pub fn write(mut out: impl Write, known: impl Iterator<Item = Known>) -> io::Result<()> {
    let head = Head { portcullis: KIND.to_owned(), version: VERSION };
    let mut line = serde_json::to_vec(&head)?;
    let mut lines = known.map(|known| document::encode(&known.noted([])).map_err(io::Error::other));
    loop {
        line.push(b'\n');
        out.write_all(&line)?;
        match lines.next() {
            Some(next) => line = next?,
            None => return out.flush(),
        }
    }
}

/// Reads a pack: what each line says is known, up to the first line that is wrong. Whoever imports
/// reads it all first.
pub fn read(pack: impl BufRead) -> impl Iterator<Item = Result<Known, PackError>> {
    Lines { pack: pack.take(MAX_PACK + 1), line: 0, bytes: 0, ended: false }
}

struct Lines<R> {
    pack: io::Take<R>,
    /// The last one that was read.
    line: usize,
    /// All that was read.
    bytes: u64,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// The next line without its newline, and whether it had one: the last one may do without.
    /// None: that was all.
    fn line(&mut self) -> Result<Option<(Vec<u8>, bool)>, String> {
        self.line += 1;
        let mut line = Vec::new();
        let limit = MAX_DOCUMENT as u64 + 1;
        let read = self.pack.by_ref().take(limit).read_until(b'\n', &mut line);
        let read = read.map_err(|error| format!("cannot be read: {error}"))?;
        self.bytes += read as u64;
        if self.bytes > MAX_PACK {
            return Err(format!("the pack has more than {} MiB", MAX_PACK >> 20));
        }
        let ended = line.last() == Some(&b'\n');
        if ended {
            line.pop();
        } else if line.len() > MAX_DOCUMENT {
            return Err(DocumentError::Long(line.len()).to_string());
        }
        Ok((read > 0).then_some((line, ended)))
    }

    fn known(&mut self) -> Result<Option<Known>, String> {
        if self.line == 0 {
            let (line, _) = self.line()?.unwrap_or_default();
            head(&line)?;
        }
        let Some((line, ended)) = self.line()? else { return Ok(None) };
        if self.line > MAX_PACKED + 1 {
            return Err(format!("the pack has more than {MAX_PACKED} images"));
        }
        document::decode(&line).map(Some).map_err(|error| match error {
            DocumentError::Json(_) if !ended => {
                "the pack ends too soon; export it again".to_owned()
            }
            error => error.to_string(),
        })
    }
}

fn head(line: &[u8]) -> Result<(), String> {
    let head: Result<Head, _> = json::read(line);
    match head {
        Ok(head) if head.portcullis == KIND && head.version == VERSION => Ok(()),
        Ok(head) if head.portcullis == KIND => Err(format!(
            "the pack is of version {}, and this program reads version {VERSION}",
            head.version
        )),
        _ => Err("this is no pack, as \"portcullis evidence export\" writes it".to_owned()),
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Known, PackError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.known().map_err(|why| PackError { line: self.line, why }).transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        evidence::testing::{alone, indexed},
        verify::testing::Pair,
    };

    const HEAD: &str = "{\"portcullis\":\"evidence\",\"version\":1}\n";

    fn packed(known: &[Known]) -> Vec<u8> {
        let mut pack = Vec::new();
        write(&mut pack, known.iter().cloned()).unwrap();
        pack
    }

    #[track_caller]
    fn refuses(pack: &[u8], line: usize, why: &str) {
        let mut all = read(pack).skip_while(Result::is_ok);
        let error = all.next().unwrap().unwrap_err();
        let said = error.why.split(" at line 1 column ").next().unwrap();
        assert_eq!((error.line, said), (line, why));
        assert!(all.next().is_none());
    }

    #[test]
    fn what_is_written_is_read() {
        let pair = Pair::p256();
        let known = [alone("one", &pair), indexed("two", &pair)];
        for known in [&known[..0], &known[..1], &known] {
            let pack = packed(known);
            assert!(pack.starts_with(HEAD.as_bytes()));
            let read: Result<Vec<_>, _> = read(&pack[..]).collect();
            assert_eq!(read.unwrap(), known);
        }
    }

    #[test]
    fn the_last_newline_may_be_missing() {
        let known = [alone("one", &Pair::p256())];
        let pack = packed(&known);
        let read: Result<Vec<_>, _> = read(&pack[..pack.len() - 1]).collect();
        assert_eq!(read.unwrap(), known);
    }

    #[test]
    fn the_first_bad_line_is_named_and_the_end() {
        let pair = Pair::p256();
        let pack = packed(&[alone("one", &pair), indexed("two", &pair)]);
        let with = |text: &str| [&pack, text.as_bytes()].concat();
        refuses(&with("\n"), 4, "EOF while parsing a value");
        refuses(&with("{}\n"), 4, "missing field `version`");
        refuses(
            &with(HEAD),
            4,
            "unknown field `portcullis`, expected one of `version`, `manifest`, `child`, `provenBy`",
        );
        refuses(&pack[..pack.len() - 2], 3, "the pack ends too soon; export it again");
    }

    #[test]
    fn what_is_no_pack_is_told_from_one_of_another_version() {
        let none = "this is no pack, as \"portcullis evidence export\" writes it";
        for pack in [
            "",
            "\n",
            "{}",
            "PK\u{3}\u{4}",
            "{\"portcullis\":\"policy\",\"version\":1}",
            "{\"portcullis\":\"evidence\",\"version\":1,\"version\":1}",
            "{\"portcullis\":\"evidence\",\"version\":1,\"more\":1}",
        ] {
            refuses(pack.as_bytes(), 1, none);
        }
        let later = "{\"portcullis\":\"evidence\",\"version\":2}\n{\"new\":1}\n";
        refuses(later.as_bytes(), 1, "the pack is of version 2, and this program reads version 1");
    }

    #[test]
    fn lines_and_packs_without_end_are_cut() {
        let endless = io::BufReader::new(HEAD.as_bytes().chain(io::repeat(b' ')));
        let error = read(endless).next().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "line 2: it has 33554433 bytes, 33554432 are allowed");

        let line = [&vec![b' '; 30 << 20][..], b"\n"].concat();
        let document = packed(&[alone("app", &Pair::p256())]).split_off(HEAD.len());
        let long: Vec<u8> = [&line[..line.len() - 1], &document].concat();
        let many = [HEAD.as_bytes(), &long.repeat(9)].concat();
        refuses(&many, 10, "the pack has more than 256 MiB");
    }

    #[test]
    fn more_images_than_a_store_keeps_are_too_many() {
        let line = packed(&[alone("app", &Pair::p256())]).split_off(HEAD.len());
        let mut lines =
            Lines { pack: line.take(MAX_PACK), line: MAX_PACKED, bytes: 0, ended: false };
        assert!(lines.next().unwrap().is_ok());
        lines.pack = line.take(MAX_PACK);
        let error = lines.next().unwrap().unwrap_err();
        assert_eq!(error.why, "the pack has more than 20000 images");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>, with_head: bool, place: usize, flip: u8) {
            let head = if with_head { HEAD.as_bytes() } else { b"" };
            let pack = [head, &bytes].concat();
            prop_assert!(read(&pack[..]).filter(Result::is_err).count() <= 1);
            let mut pack = packed(&[indexed("app", &Pair::p256())]);
            let place = place % pack.len();
            pack[place] ^= flip;
            pack.splice(place..place, bytes);
            for known in read(&pack[..]).flatten() {
                prop_assert_eq!(Digest::of(&known.top().manifest.body), known.digest());
            }
        }
    }

    use crate::image::Digest;
}
