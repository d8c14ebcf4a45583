//! The token flow of the distribution specification ("Token Authentication", "OAuth2").

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use crate::image::shorten;

use super::{
    Credentials,
    error::{Fault, Kind},
    header::Challenge,
    hosts_text::is_localhost,
    transport::{self, Answer, Get, same_origin},
};

/// Most bytes of a token service's answer.
const MAX_ANSWER: usize = 64 << 10;
/// Most tokens that are kept.
const MAX_TOKENS: usize = 1024;
/// How long a token lives whose service does not say (distribution specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// How long a token is used at most, whatever its service says.
const MAX_LIFE: Duration = Duration::from_secs(3600);
/// A token is no longer used when this is left of its life, or a tenth of it if that is less.
const MARGIN: Duration = Duration::from_secs(10);

/// Who asks whom for what.
#[derive(Clone, Copy)]
pub(super) struct Applicant<'a> {
    pub(super) client: &'a reqwest::Client,
    /// The root of the API of the host that sent the challenge.
    pub(super) base: &'a Url,
    /// The headers that `hosts.toml` has for that host.
    pub(super) header: &'a HeaderMap,
    /// The image's registry: a mirror can have several, told apart by `?ns=`.
    pub(super) registry: &'a str,
    /// The repository's name within the registry.
    pub(super) repository: &'a str,
    /// What that host may get.
    pub(super) credentials: &'a Credentials,
    pub(super) deadline: Instant,
}

/// The tokens in use, by what they were given for. Credentials are kept as a hash only.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<[u8; 32], Token>>);

#[derive(Clone)]
struct Token {
    authorization: HeaderValue,
    until: Instant,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// The `Authorization` that meets a challenge. `refused` says that the one used last was not
    /// accepted, so that a kept token is not used again.
    pub(super) async fn authorization(
        &self,
        applicant: Applicant<'_>,
        challenge: &Challenge,
        refused: bool,
    ) -> Result<HeaderValue, Fault> {
        match (challenge, applicant.credentials) {
            (_, Credentials::RegistryToken(token)) => secret(format!("Bearer {token}")),
            (Challenge::Basic, Credentials::Basic { username, password }) => {
                basic(username, password)
            }
            (Challenge::Basic, Credentials::IdentityToken(_)) => Err(Fault::new(
                Kind::Unauthorized,
                "wants user name and password, and the pull came with an identity token",
            )),
            (Challenge::Basic, _) => Err(Fault::new(
                Kind::Unauthorized,
                "wants credentials, and the pull came with none: add an imagePullSecret",
            )),
            (Challenge::Bearer { realm, service, scope }, credentials) => {
                let realm = read_realm(realm, applicant.base)?;
                let service = service.as_deref().unwrap_or_default();
                let scope = choose_scope(scope.as_deref(), applicant.repository);
                let key = key(applicant.base, &realm, service, &scope, credentials);
                if !refused && let Some(kept) = self.kept(&key) {
                    return Ok(kept);
                }
                let token = fetch(applicant, &realm, service, &scope).await.map_err(|fault| {
                    let host = shorten(realm.host_str().unwrap_or_default());
                    Fault {
                        why: format!("names the token service {host}, which {}", fault.why),
                        ..fault
                    }
                })?;
                let authorization = token.authorization.clone();
                self.keep(place(applicant), token.clone());
                self.keep(key, token);
                Ok(authorization)
            }
        }
    }

    /// The token that this caller was given last for this repository at this host, so that it need
    /// not be challenged again. What was not given for it before is sent to nobody unasked.
    pub(super) fn ready(&self, applicant: Applicant<'_>) -> Option<HeaderValue> {
        self.kept(&place(applicant))
    }

    fn kept(&self, key: &[u8; 32]) -> Option<HeaderValue> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let token = kept.get(key).filter(|token| Instant::now() < token.until)?;
        Some(token.authorization.clone())
    }

    fn keep(&self, key: [u8; 32], token: Token) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_TOKENS {
            let now = Instant::now();
            kept.retain(|_, token| now < token.until);
        }
        if kept.len() >= MAX_TOKENS {
            kept.clear();
        }
        kept.insert(key, token);
    }
}

