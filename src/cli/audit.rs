//! `audit verify` and `audit tail`.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::audit::{
    MAX_LINE, Position,
    chain::{Finding, Report, Verifier, read_head},
};

use super::{
    Exit,
    style::{Style, printable},
};

mod tail;

pub(super) use tail::tail;

/// A line without an end may be one that is just being written; it gets this long.
const PATIENCE: Duration = Duration::from_millis(100);
/// Most file names in a summary.
const MAX_NAMES: usize = 3;

/// Reads the files of one log, oldest first, and says whether the chain is whole. `-` is standard
/// input. With the state directory the end is compared with the head kept there.
///
/// Exit: [`Exit::Success`] whole, [`Exit::Refused`] broken, [`Exit::Inconclusive`] if a file or
/// the head cannot be read, or there are no records. An error is one of `out`.
pub(crate) fn verify(
    files: &[PathBuf],
    state: Option<&Path>,
    json: bool,
    style: Style,
    out: &mut impl Write,
) -> io::Result<Exit> {
    // Before the files: the head of a log in use is never ahead of its lines.
    let (head, mut doubt) = match state {
        None => (None, None),
        Some(state) => head(state),
    };
    let order = order(files);
    let mut verifier = Verifier::new(head);
    for file in files {
        let name = printable(&file.display().to_string());
        if let Err(error) = read(&mut verifier, file, &name) {
            doubt = Some(format!("{name} cannot be read: {error}"));
        }
    }
    let report = verifier.finish();
    if doubt.is_none() && report.records == 0 {
        doubt = Some("there are no records".to_owned());
    }
    let exit = match (report.is_whole(), &doubt) {
        (false, _) => Exit::Refused,
        (true, Some(_)) => Exit::Inconclusive,
        (true, None) => Exit::Success,
    };
    // Every line would be a finding, and none of them says what was done wrong.
    if let Some(order) = order.filter(|_| exit == Exit::Refused) {
        if !json {
            writeln!(out, "{}", style.red(order))?;
            return Ok(exit);
        }
        doubt.get_or_insert(order);
    }
    match json {
        true => write_json(exit, files, &report, doubt, out)?,
        false => write_text(files, state, &report, doubt, style, out)?,
    }
    Ok(exit)
}

/// The head, and why it cannot be relied on.
fn head(state: &Path) -> (Option<Position>, Option<String>) {
    let kept = format!("the head kept in {}", printable(&state.display().to_string()));
    let blind = "whether lines were cut off at the end cannot be told";
    match read_head(state) {
        Err(error) => (None, Some(format!("{kept} cannot be read: {error}; {blind}"))),
        Ok(head) => {
            let doubt = match (head.position, head.damaged) {
                (Some(_), 0) => None,
                (None, 0) => Some(format!("{kept} is empty; {blind}")),
                _ => Some(format!("{kept} is damaged; {blind}")),
            };
            (head.position, doubt)
        }
    }
}

/// That a file begins before the one that was given ahead of it.
fn order(files: &[PathBuf]) -> Option<String> {
    let begun = files.iter().filter_map(|file| Some((file, first_seq(file)?)));
    let begun: Vec<_> = begun.collect();
    let ((before, late), (after, early)) =
        begun.windows(2).map(|two| (two[0], two[1])).find(|(one, two)| one.1 > two.1)?;
    let name = |file: &Path| printable(&file.display().to_string());
    let (before, after) = (name(before), name(after));
    Some(format!(
        "files must be given oldest first: {before} begins with seq {late}, and {after} behind it \
         with seq {early}"
    ))
}

/// `seq` of the first line of a regular file: what was read of a pipe is gone.
fn first_seq(file: &Path) -> Option<u64> {
    #[derive(Deserialize)]
    struct First {
        seq: u64,
    }
    fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
    let mut line = Vec::new();
    let first = File::open(file).ok()?.take(MAX_LINE as u64);
    BufReader::new(first).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice::<First>(&line).ok().map(|first| first.seq)
}

