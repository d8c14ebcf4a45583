//! What a crash or a hand leaves behind, and how the next start goes on.

use std::fs;

use super::*;

const START: &str = concat!("Portcullis ", env!("CARGO_PKG_VERSION"), " started");

/// Starts, writes one record, stops; returns the findings, which the `start` record repeats.
async fn restart(lab: &Lab) -> Vec<String> {
    let (log, opened) = lab.open();
    write(&log, 100).await.unwrap();
    log.close().await;
    let messages = lab.messages();
    let mut start = START.to_owned();
    for finding in &opened.findings {
        start.push_str("; the audit log: ");
        start.push_str(finding);
    }
    assert_eq!(messages[messages.len() - 2..], [start, "record 100".to_owned()]);
    opened.findings
}

fn put_head(lab: &Lab, line: &str) {
    let link = line::Link::read(line.as_bytes()).unwrap();
    let hash = crate::image::Digest::of(line.as_bytes());
    let _ = fs::remove_file(lab.state().join(HEAD_FILE_NAME));
    let (mut head, _) = head::Head::open(&lab.state()).unwrap();
    head.write(&Position { seq: link.seq, hash }).unwrap();
}

#[tokio::test]
async fn a_line_torn_at_any_byte_is_moved_away_and_all_before_it_stays() {
    let lab = Lab::with_lines(3).await;
    let lines = lab.lines();
    let whole = format!("{}\n{}\n", lines[0], lines[1]);
    // The crash came before the answer, and so before the head.
    for torn in 0..=lines[2].len() {
        let _ = fs::remove_dir_all(lab.state());
        put_head(&lab, &lines[1]);
        fs::write(lab.file(), format!("{whole}{}", &lines[2][..torn])).unwrap();
        let findings = restart(&lab).await;
        let kept = lab.directory.path().join("audit.jsonl.torn-3");
        if torn == 0 {
            assert_eq!(findings, [""; 0]);
            assert!(!kept.exists());
        } else {
            let kept_at = kept.display();
            let finding =
                format!("{torn} bytes behind its last whole line were moved to {kept_at}");
            assert_eq!(findings, [finding]);
            assert_eq!(fs::read_to_string(&kept).unwrap(), lines[2][..torn]);
            fs::remove_file(kept).unwrap();
        }
        assert!(lab.text().starts_with(&whole));
        assert_eq!(lab.findings(), [""; 0], "{torn}");
    }
}

#[tokio::test]
async fn a_torn_first_line_and_zeros_are_moved_away_too() {
    for tail in [&b"{"[..], b"{\"seq\":1,\"ti", &[0; 5000], b"\0"] {
        let lab = Lab::new();
        fs::write(lab.file(), tail).unwrap();
        let kept = lab.directory.path().join("audit.jsonl.torn-1");
        let finding = format!(
            "{} bytes behind its last whole line were moved to {}",
            tail.len(),
            kept.display()
        );
        assert_eq!(restart(&lab).await, [finding]);
        assert_eq!(fs::read(kept).unwrap(), tail);
        assert_eq!(lab.findings(), [""; 0]);
    }
}

#[tokio::test]
async fn bytes_kept_before_are_not_overwritten() {
    let lab = Lab::with_lines(2).await;
    let kept = lab.directory.path().join("audit.jsonl.torn-3");
    fs::write(&kept, b"older").unwrap();
    fs::write(lab.file(), format!("{}{{\"seq\"", lab.text())).unwrap();
    restart(&lab).await;
    assert_eq!(fs::read(kept).unwrap(), b"older");
    let next = lab.directory.path().join("audit.jsonl.torn-3-1");
    assert_eq!(fs::read(next).unwrap(), b"{\"seq\"");
}

#[tokio::test]
async fn a_head_that_lags_is_caught_up_with() {
    for behind in 0..20 {
        let lab = Lab::with_lines(20).await;
        put_head(&lab, &lab.lines()[behind]);
        assert_eq!(restart(&lab).await, [""; 0]);
        assert_eq!(lab.findings(), [""; 0]);
    }
}

