//! Two header fields of a registry's answer, read strictly: `WWW-Authenticate` (RFC 9110,
//! section 11.6.1) and `Link` (RFC 8288).

/// Longest header field that is read, in bytes.
const MAX_FIELD: usize = 8 << 10;
/// Most challenges, links and parameters of each in one field.
const MAX_PARTS: usize = 16;

/// How a host wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With a token of this service (distribution specification, "Token Authentication").
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// With user name and password (RFC 7617).
    Basic,
}

impl Challenge {
    /// The challenge to meet among those of an answer: the first `Bearer`, else `Basic`. A field
    /// that breaks the grammar is passed over as a whole.
    pub(super) fn choose<'a>(fields: impl Iterator<Item = &'a str>) -> Option<Self> {
        let all: Vec<_> = fields.take(MAX_PARTS).filter_map(challenges).flatten().collect();
        let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        bearer.or(all.first()).cloned()
    }
}

/// Those challenges of a field that can be met, or nothing if it cannot be read.
fn challenges(field: &str) -> Option<Vec<Challenge>> {
    let mut scan = Scan::new(field)?;
    let mut found = Vec::new();
    for _ in 0..MAX_PARTS {
        scan.commas();
        if scan.0.is_empty() {
            return Some(found);
        }
        let scheme = scan.token()?.to_ascii_lowercase();
        let parameters = scan.challenge_parameters()?;
        match scheme.as_str() {
            "bearer" => {
                let get = |name: &str| {
                    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
                };
                let realm = get("realm").filter(|realm| !realm.is_empty())?;
                found.push(Challenge::Bearer {
                    realm,
                    service: get("service"),
                    scope: get("scope"),
                });
            }
            "basic" => found.push(Challenge::Basic),
            _ => {}
        }
    }
    None
}

/// The target of the link with the relation `next` in these fields, if there is one.
pub(super) fn next_link<'a>(
    fields: impl Iterator<Item = &'a str>,
) -> Result<Option<String>, &'static str> {
    for field in fields {
        if let Some(next) = next_in(field).ok_or("a Link header that cannot be read")? {
            return Ok(Some(next.to_owned()));
        }
    }
    Ok(None)
}

fn next_in(field: &str) -> Option<Option<&str>> {
    let mut scan = Scan::new(field)?;
    for _ in 0..MAX_PARTS {
        scan.commas();
        if scan.0.is_empty() {
            return Some(None);
        }
        let (target, rest) = scan.0.strip_prefix('<')?.split_once('>')?;
        scan.0 = rest;
        let mut is_next = false;
        while scan.separator(';') {
            let (name, value) = scan.parameter()?;
            if name == "rel" {
                is_next |= value.split(' ').any(|relation| relation.eq_ignore_ascii_case("next"));
            }
        }
        if is_next {
            return Some(Some(target));
        }
        if !scan.0.is_empty() && !scan.0.starts_with(',') {
            return None;
        }
    }
    None
}

/// What of a field is still to be read.
struct Scan<'a>(&'a str);

impl<'a> Scan<'a> {
    fn new(field: &'a str) -> Option<Self> {
        let fits = field.len() <= MAX_FIELD
            && field.bytes().all(|c| c == b'\t' || (b' '..=b'~').contains(&c));
        fits.then_some(Self(field))
    }

    fn space(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }

    fn commas(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t', ',']);
    }

