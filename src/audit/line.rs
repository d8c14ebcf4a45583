//! One line of the log: how it is written, bounded and read back (ARCHITECTURE.md, "Audit record").

use std::{borrow::Cow, io};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{decide::PolicyOutcome, image::Digest};

use super::Record;

/// Longest line of an audit log, in bytes, with its newline.
pub const MAX_LINE: usize = 64 * 1024;
/// Highest `seq`: the largest integer that every JSON reader keeps exact.
const MAX_SEQ: u64 = (1 << 53) - 1;
/// Longest message in a line that had to be shortened, in characters.
const MAX_MESSAGE: usize = 4096;
/// Longest other text in a line that had to be shortened, in characters.
const MAX_TEXT: usize = 256;

/// A place in the chain: a line's number, and the hash of its bytes without the newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line's `seq`.
    pub seq: u64,
    /// What `prev` of the next line must be.
    pub hash: Digest,
}

impl Position {
    /// The place before the first line.
    pub fn genesis() -> Self {
        Self { seq: 0, hash: Digest::of(b"") }
    }
}

/// What a line says about its place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its own number.
    pub(super) seq: u64,
    /// The hash of the line before.
    pub(super) prev: Digest,
}

impl Link {
    /// Reads a line without its newline. `None`: this is no line of an audit log.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Raw<'a> {
            seq: u64,
            #[serde(borrow)]
            prev: Cow<'a, str>,
        }
        let raw: Raw<'_> = serde_json::from_slice(line).ok()?;
        let prev = raw.prev.parse().ok()?;
        (1..=MAX_SEQ).contains(&raw.seq).then_some(Self { seq: raw.seq, prev })
    }
}

/// The order of the fields on the line.
#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    time: &'a str,
    node: &'a str,
    #[serde(flatten)]
    record: &'a Record,
    /// What the whole record held, where this line does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    shortened: Option<&'a str>,
    prev: Digest,
}

/// Appends the line that follows `after`, with its newline, and returns its place.
///
/// A record that does not fit into [`MAX_LINE`] is shortened: texts first, then the policies
/// that are satisfied, then those that refuse. The field `shortened` says what there was.
pub(super) fn append(
    buffer: &mut Vec<u8>,
    after: &Position,
    time: Timestamp,
    node: &str,
    record: &Record,
) -> io::Result<Position> {
    let seq = after.seq + 1;
    if seq > MAX_SEQ {
        return Err(io::Error::other("its numbers are used up: move the log and the head away"));
    }
    let start = buffer.len();
    let time = format!("{time:.9}");
    let prev = after.hash;
    let mut fits = |record: &Record, shortened: Option<&str>| -> io::Result<bool> {
        buffer.truncate(start);
        let line = Line { seq, time: &time, node, record, shortened, prev };
        serde_json::to_writer(&mut *buffer, &line)?;
        Ok(buffer.len() - start < MAX_LINE)
    };
    if !fits(record, None)? {
        let (message, policies) = (record.message.len(), record.policies.len());
        let whole = format!("a message of {message} bytes and {policies} policies");
        let mut short = with_short_texts(record);
        while !fits(&short, Some(&whole))? {
            short = with_fewer_policies(short)?;
        }
    }
    let hash = Digest::of(&buffer[start..]);
    buffer.push(b'\n');
    Ok(Position { seq, hash })
}

fn with_short_texts(record: &Record) -> Record {
    let mut short = record.clone();
    short.message = cut(&short.message, MAX_MESSAGE);
    let image = short.image.iter_mut().flat_map(|image| {
        [Some(&mut image.requested), image.repository.as_mut(), image.tag.as_mut()]
    });
    let pod = short
        .pod
        .iter_mut()
        .flat_map(|pod| [&mut pod.namespace, &mut pod.name, &mut pod.uid].map(Some));
    let policies = short.policies.iter_mut().flat_map(|policy| {
        let authorities = policy.authorities.iter_mut().flat_map(|authority| {
            [Some(&mut authority.name), authority.identity.as_mut(), authority.why.as_mut()]
        });
        authorities.chain([Some(&mut policy.name)])
    });
    for text in image.chain(pod).chain(policies).flatten() {
        *text = cut(text, MAX_TEXT);
    }
    // Those that refuse explain the decision; they go last.
    short.policies.sort_by_key(|policy| policy.outcome == PolicyOutcome::Satisfied);
    short
}