#[tokio::test]
async fn a_head_right_before_a_rotated_file_is_caught_up_with() {
    let lab = Lab::with_lines(5).await;
    let lines = lab.lines();
    put_head(&lab, &lines[2]);
    fs::write(lab.file(), format!("{}\n{}\n", lines[3], lines[4])).unwrap();
    assert_eq!(restart(&lab).await, [""; 0]);
    put_head(&lab, &lines[1]);
    let finding = "the line of seq 2, which was written, is not found";
    assert_eq!(restart(&lab).await, [finding]);
    put_head(&lab, &lines[2].replace("record", "forged"));
    let finding = "the line of seq 3, which was written, is not found";
    assert_eq!(restart(&lab).await, [finding]);
}

#[tokio::test]
async fn a_tail_cut_off_shows_for_ever() {
    let lab = Lab::with_lines(5).await;
    let lines = lab.lines();
    fs::write(lab.file(), format!("{}\n{}\n", lines[0], lines[1])).unwrap();
    assert_eq!(lab.findings(), ["audit.jsonl:2: the log ends here, and its head is seq 5"]);
    let finding = "it ends at seq 2, and seq 5 was written: lines are missing";
    assert_eq!(restart(&lab).await, [finding]);
    assert_eq!(restart(&lab).await, [""; 0]);
    assert_eq!(lab.findings(), ["audit.jsonl:3: seq 3 to 5 are missing before it"]);
}

#[tokio::test]
async fn a_log_removed_or_rotated_while_down_goes_on_from_the_head() {
    for empty in [true, false] {
        let lab = Lab::with_lines(5).await;
        let old = lab.directory.path().join("audit.jsonl.1");
        fs::rename(lab.file(), &old).unwrap();
        if empty {
            fs::write(lab.file(), b"").unwrap();
        }
        let finding =
            "it was rotated or removed while Portcullis was down; the chain stands at seq 5";
        assert_eq!(restart(&lab).await, [finding]);
        assert_eq!(verify(&[&old, &lab.file()], Some(&lab.state())), [""; 0]);
    }
}

#[tokio::test]
async fn a_last_line_changed_while_down_shows_for_ever() {
    let lab = Lab::with_lines(3).await;
    fs::write(lab.file(), lab.text().replace("record 3", "record 4")).unwrap();
    let changed = "audit.jsonl:3: seq 3 is not the line that the head stands for";
    assert_eq!(lab.findings(), [changed]);
    let finding = "the line of seq 3 is not the one that was written";
    assert_eq!(restart(&lab).await, [finding]);
    assert_eq!(
        lab.findings(),
        ["audit.jsonl:3: seq 3 is not the line that was written: seq 4 holds the hash of another"]
    );
}

#[tokio::test]
async fn a_tail_written_anew_shows_for_ever() {
    let lab = Lab::with_lines(3).await;
    let head = lab.lines()[1].clone();
    // A log that agrees with itself, with another second line.
    let forged = lab.lines()[1].replace("record 2", "record X");
    let hash = |line: &str| crate::image::Digest::of(line.as_bytes()).to_string();
    let third = lab.lines()[2].replace(&hash(&lab.lines()[1]), &hash(&forged));
    fs::write(lab.file(), format!("{}\n{forged}\n{third}\n", lab.lines()[0])).unwrap();
    assert_eq!(verify(&[&lab.file()], None), [""; 0]);
    put_head(&lab, &head);
    let finding = "the line of seq 2 is not the one that was written";
    assert_eq!(restart(&lab).await, [finding]);
    assert_eq!(
        lab.findings(),
        ["audit.jsonl:3: seq 3 is not the line that was written: seq 4 holds the hash of another"]
    );
}