fn read(verifier: &mut Verifier, file: &Path, name: &str) -> io::Result<()> {
    if file == Path::new("-") {
        return verifier.read("standard input", io::stdin().lock());
    }
    let file = Patient { file: File::open(file)?, last: b'\n', patience: true };
    verifier.read(name, BufReader::with_capacity(1 << 18, file))
}

/// A file that may be written to meanwhile: where it ends amid a line, it is read once more.
struct Patient {
    file: File,
    last: u8,
    patience: bool,
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = self.file.read(buffer)?;
        if count == 0 && self.last != b'\n' && std::mem::take(&mut self.patience) {
            thread::sleep(PATIENCE);
            count = self.file.read(buffer)?;
        }
        if let Some(last) = buffer[..count].last() {
            self.last = *last;
        }
        Ok(count)
    }
}

fn write_text(
    files: &[PathBuf],
    state: Option<&Path>,
    report: &Report,
    doubt: Option<String>,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    for found in &report.findings {
        let place = format!("{}:{}:", found.file, found.line);
        writeln!(out, "{} {}", style.bold(place), style.red(&found.message))?;
    }
    if report.more_findings > 0 {
        writeln!(out, "and {} more", thousands(report.more_findings))?;
    }
    let records = match report.records {
        1 => "1 record".to_owned(),
        count => format!("{} records", thousands(count)),
    };
    write!(out, "{}: {records}", style.bold(names(files)))?;
    if let (Some(first), Some(last)) = (report.first, report.last) {
        write!(out, ", seq {first} to {last}")?;
    }
    match report.findings.len() as u64 + report.more_findings {
        0 if report.records == 0 => {}
        0 => write!(out, ", {}", style.green("chain whole"))?,
        1 => write!(out, ", {}", style.red("chain broken in 1 place"))?,
        count => {
            let broken = format!("chain broken in {} places", thousands(count));
            write!(out, ", {}", style.red(broken))?;
        }
    }
    if let (Some(state), None, true) = (state, &doubt, report.is_whole()) {
        write!(out, ", matches the head kept in {}", printable(&state.display().to_string()))?;
    }
    writeln!(out)?;
    if let Some(doubt) = doubt {
        writeln!(out, "{}", style.yellow(doubt))?;
    } else if state.is_none() {
        let hint = "without --state, lines cut off or changed at the very end do not show";
        writeln!(out, "{}", style.dim(hint))?;
    }
    if let Some(first) = report.first.filter(|first| *first > 1) {
        let hint = format!("seq 1 to {} were not read: are there older files?", first - 1);
        writeln!(out, "{}", style.dim(hint))?;
    }
    Ok(())
}

