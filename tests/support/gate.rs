//! The real daemon, as a child process with everything in a scratch directory.

use std::{
    fs::{self, File},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    grpc::{Client, PATIENCE},
    runtime::SANDBOX_IMAGE,
};

/// A running gate; killed when dropped.
pub(crate) struct Gate {
    child: Child,
    directory: tempfile::TempDir,
    notified: UnixDatagram,
    socket: PathBuf,
    audit_file: PathBuf,
}

/// What a gate is started with.
pub(crate) struct Setup {
    runtime: PathBuf,
    registry_config: Option<PathBuf>,
    socket: Option<PathBuf>,
    audit_file: Option<PathBuf>,
    sandbox_image: Option<String>,
    metrics: Option<String>,
    source: Option<String>,
    directory: tempfile::TempDir,
}

impl Setup {
    /// In front of this runtime; without policies and hosts yet.
    pub(crate) fn before(runtime: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("gate").tempdir().unwrap();
        fs::create_dir(directory.path().join("policies")).unwrap();
        fs::create_dir(directory.path().join("certs.d")).unwrap();
        Self {
            runtime: runtime.to_owned(),
            registry_config: None,
            socket: None,
            audit_file: None,
            sandbox_image: Some(SANDBOX_IMAGE.to_owned()),
            metrics: None,
            source: None,
            directory,
        }
    }

    /// With another sandbox image than the one that nobody looks for; None: the runtime is asked.
    pub(crate) fn sandbox_image(mut self, name: Option<&str>) -> Self {
        self.sandbox_image = name.map(str::to_owned);
        self
    }

    /// With metrics served there.
    pub(crate) fn metrics(mut self, listen: &str) -> Self {
        self.metrics = Some(listen.to_owned());
        self
    }

    /// With this in `[policy]`, in place of a directory as the source.
    pub(crate) fn source(mut self, lines: &str) -> Self {
        self.source = Some(lines.to_owned());
        self
    }

    /// With a policy file.
    pub(crate) fn policy(self, name: &str, text: &str) -> Self {
        fs::write(self.directory.path().join("policies").join(name), text).unwrap();
        self
    }

    /// With a `hosts.toml` for a registry.
    pub(crate) fn hosts(self, registry: &str, text: &str) -> Self {
        let directory = self.directory.path().join("certs.d").join(registry);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("hosts.toml"), text).unwrap();
        self
    }

    /// With the hosts of somebody else's directory.
    pub(crate) fn registry_config(mut self, directory: &Path) -> Self {
        self.registry_config = Some(directory.to_owned());
        self
    }

    /// With a socket elsewhere than in the scratch directory.
    pub(crate) fn socket(mut self, path: &Path) -> Self {
        self.socket = Some(path.to_owned());
        self
    }

    /// With an audit log elsewhere than in the scratch directory.
    pub(crate) fn audit_file(mut self, path: &Path) -> Self {
        self.audit_file = Some(path.to_owned());
        self
    }

    fn configure(&self) {
        fs::write(self.path().join("config.toml"), self.config()).unwrap();
    }

    /// The daemon's configuration.
    pub(crate) fn config(&self) -> String {
        let path = |name: &str| self.path().join(name).display().to_string();
        let or = |chosen: &Option<PathBuf>, name: &str| {
            chosen.as_ref().map_or(path(name), |chosen| chosen.display().to_string())
        };
        let registry_config = or(&self.registry_config, "certs.d");
        let sandbox_image = self.sandbox_image.as_ref();
        let sandbox_image =
            sandbox_image.map(|name| format!("sandbox_image = {name:?}\n")).unwrap_or_default();
        let metrics = self.metrics.as_ref();
        let metrics =
            metrics.map(|listen| format!("[metrics]\nlisten = {listen:?}\n")).unwrap_or_default();
        let directory = format!("source = {:?}", format!("file://{}", path("policies")));
        let source = self.source.as_ref().unwrap_or(&directory);
        format!(
            "[listen]\nsocket = {:?}\n[runtime]\nendpoint = {:?}\nregistry_config = {:?}\n{sandbox_image}[policy]\n{source}\n\
             [state]\ndirectory = {:?}\n[audit]\nfile = {:?}\n{metrics}",
            or(&self.socket, "p.sock"),
            self.runtime.display().to_string(),
            registry_config,
            path("state"),
            or(&self.audit_file, "audit.jsonl"),
        )
    }

    /// Where the scratch files are.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(self) -> Gate {
        self.configure();
        let command = command(self.path());
        self.ready(command)
    }

    /// Starts the daemon by `exec "$0" "$@"` at the end of a shell script.
    pub(crate) fn start_by(self, script: &str, stdin: impl Into<Stdio>) -> Gate {
        self.configure();
        let command = by(self.path(), script, stdin);
        self.ready(command)
    }

    fn ready(self, command: Command) -> Gate {
        let (child, notified) = spawn(self.path(), command);
        let Self { socket, audit_file, directory, .. } = self;
        let socket = socket.unwrap_or_else(|| directory.path().join("p.sock"));
        let audit_file = audit_file.unwrap_or_else(|| directory.path().join("audit.jsonl"));
        let gate = Gate { child, directory, notified, socket, audit_file };
        gate.await_ready();
        gate
    }

    /// Starts a daemon that must not become ready, and returns how it ended.
    pub(crate) fn start_in_vain(&self) -> (ExitStatus, String) {
        self.configure();
        self.run_in_vain()
    }

    /// The same with this configuration.
    pub(crate) fn start_in_vain_with(&self, config: &str) -> (ExitStatus, String) {
        fs::write(self.path().join("config.toml"), config).unwrap();
        self.run_in_vain()
    }

    fn run_in_vain(&self) -> (ExitStatus, String) {
        let (mut child, notified) = spawn(self.path(), command(self.path()));
        notified.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if notified.recv(&mut [0; 256]).is_ok() {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("a daemon that must not start was ready");
            }
        };
        (status, log_of(self.path()))
    }
}