/// Halves what is left, so that even a hostile number of policies takes few rounds.
fn with_fewer_policies(mut record: Record) -> io::Result<Record> {
    match &mut record.policies[..] {
        [] => return Err(io::Error::other("the record does not fit into a line")),
        [only] if !only.authorities.is_empty() => {
            only.authorities.truncate(only.authorities.len() / 2);
        }
        several => {
            let half = several.len() / 2;
            record.policies.truncate(half);
        }
    }
    Ok(record)
}

/// The first characters of a text, and a mark where there were more.
pub(super) fn cut(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A record as text for the operator's own log, when the audit log does not take it.
pub(super) fn describe(record: &Record) -> String {
    match serde_json::to_string(record) {
        Ok(text) => cut(&text, MAX_LINE),
        Err(_) => cut(&record.message, MAX_MESSAGE),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        audit::{Event, Outcome, Pod, PolicySetId, RequestedImage},
        decide::{AuthorityOutcome, AuthorityReport, PolicyReport},
        refusal::Code,
    };

    use super::*;

    fn time() -> Timestamp {
        "2026-11-22T02:22:45.12Z".parse().unwrap()
    }

    fn line(record: &Record) -> String {
        let mut buffer = b"before\n".to_vec();
        let after = Position { seq: 41, hash: Digest::of(b"line 41") };
        let position = append(&mut buffer, &after, time(), "node-1", record).unwrap();
        let text = String::from_utf8(buffer).unwrap();
        let text = text.strip_prefix("before\n").unwrap().strip_suffix('\n').unwrap().to_owned();
        assert!(!text.contains('\n'));
        assert!(text.len() < MAX_LINE, "{}", text.len());
        assert_eq!(position, Position { seq: 42, hash: Digest::of(text.as_bytes()) });
        let link = Link::read(text.as_bytes()).unwrap();
        assert_eq!(link, Link { seq: 42, prev: Digest::of(b"line 41") });
        text
    }

    fn policy(name: String, outcome: PolicyOutcome, why: &str, authorities: usize) -> PolicyReport {
        let authority = AuthorityReport {
            name: "release".into(),
            outcome: AuthorityOutcome::Missed(Code::SignatureMissing),
            identity: None,
            child: None,
            why: Some(why.into()),
        };
        PolicyReport { name, outcome, at_least: 1, authorities: vec![authority; authorities] }
    }

    #[test]
    fn a_full_record_has_the_documented_fields_in_the_documented_order() {
        let digest = Digest::of(b"manifest");
        let record = Record {
            decision: Some(Outcome::Deny),
            reason: Some(Code::SignatureMissing),
            image: Some(RequestedImage {
                requested: "app:v1".into(),
                repository: Some("docker.io/library/app".into()),
                tag: Some("v1".into()),
                digest: Some(digest),
                id: None,
            }),
            pod: Some(Pod { namespace: "shop".into(), name: "web".into(), uid: "1".into() }),
            policies: vec![policy("production".into(), PolicyOutcome::Refused, "none", 1)],
            policy_set: Some(PolicySetId { revision: None, digest }),
            duration_us: Some(1500),
            ..Record::new(Event::Pull, "two\nlines")
        };
        let prev = Digest::of(b"line 41");
        assert_eq!(
            line(&record),
            format!(
                r#"{{"seq":42,"time":"2026-11-22T02:22:45.120000000Z","node":"node-1","event":"pull","decision":"deny","reason":"signature_missing","message":"two\nlines","image":{{"requested":"app:v1","repository":"docker.io/library/app","tag":"v1","digest":"{digest}"}},"pod":{{"namespace":"shop","name":"web","uid":"1"}},"policies":[{{"name":"production","outcome":"refused","at_least":1,"authorities":[{{"name":"release","outcome":"signature_missing","why":"none"}}]}}],"policy_set":{{"digest":"{digest}"}},"duration_us":1500,"prev":"{prev}"}}"#
            )
        );
    }

    #[test]
    fn a_long_message_is_shortened_and_marked() {
        let text = line(&Record::new(Event::Pull, "\u{1}".repeat(100_000)));
        assert!(text.contains(r#""shortened":"a message of 100000 bytes and 0 policies""#));
        assert!(text.contains(r#"\u0001…","shortened""#));
        assert_eq!(text.matches(r"\u0001").count(), MAX_MESSAGE);
    }

    #[test]
    fn a_record_that_just_fits_is_whole() {
        let empty = line(&Record::new(Event::Pull, "")).len();
        let room = MAX_LINE - 1 - empty;
        let whole = line(&Record::new(Event::Pull, "m".repeat(room)));
        assert_eq!((whole.len(), whole.contains("shortened")), (MAX_LINE - 1, false));
        assert!(line(&Record::new(Event::Pull, "m".repeat(room + 1))).contains("shortened"));
    }

    #[test]
    fn of_many_policies_those_that_refuse_stay() {
        let mut record = Record::new(Event::Pull, "no");
        let satisfied = |n| policy(format!("p{n}"), PolicyOutcome::Satisfied, "fine", 1);
        record.policies = (0..1000).map(satisfied).collect();
        record.policies.push(policy("culprit".into(), PolicyOutcome::Refused, "bad", 1));
        let text = line(&record);
        assert!(text.contains(r#"[{"name":"culprit","outcome":"refused""#), "{text}");
        assert!(text.contains(r#""shortened":"a message of 2 bytes and 1001 policies""#));
    }

    #[test]
    fn whatever_is_huge_there_is_a_line() {
        let huge = "\u{1}".repeat(20_000);
        let record = Record {
            image: Some(RequestedImage {
                requested: huge.clone(),
                repository: Some(huge.clone()),
                tag: Some(huge.clone()),
                digest: None,
                id: None,
            }),
            pod: Some(Pod { namespace: huge.clone(), name: huge.clone(), uid: huge.clone() }),
            policies: vec![policy(huge.clone(), PolicyOutcome::Refused, &huge, 100)],
            ..Record::new(Event::Pull, huge)
        };
        let text = line(&record);
        assert!(text.contains(r#""name":"release""#));
    }

    #[test]
    fn the_numbers_end_before_they_become_inexact() {
        let after = Position { seq: MAX_SEQ, hash: Digest::of(b"") };
        let error = append(&mut Vec::new(), &after, time(), "n", &Record::new(Event::Pull, ""))
            .unwrap_err();
        let text = "its numbers are used up: move the log and the head away";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn what_is_no_line_has_no_link() {
        let hash = Digest::of(b"");
        for bad in [
            String::new(),
            "{}".into(),
            format!(r#"{{"seq":0,"prev":"{hash}"}}"#),
            format!(r#"{{"seq":-1,"prev":"{hash}"}}"#),
            format!(r#"{{"seq":1.0,"prev":"{hash}"}}"#),
            format!(r#"{{"seq":9007199254740992,"prev":"{hash}"}}"#),
            format!(r#"{{"seq":1,"seq":1,"prev":"{hash}"}}"#),
            format!(r#"{{"seq":1,"prev":"{hash}"}}x"#),
            r#"{"seq":1,"prev":"sha256:00"}"#.into(),
            r#"{"seq":1}"#.into(),
        ] {
            assert_eq!(Link::read(bad.as_bytes()), None, "{bad}");
        }
    }
}
