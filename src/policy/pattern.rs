//! Patterns for repositories and namespaces: anchored at both ends, and bounded in time by the
//! product of the two lengths.

use std::{fmt, str::FromStr};

use crate::image::{Repository, governed, shorten};

/// Longest pattern for repositories, in bytes: a repository has no more than 255.
const MAX_REPOSITORY_PATTERN: usize = 255;
/// Longest pattern for namespaces, in bytes: a namespace is a label of 63 (RFC 1123).
const MAX_NAME_PATTERN: usize = 63;

/// Matches canonical repositories, as a whole: `*` stands for any run of characters within a
/// path segment, `**` for one or more whole segments.
#[derive(Clone, Debug)]
pub(super) struct RepositoryPattern {
    /// What every match begins with: the text before the first `*`.
    prefix: Box<str>,
    segments: Box<[Segment]>,
}

#[derive(Clone, Debug)]
enum Segment {
    /// `**`
    Any,
    /// A segment, perhaps with `*`.
    Like(Box<str>),
}

/// Why a text is no pattern for repositories.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    #[error("the pattern is empty; \"**\" covers every image")]
    Empty,
    #[error("the pattern has {0} bytes, {MAX_REPOSITORY_PATTERN} are allowed")]
    Long(usize),
    #[error("{0:?}: \"**\" must be a whole path segment, as in \"registry.example.com/prod/**\"")]
    Stars(String),
    #[error(
        "{0:?}: the registry's name must not end in a wildcard, \
         which would cover other people's domains too"
    )]
    OpenRegistry(String),
    #[error("{pattern:?} is not canonical and would match nothing; write {canonical:?}")]
    Familiar { pattern: String, canonical: String },
    #[error(
        "{0:?} is no pattern for repositories: a registry and a lower-case path are expected, \
         without tag and digest, as in \"registry.example.com/prod/**\""
    )]
    Malformed(String),
}

impl FromStr for RepositoryPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > MAX_REPOSITORY_PATTERN {
            return Err(PatternError::Long(text.len()));
        }
        if text.split('/').any(|segment| segment != "**" && segment.contains("**")) {
            return Err(PatternError::Stars(shorten(text)));
        }
        match text {
            "**" => {}
            "*" => {
                let (pattern, canonical) = (text.into(), "**".into());
                return Err(PatternError::Familiar { pattern, canonical });
            }
            _ => check_canonical(text)?,
        }
        let text = &*governed(text);
        let segment = |text: &str| match text {
            "**" => Segment::Any,
            _ => Segment::Like(text.into()),
        };
        Ok(Self {
            prefix: text.split('*').next().unwrap_or_default().into(),
            segments: text.split('/').map(segment).collect(),
        })
    }
}

/// A pattern that no canonical repository can match is a mistake: some repository that it
/// describes must read as itself.
fn check_canonical(text: &str) -> Result<(), PatternError> {
    // `**` becomes two segments: one would turn `docker.io/**` into a familiar name.
    let example = |part: &str| part.replace("**", "1/1").replace('*', "1");
    let (whole, path) = match text.split_once('/') {
        None => (example(text), text),
        Some(("*" | "**", path)) => (format!("1.1/{}", example(path)), path),
        Some((registry, path)) => {
            let host = registry.rsplit_once(':').map_or(registry, |(host, _port)| host);
            if host.ends_with('*') {
                return Err(PatternError::OpenRegistry(shorten(text)));
            }
            (example(text), path)
        }
    };
    let malformed = || PatternError::Malformed(shorten(text));
    let canonical: Repository = whole.parse().map_err(|_| malformed())?;
    let canonical = canonical.as_str();
    if canonical == whole {
        return Ok(());
    }
    let familiar = |prefix: &str, pattern: &str| PatternError::Familiar {
        pattern: shorten(text),
        canonical: format!("{prefix}{pattern}"),
    };
    match (canonical.strip_suffix(&whole), canonical.strip_suffix(&example(path))) {
        (Some(prefix), _) => Err(familiar(prefix, text)),
        (None, Some(prefix)) => Err(familiar(prefix, path)),
        (None, None) => Err(malformed()),
    }
}

impl RepositoryPattern {
    /// The whole segments that every match begins with; none of `**`.
    pub(super) fn anchor(&self) -> &str {
        let open = |segment: &Segment| match segment {
            Segment::Any => true,
            Segment::Like(like) => like.contains('*'),
        };
        match self.segments.iter().any(open) {
            true => self.prefix.rsplit_once('/').map_or("", |(anchor, _begun)| anchor),
            false => &self.prefix,
        }
    }

