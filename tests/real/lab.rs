//! What the tests share: one private containerd and the two kinds of registries.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    cri::{VERSION, VersionRequest},
    docker_registry::DockerRegistry,
    fixtures::Fixtures,
    gate::Setup,
    grpc::Client,
    registry::TestRegistry,
    remote::Remote,
};

/// The registry without a referrers API: Debian's docker-registry.
pub(crate) const FALLBACK: &str = "fallback.example.com";
/// The registry with one: that of the tests.
pub(crate) const REFERRERS: &str = "referrers.example.com";

/// How long containerd may take to answer.
const STARTED_WITHIN: Duration = Duration::from_secs(60);

/// A private containerd, as `tests/lab/node` starts it; gone with its pods when dropped.
pub(crate) struct Node {
    child: Child,
    root: tempfile::TempDir,
}

impl Node {
    pub(crate) fn start() -> Self {
        let root = tempfile::Builder::new().prefix("node").tempdir_in("/tmp").unwrap();
        let mut node = Self { child: spawn(root.path()), root };
        node.wait();
        node
    }

    /// Kills containerd and starts it again on the same files.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.root.path());
        self.wait();
    }

    pub(crate) fn stop(&mut self) {
        // `node` ends containerd and all it started when its own end is asked for.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
        // The kernel ends containerd a moment after those who hold its namespaces.
        while std::os::unix::net::UnixStream::connect(self.socket()).is_ok() {
            thread::sleep(Duration::from_millis(5)); // there is nothing to be woken by
        }
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        let ready = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        loop {
            let answers = ready.block_on(async {
                let stream = std::os::unix::net::UnixStream::connect(self.socket());
                stream.is_ok()
                    && Client::connect(&self.socket())
                        .await
                        .unary(VERSION, &VersionRequest::default())
                        .await
                        .status()
                        .0
                        == 0
            });
            if answers {
                return;
            }
            let gone = self.child.try_wait().unwrap();
            assert!(
                gone.is_none() && begun.elapsed() < STARTED_WITHIN,
                "containerd does not answer: {}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20)); // there is nothing to be woken by
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.path().join("containerd.sock")
    }

    /// Where hosts.toml files are.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.root.path().join("certs.d")
    }

    /// Leads the images of a registry name to a URL.
    pub(crate) fn host(&self, name: &str, url: &str) {
        let directory = self.hosts().join(name);
        fs::create_dir_all(&directory).unwrap();
        // containerd 1.6 passes over a file without a host table.
        let hosts =
            format!("server = {url:?}\n[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\"]\n");
        fs::write(directory.join("hosts.toml"), hosts).unwrap();
    }

    /// Where pods put their logs.
    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.root.path().join("containerd.log")).unwrap_or_default();
        log.lines()
            .rev()
            .take(20)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// The release of containerd that this run is about.
pub(crate) fn version() -> String {
    env::var("PORTCULLIS_CONTAINERD").unwrap_or_else(|_| "1.6".to_owned())
}

fn spawn(root: &Path) -> Child {
    let version = version();
    let node = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/node");
    let mut command = Command::new("setpriv");
    // Should the tests themselves be killed, so is their node.
    command
        .args(["--pdeathsig", "TERM"])
        .arg(node)
        .args(["--pause", &format!("{FALLBACK}/pause:v1")]);
    command.arg(version).arg(root).stdin(Stdio::null()).stdout(Stdio::null());
    // The kernel means the thread that was the parent, so that is one which stays.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(command.spawn());
        loop {
            thread::park();
        }
    });
    receiver.recv().expect("the thread answers").unwrap()
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Everything that the tests share.
pub(crate) struct Lab {
    pub(crate) node: Node,
    /// Alive as long as the lab.
    _docker: DockerRegistry,
    pub(crate) registry: TestRegistry,
    pub(crate) fixtures: Fixtures,
}

impl Lab {
    /// Starts everything and loads the fixtures into both registries.
    pub(crate) fn start() -> Self {
        let (docker, registry) = (DockerRegistry::builder().start(), TestRegistry::start());
        let node = Node::start();
        node.host(FALLBACK, docker.url());
        node.host(REFERRERS, registry.url());
        let fixtures = Fixtures::load();
        let remote = Remote::new(docker.url(), None);
        let loading = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        loading.block_on(async {
            for name in fixtures.repositories.keys() {
                fixtures.push_http(name, &remote).await;
                fixtures.push(name, &registry);
            }
        });
        Self { node, _docker: docker, registry, fixtures }
    }

    /// A gate before the shared containerd, with containerd's own hosts.
    pub(crate) fn gate(&self) -> Setup {
        Setup::before(&self.node.socket())
            .registry_config(&self.node.hosts())
            .sandbox_image(Some(&format!("{FALLBACK}/pause:v1")))
    }

    /// A connection to containerd itself.
    pub(crate) async fn direct(&self) -> Client {
        Client::connect(&self.node.socket()).await
    }
}
