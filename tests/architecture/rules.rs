//! Who may know what, and what no code may do.

use std::fmt::Write;

use super::source::{File, files};

/// Most lines of a file.
const MAX_LINES: usize = 500;
/// Shortest message of an `expect`, in characters: less cannot be a reason.
const MIN_REASON: usize = 16;

/// Names that some files must not use.
struct Ban {
    rule: &'static str,
    /// Files below `src/`, by the beginnings of their paths, and those among them that may.
    within: &'static [&'static str],
    but: &'static [&'static str],
    /// Parts of paths: `std::fs` stands for `std::fs::File` as well.
    names: &'static [&'static str],
    allowed: &'static [&'static str],
    why: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        rule: "a decision is a function of its arguments",
        within: &[
            "decode/",
            "policy/bundle",
            "policy/fields.rs",
            "policy/file.rs",
            "policy/crd.rs",
            "policy/crd/",
            "policy/file/",
            "policy/model.rs",
            "policy/objects.rs",
            "policy/pace.rs",
            "policy/pattern.rs",
            "policy/select.rs",
            "policy/yaml.rs",
            "resolve/manifest.rs",
            "evidence/shape.rs",
            "verify/",
            "decide/",
            "image.rs",
            "kubernetes/condition.rs",
            "kubernetes/lines.rs",
            "kubernetes/names.rs",
            "kubernetes/ration.rs",
            "kubernetes/set.rs",
            "kubernetes/wire.rs",
            "refusal.rs",
            "json.rs",
            "judgement.rs",
        ],
        but: &[],
        names: &[
            "tokio",
            "std::fs",
            "std::net",
            "std::os",
            "std::env",
            "std::process",
            "std::thread",
            "SystemTime",
            "Instant",
            "Timestamp::now",
            "Zoned::now",
            "reqwest",
            "hyper",
            "nix",
        ],
        allowed: &["std::net::Ipv6Addr"],
        why: "without sockets, files and clocks it can be tested whole, and time is a value",
    },
    Ban {
        rule: "gRPC is known to accept, decode and forward",
        within: &[""],
        // Metrics are served over HTTP/1 by the same library.
        // So are the connections to the API server, which is no part of the road of a pull.
        but: &[
            "accept/",
            "decode/",
            "forward/",
            "metrics/serve.rs",
            "kubernetes/client.rs",
            "kubernetes/failure.rs",
        ],
        names: &["tonic", "prost", "h2", "hyper", "hyper_util", "http_body", "http_body_util"],
        allowed: &[],
        why: "the stages between speak of images and refusals, so that `verify` and `explain` run them, too",
    },
    Ban {
        rule: "registries are known to resolve",
        within: &[""],
        // Sentences about TLS, wherever it fails.
        but: &["resolve/", "kubernetes/failure.rs"],
        names: &["reqwest", "rustls", "rustls_native_certs", "url"],
        allowed: &[],
        why: "bounds, redirects and credentials are right in one place; evidence asks through `Repo`",
    },
    Ban {
        rule: "the API server is known to kubernetes",
        within: &[""],
        but: &["kubernetes/client.rs"],
        names: &["kube", "k8s_openapi", "tower"],
        allowed: &[],
        why: "bounds, credentials and time-outs are right in one place; whoever asks, asks through `Server`",
    },
    Ban {
        rule: "gRPC statuses are known to few files of forward",
        within: &[""],
        but: &[
            "forward/answer.rs",
            "forward/body.rs",
            "forward/unary.rs",
            "forward/alias.rs",
            "forward/own.rs",
            "forward/pull.rs",
            "forward/runtime.rs",
        ],
        names: &["tonic"],
        allowed: &[],
        why: "what kubelet is told stands in one table, forward/answer.rs; the others read statuses of the runtime, or hand theirs to it",
    },
    Ban {
        rule: "a status becomes headers in answer.rs, and trailers in body.rs",
        within: &[""],
        but: &["forward/answer.rs", "forward/body.rs"],
        names: &["add_header", "into_http"],
        allowed: &[],
        why: "an answer that is made elsewhere is not in the table",
    },
    Ban {
        rule: "the process ends in main",
        within: &[""],
        but: &["main.rs"],
        names: &["process::exit", "process::abort", "ExitCode"],
        allowed: &[],
        why: "an exit anywhere else leaves a socket, a lock or a line half written",
    },
    Ban {
        rule: "behind resolve there are no tags",
        within: &["evidence/", "verify/", "decide/", "audit/", "forward/"],
        // gather.rs makes the names of cosign's own tags; pull.rs and alias.rs record the tag
        // that the user wrote, after the pull.
        but: &["evidence/gather.rs", "forward/pull.rs", "forward/alias.rs"],
        names: &["Tag", "Version", "ImageRef"],
        allowed: &[],
        why: "a tag can name other bytes a moment later; what is judged is a digest",
    },
    Ban {
        rule: "evidence does not know the image's tag",
        within: &["evidence/gather.rs"],
        but: &[],
        names: &["ImageRef", "Version::Tag"],
        allowed: &[],
        why: "claims are about the digest that was resolved",
    },
    Ban {
        rule: "no panics",
        within: &[""],
        but: &[],
        names: &["unwrap", "unwrap_err", "panic!", "unreachable!", "todo!", "unimplemented!"],
        allowed: &[],
        why: "a panic is a refusal without a reason; `expect` says why it cannot happen",
    },
];

