//! Whatever is done to a log, the reader finds it.

use super::*;

/// Five lines and the head.
struct Five {
    lines: Vec<String>,
    head: Position,
}

impl Five {
    async fn new() -> Self {
        let lab = Lab::with_lines(5).await;
        let head = read_head(&lab.state()).unwrap().position.unwrap();
        let five = Self { lines: lab.lines(), head };
        assert!(five.report(lab.text().as_bytes()).is_whole());
        five
    }

    fn text(&self) -> Vec<u8> {
        self.join(&[0, 1, 2, 3, 4])
    }

    fn join(&self, order: &[usize]) -> Vec<u8> {
        order.iter().map(|n| self.lines[*n].clone() + "\n").collect::<String>().into_bytes()
    }

    fn report(&self, text: &[u8]) -> Report {
        let mut verifier = Verifier::new(Some(self.head));
        verifier.read("log", text).unwrap();
        verifier.finish()
    }

    fn findings(&self, text: &[u8]) -> Vec<String> {
        let findings = self.report(text).findings.into_iter();
        findings.map(|found| format!("{}: {}", found.line, found.message)).collect()
    }
}

#[tokio::test]
async fn a_whole_log_is_whole() {
    let five = Five::new().await;
    let whole = Report { records: 5, first: Some(1), last: Some(5), ..Report::default() };
    assert_eq!(five.report(&five.text()), whole);
}

#[tokio::test]
async fn a_flip_of_any_bit_is_found() {
    let five = Five::new().await;
    let text = five.text();
    for place in 0..text.len() {
        for bit in 0..8 {
            let mut bad = text.clone();
            bad[place] ^= 1 << bit;
            assert!(!five.report(&bad).is_whole(), "bit {bit} of byte {place}");
        }
    }
}

#[tokio::test]
async fn a_changed_line_is_named() {
    let five = Five::new().await;
    for n in 2..=4 {
        let text = String::from_utf8(five.text()).unwrap();
        let text = text.replace(&format!("record {n}"), "record X");
        let next = n + 1;
        let finding = format!(
            "{n}: seq {n} is not the line that was written: seq {next} holds the hash of another"
        );
        assert_eq!(five.findings(text.as_bytes()), [finding]);
    }
    let text = String::from_utf8(five.text()).unwrap().replace("record 5", "record X");
    let finding = "5: seq 5 is not the line that the head stands for";
    assert_eq!(five.findings(text.as_bytes()), [finding]);
}

#[tokio::test]
async fn a_dropped_line_is_found() {
    let five = Five::new().await;
    assert_eq!(five.findings(&five.join(&[0, 2, 3, 4])), ["2: seq 2 is missing before it"]);
    assert_eq!(five.findings(&five.join(&[0, 1, 3, 4])), ["3: seq 3 is missing before it"]);
    assert_eq!(five.findings(&five.join(&[0, 4])), ["2: seq 2 to 4 are missing before it"]);
    let cut = "4: the log ends here, and its head is seq 5";
    assert_eq!(five.findings(&five.join(&[0, 1, 2, 3])), [cut]);
    // Rotation does the same, so it shows in where the log begins.
    let report = five.report(&five.join(&[1, 2, 3, 4]));
    assert_eq!((report.first, report.is_whole()), (Some(2), true));
}

#[tokio::test]
async fn every_reordering_is_found() {
    let five = Five::new().await;
    for a in 0..5 {
        for b in 0..a {
            let mut order = [0, 1, 2, 3, 4];
            order.swap(a, b);
            assert!(!five.report(&five.join(&order)).is_whole(), "{order:?}");
        }
    }
    assert_eq!(
        five.findings(&five.join(&[0, 2, 1, 3, 4])),
        ["2: seq 2 is missing before it", "3: seq 2 stands behind seq 3"]
    );
}

#[tokio::test]
async fn every_repetition_is_found() {
    let five = Five::new().await;
    for twice in 0..5 {
        for place in 0..=5 {
            let mut order = vec![0, 1, 2, 3, 4];
            order.insert(place, twice);
            assert!(!five.report(&five.join(&order)).is_whole(), "{order:?}");
        }
    }
    assert_eq!(five.findings(&five.join(&[0, 1, 1, 2, 3, 4])), ["3: repeats seq 2"]);
    let other = String::from_utf8(five.join(&[1])).unwrap().replace("record", "forged");
    let text = [five.join(&[0, 1]), other.into_bytes(), five.join(&[2, 3, 4])].concat();
    assert_eq!(five.findings(&text), ["3: is another line with seq 2"]);
}

