//! A control plane of one's own: a real etcd and a real API server, on sockets and a port that
//! nobody else has, with all files in a scratch directory.

use std::{
    fs::{self, File},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::support::{
    ca::{Identity, LOOPBACK, TestCa},
    docker_registry::program,
    leash,
};

/// How long etcd and the API server may take to answer.
const STARTED_WITHIN: Duration = Duration::from_secs(120);
/// How long a question of kubectl's may take, as kubectl is told it.
const ANSWERED_WITHIN: &str = "--request-timeout=30s";

/// Where etcd is for its clients: a unix socket of this name in the scratch directory, which looks
/// like a host and a port to those who insist on both.
const ETCD: &str = "unix://etcd:1";
const ETCD_PEERS: &str = "unix://peers:1";

/// Which API server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Server {
    /// kube-apiserver 1.20: nodes, pods, Events and RBAC as well, but a CRD's CEL rules are dropped
    /// and unknown fields pruned in silence.
    Whole,
    /// apiextensions-apiserver of Debian sid's Kubernetes: custom resources with all that a CRD can
    /// say, and nothing else. Whoever has a certificate may do everything.
    Definitions,
}

impl Server {
    fn program(self) -> PathBuf {
        let name = match self {
            Self::Whole => "kube-apiserver",
            Self::Definitions => "apiextensions-apiserver",
        };
        program(name, &format!("usr/bin/{name}"))
    }
}

/// A running control plane; gone when dropped.
pub(crate) struct Cluster {
    server: Server,
    ca: TestCa,
    /// Bound and never listened on, so that the API server has the same port after a restart.
    _port: TcpSocket,
    address: SocketAddr,
    etcd: Child,
    api_server: Option<Child>,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts both, and waits until the API server is ready.
    pub(crate) fn start(server: Server) -> Self {
        let directory = tempfile::Builder::new().prefix("cluster").tempdir().unwrap();
        let port = TcpSocket::new_v4().unwrap();
        port.set_reuseport(true).unwrap(); // and so does the API server
        port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = port.local_addr().unwrap();
        let etcd = start_etcd(directory.path());
        let ca = TestCa::new();
        let mut cluster =
            Self { server, ca, _port: port, address, etcd, api_server: None, directory };
        cluster.write("ca.pem", cluster.ca.pem());
        cluster.write_identity("server", &cluster.ca.server(LOOPBACK));
        cluster.kubeconfig_of("admin", "system:masters");
        cluster.start_api_server();
        cluster
    }

    /// Starts the API server on the data and the port that it had, and waits until it is ready.
    pub(crate) fn start_api_server(&mut self) {
        assert!(self.api_server.is_none(), "the API server runs already");
        let mut command = leash::command("KILL", self.server.program());
        command.args([
            &format!("--etcd-servers={ETCD}"),
            "--bind-address=127.0.0.1",
            &format!("--secure-port={}", self.address.port()),
            "--permit-port-sharing",
            "--client-ca-file=ca.pem",
            "--tls-cert-file=server.pem",
            "--tls-private-key-file=server.key",
        ]);
        if self.server == Server::Whole {
            command.args([
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                // It waits for accounts that a controller makes, and there is none.
                "--disable-admission-plugins=ServiceAccount",
                "--service-account-issuer=https://cluster.example.com",
                "--service-account-signing-key-file=server.key",
                "--service-account-key-file=server.pem",
            ]);
        }
        self.api_server = Some(spawn(command, self.path(), "api-server.log"));
        let begun = Instant::now();
        while !self.kubectl(&["get", "--raw", "/readyz"]).status.success() {
            let api_server = self.api_server.as_mut().expect("it was started above");
            let gone = api_server.try_wait().unwrap();
            assert!(
                gone.is_none() && begun.elapsed() < STARTED_WITHIN,
                "the API server is not ready: {}",
                log(self.path(), "api-server.log")
            );
            thread::sleep(Duration::from_millis(20)); // there is nothing to be woken by
        }
    }

    /// Kills the API server. Its data stay, and its port is refused meanwhile.
    pub(crate) fn stop_api_server(&mut self) {
        let mut api_server = self.api_server.take().expect("the API server runs");
        api_server.kill().unwrap();
        api_server.wait().unwrap();
    }

