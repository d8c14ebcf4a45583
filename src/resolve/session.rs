//! One host of a registry, asked on behalf of one caller.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{RETRY_AFTER, WWW_AUTHENTICATE},
};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    Credentials, Timeouts,
    error::{Again, Fault, Kind},
    header::Challenge,
    hosts_file::Host,
    token::{Applicant, Tokens},
    transport::{self, Answer, Get},
};

/// How often the last host is asked again when it is overburdened or breaks off. The others are
/// not: there is a next one.
const RETRIES: u32 = 2;
/// Longest `Retry-After` that is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);

/// What to ask a host for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Below the root of the API, with a query if need be: `library/nginx/manifests/latest`.
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) accept: &'static str,
    /// Most bytes of the body.
    pub(super) limit: usize,
}

/// Who asks, and until when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    pub(super) tokens: &'a Tokens,
    pub(super) credentials: &'a Credentials,
    /// The image's registry, for `?ns=`.
    pub(super) registry: &'a str,
    /// The repository's name within it.
    pub(super) repository: &'a str,
    pub(super) timeouts: Timeouts,
    pub(super) deadline: Instant,
}

/// A host, and what was learnt of it while it was asked for one image.
#[derive(Debug)]
pub(super) struct Session {
    host: Host,
    /// Or why there is none: its TLS files cannot be read.
    client: Result<reqwest::Client, String>,
    /// Whether a host that may speak TLS turned out not to.
    plain: AtomicBool,
    challenge: Mutex<Option<Challenge>>,
}

impl Session {
    pub(super) fn new(host: Host, client: Result<reqwest::Client, String>) -> Self {
        Self { host, client, plain: AtomicBool::new(false), challenge: Mutex::new(None) }
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Asks, and where this is the `last` host also asks again. The answer has status 200.
    pub(super) async fn ask(
        &self,
        wanted: &Wanted,
        caller: Caller<'_>,
        last: bool,
    ) -> Result<Answer, Fault> {
        let mut tries = 0;
        loop {
            if caller.deadline <= Instant::now() {
                return Err(Fault::new(Kind::Unreachable, "was not asked: the time was used up"));
            }
            let fault = match self.try_once(wanted, caller).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let pause = match fault.again {
                Again::Soon => caller.timeouts.backoff * 2u32.pow(tries),
                Again::After(pause) => pause,
                Again::No | Again::Plain | Again::Unconnected => return Err(fault),
            };
            let in_time = pause < caller.deadline.saturating_duration_since(Instant::now());
            if !last || tries == RETRIES || pause > MAX_RETRY_AFTER || !in_time {
                return Err(fault);
            }
            tries += 1;
            sleep(pause).await;
        }
    }

    /// One try: at most two requests for the thing itself, the second one with what the first
    /// one's challenge asks for.
    async fn try_once(&self, wanted: &Wanted, caller: Caller<'_>) -> Result<Answer, Fault> {
        let deadline = caller.deadline.min(Instant::now() + caller.timeouts.request);
        let caller = Caller { deadline, ..caller };
        let known = self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut authorization = match known {
            Some(challenge) => Some(self.authorize(caller, &challenge, false).await?),
            None => caller.tokens.ready(self.applicant(caller, &self.base())?),
        };
        let answer = self.send(wanted, caller, authorization.as_ref()).await?;
        // Who was redirected to is no party to the credentials, whatever it asks for.
        if answer.status != StatusCode::UNAUTHORIZED || !answer.at_home {
            return self.judge(answer, caller);
        }
        let fields = answer.header.get_all(WWW_AUTHENTICATE).iter();
        let challenge = Challenge::choose(fields.filter_map(|field| field.to_str().ok()));
        let challenge = challenge.ok_or_else(|| {
            Fault::new(
                Kind::Unauthorized,
                "wants credentials (401 Unauthorized) in a way that cannot be read",
            )
        })?;
        let refused = authorization.is_some();
        authorization = Some(self.authorize(caller, &challenge, refused).await?);
        *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = Some(challenge);
        let answer = self.send(wanted, caller, authorization.as_ref()).await?;
        self.judge(answer, caller)
    }

    async fn authorize(
        &self,
        caller: Caller<'_>,
        challenge: &Challenge,
        refused: bool,
    ) -> Result<HeaderValue, Fault> {
        let base = self.base();
        let applicant = self.applicant(caller, &base)?;
        caller.tokens.authorization(applicant, challenge, refused).await
    }

    fn applicant<'a>(&'a self, caller: Caller<'a>, base: &'a Url) -> Result<Applicant<'a>, Fault> {
        Ok(Applicant {
            client: self.client()?,
            base,
            header: &self.host.header,
            registry: caller.registry,
            repository: caller.repository,
            credentials: caller.credentials.for_host(&self.host.authority),
            deadline: caller.deadline,
        })
    }

    /// One request, over plain HTTP as well if the host is meant to be asked so.
    async fn send(
        &self,
        wanted: &Wanted,
        caller: Caller<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Fault> {
        let client = self.client()?;
        loop {
            let base = self.base();
            let get = Get {
                url: self.url(&base, wanted, caller.registry),
                accept: wanted.accept,
                private: &self.host.header,
                authorization,
                held: None,
                head: None,
                limit: wanted.limit,
                deadline: caller.deadline,
            };
            let fault = match transport::get(client, get).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let plain_next = match fault.again {
                Again::Plain => true,
                // Without a port, HTTPS was tried at another one than HTTP has.
                Again::Unconnected => !self.host.names_port(),
                _ => false,
            };
            if base.scheme() == self.host.base.scheme() || !plain_next {
                return Err(fault);
            }
            self.plain.store(true, Ordering::Relaxed);
        }
    }

    fn client(&self) -> Result<&reqwest::Client, Fault> {
        let fault = |why: &String| Fault::new(Kind::Unreachable, format!("cannot be asked: {why}"));
        self.client.as_ref().map_err(fault)
    }

    /// The root of the API, with the scheme that is to be used now.
    fn base(&self) -> Url {
        let mut base = self.host.base.clone();
        if self.host.tries_tls_first() && !self.plain.load(Ordering::Relaxed) {
            // Infallible between http and https.
            let _ = base.set_scheme("https");
        }
        base
    }

    fn url(&self, base: &Url, wanted: &Wanted, registry: &str) -> Url {
        let mut url = base.clone();
        url.set_path(&format!("{}/{}", base.path().trim_end_matches('/'), wanted.path));
        url.set_query(wanted.query.as_deref());
        let named = url.query_pairs().any(|(key, _)| key == "ns");
        if self.host.is_proxy_for(registry) && !named {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    /// What of an address at this host comes after the root of the API.
    pub(super) fn below_root<'a>(&self, url: &'a Url) -> Option<&'a str> {
        url.path().strip_prefix(self.host.base.path().trim_end_matches('/'))?.strip_prefix('/')
    }

    fn judge(&self, answer: Answer, caller: Caller<'_>) -> Result<Answer, Fault> {
        let status = answer.status;
        let why = match status.as_u16() {
            200 => return Ok(answer),
            404 => {
                return Err(Fault::new(Kind::NotFound, "has none (404 Not Found)"));
            }
            401 | 403 if !answer.at_home => {
                let host = crate::image::shorten(answer.url.host_str().unwrap_or_default());
                let why = format!("redirected to {host}, which answered {status}");
                return Err(Fault::new(Kind::Unreachable, why));
            }
            401 | 403 => match caller.credentials.for_host(&self.host.authority) {
                Credentials::Anonymous => format!(
                    "refused ({status}), and the pull came without credentials for it: \
                     add an imagePullSecret"
                ),
                _ => format!("refused the pull credentials ({status})"),
            },
            _ => return Err(unexpected(status, &answer.header)),
        };
        Err(Fault::new(Kind::Unauthorized, why))
    }
}

