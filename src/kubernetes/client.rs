//! The connection to the API server: whose credentials, which bounds.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    client::{Body, ClientBuilder, ConfigExt},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::time::timeout;
use tower::ServiceExt;

use super::{
    Config, Times,
    failure::{self, Failure, What},
};

/// kubelet's own, with a certificate that kubelet renews on disk.
const KUBELET: &str = "/etc/kubernetes/kubelet.conf";
/// What is set in every pod.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";
/// Largest kubeconfig, in bytes.
const MAX_KUBECONFIG: u64 = 1024 * 1024;
/// Most bytes of one answer: a page of a list, or all events of a watch.
pub(super) const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// Most bytes of an error that are read, and thrown away, so that the connection can be kept.
const MAX_ERROR: usize = 64 * 1024;
/// From the first packet to a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nothing is heard is asked after as often, so that one that is cut
/// without a word is noticed within a minute and not at the end of the watch.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The API server. It is connected to by the first question, and anew after each failure: the
/// node's certificate is renewed on disk.
pub struct Server {
    kubeconfig: Option<PathBuf>,
    pub(super) times: Times,
    link: Mutex<Option<Link>>,
}

/// A way to it.
#[derive(Clone)]
struct Link {
    client: kube::Client,
    /// For people: scheme, host and port as they are configured.
    address: String,
}

/// The head of an answer, and a body that is not read yet.
pub(super) struct Answer {
    pub(super) address: String,
    pub(super) status: StatusCode,
    pub(super) after: Option<Duration>,
    body: Body,
    left: usize,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Server {
    /// Nothing is read and nobody asked before the first question.
    pub fn new(config: Config) -> Self {
        let Config { kubeconfig, times } = config;
        Self { kubeconfig, times, link: Mutex::default() }
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Answer, Failure> {
        let Link { client, address } = self.link().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("portcullis/", env!("CARGO_PKG_VERSION")));
        let request = match body {
            None => request.body(Body::empty()),
            Some((kind, body)) => request.header(header::CONTENT_TYPE, kind).body(body.into()),
        };
        let request = request.map_err(|_| {
            Failure::new(What::Answer, format!("{address} cannot be asked for \"{path}\""))
        })?;
        let failed = |failure| {
            self.forget();
            Err(failure)
        };
        let response = match timeout(self.times.answer, client.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return failed(failure::unanswered(&address, &error)),
            Err(_) => {
                let why = format!("{address} did not answer in time");
                return failed(Failure::new(What::Connection, why));
            }
        };
        let (head, body) = response.into_parts();
        if head.status == StatusCode::UNAUTHORIZED {
            self.forget();
        }
        // In seconds (RFC 9110, section 10.2.3). A date is not read: the usual pause does.
        let after = head.headers.get(header::RETRY_AFTER);
        let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
        let after = after.map(Duration::from_secs);
        Ok(Answer { address, status: head.status, after, body, left: MAX_RESPONSE })
    }

    /// What it is called in sentences.
    pub(super) fn address(&self) -> String {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().map_or_else(|| "the API server".to_owned(), |link| link.address.clone())
    }

    /// The next question is asked over a new connection, with the credentials as they are then.
    pub(super) fn forget(&self) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn link(&self) -> Result<Link, Failure> {
        if let Some(link) = &*self.link.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(link.clone());
        }
        let path = self.kubeconfig.clone();
        // It reads files, and runs the plug-in that a kubeconfig may name.
        let made = tokio::task::spawn_blocking(move || connect(path)).await;
        let made = made.unwrap_or_else(|_| Err("its credentials cannot be read".to_owned()));
        let link = made.map_err(|why| Failure::new(What::Connection, why))?;
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        Ok(link)
    }
}

