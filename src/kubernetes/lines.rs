//! The lines of a watch, however they are cut into pieces on the way. Pure.

/// Longest line, in bytes: an object of the largest size that etcd takes (1.5 MiB), its event and
/// what JSON adds.
pub(super) const MAX_LINE: usize = 4 * 1024 * 1024;

/// What arrived and is no whole line yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Up to here there is no end of a line.
    seen: usize,
}

/// A line is longer than any event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// More has arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let end = self.bytes[self.seen..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.seen + end) else {
            self.seen = self.bytes.len();
            return if self.seen > MAX_LINE { Err(TooLong) } else { Ok(None) };
        };
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.truncate(end);
        self.seen = 0;
        if line.len() > MAX_LINE { Err(TooLong) } else { Ok(Some(line)) }
    }

    /// Whether a line has begun and not ended.
    pub(super) fn is_within(&self) -> bool {
        !self.bytes.is_empty()
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
                    read.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(read, ["{}", "", "{\"a\":1}"], "in pieces of {size}");
            assert!(lines.is_within());
            lines.push(b"\n");
            assert_eq!(lines.next(), Ok(Some(b"rest".to_vec())));
            assert!(!lines.is_within());
        }
    }

    #[test]
    fn a_line_is_bounded_with_and_without_an_end() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"\n");
        assert_eq!(lines.next().map(|line| line.map(|line| line.len())), Ok(Some(MAX_LINE)));
        lines.push(&vec![b'x'; MAX_LINE + 1]);
        assert_eq!(lines.next(), Err(TooLong));
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE + 1]);
        lines.push(b"\n");
        assert_eq!(lines.next(), Err(TooLong));
    }
}