/// The daemon with the configuration in this directory.
fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["run", "--config"]).arg(directory.join("config.toml")).stdin(Stdio::null());
    command
}

/// The same by `exec "$0" "$@"` at the end of a shell script.
fn by(directory: &Path, script: &str, stdin: impl Into<Stdio>) -> Command {
    let daemon = command(directory);
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(daemon.get_program()).args(daemon.get_args()).stdin(stdin);
    command
}

fn spawn(directory: &Path, mut command: Command) -> (Child, UnixDatagram) {
    let notify = directory.join("notify");
    let _ = fs::remove_file(&notify);
    let notified = UnixDatagram::bind(&notify).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    // A file, since a pipe that nobody reads would hold the daemon up.
    let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
    let child = command
        .env("NOTIFY_SOCKET", &notify)
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .stderr(log)
        .spawn()
        .unwrap();
    (child, notified)
}

fn log_of(directory: &Path) -> String {
    String::from_utf8_lossy(&fs::read(directory.join("log")).unwrap_or_default()).into_owned()
}

/// The records of one kind of event in an audit log.
pub(crate) fn records(audit_file: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(audit_file).unwrap_or_default();
    // A line that is still being written is none yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let records = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["event"] == event).collect()
}

impl Gate {
    fn await_ready(&self) {
        let mut message = [0; 256];
        let length = self
            .notified
            .recv(&mut message)
            .unwrap_or_else(|error| panic!("the gate is not ready: {error}"));
        assert!(
            message[..length].starts_with(b"READY=1"),
            "{:?}",
            String::from_utf8_lossy(&message[..length])
        );
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.socket()).await
    }

    pub(crate) fn audit_file(&self) -> PathBuf {
        self.audit_file.clone()
    }

    /// What the daemon logged so far.
    pub(crate) fn log(&self) -> String {
        log_of(self.path())
    }

    /// The audit records of one kind of event.
    pub(crate) fn records(&self, event: &str) -> Vec<Value> {
        records(&self.audit_file, event)
    }

    /// Nobody reads the daemon's own log any more, as when journald dies.
    pub(crate) fn close_log(&mut self) {
        drop(self.child.stderr.take());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn stop(mut self) -> (ExitStatus, tempfile::TempDir) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().unwrap();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        (status, directory)
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// SIGTERM, and a new daemon by a script on the same files. Returns when it is ready.
    pub(crate) fn restart_by(&mut self, script: &str, stdin: impl Into<Stdio>) {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
        (self.child, self.notified) = spawn(self.path(), by(self.path(), script, stdin));
        self.await_ready();
    }

    /// SIGKILL, and a new daemon on the same files.
    pub(crate) fn crash_and_restart(&mut self) {
        self.crash();
        self.start_again();
    }

    /// SIGKILL.
    pub(crate) fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A new daemon on the same files, until it is ready.
    pub(crate) fn start_again(&mut self) {
        (self.child, self.notified) = spawn(self.path(), command(self.path()));
        self.await_ready();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the gate's log\n{}---", self.log());
        }
    }
}

/// The audit log's chain is whole, and ends where the head says.
#[track_caller]
pub(crate) fn whole(audit_file: &Path, state: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["audit", "verify", "--state"])
        .args([state, audit_file])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
