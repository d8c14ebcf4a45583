//! Times of policies.

use jiff::Timestamp;

use crate::{
    image::shorten,
    policy::fields::{Field, Reader},
};

/// All moments are earlier: from here on, libraries do not agree on what they can count.
pub(in crate::policy) const END: &str = "9999-12-30T00:00:00Z";

/// A moment as Kubernetes writes it (RFC 3339), and nothing else that a parser of times takes.
pub(super) fn moment(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Timestamp> {
    let text = reader.text(field)?;
    read_moment(text).map_err(|why| reader.wrong::<()>(field, why)).ok()
}

/// Reads such a moment; the error is a sentence.
pub(crate) fn read_moment(text: &str) -> Result<Timestamp, String> {
    let moment: Option<Timestamp> = is_moment(text).then(|| text.parse().ok()).flatten();
    let is_early = |moment: &Timestamp| END.parse().is_ok_and(|end| *moment < end);
    moment.filter(is_early).ok_or_else(|| {
        format!("{:?} is no time; write it as in 2026-01-01T00:00:00Z (RFC 3339)", shorten(text))
    })
}

/// Whether a text has the shape of a moment that all who read policies take for the same one:
/// neither leap seconds nor years that begin with a zero.
fn is_moment(text: &str) -> bool {
    let Some((whole, rest)) = text.split_at_checked("0000-00-00T00:00:00".len()) else {
        return false;
    };
    let rest = match rest.strip_prefix('.') {
        None => rest,
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if !(1..=9).contains(&(fraction.len() - zone.len())) {
                return false;
            }
            zone
        }
    };
    let is_zone = rest == "Z"
        || rest
            .strip_prefix(['+', '-'])
            .is_some_and(|zone| is_like(zone, "00:00") && zone <= "23:59" && &zone[3..] <= "59");
    is_like(whole, "0000-00-00T00:00:00")
        && &whole[..4] >= "1000"
        && &whole[17..] <= "59"
        && is_zone
}

/// Whether a text has digits where the form has zeros, and everywhere else the same.
fn is_like(text: &str, form: &str) -> bool {
    let fits = |(c, form): (u8, u8)| if form == b'0' { c.is_ascii_digit() } else { c == form };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}