impl Answer {
    /// What comes next of the body. None: its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => frame,
                Some(Err(_)) => {
                    let why = format!("{} broke off in the middle of its answer", self.address);
                    return Err(Failure::new(What::Connection, why));
                }
            };
            // A trailer is no data.
            let Ok(data) = frame.into_data() else { continue };
            let Some(left) = self.left.checked_sub(data.len()) else {
                let why = format!("{} sent more than {MAX_RESPONSE} bytes", self.address);
                return Err(Failure::new(What::Much, why));
            };
            self.left = left;
            return Ok(Some(data));
        }
    }

    /// All of the body, within this time.
    pub(super) async fn whole(mut self, within: Duration) -> Result<Vec<u8>, Failure> {
        let address = self.address.clone();
        let read = async {
            let mut whole = Vec::new();
            while let Some(bytes) = self.next().await? {
                whole.extend_from_slice(&bytes);
            }
            Ok(whole)
        };
        timeout(within, read).await.unwrap_or_else(|_| {
            let why = format!("{address} did not end its answer in time");
            Err(Failure::new(What::Connection, why))
        })
    }

    /// The body is of no interest. It is read, within bounds, so that the connection is kept.
    pub(super) async fn discard(mut self, within: Duration) {
        self.left = MAX_ERROR;
        let _ = self.whole(within).await;
    }
}

fn connect(path: Option<PathBuf>) -> Result<Link, String> {
    let (config, whose) = match path {
        Some(path) => (of_kubeconfig(&path)?, path.display().to_string()),
        None if std::env::var_os(IN_POD).is_some() => {
            let config = kube::Config::incluster().map_err(|error| {
                format!("the API server of this pod's cluster cannot be asked: {error}")
            })?;
            (config, "the pod's service account".to_owned())
        }
        None => (of_kubeconfig(Path::new(KUBELET))?, KUBELET.to_owned()),
    };
    let wrong = |why: &str| format!("{whose}: {why}");
    let address = address(&config.cluster_url).ok_or_else(|| {
        wrong("the server of its cluster is no address of https, or of http on this machine")
    })?;
    let address = format!("the API server {address}");
    if config.accept_invalid_certs {
        return Err(wrong(
            "insecure-skip-tls-verify is set, so that anybody on the way could change policies: \
             name the CA as certificate-authority",
        ));
    }
    // Not its error's text: that repeats what a plug-in printed, which may be a token.
    let unusable =
        |_| wrong("its credentials cannot be used: look at the files or the plug-in that it names");
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(2));
    let connector = config.rustls_https_connector_with_connector(connector).map_err(unusable)?;
    let client = Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let client = client.map_err(tower::BoxError::from);
    let client = ClientBuilder::new(client, config.default_namespace.clone())
        .with_layer(&config.base_uri_layer())
        .with_layer(&config.extra_headers_layer().map_err(unusable)?);
    let client = match config.auth_layer().map_err(unusable)? {
        Some(auth) => client.with_layer(&auth).build(),
        None => client.build(),
    };
    Ok(Link { client, address })
}

fn of_kubeconfig(path: &Path) -> Result<kube::Config, String> {
    let wrong = |why: String| format!("{}: {why}", path.display());
    let length = std::fs::metadata(path).map(|file| file.len()).map_err(|error| {
        wrong(format!(
            "cannot be read ({error}): name the kubeconfig of this node as kubernetes.kubeconfig"
        ))
    })?;
    if length > MAX_KUBECONFIG {
        return Err(wrong(format!("a kubeconfig has at most {MAX_KUBECONFIG} bytes")));
    }
    let unusable = |error: KubeconfigError| match error {
        // The text would quote the file, and with it a token.
        KubeconfigError::Parse(_) => wrong("is not the YAML of a kubeconfig".to_owned()),
        error => wrong(format!("is no kubeconfig that can be used: {error}")),
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
    let proxied = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    if proxied.into_iter().any(|cluster| cluster.proxy_url.is_some()) {
        return Err(wrong(
            "proxy-url is set, and proxies to the API server are not supported".into(),
        ));
    }
    // Reading it is no waiting: the function is async in name only.
    let options = KubeConfigOptions::default();
    futures_util::FutureExt::now_or_never(kube::Config::from_custom_kubeconfig(
        kubeconfig, &options,
    ))
    .ok_or_else(|| wrong("cannot be read at once".to_owned()))?
    .map_err(unusable)
}

/// Scheme, host and port, as people know them. None: nothing that could be trusted.
fn address(cluster: &Uri) -> Option<String> {
    let host = cluster.host()?;
    let port = cluster.port().map(|port| format!(":{port}")).unwrap_or_default();
    let is_here = ["127.0.0.1", "[::1]", "localhost"].contains(&host);
    match cluster.scheme_str()? {
        "https" => Some(format!("https://{host}{port}")),
        "http" if is_here => Some(format!("http://{host}{port}")),
        _ => None,
    }
}
