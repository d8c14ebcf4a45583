//! A registry in memory, on a loopback port of its own, that can misbehave on purpose.
//!
//! It runs on a thread with a runtime of its own, so that neither blocking nor paused tests
//! disturb it. When the value is dropped everything has ended.

mod api;
mod auth;
mod fault;
mod server;
mod store;

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Version, header};
use portcullis::image::Digest;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use super::ca::{LOOPBACK, TestCa};
use auth::{Auth, Scheme};
#[allow(unused_imports, reason = "no test binary uses all of it")]
pub(crate) use fault::{Fault, Gate, Match};

pub(crate) const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A running registry.
pub(crate) struct TestRegistry {
    shared: Arc<Shared>,
    _server: server::Server,
}

/// What a registry is to be like.
#[derive(Default)]
pub(crate) struct Builder {
    tls: Option<ServerConfig>,
    auth: Option<Auth>,
    options: Options,
}

struct Options {
    referrers_api: bool,
    page_size: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { referrers_api: true, page_size: None }
    }
}

/// A request as it arrived, before any fault.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The connection showed a client certificate.
    pub(crate) client_cert: bool,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn authorization(&self) -> Option<&str> {
        self.header(header::AUTHORIZATION.as_str())
    }
}

struct Shared {
    url: OnceLock<String>,
    auth: Option<Auth>,
    options: Options,
    store: Mutex<store::Store>,
    faults: Mutex<fault::Faults>,
    requests: watch::Sender<Vec<Request>>,
    connections: AtomicUsize,
}

impl Builder {
    /// HTTPS with a certificate of this CA for [`LOOPBACK`].
    pub(crate) fn tls(self, ca: &TestCa) -> Self {
        self.tls_config(ca.server_config(&ca.server(LOOPBACK), false))
    }

    /// HTTPS that lets in only those with a client certificate of this CA.
    pub(crate) fn client_cert_tls(self, ca: &TestCa) -> Self {
        self.tls_config(ca.server_config(&ca.server(LOOPBACK), true))
    }

    pub(crate) fn tls_config(mut self, config: ServerConfig) -> Self {
        self.tls = Some(config);
        self
    }

    /// Everything needs this user and password.
    pub(crate) fn basic(mut self, user: &str, password: &str) -> Self {
        self.auth = Some(Auth::new(Scheme::Basic, user, password));
        self
    }

    /// Everything needs a token from the token server at `/token` of this registry, which
    /// wants this user and password or [`TestRegistry::refresh_token`].
    pub(crate) fn bearer(mut self, user: &str, password: &str) -> Self {
        self.auth = Some(Auth::new(Scheme::Bearer, user, password));
        self
    }

    /// After [`Self::bearer`]: those without credentials get tokens to pull.
    pub(crate) fn anonymous_pull(self) -> Self {
        self.with_auth(|auth| auth.anonymous = true)
    }

    /// After [`Self::bearer`]: challenges send clients to this token server.
    pub(crate) fn realm(self, url: &str) -> Self {
        self.with_auth(|auth| auth.realm = Some(url.to_owned()))
    }

    /// After [`Self::bearer`]: tokens claim to live so many seconds. They end only by
    /// [`TestRegistry::expire_tokens`].
    pub(crate) fn token_lifetime(self, seconds: u32) -> Self {
        self.with_auth(|auth| auth.lifetime = seconds)
    }

    fn with_auth(mut self, change: impl FnOnce(&mut Auth)) -> Self {
        change(self.auth.as_mut().expect("basic or bearer comes first"));
        self
    }

    /// Referrers answer 404, and nothing else tells of them.
    pub(crate) fn no_referrers_api(mut self) -> Self {
        self.options.referrers_api = false;
        self
    }

    /// Referrers come in pages of this many.
    pub(crate) fn page_size(mut self, size: usize) -> Self {
        self.options.page_size = Some(size);
        self
    }

    pub(crate) fn start(self) -> TestRegistry {
        let shared = Arc::new(Shared {
            url: OnceLock::new(),
            auth: self.auth,
            options: self.options,
            store: Mutex::default(),
            faults: Mutex::default(),
            requests: watch::Sender::default(),
            connections: AtomicUsize::new(0),
        });
        let server = server::Server::start(Arc::clone(&shared), self.tls);
        TestRegistry { shared, _server: server }
    }
}

impl TestRegistry {
    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// HTTP without authentication, with the referrers API.
    pub(crate) fn start() -> Self {
        Self::builder().start()
    }

    /// `http://127.0.0.1:port`, or `https:`.
    pub(crate) fn url(&self) -> &str {
        self.shared.url.get().unwrap()
    }

    /// `127.0.0.1:port`, as it stands in image names.
    pub(crate) fn host(&self) -> &str {
        self.url().split_once("//").unwrap().1
    }

    pub(crate) fn push_blob(&self, repo: &str, bytes: impl Into<Bytes>) -> Digest {
        self.shared.store.lock().unwrap().repo(repo).push_blob(bytes.into())
    }