/// An answer that is none, and whether another try may bring one.
pub(super) fn unexpected(status: StatusCode, header: &HeaderMap) -> Fault {
    let again = match status.as_u16() {
        429 | 503 => retry_after(header).map_or(Again::Soon, Again::After),
        408 | 500 | 502 | 504 => Again::Soon,
        _ => Again::No,
    };
    Fault::new(Kind::Unreachable, format!("answered {status}")).again(again)
}

/// `Retry-After` in seconds (RFC 9110, section 10.2.3). A date is not read: the usual pause does.
pub(super) fn retry_after(header: &HeaderMap) -> Option<Duration> {
    let text = header.get(RETRY_AFTER)?.to_str().ok()?;
    text.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries() {
        let again = |status: u16, after: Option<&str>| {
            let mut header = HeaderMap::new();
            if let Some(after) = after {
                header.insert(RETRY_AFTER, HeaderValue::from_str(after).unwrap());
            }
            unexpected(StatusCode::from_u16(status).unwrap(), &header).again
        };
        assert_eq!(again(429, None), Again::Soon);
        assert_eq!(again(429, Some("7")), Again::After(Duration::from_secs(7)));
        assert_eq!(again(429, Some("Wed, 21 Oct 2026 07:28:00 GMT")), Again::Soon);
        assert_eq!(again(429, Some("-1")), Again::Soon);
        assert_eq!(again(503, Some("0")), Again::After(Duration::ZERO));
        assert_eq!(again(500, Some("7")), Again::Soon);
        for status in [302, 400, 405, 451, 501, 204] {
            assert_eq!(again(status, None), Again::No, "{status}");
        }
    }

    #[test]
    fn addresses() {
        let url = |base: &str, path: &str, query: Option<&str>, registry: &str| {
            let host = Host {
                base: Url::parse(base).unwrap(),
                authority: "m.example".into(),
                ..Host::registry_itself("m.example", Default::default()).unwrap()
            };
            let session = Session::new(host, Err(String::new()));
            let query = query.map(str::to_owned);
            let wanted = Wanted { path: path.into(), query, accept: "", limit: 0 };
            session.url(&session.base(), &wanted, registry).to_string()
        };
        let tag = "a/manifests/v1";
        assert_eq!(
            url("https://m.example/v2", tag, None, "m.example"),
            "https://m.example/v2/a/manifests/v1"
        );
        assert_eq!(
            url("https://m.example/", tag, None, "docker.io"),
            "https://m.example/a/manifests/v1?ns=docker.io"
        );
        assert_eq!(
            url("https://m.example/v2", tag, Some("n=1"), "r.example:5000"),
            "https://m.example/v2/a/manifests/v1?n=1&ns=r.example%3A5000"
        );
        assert_eq!(
            url("https://m.example/v2", tag, Some("ns=x"), "r.example"),
            "https://m.example/v2/a/manifests/v1?ns=x"
        );
    }
}
