//! Who asks, and whom.

use super::*;
use crate::support::{
    api_server::{self, policy},
    ca::{Identity, TestCa},
};

/// A kubeconfig for a server with this CA, beside the file of the CA.
fn trusting(directory: &tempfile::TempDir, server: &ApiServer, ca: &TestCa, user: &str) {
    std::fs::write(directory.path().join("ca.pem"), ca.pem()).unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    server.kubeconfig(&kubeconfig, "certificate-authority: ca.pem", user);
}

/// As kubelet keeps it: certificate and key in one file.
fn write_identity(directory: &tempfile::TempDir, identity: &Identity) {
    let pem = format!("{}{}", identity.cert_pem, identity.key_pem);
    std::fs::write(directory.path().join("kubelet-client-current.pem"), pem).unwrap();
}

const KUBELET: &str =
    "client-certificate: kubelet-client-current.pem, client-key: kubelet-client-current.pem";
const UNKNOWN: &str = "does not know who asks (401 Unauthorized): the certificate or token of this \
                       node is expired or not of that cluster";

/// What becomes of a first look with this kubeconfig.
async fn look(kubeconfig: &std::path::Path) -> Result<Offer, String> {
    let config = Config { kubeconfig: Some(kubeconfig.to_owned()), times: times() };
    kubernetes::once(&Server::new(config)).await
}

#[tokio::test]
async fn a_renewed_client_certificate_is_taken_up() {
    let ca = TestCa::new();
    let (old, new) = (ca.client("system:node:a"), ca.client("system:node:a"));
    let server = ApiServer::builder().client_cert(&ca, &old).start();
    let directory = tempfile::tempdir().unwrap();
    write_identity(&directory, &old);
    trusting(&directory, &server, &ca, KUBELET);
    let mut node = Node::start(directory, times());
    node.offer().await;
    server.until_watched(2).await;
    // kubelet has it renewed, and some time later the old one is good no more.
    write_identity(&node.directory, &new);
    server.accept_certificate(&new);
    server.end_watches();
    server.until_watched(0).await;
    server.until_watched(2).await;
    server.apply(&policy("p", "registry.example/**"));
    assert_eq!(names(&node.offer().await), ["imagepolicies/p"]);
    node.silent();
}

#[tokio::test]
async fn without_the_certificate_that_is_wanted_nothing_is_told() {
    let ca = TestCa::new();
    let right = ca.client("system:node:a");
    let server = ApiServer::builder().client_cert(&ca, &right).start();
    let directory = tempfile::tempdir().unwrap();
    write_identity(&directory, &ca.client("system:node:a"));
    trusting(&directory, &server, &ca, KUBELET);
    let kubeconfig = directory.path().join("kubeconfig");
    let named = |why: &str| format!("the API server {} {why}", server.url());
    assert_eq!(look(&kubeconfig).await.unwrap_err(), named(UNKNOWN));
    let closed = "closed the connection without an answer";
    write_identity(&directory, &TestCa::new().client("system:node:a"));
    assert_eq!(look(&kubeconfig).await.unwrap_err(), named(closed));
    trusting(&directory, &server, &ca, "");
    assert_eq!(look(&kubeconfig).await.unwrap_err(), named(closed));
    trusting(&directory, &server, &ca, KUBELET);
    write_identity(&directory, &right);
    look(&kubeconfig).await.unwrap();
}

#[tokio::test]
async fn tokens_are_shown_and_renewed_ones_taken_up() {
    let ca = TestCa::new();
    let server = ApiServer::builder().tls(&ca).token("secret-1").start();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "secret-1").unwrap();
    trusting(&directory, &server, &ca, "tokenFile: token");
    let mut node = Node::start(directory, times());
    node.offer().await;
    server.until_watched(2).await;
    std::fs::write(node.directory.path().join("token"), "secret-2").unwrap();
    server.accept_token("secret-2");
    server.end_watches();
    server.until_watched(0).await;
    server.until_watched(2).await;
    node.silent();
    server.accept_token("secret-3");
    server.end_watches();
    let why = node.failed().await;
    assert_eq!(why, format!("the API server {} {UNKNOWN}", server.url()));
}