    fn separator(&mut self, separator: char) -> bool {
        self.space();
        let rest = self.0.strip_prefix(separator);
        self.0 = rest.unwrap_or(self.0);
        self.space();
        rest.is_some()
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self.0.find(|c: char| !is_token(c)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    fn quoted(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut characters = self.0.strip_prefix('"')?.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.0 = &self.0[at + 2..];
                    return Some(text);
                }
                '\\' => text.push(characters.next()?.1),
                other => text.push(other),
            }
        }
        None
    }

    /// `name = value`, the name in lower case.
    fn parameter(&mut self) -> Option<(String, String)> {
        let name = self.token()?.to_ascii_lowercase();
        if !self.separator('=') {
            return None;
        }
        let value = match self.0.starts_with('"') {
            true => self.quoted()?,
            false => self.token()?.to_owned(),
        };
        Some((name, value))
    }

    /// What follows a scheme, up to the next scheme: parameters, or one `token68`.
    fn challenge_parameters(&mut self) -> Option<Vec<(String, String)>> {
        let mut found: Vec<(String, String)> = Vec::new();
        self.space();
        while !self.0.is_empty() && !self.0.starts_with(',') {
            let before = self.0;
            match self.parameter() {
                Some((name, _)) if found.iter().any(|(known, _)| *known == name) => return None,
                Some(parameter) => found.push(parameter),
                None if found.is_empty() => {
                    self.0 = before.trim_start_matches(|c| is_token(c) || c == '/');
                    self.0 = self.0.trim_start_matches('=');
                    self.space();
                    let ends = self.0.is_empty() || self.0.starts_with(',');
                    return (ends && self.0.len() < before.len()).then_some(found);
                }
                None => return None,
            }
            if found.len() > MAX_PARTS {
                return None;
            }
            self.space();
            let Some(rest) = self.0.strip_prefix(',') else {
                return self.0.is_empty().then_some(found);
            };
            // Behind a comma: another parameter, or the next challenge's scheme.
            let mut ahead = Scan(rest);
            ahead.commas();
            let mut look = Scan(ahead.0);
            if look.token().is_none() || !look.separator('=') {
                return Some(found);
            }
            self.0 = ahead.0;
        }
        Some(found)
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(fields: &[&str]) -> Option<Challenge> {
        Challenge::choose(fields.iter().copied())
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: owned(service),
            scope: owned(scope),
        })
    }

    #[test]
    fn challenges_that_registries_send() {
        assert_eq!(
            choose(&[
                r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#
            ]),
            bearer("https://auth.example/token", Some("reg"), Some("repository:a/b:pull,push"))
        );
        assert_eq!(
            choose(&[r#"bearer realm="r" , service = reg"#]),
            bearer("r", Some("reg"), None)
        );
        assert_eq!(
            choose(&[r#"BASIC realm="Registry Realm", charset="UTF-8""#]),
            Some(Challenge::Basic)
        );
        assert_eq!(choose(&["Basic"]), Some(Challenge::Basic));
        assert_eq!(choose(&[r#"Bearer realm="a\"b\\c""#]), bearer("a\"b\\c", None, None));
    }

    #[test]
    fn bearer_is_preferred_wherever_it_stands() {
        for fields in [
            &[r#"Basic realm="x", Bearer realm="r""#][..],
            &[r#"Bearer realm="r", Basic realm="x""#],
            &[r#"Basic realm="x""#, r#"Bearer realm="r""#],
            &[r#"Negotiate dG9rZW4=, Basic realm="x", Bearer realm="r""#],
            &["Negotiate", r#", ,Bearer realm="r","#],
        ] {
            assert_eq!(choose(fields), bearer("r", None, None), "{fields:?}");
        }
    }

    #[test]
    fn broken_challenges_are_no_challenges() {
        for field in [
            "",
            "Bearer",
            r#"Bearer service="reg""#,
            r#"Bearer realm="""#,
            r#"Bearer realm="open"#,
            r#"Bearer realm="open\"#,
            r#"Bearer realm="a",realm="b""#,
            r#"Bearer realm="a" service="b""#,
            r#"Bearer realm=https://auth.example/token"#,
            "Bearer realm=\"a\u{7f}\"",
            r#"="x""#,
            "Digest realm=\"x\"",
        ] {
            assert_eq!(choose(&[field]), None, "{field}");
        }
        assert_eq!(choose(&[&format!("Bearer realm=\"{}\"", "x".repeat(MAX_FIELD))]), None);
        let many: String = (0..=MAX_PARTS).map(|n| format!(",p{n}=x")).collect();
        assert_eq!(choose(&[&format!("Bearer realm=\"r\"{many}")]), None);
        assert_eq!(choose(&[&"Basic a=b,".repeat(MAX_PARTS + 1)]), None);
        assert_eq!(choose(&["Bearer realm=\"open", "Basic"]), Some(Challenge::Basic));
    }

    #[test]
    fn links() {
        let next = |field: &str| next_link([field].into_iter());
        for (field, target) in [
            (r#"</v2/a/referrers/x?n=1&last=2>; rel="next""#, "/v2/a/referrers/x?n=1&last=2"),
            ("<x>;rel=next", "x"),
            (r#"<p>; rel="prev", <n>; title="a, <b>; c"; rel="last NEXT""#, "n"),
            (r#"<https://r.example/x>;REL="next";foo=bar"#, "https://r.example/x"),
        ] {
            assert_eq!(next(field), Ok(Some(target.to_owned())), "{field}");
        }
        for field in ["", "<x>; rel=prev", "<x>", r#"<x>; title="next""#] {
            assert_eq!(next(field), Ok(None), "{field}");
        }
        for field in ["x; rel=next", "<x; rel=next", r#"<x>; rel="next"#, "<x> rel=next", "<x>;rel"]
        {
            assert_eq!(next(field), Err("a Link header that cannot be read"), "{field}");
        }
        assert!(next(&"<x>,".repeat(MAX_PARTS + 1)).is_err());
        assert!(next(&format!("<{}>; rel=next", "x".repeat(MAX_FIELD))).is_err());
        let two = ["<p>; rel=prev", "<n>; rel=next"];
        assert_eq!(next_link(two.into_iter()), Ok(Some("n".into())));
    }
}