/// The address of the token service, if credentials may go there: over TLS, unless the registry
/// itself is asked without, or is this machine.
fn read_realm(realm: &str, base: &Url) -> Result<Url, Fault> {
    let bad = |why| Fault::new(Kind::Unauthorized, format!("names a token service {why}"));
    let url = Url::parse(realm).map_err(|_| bad("whose address cannot be read"))?;
    let plain = base.scheme() == "http" || is_localhost(base.authority());
    match url.scheme() {
        "https" => {}
        "http" if plain => {}
        _ => return Err(bad("without TLS, which gets no credentials")),
    }
    if url.host_str().is_none() || !url.username().is_empty() || url.password().is_some() {
        return Err(bad("whose address cannot be read"));
    }
    Ok(url)
}

/// To read this repository, and nothing else. A mirror may know the repository under a longer
/// name; a name of another one, and any right beyond pulling, is not asked for on its behalf.
fn choose_scope(challenged: Option<&str>, repository: &str) -> String {
    let name = challenged
        .and_then(|scope| scope.strip_prefix("repository:"))
        .and_then(|rest| rest.rsplit_once(':'))
        .map(|(name, _)| name)
        .filter(|name| {
            name.strip_suffix(repository).is_some_and(|p| p.is_empty() || p.ends_with('/'))
        })
        .filter(|name| name.bytes().all(|c| c.is_ascii_alphanumeric() || b"/._-".contains(&c)));
    format!("repository:{}:pull", name.unwrap_or(repository))
}

/// What a token is for. The host is part of it: any host may name the token service of another
/// one, where that one's client certificate or header may have got more than the caller would.
fn key(base: &Url, realm: &Url, service: &str, scope: &str, credentials: &Credentials) -> [u8; 32] {
    hash(&[base.as_str(), realm.as_str(), service, scope], credentials)
}

/// Where a token was used, by whom.
fn place(applicant: Applicant<'_>) -> [u8; 32] {
    let Applicant { base, registry, repository, credentials, .. } = applicant;
    hash(&[base.as_str(), registry, repository], credentials)
}

/// Over all parts and their number, so that no two lists have one hash.
fn hash(parts: &[&str], credentials: &Credentials) -> [u8; 32] {
    let (kind, first, second) = match credentials {
        Credentials::Basic { username, password } => {
            ("basic", username.as_str(), password.as_str())
        }
        Credentials::IdentityToken(token) => ("identity", token.as_str(), ""),
        Credentials::RegistryToken(token) => ("registry", token.as_str(), ""),
        _ => ("anonymous", "", ""),
    };
    let mut hash = Sha256::new();
    hash.update((parts.len() as u64).to_be_bytes());
    for part in parts.iter().chain(&[kind, first, second]) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

async fn fetch(
    applicant: Applicant<'_>,
    realm: &Url,
    service: &str,
    scope: &str,
) -> Result<Token, Fault> {
    let empty = HeaderMap::new();
    let private = match same_origin(realm, applicant.base) {
        true => applicant.header,
        false => &empty,
    };
    let asked = Instant::now();
    let authorization = match applicant.credentials {
        // An empty password is no credential, as for containerd.
        Credentials::Basic { username, password } if !password.is_empty() => {
            Some(basic(username, password)?)
        }
        Credentials::IdentityToken(token) => {
            let form = form_urlencoded::Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service)
                .append_pair("scope", scope)
                .append_pair("client_id", "portcullis")
                .append_pair("refresh_token", token)
                .finish();
            let Applicant { client, deadline, .. } = applicant;
            let answer =
                transport::post_form(client, realm, form, private, MAX_ANSWER, deadline).await?;
            // Services that do not know this way answer so (containerd's list); they take the
            // token as a password.
            if !matches!(answer.status.as_u16(), 400 | 401 | 404 | 405) {
                return read_token(&answer, asked);
            }
            Some(basic("", token)?)
        }
        _ => None,
    };
    let mut url = realm.clone();
    if !service.is_empty() {
        url.query_pairs_mut().append_pair("service", service);
    }
    url.query_pairs_mut().append_pair("scope", scope);
    let get = Get {
        url,
        accept: "application/json",
        private,
        authorization: authorization.as_ref(),
        held: None,
        head: None,
        limit: MAX_ANSWER,
        deadline: applicant.deadline,
    };
    read_token(&transport::get(applicant.client, get).await?, asked)
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<i64>,
}

