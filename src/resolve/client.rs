//! HTTP clients, shared by all pulls so that connections are used again.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{
    hosts_file::{Host, TlsFiles},
    hosts_text::is_localhost,
    tls::{SystemRoots, TlsMaterial},
    transport::{MAX_HEADER_BYTES, MAX_HEADERS},
};

/// Most clients that are kept. Each is a set of TLS settings and a `dial_timeout`, of which a node
/// has a few; a file that changes makes another one.
const MAX_CLIENTS: usize = 64;
/// How long a connection that nobody uses stays open.
const IDLE: Duration = Duration::from_secs(60);
/// Most idle connections to a host.
const MAX_IDLE: usize = 8;

/// What makes two hosts share a client: TLS settings by content, time to connect, and whether a
/// proxy may stand between.
type Key = ([u8; 32], Duration, bool);

/// The clients in use.
#[derive(Default)]
pub(super) struct Clients {
    kept: Mutex<HashMap<Key, reqwest::Client>>,
    system: SystemRoots,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl Clients {
    /// Clients that trust what is named as `ca` and, without the system's word, nobody else.
    pub(super) fn of_named_authorities() -> Self {
        Self { system: SystemRoots::none(), ..Self::default() }
    }

    /// The client for this host. Reads its TLS files, so that one that was replaced counts from
    /// now on.
    pub(super) fn of(&self, host: &Host, connect: Duration) -> Result<reqwest::Client, String> {
        self.with(&host.tls, &host.authority, host.dial_timeout.unwrap_or(connect))
    }

    /// The client for a host with these TLS files, which are read likewise.
    pub(super) fn with(
        &self,
        tls: &TlsFiles,
        authority: &str,
        connect: Duration,
    ) -> Result<reqwest::Client, String> {
        let material = TlsMaterial::read(tls)?;
        // Go's clients, and so containerd, never take a proxy to the machine itself.
        let direct = is_localhost(authority);
        let key = (material.fingerprint(), connect, direct);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = kept.get(&key) {
            return Ok(client.clone());
        }
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(material.config(&self.system)?)
            .connect_timeout(connect)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .http1_max_headers(MAX_HEADERS)
            .http2_max_header_list_size(MAX_HEADER_BYTES as u32)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE);
        let builder = if direct { builder.no_proxy() } else { builder };
        let client = builder.build().map_err(|e| format!("no HTTP client can be made: {e}"))?;
        if kept.len() >= MAX_CLIENTS {
            kept.clear();
        }
        kept.insert(key, client.clone());
        Ok(client)
    }
}
