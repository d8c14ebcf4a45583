//! What the tests share: one private containerd and the two kinds of registries.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use crate::{
    image::Made,
    scene,
    support::{
        cri::{VERSION, VersionRequest},
        docker_registry::{DockerRegistry, program},
        fixtures::Fixtures,
        gate::Setup,
        grpc::Client,
        leash,
        registry::TestRegistry,
        remote::Remote,
    },
};

/// The registry without a referrers API: Debian's docker-registry.
pub(crate) const FALLBACK: &str = "fallback.example.com";
/// The registry with one: that of the tests.
pub(crate) const REFERRERS: &str = "referrers.example.com";

/// How long containerd may take to answer.
const STARTED_WITHIN: Duration = Duration::from_secs(60);

/// A private containerd, as `tests/lab/node` starts it; gone with its pods when dropped.
pub(crate) struct Node {
    child: Mutex<Child>,
    pause: Mutex<String>,
    root: tempfile::TempDir,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::with_pause(&format!("{FALLBACK}/pause:v1"))
    }

    /// With this sandbox image.
    pub(crate) fn with_pause(pause: &str) -> Self {
        let root = tempfile::Builder::new().prefix("node").tempdir_in("/tmp").unwrap();
        let child = Mutex::new(spawn(root.path(), pause));
        let node = Self { child, pause: Mutex::new(pause.to_owned()), root };
        node.wait();
        node
    }

    /// Kills containerd and starts it again on the same files.
    pub(crate) fn restart(&self) {
        self.stop();
        *self.child.lock().unwrap() = spawn(self.root.path(), &self.pause());
        self.wait();
    }

    pub(crate) fn stop(&self) {
        let mut child = self.child.lock().unwrap();
        // `node` ends containerd and all it started when its own end is asked for.
        if child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = child.wait();
        // The kernel ends containerd a moment after those who hold its namespaces.
        while std::os::unix::net::UnixStream::connect(self.socket()).is_ok() {
            thread::sleep(Duration::from_millis(5)); // there is nothing to be woken by
        }
    }

    fn wait(&self) {
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
            let gone = self.child.lock().unwrap().try_wait().unwrap();
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

    /// Leads no name to a registry any more, and every name nowhere.
    pub(crate) fn close_registries(&self) {
        for known in fs::read_dir(self.hosts()).unwrap() {
            fs::remove_dir_all(known.unwrap().path()).unwrap();
        }
        let closed = TestRegistry::start().url().to_owned();
        self.host("_default", &closed);
    }

    /// The sandbox image.
    pub(crate) fn pause(&self) -> String {
        self.pause.lock().unwrap().clone()
    }

    /// Another sandbox image, from the next start on.
    pub(crate) fn set_pause(&self, pause: &str) {
        *self.pause.lock().unwrap() = pause.to_owned();
    }

    /// containerd's own command-line tool, past Portcullis and past CRI; what it says.
    #[track_caller]
    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        let output = Command::new(program(&format!("containerd-{}", version()), "usr/bin/ctr"))
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io"])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Brings an image by `ctr images import`, under this name.
    #[track_caller]
    pub(crate) fn import(&self, image: &Made, name: &str) {
        let archive = image.archive(name);
        self.ctr(&["images", "import", archive.path().to_str().unwrap()]);
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

fn spawn(root: &Path, pause: &str) -> Child {
    let version = version();
    let node = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/node");
    let mut command = leash::command("TERM", node); // ends what it started
    command.args(["--pause", pause, &version]).arg(root);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    leash::spawn(command)
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Everything that the tests share.
pub(crate) struct Lab {
    pub(crate) node: Node,
    docker: DockerRegistry,
    pub(crate) registry: TestRegistry,
    pub(crate) fixtures: Fixtures,
}

impl Lab {
    /// Starts everything and loads the fixtures into both registries.
    pub(crate) fn start() -> Self {
        let (docker, registry) = (DockerRegistry::builder().start(), TestRegistry::start());
        let node = Node::start();
        let fixtures = Fixtures::load();
        let remote = Remote::new(docker.url(), None);
        let loading = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        loading.block_on(async {
            for name in fixtures.repositories.keys() {
                fixtures.push_http(name, &remote).await;
                fixtures.push(name, &registry);
            }
        });
        let lab = Self { node, docker, registry, fixtures };
        lab.furnish(&lab.node);
        lab
    }

    /// Shows a node the registries.
    fn furnish(&self, node: &Node) {
        node.host(FALLBACK, self.docker.url());
        node.host(REFERRERS, self.registry.url());
    }

    /// A node of one's own, with this sandbox image.
    pub(crate) async fn another(&self, pause: &str) -> Node {
        let pause = pause.to_owned();
        let node = blocking(move || Node::with_pause(&pause)).await;
        self.furnish(&node);
        node
    }

    /// A policy that trusts the key of most fixtures for these images.
    pub(crate) fn policy(&self, name: &str, images: &str) -> String {
        let key = self.fixtures.file("keys/ecdsa-p256.pub");
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: {name}}}\nspec:\n  \
             match: {{images: [{images:?}]}}\n  authorities:\n    - name: {name}\n      publicKey:\n        \
             pem: |\n          {}\n",
            key.trim_end().replace('\n', "\n          ")
        )
    }

    /// A gate before the shared containerd, with containerd's own hosts.
    pub(crate) fn gate(&self) -> Setup {
        scene::setup(self, &self.node)
    }

    /// A connection to containerd itself.
    pub(crate) async fn direct(&self) -> Client {
        Client::connect(&self.node.socket()).await
    }
}

/// Does what takes its time while this thread goes on: a gate's clients need it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