fn read_token(answer: &Answer, asked: Instant) -> Result<Token, Fault> {
    let status = answer.status;
    match status.as_u16() {
        200 => {}
        401 | 403 => {
            return Err(Fault::new(
                Kind::Unauthorized,
                format!("gave no token for what the pull came with ({status})"),
            ));
        }
        _ => return Err(super::session::unexpected(status, &answer.header)),
    }
    let bad = |why| Fault::new(Kind::Unreachable, why);
    let read: TokenAnswer = serde_json::from_slice(&answer.body)
        .map_err(|_| bad("sent an answer that cannot be read"))?;
    let token = [read.access_token, read.token].into_iter().flatten().find(|t| !t.is_empty());
    let token = token.ok_or_else(|| bad("sent an answer without a token"))?;
    Ok(Token {
        authorization: secret(format!("Bearer {token}"))?,
        until: asked + life(read.expires_in),
    })
}

/// How long a token is used, from the moment it was asked for.
fn life(expires_in: Option<i64>) -> Duration {
    let told = expires_in.and_then(|seconds| u64::try_from(seconds).ok()).filter(|s| *s > 0);
    let life = told.map_or(DEFAULT_LIFE, Duration::from_secs).min(MAX_LIFE);
    life - MARGIN.min(life / 10)
}