#[tokio::test]
async fn a_server_is_believed_for_its_certificate_alone() {
    let ca = TestCa::new();
    let server = ApiServer::builder().tls(&ca).start();
    let directory = tempfile::tempdir().unwrap();
    trusting(&directory, &server, &TestCa::new(), "");
    let kubeconfig = directory.path().join("kubeconfig");
    let untrusted = format!(
        "the API server {} has a certificate that is not trusted: name its CA as \
         certificate-authority in the kubeconfig",
        server.url()
    );
    assert_eq!(look(&kubeconfig).await.unwrap_err(), untrusted);
    server.kubeconfig(&kubeconfig, "", "");
    assert_eq!(look(&kubeconfig).await.unwrap_err(), untrusted);
    assert_eq!(server.count(), 0);
    trusting(&directory, &server, &ca, "");
    look(&kubeconfig).await.unwrap();
    // A name that the certificate has not.
    let cluster = "certificate-authority: ca.pem, tls-server-name: other.example";
    server.kubeconfig(&kubeconfig, cluster, "");
    let why = format!("the API server {} has a certificate for another name", server.url());
    assert_eq!(look(&kubeconfig).await.unwrap_err(), why);
}

#[tokio::test]
async fn what_weakens_the_connection_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let file = kubeconfig.display();
    let why = |url: &str, cluster: &str| {
        api_server::kubeconfig(&kubeconfig, url, cluster, "");
        let kubeconfig = kubeconfig.clone();
        async move { look(&kubeconfig).await.unwrap_err() }
    };
    let https = "https://api.invalid:6443";
    assert_eq!(
        why(https, "insecure-skip-tls-verify: true").await,
        format!(
            "{file}: insecure-skip-tls-verify is set, so that anybody on the way could change \
             policies: name the CA as certificate-authority"
        )
    );
    assert_eq!(
        why(https, "proxy-url: http://proxy.invalid").await,
        format!("{file}: proxy-url is set, and proxies to the API server are not supported")
    );
    for url in ["http://api.invalid", "http://10.0.0.1:8080", "ftp://api.invalid"] {
        assert_eq!(
            why(url, "").await,
            format!(
                "{file}: the server of its cluster is no address of https, or of http on this \
                 machine"
            )
        );
    }
}

#[tokio::test]
async fn a_kubeconfig_that_is_none_is_named_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let file = kubeconfig.display();
    assert_eq!(
        look(&kubeconfig).await.unwrap_err(),
        format!(
            "{file}: cannot be read (No such file or directory (os error 2)): name the kubeconfig \
             of this node as kubernetes.kubeconfig"
        )
    );
    std::fs::write(&kubeconfig, "users: [{name: node, user: {token: hush}}").unwrap();
    assert_eq!(
        look(&kubeconfig).await.unwrap_err(),
        format!("{file}: is not the YAML of a kubeconfig")
    );
    std::fs::write(&kubeconfig, "{}").unwrap();
    assert_eq!(
        look(&kubeconfig).await.unwrap_err(),
        format!("{file}: is no kubeconfig that can be used: failed to determine current context")
    );
    std::fs::File::create(&kubeconfig).unwrap().set_len(1024 * 1024 + 1).unwrap();
    assert_eq!(
        look(&kubeconfig).await.unwrap_err(),
        format!("{file}: a kubeconfig has at most 1048576 bytes")
    );
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_not_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let file = kubeconfig.display();
    let why = format!(
        "{file}: its credentials cannot be used: look at the files or the plug-in that it names"
    );
    let plug_in = "exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, \
                   args: ['-c', 'echo hush; exit 1'], interactiveMode: Never}";
    for user in ["client-certificate: gone.pem, client-key: gone.pem", plug_in] {
        api_server::kubeconfig(&kubeconfig, "https://api.invalid", "", user);
        assert_eq!(look(&kubeconfig).await.unwrap_err(), why, "{user}");
    }
    let server = Server::new(Config { kubeconfig: Some(kubeconfig.clone()), times: times() });
    assert!(!format!("{server:?}").contains("hush"));
}
