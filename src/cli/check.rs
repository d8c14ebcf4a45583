//! `portcullis check PATH…`: the daemon's own parsers on configurations and policies.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    image::Digest,
    policy::{PolicySet, source},
    problem::{Position, Problem, Problems},
};

use super::Exit;

mod configuration;
mod policy;

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
    let notes = set
        .policies()
        .iter()
        .flat_map(|policy| policy::notes(policy, set.revoked(), now))
        .collect();
    let digest = set.digest();
    Found::Policies { kind: "policies", policies, authorities, revoked, digest, notes }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
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
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::verify;

    const POLICY: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: ImagePolicy
metadata: {name: open}
spec:
  match: {images: ['**']}
  authorities: [{name: none, unsigned: {reason: test}}]
";

    /// Checks these paths below the directory, which is `D` in what is written.
    fn checked(directory: &TempDir, paths: &[&str], json: bool) -> (Exit, String) {
        let paths: Vec<_> = paths.iter().map(|path| directory.path().join(path)).collect();
        let mut out = Vec::new();
        let exit = run(&paths, json, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        (exit, text.replace(directory.path().to_str().unwrap(), "D"))
    }

    fn directory() -> TempDir {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("set")).unwrap();
        fs::write(path("set/a.yaml"), POLICY).unwrap();
        fs::write(path("set/b.yml"), POLICY.replace("open", "other")).unwrap();
        fs::write(path("good.yaml"), POLICY).unwrap();
        let source = format!("policy.source = 'file://{}'", path("set").display());
        fs::write(path("good.toml"), source).unwrap();
        fs::write(path("gone.toml"), "policy.source = 'file:///nowhere/at/all'").unwrap();
        fs::write(path("bad.yaml"), POLICY.replace("['**']", "[nginx]\n  , x: y")).unwrap();
        fs::write(path("bad.toml"), "[state]\ndirectory = 'here'\n").unwrap();
        directory
    }

    /// What is noted of [`POLICY`] under this name.
    fn open_note(name: &str) -> String {
        let why = "accepts any image that it matches without proof (\"test\")";
        format!("  note: policy {name:?}: {why}\n")
    }

    #[test]
    fn an_authority_that_asks_for_no_proof_is_noted() {
        let noted = |at_least: usize, authorities: &str| {
            let directory = TempDir::new().unwrap();
            let text = POLICY
                .replace("[{name: none, unsigned: {reason: test}}]", authorities)
                .replace("spec:\n", &format!("spec:\n  atLeast: {at_least}\n"));
            fs::write(directory.path().join("p.yaml"), text).unwrap();
            let (exit, text) = checked(&directory, &["p.yaml"], false);
            assert_eq!(exit, Exit::Success, "{text}");
            text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()
        };
        let digests = format!("{{name: b, digests: ['sha256:{}']}}", "1".repeat(64));
        let one = "{name: a, unsigned: {reason: test}}";
        let two = "{name: c, unsigned: {reason: other}}";
        let note = |why: &str| format!("  note: policy \"open\": {why}\n");
        let whatever = "accepts any image that it matches without proof, whatever its other \
                        authorities say (\"test\")";
        assert_eq!(noted(1, &format!("[{digests}, {one}]")), note(whatever));
        let half = "one of its authorities accepts any image without proof (\"test\")";
        assert_eq!(noted(2, &format!("[{digests}, {one}]")), note(half));
        let other = "accepts any image that it matches without proof (\"other\")";
        assert_eq!(noted(2, &format!("[{one}, {two}]")), open_note("open") + &note(other));
        assert_eq!(noted(1, &format!("[{digests}]")), "");
    }

    #[test]
    fn what_is_well_is_counted() {
        let directory = directory();
        assert_eq!(
            checked(&directory, &["set", "good.yaml", "good.toml", "gone.toml"], false),
            (
                Exit::Success,
                format!(
                    "ok: D/set: 2 policies, 2 authorities\n{}{}\
                     ok: D/good.yaml: 1 policy, 1 authority\n{}\
                     ok: D/good.toml: configuration\n\
                     ok: D/gone.toml: configuration\n  \
                     note: policy.source: /nowhere/at/all is not there\n",
                    open_note("open"),
                    open_note("other"),
                    open_note("open"),
                )
            )
        );
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_stands() {
        let (exit, text) =
            checked(&directory(), &["good.toml", "bad.yaml", "bad.toml", "gone.yml", "x"], false);
        assert_eq!(exit, Exit::Config);
        assert_eq!(
            text,
            "\
ok: D/good.toml: configuration
wrong: D/bad.yaml: 2 problems
  D/bad.yaml:6:5: spec.match.x: is unknown; known here: images, excludeImages, namespaces, \
excludeNamespaces
    6 |   , x: y}
      |     ^
  D/bad.yaml:5:20: spec.match.images[0]: \"nginx\" is not canonical and would match nothing; \
write \"docker.io/library/nginx\"
    5 |   match: {images: [nginx]
      |                    ^
wrong: D/bad.toml: 1 problem
  D/bad.toml:2:13: state.directory: \"here\" must be an absolute path
    2 | directory = 'here'
      |             ^
wrong: D/gone.yml: 1 problem
  D/gone.yml: cannot be read: No such file or directory (os error 2)
wrong: D/x: 1 problem
  D/x: does not exist
"
        );
    }

    #[test]
    fn machines_get_one_object() {
        let (exit, text) = checked(&directory(), &["good.toml", "set", "bad.toml"], true);
        assert_eq!(exit, Exit::Config);
        assert_eq!(text.lines().count(), 1, "{text}");
        let mut found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let digest = found["paths"][1]["digest"].take();
        assert!(digest.as_str().unwrap().parse::<Digest>().is_ok(), "{text}");
        assert_eq!(
            found,
            serde_json::json!({
                "ok": false,
                "paths": [
                    { "path": "D/good.toml", "ok": true, "kind": "configuration" },
                    {
                        "path": "D/set", "ok": true, "kind": "policies",
                        "policies": 2, "authorities": 2, "digest": null,
                        "notes": [
                            "policy \"open\": accepts any image that it matches without proof \
                             (\"test\")",
                            "policy \"other\": accepts any image that it matches without proof \
                             (\"test\")",
                        ]
                    },
                    {
                        "path": "D/bad.toml", "ok": false, "more": 0,
                        "problems": [{
                            "file": "D/bad.toml", "line": 2, "column": 13,
                            "field": "state.directory",
                            "message": "\"here\" must be an absolute path"
                        }]
                    }
                ]
            })
        );
    }

    const KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfmhq6rkwrqoQvJvEKqFTYBBFOV96
b2QCI8ufz9Hvuyc6AC2Qi1C2YKmGI0f1KpDOlkblo86Rwd69J71gng4hwg==
-----END PUBLIC KEY-----
";

    /// What is noted about a set of one policy by [`KEY`], with these lines in its `spec`, beside
    /// this revocation.
    fn noted(lines: &str, revocation: &str) -> String {
        let directory = TempDir::new().unwrap();
        let text = POLICY.replace("spec:\n", &format!("spec:\n{lines}")).replace(
            "{name: none, unsigned: {reason: test}}",
            "{name: release, publicKey: {file: key.pub}}",
        );
        let revocation = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: lost}}\n\
             spec: {revocation}\n"
        );
        fs::write(directory.path().join("p.yaml"), text).unwrap();
        fs::write(directory.path().join("key.pub"), KEY).unwrap();
        fs::write(directory.path().join("r.yaml"), revocation).unwrap();
        let (exit, text) = checked(&directory, &["."], false);
        assert_eq!(exit, Exit::Success, "{text}");
        text
    }

    #[test]
    fn what_lets_images_through_is_noted() {
        let other =
            "{keys: ['sha256:1111111111111111111111111111111111111111111111111111111111111111']}";
        let well = "ok: D/.: 1 policy, 1 authority, 1 revoked\n";
        assert_eq!(noted("", other), well);
        let glass = "  breakGlass: {annotation: a, namespaces: [incident], notAfter: 9000-01-01T00:00:00Z}\n";
        assert_eq!(noted(glass, other), well);
        for (lines, note) in [
            ("  mode: Warn\n", "only warns: what it would refuse is let through"),
            (
                "  breakGlass: {annotation: a, namespaces: [incident]}\n",
                "its glass can be broken without end (breakGlass has no notAfter)",
            ),
            (
                &glass.replace("9000", "2001"),
                "its glass cannot be broken any more, since 2001-01-01",
            ),
        ] {
            assert_eq!(noted(lines, other), format!("{well}  note: policy \"open\": {note}\n"));
        }
    }

    #[test]
    fn a_revoked_key_of_a_policy_is_noted() {
        let key = verify::PublicKey::from_pem(KEY).unwrap().id();
        assert_eq!(
            noted("", &format!("{{keys: ['{key}']}}")),
            "ok: D/.: 1 policy, 1 authority, 1 revoked\n  \
             note: policy \"open\": \"release\": key revoked by \"lost\"\n  \
             note: policy \"open\": accepts no image today\n"
        );
    }

    #[test]
    fn a_revoked_digest_of_a_floor_is_noted() {
        let digests = [1, 2].map(|n| format!("'sha256:{}'", n.to_string().repeat(64)));
        let listed = format!("digests: [{}]", digests.join(", "));
        let text = POLICY.replace("unsigned: {reason: test}", &listed);
        let note = |digest: &str| {
            let digest = digest.trim_matches('\'');
            format!("  note: policy \"open\": \"none\": {digest} is revoked by \"lost\"\n")
        };
        let dead = "  note: policy \"open\": accepts no image today\n".to_owned();
        for (revoked, notes) in [
            (&digests[..1], note(&digests[0])),
            (&digests[..], note(&digests[0]) + &note(&digests[1]) + &dead),
        ] {
            let directory = TempDir::new().unwrap();
            let revocation = format!(
                "{text}---\napiVersion: portcullis.dev/v1alpha1\nkind: Revocation\n\
                 metadata: {{name: lost}}\nspec: {{digests: [{}]}}\n",
                revoked.join(", ")
            );
            fs::write(directory.path().join("p.yaml"), revocation).unwrap();
            let (_, shown) = checked(&directory, &["p.yaml"], false);
            let head = format!("ok: D/p.yaml: 1 policy, 1 authority, {} revoked\n", revoked.len());
            assert_eq!(shown, head + &notes);
        }
    }

    #[test]
    fn nothing_to_check_is_no_success() {
        let (exit, text) = checked(&directory(), &[], false);
        assert_eq!(exit, Exit::Usage);
        assert!(text.starts_with("nothing to check"), "{text}");
    }

    #[test]
    fn what_the_package_ships_is_well() {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
        let mut paths = vec![packaging.join("config.toml"), packaging.join("policies")];
        let examples = fs::read_dir(packaging.join("policies")).unwrap();
        // Revocations alone are no set.
        let is_policy =
            |path: &PathBuf| fs::read_to_string(path).unwrap().contains("kind: ImagePolicy");
        paths.extend(examples.map(|entry| entry.unwrap().path()).filter(is_policy));
        let mut out = Vec::new();
        let exit = run(&paths, false, &mut out).unwrap();
        assert_eq!(exit, Exit::Success, "{}", String::from_utf8_lossy(&out));
        assert!(paths.len() >= 8, "{paths:?}");
    }
}