/// Basic authentication (RFC 7617).
fn basic(username: &str, password: &str) -> Result<HeaderValue, Fault> {
    secret(format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
}

fn secret(text: String) -> Result<HeaderValue, Fault> {
    let mut value = HeaderValue::from_str(&text).map_err(|_| {
        Fault::new(Kind::Unauthorized, "cannot be sent a token with these characters in it")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn realms() {
        let realm = |realm: &str, base: &str| {
            read_realm(realm, &Url::parse(base).unwrap()).map(|_| ()).map_err(|fault| fault.why)
        };
        let https = "https://r.example/v2";
        assert_eq!(realm("https://auth.example/token?x=1", https), Ok(()));
        assert_eq!(realm("http://auth.example/token", "http://r.example/v2"), Ok(()));
        assert_eq!(realm("http://127.0.0.1:1/token", "https://127.0.0.1:2/v2"), Ok(()));
        let plain = Err("names a token service without TLS, which gets no credentials".to_owned());
        assert_eq!(realm("http://auth.example/token", https), plain);
        assert_eq!(realm("ftp://auth.example/token", https), plain);
        let unread = Err("names a token service whose address cannot be read".to_owned());
        assert_eq!(realm("/token", https), unread);
        assert_eq!(realm("https://u:p@auth.example/token", https), unread);
    }

    #[test]
    fn scopes() {
        let own = "repository:library/nginx:pull";
        for challenged in [
            None,
            Some(own),
            Some("repository:library/nginx:pull,push"),
            Some("repository:other/secret:pull"),
            Some("repository:other/evil-library/nginx2:pull"),
            Some("repository:xlibrary/nginx:pull"),
            Some("registry:catalog:*"),
            Some("repository:a b/library/nginx:pull"),
            Some("repository:a:pull repository:library/nginx:pull"),
            Some(""),
        ] {
            assert_eq!(choose_scope(challenged, "library/nginx"), own, "{challenged:?}");
        }
        assert_eq!(
            choose_scope(Some("repository:proxy/library/nginx:*"), "library/nginx"),
            "repository:proxy/library/nginx:pull"
        );
    }

    #[test]
    fn lives() {
        let seconds = |expires_in| life(expires_in).as_secs();
        assert_eq!(seconds(None), 54);
        assert_eq!(seconds(Some(0)), 54);
        assert_eq!(seconds(Some(-5)), 54);
        assert_eq!(seconds(Some(300)), 290);
        assert_eq!(seconds(Some(10)), 9);
        assert_eq!(seconds(Some(i64::MAX)), 3590);
    }

    fn token(until: Instant) -> Token {
        Token { authorization: HeaderValue::from_static("Bearer x"), until }
    }

    #[test]
    fn kept_tokens_end_and_are_bounded() {
        let tokens = Tokens::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(3600);
        tokens.keep([1; 32], token(now));
        tokens.keep([2; 32], token(later));
        assert_eq!(tokens.kept(&[1; 32]), None);
        assert!(tokens.kept(&[2; 32]).is_some());
        for n in 0..2 * MAX_TOKENS {
            let mut key = [3; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            tokens.keep(key, token(later));
            assert!(tokens.0.lock().unwrap().len() <= MAX_TOKENS);
        }
    }

    #[test]
    fn keys_tell_everything_apart() {
        let realm = Url::parse("https://auth.example/token").unwrap();
        let basic = |username: &str, password: &str| Credentials::Basic {
            username: username.into(),
            password: password.into(),
        };
        let [base, other] =
            ["https://a.example/v2", "https://b.example/v2"].map(|url| Url::parse(url).unwrap());
        let keys = [
            key(&base, &realm, "s", "x", &Credentials::Anonymous),
            key(&other, &realm, "s", "x", &Credentials::Anonymous),
            key(&base, &realm, "sx", "", &Credentials::Anonymous),
            key(&base, &realm, "s", "x", &basic("a", "bc")),
            key(&base, &realm, "s", "x", &basic("ab", "c")),
            key(&base, &realm, "s", "x", &Credentials::IdentityToken("a".into())),
            key(
                &base,
                &Url::parse("https://auth.example/").unwrap(),
                "s",
                "x",
                &Credentials::Anonymous,
            ),
        ];
        for (n, one) in keys.iter().enumerate() {
            assert!(!keys[n + 1..].contains(one), "{n}");
        }
    }

    /// A mirror is asked for the images of each registry by `?ns=`, and may have a scope for each.
    #[test]
    fn a_token_for_one_registry_behind_a_mirror_is_not_ready_for_another_one() {
        let (client, header) = (reqwest::Client::new(), HeaderMap::new());
        let base = Url::parse("https://mirror.example/v2").unwrap();
        let applicant = |registry| Applicant {
            client: &client,
            base: &base,
            header: &header,
            registry,
            repository: "library/nginx",
            credentials: &Credentials::Anonymous,
            deadline: Instant::now(),
        };
        let tokens = Tokens::default();
        let later = Instant::now() + DEFAULT_LIFE;
        tokens.keep(place(applicant("docker.io")), token(later));
        assert!(tokens.ready(applicant("docker.io")).is_some());
        assert_eq!(tokens.ready(applicant("quay.io")), None);
    }

    #[test]
    fn answers() {
        let read = |status: u16, body: &str| {
            let answer = Answer {
                status: StatusCode::from_u16(status).unwrap(),
                header: HeaderMap::new(),
                body: body.to_owned().into(),
                url: Url::parse("https://auth.example/").unwrap(),
                at_home: true,
            };
            read_token(&answer, Instant::now())
                .map(|token| token.authorization.to_str().unwrap().to_owned())
                .map_err(|fault| (fault.kind, fault.why))
        };
        assert_eq!(read(200, r#"{"token":"a","issued_at":"x"}"#), Ok("Bearer a".into()));
        assert_eq!(read(200, r#"{"token":"a","access_token":"b"}"#), Ok("Bearer b".into()));
        assert_eq!(read(200, r#"{"token":"a","access_token":""}"#), Ok("Bearer a".into()));
        let unreachable = |why: &str| Err((Kind::Unreachable, why.to_owned()));
        assert_eq!(read(200, "{}"), unreachable("sent an answer without a token"));
        assert_eq!(read(200, "<html>"), unreachable("sent an answer that cannot be read"));
        assert_eq!(read(204, ""), unreachable("answered 204 No Content"));
        let (kind, why) = read(403, "").unwrap_err();
        assert_eq!(kind, Kind::Unauthorized);
        assert_eq!(why, "gave no token for what the pull came with (403 Forbidden)");
        assert_eq!(read(200, r#"{"token":"a\nb"}"#).unwrap_err().0, Kind::Unauthorized);
    }
}
