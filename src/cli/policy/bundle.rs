//! `portcullis policy bundle`: a directory as a payload.

use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};

use crate::{
    cli::{Exit, arguments::Bundle},
    policy::{bundle::Payload, read_moment, source},
};

use super::{Stop, Summary, say, write};

pub(super) fn run(
    asked: &Bundle,
    now: Timestamp,
    out: &mut impl Write,
) -> Result<io::Result<Exit>, Stop> {
    let usage = |why: String| Stop { exit: Exit::Usage, why };
    let expires_at = expiry(asked, now).map_err(usage)?;
    let directory = &asked.directory;
    if directory.is_file() {
        return Err(Stop::config(directory, "is a file; name its directory"));
    }
    let (set, texts) = source::read(directory, now)
        .map_err(|problems| Stop { exit: Exit::Config, why: problems.to_string() })?;
    let payload = Payload { revision: asked.revision, expires_at, texts };
    let bytes = payload.write().map_err(|error| Stop::config(directory, error))?;
    let to = &asked.to.output;
    write(to, &bytes, out)?;
    let summary = Summary::of(&payload, &set);
    let line = match asked.to.format.is_json() {
        true => serde_json::json!(summary).to_string(),
        false => format!(
            "{}; nobody has signed it yet (portcullis policy sign)\nset {}",
            summary.line(),
            summary.digest
        ),
    };
    Ok(say(to, &line, out).map(|()| Exit::Success))
}

/// When the bundle expires; to the second, so that a moment later makes the same bytes.
fn expiry(asked: &Bundle, now: Timestamp) -> Result<Option<Timestamp>, String> {
    let moment = match (&asked.expires_at, &asked.expires_in) {
        (Some(moment), _) => read_moment(moment).map_err(|why| format!("--expires-at: {why}"))?,
        (None, Some(duration)) => {
            let wrong = || {
                format!(
                    "--expires-in: {duration:?} is no time to come; write a number and s, m, h, d \
                     or w, as in 30d"
                )
            };
            let moment = seconds(duration)
                .and_then(|seconds| now.checked_add(SignedDuration::from_secs(seconds)).ok());
            let moment = moment.ok_or_else(wrong)?;
            Timestamp::from_second(moment.as_second()).map_err(|_| wrong())?
        }
        (None, None) => return Ok(None),
    };
    match moment > now {
        true => Ok(Some(moment)),
        false => Err(format!("a bundle that expired at {moment} would refuse everything")),
    }
}

/// `30d` in seconds.
fn seconds(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    let digits = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
    digits.then(|| number.parse::<i64>().ok()?.checked_mul(unit)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, amount) in
            [("30d", 2_592_000), ("12h", 43_200), ("90m", 5400), ("2w", 1_209_600), ("7s", 7)]
        {
            assert_eq!(seconds(text), Some(amount), "{text}");
        }
        let long = i64::MAX.to_string() + "w";
        for text in ["", "d", "30", "-1d", "+1d", "1.5d", "1y", "1 d", "é", "1dd", &long] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
