//! The lines of a watch, however they are cut into pieces on the way. Pure.

/// Longest line, in bytes: an object of the largest size that etcd takes (1.5 MiB), its event and
/// what JSON adds.
pub(super) const MAX_LINE: usize = 4 * 1024 * 1024;

/// What arrived and was not read yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Up to here it was read.
    start: usize,
    /// From `start` up to here there is no end of a line.
    seen: usize,
}

/// A line is longer than any event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// More has arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        // Once for all lines of a piece: they may be many, and empty.
        self.bytes.drain(..self.start);
        (self.start, self.seen) = (0, self.seen - self.start);
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let end = self.bytes[self.seen..].iter().position(|byte| *byte == b'\n');
        let (start, end) = (self.start, end.map(|end| self.seen + end));
        if end.unwrap_or(self.bytes.len()) - start > MAX_LINE {
            return Err(TooLong);
        }
        let Some(end) = end else {
            self.seen = self.bytes.len();
            return Ok(None);
        };
        (self.start, self.seen) = (end + 1, end + 1);
        Ok(Some(&self.bytes[start..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let text = b"{}\n\n{\"a\":1}\nrest";
        for size in 1..text.len() {
            let (mut lines, mut read) = (Lines::default(), Vec::new());
            for piece in text.chunks(size) {
                lines.push(piece);
                while let Some(line) = lines.next().unwrap() {
                    read.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            assert_eq!(read, ["{}", "", "{\"a\":1}"], "in pieces of {size}");
            lines.push(b"\n");
            assert_eq!(lines.next(), Ok(Some(&b"rest"[..])));
        }
    }

    #[test]
    fn many_lines_cost_no_more_than_their_bytes() {
        let mut lines = Lines::default();
        lines.push(&vec![b'\n'; 8 * 1024 * 1024]);
        let begun = std::time::Instant::now();
        while lines.next().unwrap().is_some() {}
        // Minutes, where each line moves what stands behind it.
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_line_is_bounded_with_and_without_an_end() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"\n");
        assert_eq!(lines.next().map(|line| line.map(<[u8]>::len)), Ok(Some(MAX_LINE)));
        lines.push(&vec![b'x'; MAX_LINE + 1]);
        assert_eq!(lines.next(), Err(TooLong));
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE + 1]);
        lines.push(b"\n");
        assert_eq!(lines.next(), Err(TooLong));
    }
}
