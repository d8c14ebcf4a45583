//! `audit tail`: the last records, a line each, and those to come.

use std::{
    fs::{self, File},
    io::{self, BufReader, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    audit::{
        MAX_LINE,
        chain::{Read, read_line},
    },
    cli::{
        Exit,
        style::{Style, printable},
    },
};

/// How long `-f` waits between two looks at the file.
const INTERVAL: Duration = Duration::from_millis(200);
/// Hexadecimal characters of a digest that are shown.
const SHOWN_DIGEST: usize = "sha256:".len() + 12;

/// Prints the last `lines` records of a log, and with `follow` goes on with those to come, across
/// rotation, until `out` is closed. With `json` the lines are printed as they are.
///
/// An error is one of the file, named in it, or of `out`.
pub(crate) fn tail(
    file: &Path,
    lines: usize,
    follow: bool,
    json: bool,
    style: Style,
    out: &mut impl Write,
) -> io::Result<Exit> {
    let printed = run(file, lines, follow, Printer { json, style, out });
    match printed {
        // Who closes the pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Success),
        printed => printed.map(|()| Exit::Success),
    }
}

fn run(
    file: &Path,
    lines: usize,
    follow: bool,
    mut printer: Printer<&mut impl Write>,
) -> io::Result<()> {
    let mut follower = Follower::open(file, lines).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot read {}: {error}", file.display()))
    })?;
    follower.advance(&mut printer)?;
    if !follow {
        follower.give_up(&mut printer)?;
        return printer.out.flush();
    }
    loop {
        printer.out.flush()?;
        thread::sleep(INTERVAL);
        follower.look(&mut printer)?;
    }
}

/// A place in a log that grows and is rotated.
struct Follower {
    path: PathBuf,
    file: BufReader<File>,
    /// Device and inode.
    id: (u64, u64),
    /// The beginning of a line whose end is not there yet.
    begun: Vec<u8>,
}