fn names(files: &[PathBuf]) -> String {
    let name = |file: &PathBuf| printable(&file.display().to_string());
    match files {
        [first, .., last] if files.len() > MAX_NAMES => {
            format!("{} to {}, {} files", name(first), name(last), files.len())
        }
        few => few.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `-o json`.
#[derive(Serialize)]
struct Json<'a> {
    /// `whole`, `broken` or `unknown`.
    chain: &'static str,
    files: Vec<String>,
    records: u64,
    first_seq: Option<u64>,
    last_seq: Option<u64>,
    findings: &'a [Finding],
    more_findings: u64,
    /// Why it is unknown whether all is well.
    doubt: Option<String>,
}

fn write_json(
    exit: Exit,
    files: &[PathBuf],
    report: &Report,
    doubt: Option<String>,
    out: &mut impl Write,
) -> io::Result<()> {
    let json = Json {
        chain: match exit {
            Exit::Success => "whole",
            Exit::Refused => "broken",
            _ => "unknown",
        },
        files: files.iter().map(|file| file.display().to_string()).collect(),
        records: report.records,
        first_seq: report.first,
        last_seq: report.last,
        findings: &report.findings,
        more_findings: report.more_findings,
        doubt,
    };
    serde_json::to_writer(&mut *out, &json)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use crate::audit::{Config, Event, Log, Record};

    use super::*;

    struct Lab {
        directory: tempfile::TempDir,
    }

    impl Lab {
        async fn with_records(count: u64) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let lab = Self { directory };
            let config =
                Config { file: lab.file(), state_directory: lab.state(), node: "node-1".into() };
            let (log, _) = Log::open(config).unwrap();
            let records = (2..=count).map(|n| Record::new(Event::Pull, format!("record {n}")));
            // Polled in this order, so written in this order; fewer at once than the queue holds.
            for some in records.collect::<Vec<_>>().chunks(500) {
                let writes = some.iter().map(|record| log.record(record.clone(), ()));
                for written in futures_util::future::join_all(writes).await {
                    written.unwrap().into_inner();
                }
            }
            log.close().await;
            lab
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("audit.jsonl")
        }

        fn state(&self) -> PathBuf {
            self.directory.path().join("state")
        }

        /// Exit and output, with this lab's directory left out.
        fn run(&self, files: &[PathBuf], state: bool, json: bool) -> (Exit, String) {
            let mut out = Vec::new();
            let directory = self.state();
            let state = state.then_some(&*directory);
            let exit = verify(files, state, json, Style::plain(), &mut out).unwrap();
            let directory = format!("{}/", self.directory.path().display());
            (exit, String::from_utf8(out).unwrap().replace(&directory, ""))
        }
    }

    #[tokio::test]
    async fn a_whole_chain_is_praised_in_one_line() {
        let lab = Lab::with_records(1204).await;
        let text = "audit.jsonl: 1,204 records, seq 1 to 1204, chain whole, matches the head kept \
                    in state\n";
        assert_eq!(lab.run(&[lab.file()], true, false), (Exit::Success, text.into()));
        let text = "audit.jsonl: 1,204 records, seq 1 to 1204, chain whole\n\
                    without --state, lines cut off or changed at the very end do not show\n";
        assert_eq!(lab.run(&[lab.file()], false, false), (Exit::Success, text.into()));
        let json = concat!(
            r#"{"chain":"whole","files":["audit.jsonl"],"records":1204,"first_seq":1,"#,
            r#""last_seq":1204,"findings":[],"more_findings":0,"doubt":null}"#,
            "\n"
        );
        assert_eq!(lab.run(&[lab.file()], true, true), (Exit::Success, json.into()));
    }

    #[tokio::test]
    async fn a_broken_chain_is_shown_where_it_broke() {
        let lab = Lab::with_records(5).await;
        let text = fs::read_to_string(lab.file()).unwrap().replace("record 3", "record X");
        fs::write(lab.file(), &text).unwrap();
        let place = "seq 3 is not the line that was written: seq 4 holds the hash of another";
        let human = format!(
            "audit.jsonl:3: {place}\naudit.jsonl: 5 records, seq 1 to 5, chain broken in 1 place\n"
        );
        assert_eq!(lab.run(&[lab.file()], true, false), (Exit::Refused, human));
        let json = format!(
            r#"{{"chain":"broken","files":["audit.jsonl"],"records":5,"first_seq":1,"last_seq":5,"findings":[{{"kind":"changed","file":"audit.jsonl","line":3,"seq":3,"message":"{place}"}}],"more_findings":0,"doubt":null}}"#
        ) + "\n";
        assert_eq!(lab.run(&[lab.file()], true, true), (Exit::Refused, json));

        let cut: String = text.split_inclusive('\n').take(2).collect();
        fs::write(lab.file(), cut).unwrap();
        let human = "audit.jsonl:2: the log ends here, and its head is seq 5\n\
                     audit.jsonl: 2 records, seq 1 to 2, chain broken in 1 place\n";
        assert_eq!(lab.run(&[lab.file()], true, false), (Exit::Refused, human.into()));
    }

    #[tokio::test]
    async fn the_colour_is_that_of_the_outcome() {
        let lab = Lab::with_records(1).await;
        let mut out = Vec::new();
        verify(&[lab.file()], None, false, Style::coloured(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("1 record, seq 1 to 1, \x1b[32mchain whole\x1b[0m"), "{text}");
    }

    #[tokio::test]
    async fn older_files_go_first() {
        let lab = Lab::with_records(4).await;
        let text = fs::read_to_string(lab.file()).unwrap();
        let middle = text.match_indices('\n').nth(1).unwrap().0 + 1;
        let old = lab.directory.path().join("audit.jsonl.1");
        fs::write(&old, &text[..middle]).unwrap();
        fs::write(lab.file(), &text[middle..]).unwrap();
        let human = "audit.jsonl.1, audit.jsonl: 4 records, seq 1 to 4, chain whole, matches the \
                     head kept in state\n";
        assert_eq!(lab.run(&[old.clone(), lab.file()], true, false), (Exit::Success, human.into()));
        let human = "audit.jsonl: 2 records, seq 3 to 4, chain whole, matches the head kept in \
                     state\nseq 1 to 2 were not read: are there older files?\n";
        assert_eq!(lab.run(&[lab.file()], true, false), (Exit::Success, human.into()));
        let (files, why) = (
            [lab.file(), old],
            "files must be given oldest first: audit.jsonl begins with seq 3, and audit.jsonl.1 \
             behind it with seq 1",
        );
        assert_eq!(lab.run(&files, true, false), (Exit::Refused, format!("{why}\n")));
        let (exit, json) = lab.run(&files, true, true);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (exit, &json["chain"], &json["doubt"]),
            (Exit::Refused, &"broken".into(), &why.into())
        );
        assert_ne!(json["findings"], serde_json::json!([]));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_no_success() {
        let lab = Lab::with_records(2).await;
        let missing = lab.directory.path().join("none");
        let human = "audit.jsonl, none: 2 records, seq 1 to 2, chain whole\n\
                     none cannot be read: No such file or directory (os error 2)\n";
        let files = [lab.file(), missing];
        assert_eq!(lab.run(&files, true, false), (Exit::Inconclusive, human.into()));

        let empty = lab.directory.path().join("empty");
        fs::write(&empty, b"").unwrap();
        let human = "empty: 0 records\nthere are no records\n";
        assert_eq!(lab.run(&[empty], false, false), (Exit::Inconclusive, human.into()));
    }

    #[tokio::test]
    async fn without_a_good_head_nothing_is_a_success() {
        let lab = Lab::with_records(3).await;
        let path = lab.state().join(crate::audit::chain::HEAD_FILE_NAME);
        let good = fs::read(&path).unwrap();
        let doubt = |why: &str| {
            let text = "audit.jsonl: 3 records, seq 1 to 3, chain whole\nthe head kept in state";
            let end = "whether lines were cut off at the end cannot be told";
            (Exit::Inconclusive, format!("{text} {why}; {end}\n"))
        };
        // Every byte is flipped where the head is read; here it is what follows.
        for place in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[place] ^= 1;
            fs::write(&path, bad).unwrap();
            assert_eq!(lab.run(&[lab.file()], true, false), doubt("is damaged"), "{place}");
        }
        fs::write(&path, b"").unwrap();
        assert_eq!(lab.run(&[lab.file()], true, false), doubt("is empty"));
        fs::remove_file(&path).unwrap();
        let why = "cannot be read: No such file or directory (os error 2)";
        assert_eq!(lab.run(&[lab.file()], true, false), doubt(why));

        // One good copy of the head still proves a cut.
        let mut bad = good;
        bad[0] ^= 1;
        fs::write(&path, bad).unwrap();
        fs::write(lab.file(), b"").unwrap();
        assert_eq!(lab.run(&[lab.file()], true, false).0, Exit::Refused);
    }

    #[test]
    fn many_files_are_named_by_the_first_and_the_last() {
        let files: Vec<PathBuf> = (0..5).map(|n| format!("audit.{n}").into()).collect();
        assert_eq!(names(&files), "audit.0 to audit.4, 5 files");
        assert_eq!(names(&files[..3]), "audit.0, audit.1, audit.2");
    }

    #[test]
    fn thousands_are_set_apart() {
        let texts = [0, 12, 123, 1234, 123_456, 1_234_567].map(thousands);
        assert_eq!(texts, ["0", "12", "123", "1,234", "123,456", "1,234,567"]);
    }
}