#[tokio::test]
async fn without_a_head_the_log_speaks_for_itself_and_says_so() {
    let lab = Lab::with_lines(3).await;
    fs::remove_dir_all(lab.state()).unwrap();
    let finding = "no head is kept beside it, so that its own end, seq 3, is taken; whether lines \
                   behind it were cut off cannot be told";
    assert_eq!(restart(&lab).await, [finding]);
    assert_eq!(lab.findings(), [""; 0]);
}

#[tokio::test]
async fn a_damaged_head_is_reported_and_mended() {
    let lab = Lab::with_lines(3).await;
    let path = lab.state().join(HEAD_FILE_NAME);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[0] ^= 1;
    bad[512] ^= 1;
    fs::write(&path, &bad).unwrap();
    let no_head = "no head is kept beside it, so that its own end, seq 3, is taken; whether lines \
                   behind it were cut off cannot be told";
    assert_eq!(restart(&lab).await, ["its head is damaged", no_head]);
    assert_eq!(lab.findings(), [""; 0]);

    let lab = Lab::with_lines(3).await;
    let path = lab.state().join(HEAD_FILE_NAME);
    let mut bad = fs::read(&path).unwrap();
    bad[0] ^= 1;
    fs::write(&path, &bad).unwrap();
    let findings = restart(&lab).await;
    let text = "one of the two copies of its head is damaged, the other one says seq ";
    assert_eq!(findings.len(), 1);
    assert!(findings[0].starts_with(text), "{findings:?}");
    assert_eq!(lab.findings(), [""; 0]);
}

#[tokio::test]
async fn a_last_line_that_is_far_back_is_found() {
    let lab = Lab::with_lines(2).await;
    let junk = "x".repeat(1 << 20);
    fs::write(lab.file(), format!("{}{junk}", lab.text())).unwrap();
    let kept = lab.directory.path().join("audit.jsonl.torn-3");
    let finding =
        format!("1048576 bytes behind its last whole line were moved to {}", kept.display());
    assert_eq!(restart(&lab).await, [finding]);
    assert_eq!(fs::read(kept).unwrap().len(), 1 << 20);
    assert_eq!(lab.findings(), [""; 0]);
}

/// Not a test: the process that [`what_was_answered_survives_a_kill`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Some(directory) = std::env::var_os(VICTIM) else { return };
    let directory = PathBuf::from(directory);
    let (file, state_directory) = (directory.join("audit.jsonl"), directory.join("state"));
    let (log, _) = Log::open(Config { file, state_directory, node: "node-1".into() }).unwrap();
    let writers = (0..16).map(|writer| {
        let log = log.clone();
        tokio::spawn(async move {
            for n in 0.. {
                let n = write(&log, writer * 1_000_000 + n).await.unwrap();
                println!("answered: record {n}.");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

const VICTIM: &str = "PORTCULLIS_TEST_AUDIT_VICTIM";

#[test]
fn what_was_answered_survives_a_kill() {
    use std::{
        collections::HashSet,
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };
    let lab = Lab::new();
    let mut answered = HashSet::new();
    for round in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "audit::tests::restart::victim", "--nocapture"])
            .env(VICTIM, lab.directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut answer = || {
            let line = lines.next()?.unwrap();
            let record = line.split_once("answered: ")?.1.strip_suffix('.')?.to_owned();
            Some((round, record))
        };
        let mut count = 0;
        while count < 100 {
            count += answer().is_some_and(|record| answered.insert(record)) as usize;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died counts as well; the last words may be cut short.
        answered.extend(std::iter::from_fn(answer));
    }
    let (log, opened) = lab.open();
    drop(log);
    assert_eq!(opened.findings, [""; 0]);
    assert_eq!(lab.findings(), [""; 0]);
    let mut round = 0;
    for message in lab.messages() {
        match message.starts_with(START) {
            true => round += 1,
            false => drop(answered.remove(&(round, message))),
        }
    }
    assert_eq!((round, answered), (6, HashSet::new()));
}