impl Follower {
    fn open(path: &Path, lines: usize) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let start = start_of_last(&file, metadata.len(), lines)?;
        file.seek(SeekFrom::Start(start))?;
        let id = (metadata.dev(), metadata.ino());
        Ok(Self { path: path.to_owned(), file: BufReader::new(file), id, begun: Vec::new() })
    }

    /// Prints what is there, up to the last whole line.
    fn advance(&mut self, printer: &mut Printer<&mut impl Write>) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            let read = read_line(&mut self.file, &mut line)?;
            if matches!(read, Read::Line | Read::Torn) {
                self.begun.extend_from_slice(&line);
            }
            let is_long = read == Read::Long || self.begun.len() >= MAX_LINE;
            match read {
                Read::End => return Ok(()),
                // What is too long is dropped at once, so that memory stays bounded.
                Read::Torn if is_long => self.begun.truncate(MAX_LINE),
                Read::Torn => {}
                Read::Line | Read::Long => {
                    let line = std::mem::take(&mut self.begun);
                    if is_long {
                        printer.note(&format!("a line longer than {MAX_LINE} bytes"))?;
                    } else {
                        printer.line(&line)?;
                    }
                }
            }
        }
    }

    /// Prints what has come since, be it in another file.
    fn look(&mut self, printer: &mut Printer<&mut impl Write>) -> io::Result<()> {
        let found = match fs::metadata(&self.path) {
            Ok(found) => Some(found),
            // Amid a rotation.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // After the look at the path: nothing more is written to a file that has been replaced.
        self.advance(printer)?;
        let Some(found) = found else { return Ok(()) };
        if (found.dev(), found.ino()) != self.id {
            self.give_up(printer)?;
            match Self::open(&self.path, usize::MAX) {
                Ok(next) => *self = next,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
            self.advance(printer)?;
            return Ok(());
        }
        let length = self.file.get_ref().metadata()?.len();
        let position = self.file.stream_position()?;
        if length < position {
            let whole = position - self.begun.len() as u64;
            if length < whole {
                self.give_up(printer)?;
                printer.note("the file was emptied in place")?;
            }
            // Otherwise the writer took back a piece that did not fit on the disk.
            self.begun.clear();
            self.file.seek(SeekFrom::Start(if length < whole { 0 } else { whole }))?;
            self.advance(printer)?;
        }
        Ok(())
    }

    /// A line that will not be finished.
    fn give_up(&mut self, printer: &mut Printer<&mut impl Write>) -> io::Result<()> {
        match std::mem::take(&mut self.begun).len() {
            0 => Ok(()),
            length => printer.note(&format!("an unfinished line of {length} bytes")),
        }
    }
}

/// Where the last `lines` whole lines begin.
fn start_of_last(file: &File, length: u64, lines: usize) -> io::Result<u64> {
    if lines == usize::MAX {
        return Ok(0);
    }
    let mut chunk = [0; 64 * 1024];
    let mut end = length;
    let mut newlines = 0;
    while end > 0 {
        let start = end.saturating_sub(chunk.len() as u64);
        // At most a chunk.
        let chunk = &mut chunk[..(end - start) as usize];
        file.read_exact_at(chunk, start)?;
        for (place, byte) in chunk.iter().enumerate().rev() {
            if *byte == b'\n' {
                newlines += 1;
                if newlines > lines {
                    return Ok(start + place as u64 + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

struct Printer<W> {
    json: bool,
    style: Style,
    out: W,
}

impl<W: Write> Printer<W> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.json {
            self.out.write_all(line)?;
            return self.out.write_all(b"\n");
        }
        match serde_json::from_slice(line) {
            Ok(record @ Value::Object(_)) => writeln!(self.out, "{}", pretty(&record, self.style)),
            _ => self.note(&format!("no audit record: {}", String::from_utf8_lossy(line))),
        }
    }

    /// Something that is no record. Machines get records only.
    fn note(&mut self, text: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(self.out, "{}", self.style.yellow(format!("({})", printable(text))))
    }
}

fn pretty(record: &Value, style: Style) -> String {
    let text = |pointer: &str| {
        let text = record.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.map(printable)
    };
    let time = text("/time").and_then(|time| time.parse::<Timestamp>().ok());
    let time = time.map_or_else(|| "?".to_owned(), |time| format!("{time:.3}"));
    let decision = match text("/decision").unwrap_or_default() {
        allow if allow == "allow" => style.green(allow),
        deny if deny == "deny" => style.red(deny),
        warn if warn == "warn" => style.yellow(warn),
        other => style.dim(other),
    };
    let event = text("/event").unwrap_or_default();
    let mut line = format!("{:<24} {decision:<5} {event:<6}", style.dim(time));
    if let Some(requested) = text("/image/requested") {
        line.push_str(&format!(" {}", style.bold(&requested)));
        if let Some(digest) = text("/image/digest").filter(|digest| !requested.contains(digest)) {
            let shown: String = digest.chars().take(SHOWN_DIGEST).collect();
            line.push_str(&format!(" {}", style.dim(format!("({shown})"))));
        }
    }
    if let (Some(namespace), Some(name)) = (text("/pod/namespace"), text("/pod/name")) {
        line.push_str(&format!(" {namespace}/{name}"));
    }
    if let Some(reason) = text("/reason") {
        line.push_str(&format!(" {}:", style.yellow(reason)));
    }
    if let Some(message) = text("/message") {
        line.push(' ');
        line.push_str(&message);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printer(out: &mut Vec<u8>) -> Printer<&mut Vec<u8>> {
        Printer { json: true, style: Style::plain(), out }
    }

    struct Lab {
        directory: tempfile::TempDir,
    }

    impl Lab {
        fn with(text: &str) -> Self {
            let lab = Self { directory: tempfile::tempdir().unwrap() };
            fs::write(lab.file(), text).unwrap();
            lab
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("audit.jsonl")
        }

        fn append(&self, text: &str) {
            let mut file = File::options().append(true).create(true).open(self.file()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn last(&self, lines: usize, json: bool) -> String {
            let mut out = Vec::new();
            let exit = tail(&self.file(), lines, false, json, Style::plain(), &mut out).unwrap();
            assert_eq!(exit, Exit::Success);
            String::from_utf8(out).unwrap()
        }

        fn look(&self, follower: &mut Follower) -> String {
            let mut out = Vec::new();
            follower.look(&mut printer(&mut out)).unwrap();
            String::from_utf8(out).unwrap()
        }
    }

    #[test]
    fn the_last_lines_are_printed() {
        let lab = Lab::with("1\n2\n3\n");
        for (lines, text) in
            [(0, ""), (1, "3\n"), (2, "2\n3\n"), (3, "1\n2\n3\n"), (4, "1\n2\n3\n")]
        {
            assert_eq!(lab.last(lines, true), text);
        }
        lab.append("unfinished");
        assert_eq!(lab.last(1, true), "3\n");
        assert_eq!(lab.last(0, false), "(an unfinished line of 10 bytes)\n");
        assert_eq!(Lab::with("").last(10, true), "");
    }

    #[test]
    fn long_files_are_read_from_behind() {
        let lines: Vec<String> = (0..50_000).map(|n| format!("{{\"seq\":{n}}}\n")).collect();
        let lab = Lab::with(&lines.concat());
        for count in [1, 7000, 49_999, 50_000, 50_001] {
            let expected = lines[lines.len().saturating_sub(count)..].concat();
            assert!(lab.last(count, true) == expected, "{count}");
        }
    }

    #[test]
    fn a_record_is_one_line_for_people() {
        let digest = format!("sha256:{}", "e7d38b351754".repeat(6));
        let record = format!(
            r#"{{"seq":5,"time":"2026-11-22T02:22:45.123456789Z","event":"pull","decision":"deny","reason":"signature_missing","message":"no\u001b[31m way","image":{{"requested":"app:v1","digest":"{digest}"}},"pod":{{"namespace":"shop","name":"web","uid":"1"}}}}"#
        );
        let lab = Lab::with(&format!("{record}\n"));
        let text = "2026-11-22T02:22:45.123Z deny  pull   app:v1 (sha256:e7d38b351754) shop/web \
                    signature_missing: no\\u{1b}[31m way\n";
        assert_eq!(lab.last(1, false), text);
        assert_eq!(lab.last(1, true), format!("{record}\n"));
        let value = serde_json::from_str(&record).unwrap();
        let coloured = pretty(&value, Style::coloured());
        assert!(coloured.contains("\x1b[31mdeny \x1b[0m pull"), "{coloured:?}");
    }

    #[test]
    fn whatever_is_in_the_file_is_shown_harmlessly() {
        let long = "x".repeat(MAX_LINE);
        let lab = Lab::with(&format!("\x1b[2J\n[]\n{{\"time\":7,\"event\":[]}}\n{long}\n"));
        let text = format!(
            "(no audit record: \\u{{1b}}[2J)\n(no audit record: [])\n{:37}\n(a line longer than \
             65536 bytes)\n",
            "?"
        );
        assert_eq!(lab.last(10, false), text);
    }

    #[test]
    fn what_comes_is_followed_across_rotation() {
        let lab = Lab::with("1\n");
        let mut follower = Follower::open(&lab.file(), 0).unwrap();
        assert_eq!(lab.look(&mut follower), "");
        lab.append("2\n3");
        assert_eq!(lab.look(&mut follower), "2\n");
        lab.append("3\n");
        assert_eq!(lab.look(&mut follower), "33\n");

        let old = lab.directory.path().join("audit.jsonl.1");
        fs::rename(lab.file(), &old).unwrap();
        assert_eq!(lab.look(&mut follower), "");
        File::options().append(true).open(&old).unwrap().write_all(b"4\n").unwrap();
        lab.append("5\n");
        assert_eq!(lab.look(&mut follower), "4\n5\n");

        let truncate =
            |length| File::options().write(true).open(lab.file()).unwrap().set_len(length).unwrap();
        lab.append("taken back");
        assert_eq!(lab.look(&mut follower), "");
        truncate(2);
        lab.append("6\n");
        assert_eq!(lab.look(&mut follower), "6\n");

        truncate(0);
        assert_eq!(lab.look(&mut follower), "");
        lab.append("7\n");
        assert_eq!(lab.look(&mut follower), "7\n");
    }

    #[test]
    fn a_line_that_never_ends_takes_no_memory() {
        let lab = Lab::with("");
        let mut follower = Follower::open(&lab.file(), 0).unwrap();
        for _ in 0..5 {
            lab.append(&"x".repeat(MAX_LINE - 1));
            assert_eq!(lab.look(&mut follower), "");
            assert!(follower.begun.len() <= MAX_LINE);
        }
        lab.append("\n1\n");
        assert_eq!(lab.look(&mut follower), "1\n");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let lab = Lab::with("");
        let missing = lab.directory.path().join("none");
        let error = tail(&missing, 1, true, false, Style::plain(), &mut Vec::new()).unwrap_err();
        let text = format!("cannot read {}: No such file or directory", missing.display());
        assert!(error.to_string().starts_with(&text), "{error}");
    }

    #[test]
    fn a_closed_pipe_ends_it() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lab = Lab::with("1\n");
        let exit = tail(&lab.file(), 1, true, true, Style::plain(), &mut Closed).unwrap();
        assert_eq!(exit, Exit::Success);
    }
}