/// Proofs, and the one file that makes each.
const PROOFS: [(&str, &str); 4] = [
    ("Verified", "src/verify/mod.rs"),
    ("Permit", "src/decide/mod.rs"),
    ("Recorded", "src/audit/log.rs"),
    ("Genuine", "src/policy/bundle.rs"),
];

/// A broken rule.
struct Finding {
    at: String,
    rule: &'static str,
    what: String,
    why: &'static str,
}

#[test]
fn the_source_keeps_the_rules() {
    let files: Vec<File> = ["src", "tests"].into_iter().flat_map(files).collect();
    let mut report = String::new();
    for Finding { at, rule, what, why } in findings(&files) {
        writeln!(report, "{at}: {rule}: {what}\n    {why}").unwrap();
    }
    assert!(report.is_empty(), "\n{report}");
    for (proof, maker) in PROOFS {
        let maker = files.iter().find(|file| file.path == maker).unwrap();
        assert!(maker.code.contains(&format!("{proof} {{")), "{}: makes no {proof}", maker.path);
    }
    for path in ["src/lib.rs", "src/main.rs"] {
        let file = files.iter().find(|file| file.path == path).unwrap();
        assert!(
            file.code.contains("#![forbid(unsafe_code)]"),
            "{path} does not forbid unsafe code"
        );
    }
}

fn findings(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        lengths(file, &mut findings);
        bans(file, &mut findings);
        proofs(file, &mut findings);
        expectations(file, &mut findings);
    }
    findings
}

fn lengths(file: &File, findings: &mut Vec<Finding>) {
    let lines = file.text.lines().count();
    if file.path.ends_with(".rs") && lines > MAX_LINES {
        findings.push(Finding {
            at: file.path.clone(),
            rule: "files are short",
            what: format!("has {lines} lines, {MAX_LINES} are allowed"),
            why: "one file does one job, and is read in one sitting",
        });
    }
}

fn bans(file: &File, findings: &mut Vec<Finding>) {
    let Some(place) = file.path.strip_prefix("src/") else { return };
    let is_in = |list: &[&str]| list.iter().any(|start| place.starts_with(start));
    let bans: Vec<_> = BANS.iter().filter(|ban| is_in(ban.within) && !is_in(ban.but)).collect();
    for name in file.names() {
        let has = |part: &&&str| format!("::{}::", name.path).contains(&format!("::{part}::"));
        for ban in &bans {
            if ban.names.iter().any(|part| has(&part)) && !ban.allowed.contains(&&*name.path) {
                findings.push(Finding {
                    at: format!("{}:{}", file.path, name.line),
                    rule: ban.rule,
                    what: format!("`{}` is not for this file", name.path),
                    why: ban.why,
                });
            }
        }
    }
}

fn proofs(file: &File, findings: &mut Vec<Finding>) {
    let mut find = |line: usize, what: String| {
        findings.push(Finding {
            at: format!("{}:{}", file.path, line + 1),
            rule: "each proof is made in one place",
            what,
            why: "who holds a Verified, Permit, Recorded or Genuine must be able to rely on what it stands for",
        });
    };
    let lines: Vec<&str> = file.code.lines().collect();
    for (proof, maker) in PROOFS {
        for (number, line) in lines.iter().enumerate() {
            let Some(at) =
                line.find(&format!("{proof} {{")).or(line.find(&format!("{proof}<T> {{")))
            else {
                continue;
            };
            let before = line[..at].trim_end();
            if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue; // another type, whose name ends like this
            }
            if before.ends_with("struct") {
                let body = lines[number + 1..].iter().take_while(|line| **line != "}");
                if file.path != maker || body.clone().any(|field| field.contains("pub")) {
                    find(number, format!("{proof} must be of {maker}, with private fields"));
                }
                let derived = lines[number.saturating_sub(3)..number].concat();
                if derived.contains("Default") || derived.contains("Deserialize") {
                    find(number, format!("{proof} must not come from nothing or from outside"));
                }
                continue;
            }
            let is_type =
                ["impl", "impl<T>", "for", "->"].iter().any(|word| before.ends_with(word));
            if file.path != maker && !is_type {
                find(number, format!("{proof} is made by {maker} alone"));
            }
        }
    }
}

