//! `portcullis check PATH…`: the daemon's own parsers on configurations and policies.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    image::Digest,
    policy::{Authority, AuthorityKind, ImagePolicy, Mode, PolicySet, Revoked, source},
    problem::{Position, Problem, Problems},
    verify,
};

use super::Exit;

mod configuration;

/// What became of one path.
#[derive(Serialize)]
struct Report {
    path: String,
    ok: bool,
    #[serde(flatten)]
    found: Found,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Configuration {
        kind: &'static str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
    },
    Policies {
        kind: &'static str,
        policies: usize,
        authorities: usize,
        #[serde(skip_serializing_if = "is_zero")]
        revoked: usize,
        digest: Digest,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
    },
    Problems {
        problems: Vec<Problem>,
        more: usize,
    },
}

/// Reads each path as the daemon would: a directory as a set of policies, `.yaml` and `.yml` as
/// policies, `.toml` as a configuration. Everything that is wrong with any of them is written to
/// `out`, for people or as one JSON object.
///
/// Returns [`Exit::Success`] if all is well, [`Exit::Config`] if anything is not, and
/// [`Exit::Usage`] if there is nothing to check. Fails if `out` cannot be written.
pub(super) fn run(paths: &[PathBuf], json: bool, out: &mut impl Write) -> io::Result<Exit> {
    if paths.is_empty() {
        writeln!(
            out,
            "nothing to check: name configurations, policies or directories of policies"
        )?;
        return Ok(Exit::Usage);
    }
    let now = Timestamp::now();
    let reports: Vec<_> = paths.iter().map(|path| check(path, now)).collect();
    let ok = reports.iter().all(|report| report.ok);
    match json {
        true => {
            let all = serde_json::json!({ "ok": ok, "paths": reports });
            writeln!(out, "{all}")?;
        }
        false => reports.iter().try_for_each(|report| show(report, out))?,
    }
    Ok(if ok { Exit::Success } else { Exit::Config })
}

fn check(path: &Path, now: Timestamp) -> Report {
    let found = match path.extension() {
        _ if path.is_dir() => source::load(path, now).map(|set| policies(&set, now)),
        _ if source::is_policy_file(path) => {
            source::load_file(path, now).map(|set| policies(&set, now))
        }
        Some(extension) if extension == "toml" => {
            let notes = configuration::notes(path);
            notes.map(|notes| Found::Configuration { kind: "configuration", notes })
        }
        _ if !path.exists() => Err(Problem::of_file(source::shown(path), "does not exist").into()),
        _ => {
            let message = "is neither a directory nor a .toml, .yaml or .yml file";
            Err(Problem::of_file(source::shown(path), message).into())
        }
    };
    let ok = found.is_ok();
    let found = found.unwrap_or_else(|problems: Problems| Found::Problems {
        problems: problems.list().to_vec(),
        more: problems.more(),
    });
    Report { path: source::shown(path), ok, found }
}

fn policies(set: &PolicySet, now: Timestamp) -> Found {
    let authorities = set.policies().iter().map(|policy| policy.authorities.len()).sum();
    let policies = set.policies().len();
    let revoked = set.revoked().digests.len() + set.revoked().keys.len();
    let notes =
        set.policies().iter().flat_map(|policy| notes(policy, set.revoked(), now)).collect();
    let digest = set.digest();
    Found::Policies { kind: "policies", policies, authorities, revoked, digest, notes }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// What is right by the letter, and may not be what was meant.
fn notes(policy: &ImagePolicy, revoked: &Revoked, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    if policy.mode == Mode::Warn {
        let why = "only warns: what it would refuse is let through";
        notes.push(format!("policy {:?}: {why}", policy.name));
    }
    if let Some(glass) = &policy.break_glass {
        let why = match glass.not_after {
            None => "its glass can be broken without end (breakGlass has no notAfter)".to_owned(),
            Some(until) if now >= until => {
                format!("its glass cannot be broken any more, since {}", verify::day(until))
            }
            Some(_) => String::new(),
        };
        if !why.is_empty() {
            notes.push(format!("policy {:?}: {why}", policy.name));
        }
    }
    notes.extend(without_proof(policy));
    let mut note = |authority: &Authority, why: &str| {
        notes.push(format!("policy {:?}: {:?}: {why}", policy.name, authority.name));
    };
    let mut in_force = 0;
    for authority in &policy.authorities {
        match &authority.kind {
            AuthorityKind::PublicKey(key) => match verify::in_force(key, revoked, now) {
                Ok(()) => in_force += 1,
                Err(missed) => note(authority, &missed.why),
            },
            AuthorityKind::Unsigned { .. } => in_force += 1,
            AuthorityKind::Digests(listed) => {
                let (gone, left): (Vec<_>, Vec<_>) =
                    listed.iter().partition(|digest| revoked.digests.contains_key(digest));
                for digest in gone {
                    note(
                        authority,
                        &format!("{digest} is revoked by {:?}", revoked.digests[digest]),
                    );
                }
                in_force += usize::from(!left.is_empty());
            }
        }
    }
    if in_force < policy.at_least.get() {
        notes.push(format!("policy {:?}: accepts no image today", policy.name));
    }
    notes
}

/// What each `unsigned` authority of a policy does to it.
fn without_proof(policy: &ImagePolicy) -> Vec<String> {
    let reason = |one: &Authority| match &one.kind {
        AuthorityKind::Unsigned { reason } => Some(reason.clone()),
        AuthorityKind::PublicKey(_) | AuthorityKind::Digests(_) => None,
    };
    let reasons: Vec<_> = policy.authorities.iter().filter_map(reason).collect();
    let effect = match reasons.len() >= policy.at_least.get() {
        true if reasons.len() == policy.authorities.len() => {
            "accepts any image that it matches without proof"
        }
        true => {
            "accepts any image that it matches without proof, whatever its other authorities say"
        }
        false => "one of its authorities accepts any image without proof",
    };
    let note = |reason: &String| format!("policy {:?}: {effect} ({reason:?})", policy.name);
    reasons.iter().map(note).collect()
}

fn show(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let path = &report.path;
    match &report.found {
        Found::Configuration { kind, notes } => {
            writeln!(out, "ok: {path}: {kind}")?;
            notes.iter().try_for_each(|note| writeln!(out, "  note: {note}"))
        }
        Found::Policies { policies, authorities, revoked, notes, .. } => {
            let policies = counted(*policies, "policy", "policies");
            let authorities = counted(*authorities, "authority", "authorities");
            let revoked = match revoked {
                0 => String::new(),
                some => format!(", {some} revoked"),
            };
            writeln!(out, "ok: {path}: {policies}, {authorities}{revoked}")?;
            notes.iter().try_for_each(|note| writeln!(out, "  note: {note}"))
        }
        Found::Problems { problems, more } => {
            let count = counted(problems.len() + more, "problem", "problems");
            writeln!(out, "wrong: {path}: {count}")?;
            problems.iter().try_for_each(|problem| show_problem(problem, out))?;
            match more {
                0 => Ok(()),
                more => writeln!(out, "  and {more} more"),
            }
        }
    }
}

/// The problem, and under it the line with a caret below the place.
fn show_problem(problem: &Problem, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "  {problem}")?;
    let (Some(Position { line, column }), Some(excerpt)) = (problem.at, &problem.excerpt) else {
        return Ok(());
    };
    let number = line.to_string();
    let width = number.len();
    writeln!(out, "    {number} | {excerpt}")?;
    writeln!(out, "    {:width$} | {:>column$}", "", "^")
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests;
