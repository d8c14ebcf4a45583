//! Patterns for repositories and namespaces: anchored at both ends, and bounded in time by the
//! product of the two lengths.

use std::{borrow::Cow, fmt, str::FromStr};

use crate::image::{Repository, governed, shorten};

/// Longest pattern for repositories, in bytes: a repository has no more than 255.
pub(super) const MAX_REPOSITORY_PATTERN: usize = 255;
/// Longest pattern for namespaces, in bytes: a namespace is a label of 63 (RFC 1123).
pub(super) const MAX_NAME_PATTERN: usize = 63;

/// Matches canonical repositories, as a whole: `*` stands for any run of characters within a
/// path segment, `**` for one or more whole segments.
#[derive(Clone, Debug)]
pub(super) struct RepositoryPattern {
    /// What every match begins with: the text before the first `*`.
    prefix: Box<str>,
    /// Everything below the prefix matches, as in `registry.example.com/prod/**`.
    is_whole_tree: bool,
    /// Every match has this within: the longest text between two `*` behind the prefix.
    needle: Box<str>,
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
        Ok(Self::of(&governed(text)))
    }
}

/// A pattern that no canonical repository can match is a mistake: some repository that it
/// describes must read as itself.
fn check_canonical(text: &str) -> Result<(), PatternError> {
    // No longer than the pattern. But one segment would make `docker.io/**` a familiar name.
    let example = |part: &str| match part {
        "**" if text.ends_with("docker.io/**") => "1/1".to_owned(),
        _ => part.replace("**", "1").replace('*', "1"),
    };
    let (wholes, path) = match text.split_once('/') {
        None => (vec![example(text)], text),
        // An upper-case letter is the shortest registry.
        Some(("*" | "**", path)) => (vec![format!("A/{}", example(path))], path),
        Some((registry, _)) if registry.starts_with('[') && !is_whole_address(registry) => {
            return Err(PatternError::Malformed(shorten(text)));
        }
        Some((registry, path)) => {
            let host = registry.rsplit_once(':').map_or(registry, |(host, _port)| host);
            if host.ends_with('*') {
                return Err(PatternError::OpenRegistry(shorten(text)));
            }
            // In an address of four numbers, a star stands for some of them.
            let whole = |star| format!("{}/{}", registry.replace('*', star), example(path));
            (["1", "1.1", "1.1.1"].map(whole).into(), path)
        }
    };
    let malformed = || PatternError::Malformed(shorten(text));
    let read = |whole: String| Some((whole.parse::<Repository>().ok()?, whole));
    let (canonical, whole) = wholes.into_iter().find_map(read).ok_or_else(malformed)?;
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

/// Whether no part of an IPv6 address is left open; its port may be.
fn is_whole_address(registry: &str) -> bool {
    registry.split_once(']').is_some_and(|(address, _port)| !address.contains('*'))
}

impl RepositoryPattern {
    /// The pattern that a well-formed text is.
    fn of(text: &str) -> Self {
        let segment = |text: &str| match text {
            "**" => Segment::Any,
            _ => Segment::Like(text.into()),
        };
        let prefix = text.split('*').next().unwrap_or_default();
        let rest = &text[prefix.len()..];
        let needle = rest.split('*').max_by_key(|part| part.len()).unwrap_or_default();
        Self {
            prefix: prefix.into(),
            is_whole_tree: prefix.ends_with('/') && rest == "**",
            needle: needle.into(),
            segments: text.split('/').map(segment).collect(),
        }
    }

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
    pub(super) fn matches(&self, names: &Names<'_>) -> bool {
        self.matches_name(&names.governed)
            || names.written != names.governed && self.matches_name(names.written)
    }

    fn matches_name(&self, name: &str) -> bool {
        // Decides nearly all of a thousand policies without looking further.
        if !name.starts_with(&*self.prefix) {
            return false;
        }
        if self.is_whole_tree {
            return name.len() > self.prefix.len();
        }
        if !name[self.prefix.len()..].contains(&*self.needle) {
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

/// The names of a repository that patterns are held against, worked out once for all of them.
#[derive(Debug)]
pub(super) struct Names<'a> {
    /// The one that policies go by.
    pub(super) governed: Cow<'a, str>,
    written: &'a str,
}

impl<'a> From<&'a Repository> for Names<'a> {
    fn from(repository: &'a Repository) -> Self {
        Self { governed: repository.governed(), written: repository.as_str() }
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
mod tests;