fn expectations(file: &File, findings: &mut Vec<Finding>) {
    for (number, (code, text)) in file.code.lines().zip(file.text.lines()).enumerate() {
        let Some(at) = code.find(".expect(") else { continue };
        let rest: String =
            text.chars().skip(code[..at].chars().count() + ".expect(".len()).collect();
        let reason = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()).unwrap_or("");
        if reason.chars().count() < MIN_REASON {
            findings.push(Finding {
                at: format!("{}:{}", file.path, number + 1),
                rule: "an expect says why it holds",
                what: format!("{reason:?} is no reason"),
                why: "who reads the panic, or the line, must see what was taken for certain",
            });
        }
    }
}

/// Each rule, broken once; and what looks like it and is none.
#[test]
fn each_rule_can_fail() {
    let broken = [
        (
            "verify/key.rs",
            "use std::{fmt, fs::{self, File}};",
            "a decision is a function of its arguments",
        ),
        (
            "decide/mod.rs",
            "let now = jiff::Timestamp::now();",
            "a decision is a function of its arguments",
        ),
        (
            "policy/select.rs",
            "async { tokio::time::sleep(x).await }",
            "a decision is a function of its arguments",
        ),
        (
            "image.rs",
            "std::net::TcpStream::connect(x)",
            "a decision is a function of its arguments",
        ),
        ("audit/log.rs", "use tonic::Status;", "gRPC is known to accept, decode and forward"),
        ("evidence/gather.rs", "reqwest::get(x)", "registries are known to resolve"),
        ("sources.rs", "kube::Client::try_default()", "the API server is known to kubernetes"),
        (
            "kubernetes/set.rs",
            "std::time::Instant::now()",
            "a decision is a function of its arguments",
        ),
        (
            "accept/serve.rs",
            "use tonic::{Code, Status};",
            "gRPC statuses are known to few files of forward",
        ),
        (
            "forward/pull.rs",
            "status.add_header(headers)",
            "a status becomes headers in answer.rs, and trailers in body.rs",
        ),
        ("cli/run.rs", "std::process::exit(1)", "the process ends in main"),
        ("decide/mod.rs", "fn f(image: &ImageRef) {}", "behind resolve there are no tags"),
        ("evidence/gather.rs", "Version::Tag(tag) => {}", "evidence does not know the image's tag"),
        ("daemon.rs", "x.unwrap()", "no panics"),
        ("daemon.rs", "unreachable!()", "no panics"),
        ("pipeline.rs", "let permit = Permit { image };", "each proof is made in one place"),
        (
            "forward/pull.rs",
            "return audit::Recorded { decision };",
            "each proof is made in one place",
        ),
        (
            "verify/bundle.rs",
            "Ok(Verified { identity, subject })",
            "each proof is made in one place",
        ),
        (
            "policy/offer.rs",
            "sealed: Some(Genuine { bytes, signers })",
            "each proof is made in one place",
        ),
        (
            "audit/log.rs",
            "pub struct Recorded<T> {\n    pub decision: T,\n}",
            "each proof is made in one place",
        ),
        (
            "decide/mod.rs",
            "#[derive(Clone, Default)]\npub struct Permit {\n    image: X,\n}",
            "each proof is made in one place",
        ),
        ("daemon.rs", "x.expect(\"infallible\")", "an expect says why it holds"),
        ("daemon.rs", "x.expect(WHY)", "an expect says why it holds"),
    ];
    for (place, code, rule) in broken {
        let file = File::new(&format!("src/{place}"), code.to_owned());
        let found = findings(&[file]);
        assert!(found.iter().any(|finding| finding.rule == rule), "{place}: {code}: not {rule:?}");
    }
    let kept = [
        ("verify/key.rs", "use std::{fmt, time::Duration}; // tokio"),
        ("image.rs", "x.parse::<std::net::Ipv6Addr>()"),
        ("forward/answer.rs", "use tonic::Status; status.add_header(headers)"),
        ("daemon.rs", "x.expect(\"a channel of our own, never closed\")"),
        (
            "daemon.rs",
            "#[cfg(test)]\nmod tests {\n    use reqwest::X;\n    fn f() { x.unwrap() }\n}",
        ),
        ("pipeline.rs", "fn f() -> Permit {\n    g(\"Permit {\")\n}"),
    ];
    for (place, code) in kept {
        let file = File::new(&format!("src/{place}"), code.to_owned());
        let found: Vec<_> = findings(&[file]).iter().map(|finding| finding.rule).collect();
        assert!(found.is_empty(), "{place}: {code}: {found:?}");
    }
    let long = File::new("src/x.rs", "\n".repeat(MAX_LINES + 1));
    assert_eq!(findings(&[long])[0].rule, "files are short");
}