    /// Has etcd forget all that is past. An API server that starts after this answers whoever
    /// watches on from before with 410 Gone.
    pub(crate) fn compact(&self) {
        self.etcdctl(&["put", "of-a-test", "is past"]);
        let status = self.etcdctl(&["endpoint", "status", "--write-out=json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let revision = status[0]["Status"]["header"]["revision"].as_u64().unwrap();
        self.etcdctl(&["compaction", &revision.to_string()]);
    }

    fn etcdctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("etcd", "usr/bin/etcdctl"));
        command.env_clear().env("ETCDCTL_API", "3").args(["--endpoints", ETCD]).args(arguments);
        let output = command.current_dir(self.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    /// Which API server this is.
    pub(crate) fn server(&self) -> Server {
        self.server
    }

    /// `https://127.0.0.1:port`.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The kubeconfig of an administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path().join("admin.kubeconfig")
    }

    /// A kubeconfig with a client certificate of this user, who is in one group: a node is
    /// `system:node:NAME` in `system:nodes`.
    pub(crate) fn kubeconfig_of(&self, user: &str, group: &str) -> PathBuf {
        self.write_identity(user, &self.ca.user(user, group));
        let file = |end: &str| self.path().join(format!("{user}.{end}"));
        let credentials = json!({"client-certificate": file("pem"), "client-key": file("key")});
        self.write_kubeconfig(user, &credentials)
    }

    /// A kubeconfig with a token of this service account, which is made if it is not there. For
    /// [`Server::Whole`].
    pub(crate) fn kubeconfig_of_account(&self, namespace: &str, account: &str) -> PathBuf {
        self.kubectl(&["create", "namespace", namespace]);
        self.kubectl(&["create", "serviceaccount", "-n", namespace, account]);
        let token = self.ask(&["create", "token", "-n", namespace, account]);
        self.write_kubeconfig(&format!("{namespace}.{account}"), &json!({"token": token.trim()}))
    }

    fn write_kubeconfig(&self, user: &str, credentials: &Value) -> PathBuf {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url(), "certificate-authority": self.path().join("ca.pem"),
            }}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        });
        let name = format!("{user}.kubeconfig");
        self.write(&name, &config.to_string()); // JSON is YAML
        self.path().join(name)
    }

    /// A client of the administrator's, for what kubectl does not say as it is.
    pub(crate) async fn client(&self) -> kube::Client {
        let config = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }

    /// What kubectl answers the administrator.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_as(&self.kubeconfig(), arguments, "")
    }

    /// What kubectl answers one with this kubeconfig; with this on its standard input.
    pub(crate) fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(program("kubectl", "usr/bin/kubectl"))
            .env_clear()
            .env("HOME", self.path()) // where it keeps what it discovered
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg(ANSWERED_WITHIN)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It ends at once where it was not understood.
        let _ = child.stdin.take().expect("it was piped").write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// What kubectl prints for the administrator; fails where kubectl does.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(output.status.success(), "kubectl {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `kubectl apply` of these objects as the administrator; fails where kubectl does.
    #[track_caller]
    pub(crate) fn apply(&self, objects: &str) {
        let arguments = ["apply", "--server-side", "--validate=strict", "-f", "-"];
        let output = self.kubectl_as(&self.kubeconfig(), &arguments, objects);
        assert!(output.status.success(), "{objects}\n{output:?}");
    }

    /// Where the scratch files are.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    fn write_identity(&self, name: &str, identity: &Identity) {
        self.write(&format!("{name}.pem"), &identity.cert_pem);
        self.write(&format!("{name}.key"), &identity.key_pem);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.api_server.iter_mut().chain([&mut self.etcd]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("--- the API server's log\n{}\n---", log(self.path(), "api-server.log"));
        }
    }
}

fn start_etcd(directory: &Path) -> Child {
    let mut command = leash::command("KILL", program("etcd", "usr/bin/etcd"));
    command.args([
        "--name=only",
        "--data-dir=etcd",
        &format!("--listen-client-urls={ETCD}"),
        &format!("--advertise-client-urls={ETCD}"),
        &format!("--listen-peer-urls={ETCD_PEERS}"),
        &format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
        &format!("--initial-cluster=only={ETCD_PEERS}"),
    ]);
    spawn(command, directory, "etcd.log")
}

/// Starts a server that writes its log, and whatever else, into the scratch directory.
fn spawn(mut command: Command, directory: &Path, log: &str) -> Child {
    let log = File::options().create(true).append(true).open(directory.join(log)).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).current_dir(directory).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    leash::spawn(command)
}

/// The end of a log.
fn log(directory: &Path, name: &str) -> String {
    let log = fs::read(directory.join(name)).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
