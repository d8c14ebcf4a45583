//! What patterns match, and what they must never match.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn matches(pattern: &str, name: &str) -> bool {
    let repository: Repository = name.parse().unwrap();
    assert_eq!(repository.as_str(), name, "write test names in canonical form");
    pattern.parse::<RepositoryPattern>().unwrap().matches(&Names::from(&repository))
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
        ("10.0.*.5:5000/app", "10.0.0.5:5000/app"),
        ("10.*.5/app", "10.0.0.5/app"),
        ("*.5/app", "10.0.0.5/app"),
        ("*/app", "registry.example.com/app"),
        ("**", "docker.io/library/nginx"),
        ("**/nginx", "docker.io/library/nginx"),
        ("docker.io/**", "docker.io/library/nginx"),
        ("docker.io/*/nginx", "docker.io/library/nginx"),
        ("[::1]:5000/**", "[::1]:5000/app"),
        ("[::1]:*/app", "[::1]:5000/app"),
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
        ("[::*]/a", malformed("[::*]/a")),
        ("[::1*]:5000/a", malformed("[::1*]:5000/a")),
        ("https://a.io/app", malformed("https://a.io/app")),
        (" a.io/app", malformed(" a.io/app")),
    ] {
        let error = pattern.parse::<RepositoryPattern>().map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let error = format!("a.io/{}", "x".repeat(260)).parse::<RepositoryPattern>().unwrap_err();
    assert_eq!(error, PatternError::Long(265));
}

/// A repository has up to 255 bytes, and so has a pattern, whatever its stars stand for.
#[test]
fn a_pattern_may_be_as_long_as_a_repository() {
    for start in ["*/", "**/", "a.io/**/", "docker.io/**/", "a.io/*/"] {
        let pattern = format!("{start}{}", "x".repeat(255 - start.len()));
        assert!(pattern.parse::<RepositoryPattern>().is_ok(), "{pattern}");
        let longer = format!("{pattern}x").parse::<RepositoryPattern>().unwrap_err();
        assert_eq!(longer, PatternError::Long(256));
    }
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
    for (pattern, name) in
        [("shop", "shop"), ("shop-*", "shop-"), ("shop-*", "shop-a-b"), ("*", "x"), ("*-x", "a-x")]
    {
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
        let parsed = RepositoryPattern::of(&pattern);
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

    /// Other people's repositories and registries, however much they begin or end alike.
    #[test]
    fn nobody_elses_name_matches(
        more in "[a-z0-9]|[-._][a-z0-9]{1,8}", path in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}",
        domain in "[a-z0-9]{1,8}(-[a-z0-9]{1,4})?\\.[a-z]{2,5}", port in 1..65536_u32,
    ) {
        const OURS: &str = "registry.example.com";
        let matches = |pattern: &str, name: &str| {
            let name: Repository = name.parse().unwrap();
            pattern.parse::<RepositoryPattern>().unwrap().matches(&Names::from(&name))
        };
        for pattern in ["registry.example.com/prod/*", "registry.example.com/prod/**"] {
            let last = path.rsplit('/').next().unwrap();
            let good = format!("{OURS}/prod/{last}");
            prop_assert!(matches(pattern, &good));
            let evil = format!("{OURS}/prod{more}/{last}");
            prop_assert!(!matches(pattern, &evil), "{}", evil);
        }
        let pattern = "registry.example.com/**";
        let good = format!("{OURS}/{path}");
        prop_assert!(matches(pattern, &good));
        let other_port = if port == 443 { 444 } else { port };
        for registry in [
            format!("{OURS}.{domain}"),
            format!("{OURS}-{domain}"),
            format!("{domain}.{OURS}"),
            format!("x{OURS}"),
            format!("{domain}/{OURS}"),
            format!("{OURS}:{other_port}"),
        ] {
            let evil = format!("{registry}/{path}");
            prop_assert!(!matches(pattern, &evil), "{}", evil);
        }
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