    /// Any bytes as a manifest; nothing is checked.
    pub(crate) fn push_manifest(
        &self,
        repo: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let mut store = self.shared.store.lock().unwrap();
        let repo = store.repo(repo);
        let digest = repo.push_manifest(media_type, bytes.into());
        if let Some(tag) = tag {
            repo.tags.insert(tag.to_owned(), digest);
        }
        digest
    }

    /// A manifest under the media type that it names.
    pub(crate) fn push_json(&self, repo: &str, tag: Option<&str>, manifest: &Value) -> Digest {
        let media_type = manifest["mediaType"].as_str().expect("a manifest names its mediaType");
        self.push_manifest(repo, tag, media_type, manifest.to_string())
    }

    /// Creates or moves a tag.
    pub(crate) fn tag(&self, repo: &str, tag: &str, digest: Digest) {
        self.shared.store.lock().unwrap().repo(repo).tags.insert(tag.to_owned(), digest);
    }

    /// A valid image for linux/amd64, unlike any other of this process, with one empty layer.
    pub(crate) fn push_image(&self, repo: &str, tag: impl Into<Option<&'static str>>) -> Digest {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let layer = vec![0; 1024]; // an empty tar archive
        let layer_digest = self.push_blob(repo, layer.clone());
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Labels": {"made": made.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        })
        .to_string();
        let config_digest = self.push_blob(repo, config.clone());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": IMAGE_MANIFEST,
            "config": {"mediaType": IMAGE_CONFIG, "digest": config_digest, "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": layer_digest, "size": layer.len()}],
        });
        self.push_json(repo, tag.into(), &manifest)
    }

    /// An index of pushed manifests, each with its architecture.
    pub(crate) fn push_index(
        &self,
        repo: &str,
        tag: Option<&str>,
        children: &[(Digest, &str)],
    ) -> Digest {
        let manifests: Vec<_> = children
            .iter()
            .map(|(digest, architecture)| {
                let mut descriptor = self.descriptor(repo, *digest);
                descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests});
        self.push_json(repo, tag, &index)
    }

    /// Media type and bytes of a pushed manifest, by tag or digest, whatever becomes of this value.
    pub(crate) fn reader(&self) -> impl Fn(&str, &str) -> Option<(String, Bytes)> + Send + use<> {
        let shared = self.shared.clone();
        move |repo, reference| {
            let mut store = shared.store.lock().unwrap();
            let found = store.repo(repo).manifest(reference)?;
            Some((found.media_type.clone(), found.bytes.clone()))
        }
    }

    /// The descriptor of a pushed manifest, such as for `subject`.
    pub(crate) fn descriptor(&self, repo: &str, digest: Digest) -> Value {
        let mut store = self.shared.store.lock().unwrap();
        let found = store.repo(repo).manifest(&digest.to_string()).expect("pushed before").clone();
        json!({"mediaType": found.media_type, "digest": digest, "size": found.bytes.len()})
    }

    /// Tags the referrers of this digest as clients do where there is no referrers API
    /// (distribution-spec, "Referrers Tag Schema").
    pub(crate) fn push_fallback_tag(&self, repo: &str, subject: Digest) -> Digest {
        let found = {
            let mut store = self.shared.store.lock().unwrap();
            store.repo(repo).referrers(&subject.to_string(), None)
        };
        let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": found});
        self.push_json(repo, Some(&subject.to_string().replace(':', "-")), &index)
    }

    /// From now on these requests go wrong. Of several rules the first that applies wins.
    pub(crate) fn fault(&self, to: Match, fault: Fault) {
        self.shared.faults.lock().unwrap().add(to, fault);
    }

    /// Forgets all faults. Requests that hang go on hanging.
    pub(crate) fn heal(&self) {
        *self.shared.faults.lock().unwrap() = fault::Faults::default();
    }

    /// All requests so far, in the order of arrival.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.borrow().clone()
    }

    /// `METHOD target` of all requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.requests().iter().map(|r| format!("{} {}", r.method, r.target)).collect()
    }

    /// Waits until the requests so far are as wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&[Request]) -> bool) {
        let mut requests = self.shared.requests.subscribe();
        requests.wait_for(|requests| wanted(requests)).await.unwrap();
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The OAuth2 refresh token ("identity token") of the one user.
    pub(crate) fn refresh_token(&self) -> &str {
        &self.auth().refresh_token
    }

    /// A token for these scopes (`repository:app:pull`), without asking for it.
    pub(crate) fn issue_token(&self, scopes: &[&str]) -> String {
        self.auth().issue(scopes.iter().map(ToString::to_string).collect())
    }

    /// Every token given out so far is refused from now on.
    pub(crate) fn expire_tokens(&self) {
        self.auth().tokens.lock().unwrap().clear();
    }

    fn auth(&self) -> &Auth {
        self.shared.auth.as_ref().expect("a registry with authentication")
    }
}