    /// Whether the whole repository matches, by the name that policies go by or, for
    /// `registry:*`, as it is written.
    pub(super) fn matches(&self, repository: &Repository) -> bool {
        self.matches_name(&repository.governed()) || self.matches_name(repository.as_str())
    }

    fn matches_name(&self, name: &str) -> bool {
        // Decides nearly all of a thousand policies without looking further.
        if !name.starts_with(&*self.prefix) {
            return false;
        }
        let mut pattern = &self.segments[..];
        let mut rest = Some(name);
        // The last `**` passed, and what it has not swallowed yet: a later one makes an earlier
        // one's choice irrelevant, so one is enough to come back to.
        let mut retry: Option<(&[Segment], &str)> = None;
        loop {
            let matched = match (pattern, rest) {
                ([], None) => return true,
                ([Segment::Any, after @ ..], Some(text)) => {
                    let swallowed = next_segment(text).1;
                    retry = swallowed.map(|rest| (after, rest));
                    Some((after, swallowed))
                }
                ([Segment::Like(like), after @ ..], Some(text)) => {
                    let (segment, rest) = next_segment(text);
                    glob(like.as_bytes(), segment.as_bytes()).then_some((after, rest))
                }
                ([], Some(_)) | ([_, ..], None) => None,
            };
            (pattern, rest) = match (matched, retry) {
                (Some(next), _) => next,
                (None, Some((after, text))) => {
                    let swallowed = next_segment(text).1;
                    retry = swallowed.map(|rest| (after, rest));
                    (after, swallowed)
                }
                (None, None) => return false,
            };
        }
    }
}

fn next_segment(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((segment, rest)) => (segment, Some(rest)),
        None => (text, None),
    }
}

/// Whether `text` matches `pattern` as a whole, `*` standing for any run of bytes.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last star, and the text that it has swallowed.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((behind, swallowed)) => {
                    (p, t) = (behind, swallowed + 1);
                    retry = Some((p, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Matches namespaces, as a whole: `*` stands for any run of characters.
#[derive(Clone, Debug)]
pub(super) struct NamePattern(Box<str>);

/// Why a text is no pattern for namespaces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no pattern for namespaces: at most {MAX_NAME_PATTERN} lower-case letters, \
     digits and '-' are expected, '*' for any run of them"
)]
pub(super) struct NamePatternError(String);

impl FromStr for NamePattern {
    type Err = NamePatternError;

    fn from_str(text: &str) -> Result<Self, NamePatternError> {
        let known = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'*');
        let fits = (1..=MAX_NAME_PATTERN).contains(&text.len())
            && text.bytes().all(known)
            && !text.contains("**")
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits { Ok(Self(text.into())) } else { Err(NamePatternError(shorten(text))) }
    }
}

