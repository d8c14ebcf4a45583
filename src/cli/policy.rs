//! `portcullis policy bundle`, `sign` and `show`: policies for nodes that fetch them.

mod bundle;
mod show;
mod sign;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    image::Digest,
    policy::{
        PolicySet,
        bundle::{MAX_BUNDLE, Payload},
        source::shown,
    },
};

use super::{Exit, arguments::PolicyCommand, style::Style};

/// Largest key file, in bytes.
const MAX_KEY: usize = 64 << 10;

/// Runs one of the commands. Fails where `out` cannot be written.
pub(super) fn run(
    asked: &PolicyCommand,
    json: bool,
    style: Style,
    out: &mut impl Write,
) -> io::Result<Exit> {
    let now = Timestamp::now();
    let done = match asked {
        PolicyCommand::Bundle(asked) => bundle::run(asked, now, out),
        PolicyCommand::Sign(asked) => sign::run(asked, now, out),
        PolicyCommand::Show(asked) => show::run(asked, now, json, style, out),
    };
    done.unwrap_or_else(|Stop { exit, why }| {
        eprintln!("portcullis: {why}");
        Ok(exit)
    })
}

/// Why a command ends without having done what it was asked.
struct Stop {
    exit: Exit,
    why: String,
}

impl Stop {
    fn config(path: &Path, why: impl ToString) -> Self {
        Self { exit: Exit::Config, why: format!("{}: {}", named(path), why.to_string()) }
    }

    fn unwritten(path: &Path, error: &io::Error) -> Self {
        let why = format!("{}: cannot be written: {error}", named(path));
        Self { exit: Exit::Inconclusive, why }
    }
}

/// What there is to say of a payload.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// As `portcullis status` shows it.
    digest: Digest,
    policies: Vec<String>,
    revoked: usize,
}

impl Summary {
    fn of(payload: &Payload, set: &PolicySet) -> Self {
        Self {
            revision: payload.revision,
            expires_at: payload.expires_at.map(|moment| moment.to_string()),
            digest: set.digest(),
            policies: set.policies().iter().map(|policy| policy.name.clone()).collect(),
            revoked: set.revoked().digests.len() + set.revoked().keys.len(),
        }
    }

    /// `revision 7, 3 policies, 2 revoked, expires 2026-12-01T00:00:00Z`
    fn line(&self) -> String {
        let plural = if self.policies.len() == 1 { "policy" } else { "policies" };
        let mut line = format!("revision {}, {} {plural}", self.revision, self.policies.len());
        if self.revoked > 0 {
            line += &format!(", {} revoked", self.revoked);
        }
        match &self.expires_at {
            Some(moment) => line + &format!(", expires {moment}"),
            None => line + ", does not expire",
        }
    }
}

/// A path in a message.
fn named(path: &Path) -> String {
    if is_stream(path) { "standard input".to_owned() } else { shown(path) }
}

fn is_stream(path: &Path) -> bool {
    path == Path::new("-")
}

/// The content of a file, or standard input for `-`.
fn read(path: &Path) -> Result<Vec<u8>, Stop> {
    let mut bytes = Vec::new();
    let limit = MAX_BUNDLE as u64 + 1;
    let read = match is_stream(path) {
        true => io::stdin().lock().take(limit).read_to_end(&mut bytes),
        false => File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)),
    };
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Stop::config(path, format!("cannot be read: {error}"))),
    }
}

/// Writes a file as a whole or not at all. What is no regular file, as `/dev/stdout`, is written
/// as it is.
fn write(path: &Path, bytes: &[u8], out: &mut impl Write) -> Result<(), Stop> {
    let written = match is_stream(path) {
        true => out.write_all(bytes).and_then(|()| out.flush()),
        false => write_file(path, bytes),
    };
    let shown = if is_stream(path) { Path::new("standard output") } else { path };
    written.map_err(|error| Stop::unwritten(shown, &error))
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link stays one, and what it leads to is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        return OpenOptions::new().write(true).open(&path)?.write_all(bytes);
    }
    let draft = draft_of(&path)?;
    let written = File::create_new(&draft).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, &path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

/// A name beside the file that nobody else uses.
fn draft_of(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut draft = std::ffi::OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}.new", std::process::id()));
    Ok(path.with_file_name(draft))
}

/// Says what was written: on standard output, unless the file itself went there.
fn say(to: &Path, line: &str, out: &mut impl Write) -> io::Result<()> {
    match is_stream(to) {
        true => writeln!(io::stderr(), "{line}"),
        false => writeln!(out, "{line}"),
    }
}
