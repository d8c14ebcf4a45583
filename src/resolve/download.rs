//! One document at an https address, asked for again and again.
//!
//! The same client, redirects and bounds as for registries; no credentials, and no answer over
//! plain HTTP, whoever redirects there.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::ETAG};
use tokio::time::Instant;
use url::Url;

use crate::image::shorten;

use super::{
    client::Clients,
    error::{Again, Fault, Kind},
    hosts_file::TlsFiles,
    session::unexpected,
    transport::{self, Get},
};

/// Longest `ETag` that is sent back, in bytes; with a longer one the document is asked for anew.
const MAX_ETAG: usize = 1024;
/// Longest address, in bytes.
const MAX_ADDRESS: usize = 2048;

/// An address of a document: `https://policies.example.com/prod.bundle`.
///
/// Shown without its query, which can hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpsAddress(Url);

impl FromStr for HttpsAddress {
    /// A sentence.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write it as in https://policies.example.com/prod.bundle";
        if text.len() > MAX_ADDRESS {
            return Err(format!("is longer than {MAX_ADDRESS} bytes"));
        }
        let shown = shorten(text.split('?').next().unwrap_or_default());
        let url = Url::parse(text).map_err(|_| format!("\"{shown}\" is no address; {example}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("an address must not have credentials in it; {example}"));
        }
        match url.scheme() {
            "https" if url.fragment().is_none() => Ok(Self(url)),
            "https" => Err(format!("\"{shown}\" has a fragment, which is never sent; {example}")),
            "http" => Err(format!(
                "\"{shown}\" would be asked in plain HTTP, which tells anybody between what this \
                 node enforces and lets them hold it back; {example}"
            )),
            _ => Err(format!("\"{shown}\" is no https address; {example}")),
        }
    }
}

impl fmt::Display for HttpsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(url) = self;
        write!(f, "https://{}{}", self.authority(), url.path())
    }
}

impl fmt::Debug for HttpsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl HttpsAddress {
    /// Host and, where one is named, port.
    fn authority(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        self.0.port().map_or(host.to_owned(), |port| format!("{host}:{port}"))
    }
}

/// How long a download may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// To make a connection.
    pub connect: Duration,
    /// From a request to the head of its answer.
    pub head: Duration,
    /// For all of it, redirects and body included.
    pub whole: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            head: Duration::from_secs(15),
            whole: Duration::from_secs(120),
        }
    }
}

/// A document that can be asked for.
#[derive(Debug)]
pub struct Download {
    address: HttpsAddress,
    tls: TlsFiles,
    patience: Patience,
    clients: Clients,
}

/// What was answered.
#[derive(Debug)]
pub enum Downloaded {
    /// The document.
    Document {
        /// All of it.
        body: Bytes,
        /// What the server calls this version of it, if it can be asked by that.
        etag: Option<HeaderValue>,
    },
    /// It is the one whose `ETag` was sent.
    NotModified,
}

/// Why there is no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadFault {
    /// A sentence that begins with the server and is the same for the same trouble.
    pub why: String,
    /// Whether there was an answer, and it is larger than any document that is wanted.
    pub too_large: bool,
    /// How long the server asks not to be asked again.
    pub retry_after: Option<Duration>,
}

impl Download {
    /// A document at this address, from a server that a CA of this PEM file vouches for or,
    /// without one, a CA of the system.
    pub fn new(address: HttpsAddress, ca: Option<PathBuf>, patience: Patience) -> Self {
        let clients = match ca {
            Some(_) => Clients::of_named_authorities(),
            None => Clients::default(),
        };
        let tls = TlsFiles { ca: ca.into_iter().collect(), ..TlsFiles::default() };
        Self { address, tls, patience, clients }
    }

    /// Where it is.
    pub fn address(&self) -> &HttpsAddress {
        &self.address
    }

