//! A thin client of the OCI distribution specification, bounded in everything.

use std::{collections::VecDeque, fmt, sync::Arc};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use tokio::{sync::OnceCell, time::Instant};

use crate::image::{Digest, Repository, Tag, Version};

use super::{
    Credentials, Descriptor, HostsDirectories, RegistryError, Timeouts,
    client::Clients,
    error::{Failures, Fault, Kind},
    hosts_file::Capabilities,
    referrers,
    session::{Caller, Session, Wanted},
    token::Tokens,
    transport::Answer,
};

/// The kinds of manifest that containerd asks for, in its order.
pub(super) const ACCEPT_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, */*";

/// The registries, with connections, tokens and TLS settings shared by all calls.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directories: HostsDirectories,
    timeouts: Timeouts,
    clients: Clients,
    tokens: Tokens,
}

impl Registry {
    /// A client that finds its hosts in these directories. They are read anew for each
    /// [`Repo`], as containerd does.
    pub fn new(directories: HostsDirectories) -> Self {
        Self::with_timeouts(directories, Timeouts::default())
    }

    /// The same, with other limits of time.
    pub fn with_timeouts(directories: HostsDirectories, timeouts: Timeouts) -> Self {
        let (clients, tokens) = Default::default();
        Self(Arc::new(Shared { directories, timeouts, clients, tokens }))
    }

    /// One repository, asked with one caller's credentials. Nothing is read or sent before the
    /// first question; make one for each judgement.
    pub fn repo(&self, repository: &Repository, credentials: &Credentials) -> Repo {
        Repo(Arc::new(Inner {
            shared: self.0.clone(),
            repository: repository.clone(),
            credentials: credentials.clone(),
            sessions: OnceCell::new(),
        }))
    }
}

/// One repository with one caller's credentials. Clones share what was learnt of its hosts.
#[derive(Clone)]
pub struct Repo(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    repository: Repository,
    credentials: Credentials,
    /// The hosts to ask, in order, or why they are not known.
    sessions: OnceCell<Result<Vec<Session>, String>>,
}

impl fmt::Debug for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Repo").field(&self.0.repository).finish()
    }
}

/// A manifest as a registry sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// SHA-256 over the body, computed here.
    pub digest: Digest,
    /// The `Content-Type`, without parameters. Empty where there is none.
    pub media_type: String,
    /// The body.
    pub body: Bytes,
}

impl Repo {
    /// Fetches a manifest of at most `limit` bytes. A digest that is asked for is compared with
    /// the body; `Docker-Content-Digest`, if sent, likewise.
    ///
    /// A tag is asked of the hosts that `hosts.toml` lets resolve and pull, a digest of those
    /// that may pull. The first host that has it answers.
    pub async fn manifest(
        &self,
        version: &Version,
        limit: usize,
    ) -> Result<Fetched, RegistryError> {
        match version {
            Version::Tag(tag) => self.tagged(tag, limit).await,
            Version::Digest(digest) => {
                let asked = format!("manifest {digest}");
                let wanted = self.wanted("manifests", digest, ACCEPT_MANIFEST, limit);
                let check = |answer: Answer| fetched(answer, Some(digest));
                self.first(asked, |may| may.pull, &wanted, check).await
            }
        }
    }

    /// Fetches the manifest by a tag.
    pub async fn tagged(&self, tag: &Tag, limit: usize) -> Result<Fetched, RegistryError> {
        let wanted = self.wanted("manifests", tag, ACCEPT_MANIFEST, limit);
        let check = |answer: Answer| fetched(answer, None);
        self.first(format!("tag {tag}"), |may| may.pull && may.resolve, &wanted, check).await
    }

    /// Fetches a blob of at most `limit` bytes whose digest is compared.
    pub async fn blob(&self, digest: &Digest, limit: usize) -> Result<Bytes, RegistryError> {
        let wanted = self.wanted("blobs", digest, "*/*", limit);
        let check = |answer: Answer| fetched(answer, Some(digest)).map(|fetched| fetched.body);
        self.first(format!("blob {digest}"), |may| may.pull, &wanted, check).await
    }

    /// The descriptors of all referrers, over all pages; by the fallback tag at a host that
    /// answers 404. More than `most` are an error.
    ///
    /// Hosts are asked in turn until one lists any. A mirror that lists none proves nothing: only
    /// if every host that may be asked lists none, there are none. Referrers by another digest
    /// than SHA-256 are left out.
    pub async fn referrers(
        &self,
        digest: &Digest,
        most: usize,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut failures = Failures::of(format!("referrers of {digest}"));
        let caller = self.caller();
        let mut sessions = self.sessions(|may| may.referrers, &mut failures).await;
        while let Some(session) = sessions.pop_front() {
            let last = sessions.is_empty();
            let fault = match referrers::list(session, caller, digest, most, last).await {
                Ok(found) if !found.is_empty() => return Ok(found),
                Ok(_) => Fault::new(Kind::NotFound, "lists none"),
                Err(fault) => fault,
            };
            pass_over(&mut sessions, session, &fault);
            failures.add(&session.host().authority, fault);
        }
        if failures.all_not_found() { Ok(Vec::new()) } else { Err(failures.conclude()) }
    }

    fn wanted(
        &self,
        kind: &str,
        name: &dyn fmt::Display,
        accept: &'static str,
        limit: usize,
    ) -> Wanted {
        let path = format!("{}/{kind}/{name}", self.0.repository.path());
        Wanted { path, query: None, accept, limit }
    }

    /// The first host's answer that passes the check.
    async fn first<T>(
        &self,
        asked: String,
        may: fn(Capabilities) -> bool,
        wanted: &Wanted,
        check: impl Fn(Answer) -> Result<T, Fault>,
    ) -> Result<T, RegistryError> {
        let mut failures = Failures::of(asked);
        let caller = self.caller();
        let mut sessions = self.sessions(may, &mut failures).await;
        while let Some(session) = sessions.pop_front() {
            let last = sessions.is_empty();
            match session.ask(wanted, caller, last).await.and_then(&check) {
                Ok(checked) => return Ok(checked),
                Err(fault) => {
                    pass_over(&mut sessions, session, &fault);
                    failures.add(&session.host().authority, fault);
                }
            }
        }
        Err(failures.conclude())
    }

    fn caller(&self) -> Caller<'_> {
        let Inner { shared, repository, credentials, .. } = &*self.0;
        Caller {
            tokens: &shared.tokens,
            credentials,
            registry: repository.registry(),
            repository: repository.path(),
            timeouts: shared.timeouts,
            deadline: Instant::now() + shared.timeouts.call,
        }
    }

    /// The hosts that may be asked for this. Where none can be known, the failure tells why.
    async fn sessions(
        &self,
        may: fn(Capabilities) -> bool,
        failures: &mut Failures,
    ) -> VecDeque<&Session> {
        match self.0.sessions.get_or_init(|| load(&self.0)).await {
            Ok(all) => all.iter().filter(|s| may(s.host().capabilities)).collect(),
            Err(why) => {
                let why = format!("cannot be asked: {why}");
                failures.add(self.0.repository.registry(), Fault::new(Kind::Unreachable, why));
                VecDeque::new()
            }
        }
    }
}

