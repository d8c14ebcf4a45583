//! An API server in memory, on a loopback port of its own, that can misbehave on purpose.
//!
//! It keeps cluster-scoped objects of two kinds, lists them in pages, tells watches of every
//! change, and takes conditions of nodes and Events. Nothing in it happens by itself: bookmarks,
//! ends of watches and compactions are ordered by whoever holds the value. It runs on a thread
//! with a runtime of its own; when the value is dropped everything has ended.

mod answer;
mod fault;
mod serve;
mod store;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use tokio_rustls::rustls::ServerConfig;

use super::ca::{Identity, LOOPBACK, TestCa};

#[allow(unused_imports, reason = "no test binary uses all of it")]
pub(crate) use fault::{Fault, Gate};

/// Longer than any client takes for what a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running API server.
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    _server: serve::Server,
}

/// What an API server is to be like.
#[derive(Default)]
pub(crate) struct Builder {
    tls: Option<ServerConfig>,
    certificate: Option<Vec<u8>>,
    token: Option<String>,
    page: Option<usize>,
    keeps_watches: bool,
}

/// A request as it arrived, before any fault.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Before its body.
    pub(crate) arrived: Instant,
}

struct Shared {
    url: OnceLock<String>,
    /// The client certificate that is let in, in DER. None: any.
    certificate: Mutex<Option<Vec<u8>>>,
    token: Mutex<Option<String>>,
    page: usize,
    keeps_watches: bool,
    store: Mutex<store::Store>,
    /// How long the log of the store is; watches wait for more of it.
    told: watch::Sender<usize>,
    faults: Mutex<fault::Faults>,
    requests: watch::Sender<Vec<Request>>,
    watches: watch::Sender<usize>,
    connections: AtomicUsize,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Builder {
    /// HTTPS with a certificate of this CA.
    pub(crate) fn tls(mut self, ca: &TestCa) -> Self {
        self.tls = Some(ca.server_config(&ca.server(LOOPBACK), false));
        self
    }

    /// HTTPS that lets in only those with this very certificate of the CA.
    pub(crate) fn client_cert(mut self, ca: &TestCa, client: &Identity) -> Self {
        self.tls = Some(ca.server_config(&ca.server(LOOPBACK), true));
        self.certificate = Some(client.der());
        self
    }

    /// Everything needs this bearer token.
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Lists come in pages of at most so many, whatever is asked for.
    pub(crate) fn page(mut self, size: usize) -> Self {
        self.page = Some(size);
        self
    }

    /// Watches do not end at their time.
    pub(crate) fn keeps_watches(mut self) -> Self {
        self.keeps_watches = true;
        self
    }

    pub(crate) fn start(self) -> ApiServer {
        let shared = Arc::new(Shared {
            url: OnceLock::new(),
            certificate: Mutex::new(self.certificate),
            token: Mutex::new(self.token),
            page: self.page.unwrap_or(usize::MAX),
            keeps_watches: self.keeps_watches,
            store: Mutex::default(),
            told: watch::Sender::default(),
            faults: Mutex::default(),
            requests: watch::Sender::default(),
            watches: watch::Sender::default(),
            connections: AtomicUsize::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        let server = serve::Server::start(Arc::clone(&shared), self.tls);
        ApiServer { shared, _server: server }
    }
}

impl ApiServer {
    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// HTTP without authentication, with both kinds and without objects.
    pub(crate) fn start() -> Self {
        Self::builder().start()
    }

    /// `http://127.0.0.1:port`, or `https:`.
    pub(crate) fn url(&self) -> &str {
        self.shared.url.get().unwrap()
    }

    /// Writes a kubeconfig for it without credentials, but for what `cluster` and `user` say in
    /// YAML's flow style: `token: secret`.
    pub(crate) fn kubeconfig(&self, path: &Path, cluster: &str, user: &str) {
        kubeconfig(path, self.url(), cluster, user);
    }

    /// Creates an object, or changes it. Returns its version.
    pub(crate) fn apply(&self, object: &Value) -> u64 {
        self.change(|store| store.apply(object.clone()))
    }

    /// Deletes an object, which must be there. Returns the version of that change.
    pub(crate) fn delete(&self, kind: &str, name: &str) -> u64 {
        self.change(|store| store.delete(kind, name))
    }

    /// Something else in the cluster changes, which no watch hears of.
    pub(crate) fn touch(&self) -> u64 {
        self.change(store::Store::touch)
    }

    /// All watches are told how far they are.
    pub(crate) fn bookmark(&self) {
        self.change(store::Store::bookmark);
    }

    /// All watches send these bytes.
    pub(crate) fn say(&self, bytes: impl Into<Bytes>) {
        self.change(|store| store.say(None, bytes.into()));
    }

    /// The watches over one kind send these bytes.
    pub(crate) fn say_of(&self, plural: &str, bytes: impl Into<Bytes>) {
        self.change(|store| store.say(Some(plural), bytes.into()));
    }

    /// All watches end in good order.
    pub(crate) fn end_watches(&self) {
        self.change(store::Store::end);
    }

    /// All watches send these bytes, and then their connections break.
    pub(crate) fn break_watches(&self, bytes: impl Into<Bytes>) {
        self.change(|store| store.cut(bytes.into()));
    }

    /// Changes up to now are forgotten: who asks for them, or for the next page of a list that
    /// has begun, is told 410.
    pub(crate) fn compact(&self) {
        self.change(store::Store::compact);
    }

    /// The whole state is set back to how it was at that version, as from a backup.
    pub(crate) fn restore(&self, backup: Backup) {
        self.change(|store| store.restore(backup.0));
    }

    /// The state as it is now.
    pub(crate) fn backup(&self) -> Backup {
        Backup(self.shared.store.lock().unwrap().clone())
    }

    /// The definition of a kind is removed, by its plural: everything about it is 404.
    pub(crate) fn forget_kind(&self, plural: &str) {
        self.change(|store| store.kinds.retain(|(_, known)| known != plural));
    }

    /// The definition of a kind is there.
    pub(crate) fn define_kind(&self, kind: &str, plural: &str) {
        self.change(|store| store.kinds.push((kind.to_owned(), plural.to_owned())));
    }

    /// A node registers.
    pub(crate) fn add_node(&self, name: &str) {
        self.change(|store| store.add_node(name));
    }

    /// A node as it is now.
    pub(crate) fn node(&self, name: &str) -> Option<Value> {
        self.shared.store.lock().unwrap().nodes.get(name).cloned()
    }

    /// A node changes in another way.
    pub(crate) fn change_node(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.change(|store| change(store.nodes.get_mut(name).unwrap()));
    }

    /// The Events so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.shared.store.lock().unwrap().events.clone()
    }

    /// Only this token is good from now on.
    pub(crate) fn accept_token(&self, token: &str) {
        *self.shared.token.lock().unwrap() = Some(token.to_owned());
    }

    /// Only this certificate is good from now on.
    pub(crate) fn accept_certificate(&self, client: &Identity) {
        *self.shared.certificate.lock().unwrap() = Some(client.der());
    }

    /// From now on requests whose `METHOD target` satisfies the predicate go wrong, so many
    /// times. Of several rules the first that applies wins.
    pub(crate) fn fault(
        &self,
        times: usize,
        when: impl Fn(&str) -> bool + Send + 'static,
        fault: Fault,
    ) {
        self.shared.faults.lock().unwrap().add(times, Box::new(when), fault);
    }

    /// Forgets all faults.
    pub(crate) fn heal(&self) {
        *self.shared.faults.lock().unwrap() = fault::Faults::default();
    }

    /// All requests so far, in the order of arrival.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.borrow().clone()
    }

    /// `METHOD target` of all requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        let requests = self.shared.requests.borrow();
        requests.iter().map(|r| format!("{} {}", r.method, r.target)).collect()
    }