    /// Asks for it, at most `limit` bytes; one whose `ETag` is `held` need not be sent.
    ///
    /// # Errors
    ///
    /// Anything but the document, and [`Downloaded::NotModified`] where nothing was held.
    pub async fn ask(
        &self,
        held: Option<&HeaderValue>,
        limit: usize,
    ) -> Result<Downloaded, DownloadFault> {
        let answer = self.answer(held, limit).await;
        answer.map_err(|Fault { kind, why, again }| DownloadFault {
            why: format!("{} {}", self.address.authority(), without_remedy(&why)),
            too_large: kind == Kind::LimitExceeded,
            retry_after: match again {
                Again::After(pause) => Some(pause),
                _ => None,
            },
        })
    }

    async fn answer(&self, held: Option<&HeaderValue>, limit: usize) -> Result<Downloaded, Fault> {
        let authority = self.address.authority();
        let client = self.clients.with(&self.tls, &authority, self.patience.connect);
        let client = client
            .map_err(|why| Fault::new(Kind::Unreachable, format!("cannot be asked: {why}")))?;
        let get = Get {
            url: self.address.0.clone(),
            accept: "*/*",
            private: &HeaderMap::new(),
            authorization: None,
            held,
            head: Some(self.patience.head),
            limit,
            deadline: Instant::now() + self.patience.whole,
        };
        let answer = transport::get(&client, get).await?;
        let fault = |why: String| Err(Fault::new(Kind::Unreachable, why));
        match answer.status {
            StatusCode::OK => {
                let etag = answer.header.get(ETAG).filter(|etag| etag.len() <= MAX_ETAG);
                Ok(Downloaded::Document { body: answer.body, etag: etag.cloned() })
            }
            StatusCode::NOT_MODIFIED if held.is_some() => Ok(Downloaded::NotModified),
            status @ StatusCode::NOT_MODIFIED => {
                fault(format!("answered {status}, although nothing was held against it"))
            }
            status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => {
                fault(format!("has none ({status})"))
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => fault(format!(
                "refused ({status}): nodes ask without credentials, so let it be read without"
            )),
            status => Err(unexpected(status, &answer.header)),
        }
    }
}

/// A remedy by hosts.toml is none for a host that is no registry.
fn without_remedy(why: &str) -> &str {
    match why.split_once(": ") {
        Some((what, remedy)) if remedy.contains("hosts.toml") => what,
        _ => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        text.parse().map(|address: HttpsAddress| address.to_string())
    }

    #[test]
    fn addresses_are_https_and_shown_without_secrets() {
        let shown = Ok("https://p.example:8443/a/b".to_owned());
        assert_eq!(read("https://p.example:8443/a/b?sig=secret"), shown);
        assert_eq!(read("https://p.example"), Ok("https://p.example/".into()));
        let example = "write it as in https://policies.example.com/prod.bundle";
        for (text, why) in [
            ("https://", format!("\"https://\" is no address; {example}")),
            (
                "https://u:secret@p/a",
                format!("an address must not have credentials in it; {example}"),
            ),
            (
                "https://p/a#b",
                format!("\"https://p/a#b\" has a fragment, which is never sent; {example}"),
            ),
            ("ftp://p/a?secret", format!("\"ftp://p/a\" is no https address; {example}")),
        ] {
            assert_eq!(read(text), Err(why), "{text}");
        }
        let plain = read("http://p.example/a?secret").unwrap_err();
        assert!(
            plain.starts_with("\"http://p.example/a\" would be asked in plain HTTP"),
            "{plain}"
        );
        assert_eq!(read(&"x".repeat(2049)), Err("is longer than 2048 bytes".into()));
    }

    #[test]
    fn a_remedy_for_registries_is_none_here() {
        let why = "has a certificate that is not trusted: name its CA as `ca` in hosts.toml";
        assert_eq!(without_remedy(why), "has a certificate that is not trusted");
        assert_eq!(without_remedy("cannot be asked: x"), "cannot be asked: x");
    }
}