/// Who has said that it has none is not asked once more in the same way for another entry of
/// `hosts.toml`: as where the registry is `server`, and in a table with its CA.
fn pass_over(sessions: &mut VecDeque<&Session>, asked: &Session, fault: &Fault) {
    if fault.kind == Kind::NotFound {
        sessions.retain(|session| !session.host().repeats(asked.host()));
    }
}

/// Reads the hosts of a registry and makes their clients, away from the threads that must not
/// wait for a disk.
async fn load(inner: &Inner) -> Result<Vec<Session>, String> {
    let shared = inner.shared.clone();
    let registry = inner.repository.registry().to_owned();
    let load = move || {
        let hosts = shared.directories.hosts(&registry)?;
        let session = |host| {
            let client = shared.clients.of(&host, shared.timeouts.connect);
            Session::new(host, client)
        };
        Ok(hosts.into_iter().map(session).collect())
    };
    let failed = |_| Err("the reading of its hosts.toml failed".to_owned());
    tokio::task::spawn_blocking(load).await.unwrap_or_else(failed)
}

/// Hashes what came, and compares it with what was asked for and with what the host says it sent.
fn fetched(answer: Answer, asked: Option<&Digest>) -> Result<Fetched, Fault> {
    let digest = Digest::of(&answer.body);
    let differs = |from: &dyn fmt::Display| {
        Fault::new(Kind::DigestMismatch, format!("sent {digest} instead of {from}"))
    };
    if let Some(asked) = asked.filter(|asked| **asked != digest) {
        return Err(differs(asked));
    }
    let told = answer.header.get("docker-content-digest").and_then(|told| told.to_str().ok());
    // Of another algorithm it would be no contradiction.
    if let Some(told) = told.filter(|told| told.starts_with("sha256:"))
        && told != digest.to_string()
    {
        return Err(differs(&format!("the announced {}", crate::image::shorten(told))));
    }
    let kind = answer.header.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default();
    Ok(Fetched { digest, media_type: kind.trim().to_ascii_lowercase(), body: answer.body })
}