#[tokio::test]
async fn what_is_no_record_is_found_once() {
    let five = Five::new().await;
    let long = [vec![b'x'; 3 * MAX_LINE], b"\n".to_vec()].concat();
    for (junk, what) in [
        (b"\n".to_vec(), "is no audit record"),
        (b"\xff\xfe\n".to_vec(), "is no audit record"),
        (long, "is longer than 65536 bytes"),
    ] {
        let put_in = [five.join(&[0, 1]), junk.clone(), five.join(&[2, 3, 4])].concat();
        assert_eq!(five.findings(&put_in), [format!("3: {what}")]);
        let instead = [five.join(&[0, 1]), junk.clone(), five.join(&[3, 4])].concat();
        assert_eq!(five.findings(&instead), [format!("3: {what}")]);
        let too_few = [five.join(&[0]), junk, five.join(&[3, 4])].concat();
        let missing = "3: seq 2 to 3 are missing before it".to_owned();
        assert_eq!(five.findings(&too_few), [format!("2: {what}"), missing]);
    }
}

#[tokio::test]
async fn a_tail_cut_at_any_byte_is_found() {
    let five = Five::new().await;
    let text = five.text();
    for length in 0..text.len() {
        assert!(!five.report(&text[..length]).is_whole(), "{length}");
    }
    let torn = &text[..text.len() - 1];
    let length = five.lines[4].len();
    assert_eq!(
        five.findings(torn),
        [
            format!("5: ends after {length} bytes, without a newline"),
            "4: the log ends here, and its head is seq 5".into(),
        ]
    );
}

#[tokio::test]
async fn a_head_of_another_log_is_found() {
    let five = Five::new().await;
    let head = Position { seq: 1, ..five.head };
    let mut verifier = Verifier::new(Some(head));
    verifier.read("log", &five.join(&[2, 3, 4])[..]).unwrap();
    let findings = verifier.finish().findings;
    assert_eq!(findings.len(), 1);
    let text = "the head, seq 1, is before all lines: it is an older one, or of another log";
    assert_eq!((findings[0].kind, &findings[0].message[..]), (FindingKind::HeadBehind, text));
}

#[tokio::test]
async fn a_head_right_before_the_first_line_must_be_what_it_was_chained_to() {
    let five = Five::new().await;
    let hash = crate::image::Digest::of(five.lines[1].as_bytes());
    for (hash, whole) in [(hash, true), (five.head.hash, false)] {
        let mut verifier = Verifier::new(Some(Position { seq: 2, hash }));
        verifier.read("log", &five.join(&[2, 3, 4])[..]).unwrap();
        assert_eq!(verifier.finish().is_whole(), whole);
    }
}

#[tokio::test]
async fn a_first_line_that_follows_something_is_found() {
    let five = Five::new().await;
    let genesis = Position::genesis().hash.to_string();
    let line = five.lines[0].replace(&genesis, &five.head.hash.to_string());
    let mut verifier = Verifier::new(None);
    verifier.read("log", format!("{line}\n").as_bytes()).unwrap();
    let findings = verifier.finish().findings;
    let text = "is the first one, and its prev is not that of a first line";
    assert_eq!((findings.len(), &findings[0].message[..]), (1, text));
}

#[tokio::test]
async fn findings_are_bounded() {
    let five = Five::new().await;
    let mut text = five.text();
    text.extend(b"x\n".repeat(1000));
    let report = five.report(&text);
    assert_eq!((report.findings.len(), report.more_findings), (100, 900));
}

#[test]
fn nothing_is_whole_unless_a_head_says_otherwise() {
    assert_eq!(Verifier::new(None).finish(), Report::default());
    let head = Position { seq: 1, hash: Position::genesis().hash };
    let mut verifier = Verifier::new(Some(head));
    verifier.read("log", &b""[..]).unwrap();
    let findings = verifier.finish().findings;
    assert_eq!(findings[0].kind, FindingKind::TailMissing);
}
