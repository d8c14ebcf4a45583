//! `portcullis policy sign`: a payload, or a further signature.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::{
    cli::{Exit, arguments::Sign},
    policy::{
        bundle::{self, SigningKey},
        source::read_text,
    },
};

use super::{MAX_KEY, Stop, named, read, say, show::unverified, write};

pub(super) fn run(
    asked: &Sign,
    now: Timestamp,
    out: &mut impl Write,
) -> Result<io::Result<Exit>, Stop> {
    let key = read_text(&asked.key, MAX_KEY).map_err(|why| Stop::config(&asked.key, why))?;
    let key = SigningKey::from_pem(&key).map_err(|why| Stop::config(&asked.key, why))?;
    let document = read(&asked.file)?;
    let signed = bundle::sign(&document, &key).map_err(|why| Stop::config(&asked.file, why))?;
    // What no node would take is not signed.
    let (payload, _) = unverified(&asked.file, &document)?;
    payload
        .texts
        .read(&named(&asked.file), now)
        .map_err(|problems| Stop { exit: Exit::Config, why: problems.to_string() })?;
    let to = &asked.to.output;
    write(to, &signed.bytes, out)?;
    let (count, key) = (signed.signatures, signed.key);
    let line = match (asked.to.format.is_json(), signed.added) {
        (true, added) => {
            serde_json::json!({"key": key.to_string(), "added": added, "signatures": count})
                .to_string()
        }
        (false, true) => format!("signed by key {key}, {}", counted(count)),
        (false, false) => format!("was signed by key {key} before, {}", counted(count)),
    };
    Ok(say(to, &line, out).map(|()| Exit::Success))
}

pub(super) fn counted(signatures: usize) -> String {
    format!("{signatures} signature{}", if signatures == 1 { "" } else { "s" })
}