    /// How many requests there were so far.
    pub(crate) fn count(&self) -> usize {
        self.shared.requests.borrow().len()
    }

    /// Waits until the requests so far are as wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&[Request]) -> bool) {
        let mut requests = self.shared.requests.subscribe();
        let wanted = requests.wait_for(|requests| wanted(requests));
        if timeout(PATIENCE, wanted).await.is_err() {
            panic!("these are all requests: {:?}", self.asked());
        }
    }

    /// Waits until so many watches are open.
    pub(crate) async fn until_watched(&self, watches: usize) {
        let mut open = self.shared.watches.subscribe();
        let wanted = open.wait_for(|open| *open == watches);
        if timeout(PATIENCE, wanted).await.is_err() {
            panic!("{} watches are open", *self.shared.watches.borrow());
        }
    }

    /// How many watches are open.
    pub(crate) fn watched(&self) -> usize {
        *self.shared.watches.borrow()
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many bytes were received and sent on all connections, TLS included.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.shared.received), count(&self.shared.sent))
    }

    fn change<T>(&self, change: impl FnOnce(&mut store::Store) -> T) -> T {
        let mut store = self.shared.store.lock().unwrap();
        let changed = change(&mut store);
        self.shared.told.send_replace(store.log.len());
        changed
    }
}

/// A state that was kept.
pub(crate) struct Backup(store::Store);

/// Writes a kubeconfig for a server at this URL.
pub(crate) fn kubeconfig(path: &Path, url: &str, cluster: &str, user: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: node\n\
         contexts: [{{name: node, context: {{cluster: here, user: node}}}}]\n\
         clusters: [{{name: here, cluster: {{server: {url:?}, {cluster}}}}}]\n\
         users: [{{name: node, user: {{{user}}}}}]\n"
    );
    std::fs::write(path, text).unwrap();
}

/// A policy that accepts images below a prefix by digest alone, as a custom resource.
pub(crate) fn policy(name: &str, images: &str) -> Value {
    json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "ImagePolicy", "metadata": {"name": name},
        "spec": {
            "match": {"images": [images]},
            "authorities": [{"name": "open", "unsigned": {"reason": "a test"}}],
        },
    })
}

/// A revocation of one digest.
pub(crate) fn revocation(name: &str, digit: char) -> Value {
    let digest = format!("sha256:{}", digit.to_string().repeat(64));
    json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "Revocation", "metadata": {"name": name},
        "spec": {"digests": [digest]},
    })
}
