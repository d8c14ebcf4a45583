//! Patterns for repositories, as far as regular expressions can tell them from other texts.
//!
//! What they cannot: whether an IPv6 address is in its one spelling, and what the stars in a
//! registry that ends in a number stand for. The parser can.

use serde_json::Value;

use crate::policy::{file::MAX_PATTERNS, pattern::MAX_REPOSITORY_PATTERN};

use super::schema::{list, rule, text};

/// Letters and digits of a registry, dashes within; a star is as good as a letter.
const LABEL: &str = "[A-Za-z0-9*]([A-Za-z0-9*-]*[A-Za-z0-9*])?";
/// 1 to 65535; a star is as good as a one.
const PORT: &str = "([1-9*][0-9*]{0,3}|[1-5*][0-9*]{4}|6[0-4*][0-9*]{3}|65[0-4*][0-9*]{2}|\
                    655[0-2*][0-9*]|6553[0-5*])";
/// Letters and digits of a path component; a star is as good as a letter.
const WORD: &str = "[a-z0-9*]+";
/// A number of an IPv4 address.
const BYTE: &str = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";

/// A list of patterns.
pub(super) fn repositories() -> Value {
    let segment = format!("{WORD}((\\.|_|__|-+){WORD})*");
    let registry = format!("({LABEL}(\\.{LABEL})*|\\[[0-9a-f:]+\\])(:{PORT})?");
    let mut pattern =
        text(MAX_REPOSITORY_PATTERN, &format!("^(\\*\\*|{registry}/{segment}(/{segment})*)$"));
    for (cel, message) in rules() {
        pattern = rule(pattern, &cel, message);
    }
    list(MAX_PATTERNS, pattern)
}

fn rules() -> [(String, &'static str); 5] {
    let no_match = |regex: &str| format!("!self.matches('{regex}')");
    [
        (
            no_match(r"[^/]\\*\\*|\\*\\*[^/]"),
            "\"**\" must be a whole path segment, as in \"registry.example.com/prod/**\"",
        ),
        (
            // What is no registry to a runtime is a part of a name at docker.io.
            r"self == '**' || self.matches('^(\\*\\*?|localhost|[^/]*[A-Z.:][^/]*)/')".to_owned(),
            "a pattern begins with the registry: \"nginx\" is \"docker.io/library/nginx\", and \
             every image is \"**\"",
        ),
        (
            format!(
                "self == 'docker.io/**' || {}",
                no_match(r"^(index\\.)?docker\\.io/[^/]*$|^index\\.docker\\.io/")
            ),
            "not canonical: \"docker.io/library/nginx\" is what \"docker.io/nginx\" and \
             \"index.docker.io/library/nginx\" stand for",
        ),
        (
            format!(r"self.matches('^\\*\\*?(/|$)') || {}", no_match(r"^[^/:]*\\*(:[^/]*)?/")),
            "the registry's name must not end in a wildcard, which would cover other people's \
             domains too",
        ),
        (
            // What ends in a number is an IPv4 address to a URL.
            format!(
                "{} || self.matches('^({BYTE}\\\\.){{3}}{BYTE}(:[^/]*)?/')",
                no_match(r"^([^/:*]*\\.)?([0-9]+|0[xX][0-9a-fA-F]*)(:[^/]*)?/"),
            ),
            "a registry that ends in a number is an IPv4 address, of four numbers from 0 to 255",
        ),
    ]
}