impl NamePattern {
    /// Whether the whole namespace matches.
    pub(super) fn matches(&self, namespace: &str) -> bool {
        glob(self.0.as_bytes(), namespace.as_bytes())
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn matches(pattern: &str, name: &str) -> bool {
        let repository: Repository = name.parse().unwrap();
        assert_eq!(repository.as_str(), name, "write test names in canonical form");
        pattern.parse::<RepositoryPattern>().unwrap().matches(&repository)
    }

    #[test]
    fn patterns_cover_what_they_say() {
        for (pattern, name) in [
            ("registry.example.com/prod/app", "registry.example.com/prod/app"),
            ("registry.example.com/prod/*", "registry.example.com/prod/app"),
            ("registry.example.com/prod/**", "registry.example.com/prod/app"),
            ("registry.example.com/prod/**", "registry.example.com/prod/a/b/c"),
            ("registry.example.com/**/app", "registry.example.com/a/b/app"),
            ("registry.example.com/**/a/**/b", "registry.example.com/x/a/a/y/b/b"),
            ("registry.example.com/team-*/app-*-x", "registry.example.com/team-a/app-x-x-x"),
            ("registry.example.com:5000/**", "registry.example.com:5000/app"),
            ("localhost:*/app", "localhost:5000/app"),
            ("localhost:*/app", "localhost:443/app"),
            ("123.dkr.ecr.*.amazonaws.com/**", "123.dkr.ecr.eu-west-1.amazonaws.com/app"),
            ("*.example.com/app", "a.b.example.com/app"),
            ("*/app", "registry.example.com/app"),
            ("**", "docker.io/library/nginx"),
            ("**/nginx", "docker.io/library/nginx"),
            ("docker.io/**", "docker.io/library/nginx"),
            ("docker.io/*/nginx", "docker.io/library/nginx"),
            ("[::1]:5000/**", "[::1]:5000/app"),
        ] {
            assert!(matches(pattern, name), "{pattern} must match {name}");
        }
    }

    #[test]
    fn patterns_are_anchored_at_segments_and_at_both_ends() {
        for (pattern, name) in [
            ("registry.example.com/**", "registry.example.com.evil.org/app"),
            ("registry.example.com/**", "evil.org/registry.example.com/app"),
            ("registry.example.com/**", "registry.example.com:5000/app"),
            ("registry.example.com/prod/*", "registry.example.com/prod-evil/x"),
            ("registry.example.com/prod/*", "registry.example.com/prod/a/b"),
            ("registry.example.com/prod/**", "registry.example.com/prod"),
            ("registry.example.com/prod/**", "registry.example.com/prod-evil/x"),
            ("registry.example.com/prod/**", "registry.example.com/x/prod/y"),
            ("registry.example.com/prod/app", "registry.example.com/prod/app2"),
            ("registry.example.com/prod/app", "registry.example.com/prod/ap"),
            ("registry.example.com/prod/app", "registry.example.com/prod/app/x"),
            ("registry.example.com/**/app", "registry.example.com/app"),
            ("registry.example.com/a/**/b", "registry.example.com/a/b"),
            ("registry.example.com/*", "registry.example.com/a/b"),
            ("*.example.com/app", "example.com/app"),
            ("*.example.com/app", "evilexample.com/app"),
            ("*.example.com/app", "a.example.com/x/app"),
            ("*/app", "registry.example.com/x/app"),
            ("**/nginx", "docker.io/library/nginx2"),
        ] {
            assert!(!matches(pattern, name), "{pattern} must not match {name}");
        }
    }

    #[test]
    fn a_pattern_that_would_mislead_is_refused_with_the_remedy() {
        let malformed = |pattern: &str| {
            format!(
                "{pattern:?} is no pattern for repositories: a registry and a lower-case path are \
                 expected, without tag and digest, as in \"registry.example.com/prod/**\""
            )
        };
        let familiar = |pattern: &str, canonical: &str| {
            format!("{pattern:?} is not canonical and would match nothing; write {canonical:?}")
        };
        let stars = |pattern: &str| {
            format!(
                "{pattern:?}: \"**\" must be a whole path segment, \
                 as in \"registry.example.com/prod/**\""
            )
        };
        let open = |pattern: &str| {
            format!(
                "{pattern:?}: the registry's name must not end in a wildcard, \
                 which would cover other people's domains too"
            )
        };
        for (pattern, message) in [
            ("", "the pattern is empty; \"**\" covers every image".into()),
            ("nginx", familiar("nginx", "docker.io/library/nginx")),
            ("nginx*", familiar("nginx*", "docker.io/library/nginx*")),
            ("prod/*", familiar("prod/*", "docker.io/prod/*")),
            ("prod/**", familiar("prod/**", "docker.io/prod/**")),
            ("docker.io/nginx", familiar("docker.io/nginx", "docker.io/library/nginx")),
            ("docker.io/*", familiar("docker.io/*", "docker.io/library/*")),
            ("index.docker.io/a/b", familiar("index.docker.io/a/b", "docker.io/a/b")),
            ("index.docker.io/**", familiar("index.docker.io/**", "docker.io/**")),
            ("a.io/prod**", stars("a.io/prod**")),
            ("a.io/***", stars("a.io/***")),
            ("registry.example.com*/x", open("registry.example.com*/x")),
            ("registry.example.*:5000/x", open("registry.example.*:5000/x")),
            ("reg*/x", open("reg*/x")),
            ("*", familiar("*", "**")),
            ("*/", malformed("*/")),
            ("a.io/", malformed("a.io/")),
            ("/a", malformed("/a")),
            ("a.io//b", malformed("a.io//b")),
            ("a.io/App", malformed("a.io/App")),
            ("a.io/app:v1", malformed("a.io/app:v1")),
            ("a.io/app:*", malformed("a.io/app:*")),
            ("a.io/app@sha256:00", malformed("a.io/app@sha256:00")),
            ("a.io/[ab]", malformed("a.io/[ab]")),
            ("https://a.io/app", malformed("https://a.io/app")),
            (" a.io/app", malformed(" a.io/app")),
        ] {
            let error = pattern.parse::<RepositoryPattern>().map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let error = format!("a.io/{}", "x".repeat(260)).parse::<RepositoryPattern>().unwrap_err();
        assert_eq!(error, PatternError::Long(265));
    }

    #[test]
    fn an_anchor_is_what_every_match_begins_with() {
        for (pattern, anchor) in [
            ("a.io/b/c", "a.io/b/c"),
            ("a.io/b/c*", "a.io/b"),
            ("a.io/b/**", "a.io/b"),
            ("a.io/*/c", "a.io"),
            ("*.a.io/b", ""),
            ("**", ""),
        ] {
            assert_eq!(pattern.parse::<RepositoryPattern>().unwrap().anchor(), anchor);
        }
    }

    #[test]
    fn namespaces_match_as_a_whole() {
        let matches = |pattern: &str, name| pattern.parse::<NamePattern>().unwrap().matches(name);
        for (pattern, name) in [
            ("shop", "shop"),
            ("shop-*", "shop-"),
            ("shop-*", "shop-a-b"),
            ("*", "x"),
            ("*-x", "a-x"),
        ] {
            assert!(matches(pattern, name), "{pattern} must match {name}");
        }
        for (pattern, name) in
            [("shop", "shop2"), ("shop", "sho"), ("shop", ""), ("shop-*", "shop"), ("*-x", "a-xy")]
        {
            assert!(!matches(pattern, name), "{pattern} must not match {name}");
        }
        for bad in ["", "Shop", "a.b", "a b", "a/b", "**", "-a", "a-", &"a".repeat(64)] {
            assert_eq!(
                bad.parse::<NamePattern>().map(|_| ()).unwrap_err().to_string(),
                format!(
                    "{bad:?} is no pattern for namespaces: at most 63 lower-case letters, \
                     digits and '-' are expected, '*' for any run of them"
                )
            );
        }
    }

    /// The meaning of patterns, written so that it can be seen to be right; exponential.
    fn reference(pattern: &[&str], name: &[&str]) -> bool {
        fn like(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern, text) {
                ([], []) => true,
                ([b'*', rest @ ..], _) => {
                    (0..=text.len()).any(|swallowed| like(rest, &text[swallowed..]))
                }
                ([p, pattern @ ..], [t, text @ ..]) => p == t && like(pattern, text),
                _ => false,
            }
        }
        match (pattern, name) {
            ([], []) => true,
            (["**", rest @ ..], [_, ..]) => {
                (1..=name.len()).any(|swallowed| reference(rest, &name[swallowed..]))
            }
            ([p, pattern @ ..], [n, name @ ..]) if *p != "**" => {
                like(p.as_bytes(), n.as_bytes()) && reference(pattern, name)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_its_definition(
            pattern in "(\\*\\*|[ab*]{1,3})(/(\\*\\*|[ab*]{1,4})){0,4}",
            name in "[ab]{1,3}(/[ab]{1,4}){0,5}",
        ) {
            // Runs of stars within a segment do not parse; the text is built past the parser
            // to reach short alphabets.
            let segments: Vec<_> = pattern.split('/').collect();
            let parsed = RepositoryPattern {
                prefix: pattern.split('*').next().unwrap().into(),
                segments: segments
                    .iter()
                    .map(|s| if *s == "**" { Segment::Any } else { Segment::Like((*s).into()) })
                    .collect(),
            };
            let expected = reference(&segments, &name.split('/').collect::<Vec<_>>());
            prop_assert_eq!(parsed.matches_name(&name), expected);
        }

        #[test]
        fn a_repository_without_wildcards_matches_itself_and_nothing_longer(
            name in "[a-z]{1,5}\\.io(:50)?(/[a-z0-9]{1,5}){1,4}",
            more in "[a-z0-9]|/[a-z0-9]",
        ) {
            let pattern: RepositoryPattern = name.parse().unwrap();
            prop_assert!(pattern.matches_name(&name));
            let longer = format!("{name}{more}");
            let before = format!("x{name}");
            prop_assert!(!pattern.matches_name(&longer));
            prop_assert!(!pattern.matches_name(&before));
        }

        #[test]
        fn a_hostile_pattern_is_read_without_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<RepositoryPattern>();
            let _ = text.parse::<NamePattern>();
        }
    }

    #[test]
    fn the_worst_pattern_ends_soon() {
        let name = format!("a.io/{}b", "a".repeat(245));
        let pattern = format!("a.io/{}", "*a".repeat(125));
        assert!(!pattern.parse::<RepositoryPattern>().unwrap().matches_name(&name));
        let name = format!("a.io{}/b", "/a".repeat(123));
        let pattern = format!("a.io{}", "/**/a".repeat(40));
        assert!(!pattern.parse::<RepositoryPattern>().unwrap().matches_name(&name));
    }
}
