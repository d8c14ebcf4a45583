//! `portcullis policy show`: what is in a bundle, and who signed it.

use std::{
    io::{self, Write},
    path::Path,
};

use jiff::Timestamp;
use serde_json::json;

use crate::{
    cli::{
        Exit,
        arguments::Show,
        style::{Style, printable},
    },
    policy::{
        bundle::{BundleError, Payload, Sealed},
        source::read_text,
    },
    verify::PublicKey,
};

use super::{MAX_KEY, Stop, Summary, named, read, sign::counted};

/// Policies that are told one by one.
const MAX_SHOWN: usize = 20;

pub(super) fn run(
    asked: &Show,
    now: Timestamp,
    json: bool,
    style: Style,
    out: &mut impl Write,
) -> Result<io::Result<Exit>, Stop> {
    let document = read(&asked.file)?;
    let keys = asked.key.iter().map(|path| {
        let pem = read_text(path, MAX_KEY).map_err(|why| Stop::config(path, why))?;
        PublicKey::from_pem(&pem).map_err(|why| Stop::config(path, why))
    });
    let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
    let (payload, sealed) = unverified(&asked.file, &document)?;
    let set = payload.texts.read(&named(&asked.file), now);
    let set = set.map_err(|problems| Stop { exit: Exit::Config, why: problems.to_string() })?;
    let summary = Summary::of(&payload, &set);
    let expired = payload.expires_at.is_some_and(|moment| moment <= now);
    let signatures = sealed.as_ref().map_or(0, Sealed::signatures);
    let verdict = (!keys.is_empty()).then(|| match &sealed {
        Some(sealed) => sealed.open(&keys).map(|offer| {
            offer.sealed.map(|genuine| genuine.signers().to_vec()).unwrap_or_default()
        }),
        None => Err(BundleError::Unsigned),
    });
    let exit = match &verdict {
        Some(Err(_)) => Exit::Refused,
        _ => Exit::Success,
    };
    if json {
        let mut value = json!(summary);
        value["expired"] = json!(expired);
        value["signatures"] = json!(signatures);
        match &verdict {
            Some(Ok(signers)) => {
                value["signedBy"] = signers.iter().map(|id| json!(id.to_string())).collect();
            }
            Some(Err(why)) => value["notVerified"] = json!(why.to_string()),
            None => {}
        }
        return Ok(writeln!(out, "{value}").map(|()| exit));
    }
    let mut show = || {
        match &verdict {
            Some(Ok(signers)) => {
                for id in signers {
                    writeln!(out, "{} by key {id}", style.green("signed"))?;
                }
            }
            Some(Err(why)) => writeln!(out, "{}: it {why}", style.red("not verified"))?,
            None if signatures == 0 => writeln!(out, "{} by anybody", style.yellow("not signed"))?,
            None => {
                let carries = counted(signatures);
                let not = style.yellow("not verified");
                writeln!(out, "{not}: it carries {carries}; name --key to verify")?;
            }
        }
        writeln!(out, "{}", summary.line())?;
        if expired {
            writeln!(out, "{}: nodes refuse everything by it", style.red("expired"))?;
        }
        writeln!(out, "set {}", summary.digest)?;
        for name in summary.policies.iter().take(MAX_SHOWN) {
            writeln!(out, "  policy {}", printable(name))?;
        }
        match summary.policies.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => writeln!(out, "  and {more} more"),
        }
    };
    Ok(show().map(|()| exit))
}

/// What stands in a payload or a bundle, whoever signed it, and the bundle.
pub(super) fn unverified(file: &Path, document: &[u8]) -> Result<(Payload, Option<Sealed>), Stop> {
    let read = match Sealed::parse(document) {
        Ok(sealed) => sealed.unverified().map(|payload| (payload, Some(sealed))),
        Err(BundleError::Unsigned) => Payload::read(document).map(|payload| (payload, None)),
        Err(error) => return Err(Stop::config(file, error)),
    };
    read.map_err(|error| Stop::config(file, error))
}
