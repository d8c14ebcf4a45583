//! The real registry of the Distribution project, as a child process.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::ca::{LOOPBACK, TestCa};

/// The one user of a registry with authentication.
pub(crate) const USER: &str = "tester";
/// The password of [`USER`].
pub(crate) const PASSWORD: &str = "secret";
/// Both as a line of htpasswd: bcrypt, the only hash that docker-registry takes.
const HTPASSWD: &str = "tester:$2b$04$portcullisPortcullis1ujW1jmJ6u5tocoqFOSQT6736r1Bap96O\n";

/// How long the process may take to listen.
const STARTED_WITHIN: Duration = Duration::from_secs(30);

/// A running docker-registry with storage of its own; killed and reaped when dropped.
pub(crate) struct DockerRegistry {
    url: String,
    child: Child,
    log: Option<thread::JoinHandle<()>>,
    _scratch: TempDir,
}

/// What a registry is to be like.
#[derive(Default)]
pub(crate) struct Builder<'a> {
    tls: Option<&'a TestCa>,
    client_certs: bool,
    htpasswd: bool,
}

/// The directory that `tests/lab/parts` fills.
pub(crate) fn parts() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/parts");
    env::var_os("PORTCULLIS_PARTS").map_or_else(default, PathBuf::from)
}

/// A program of one of the parts; panics with the remedy where it is missing.
pub(crate) fn program(part: &str, path: &str) -> PathBuf {
    let program = parts().join(part).join(path);
    assert!(program.is_file(), "{} is missing: run `tests/lab/parts {part}`", program.display());
    program
}

impl<'a> Builder<'a> {
    /// HTTPS with a certificate of this CA for [`LOOPBACK`].
    pub(crate) fn tls(mut self, ca: &'a TestCa) -> Self {
        self.tls = Some(ca);
        self
    }

    /// After [`Self::tls`]: lets in only those with a client certificate of the same CA.
    pub(crate) fn require_client_cert(mut self) -> Self {
        self.client_certs = true;
        self
    }

    /// Everything needs [`USER`] and [`PASSWORD`].
    pub(crate) fn htpasswd(mut self) -> Self {
        self.htpasswd = true;
        self
    }

    pub(crate) fn start(self) -> DockerRegistry {
        let scratch = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = scratch.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": true}},
            "storage": {
                "filesystem": {"rootdirectory": scratch.path().join("storage")},
                "delete": {"enabled": true},
            },
            "http": {"addr": "127.0.0.1:0", "secret": "of a test"},
        });
        if let Some(ca) = self.tls {
            let server = ca.server(LOOPBACK);
            config["http"]["tls"] = json!({
                "certificate": write("server.pem", &server.cert_pem),
                "key": write("server.key", &server.key_pem),
            });
            if self.client_certs {
                config["http"]["tls"]["clientcas"] = json!([write("ca.pem", ca.pem())]);
            }
        }
        if self.htpasswd {
            let path = write("htpasswd", HTPASSWD);
            config["auth"] = json!({"htpasswd": {"realm": "registry", "path": path}});
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        DockerRegistry::spawn(scheme, &config, scratch)
    }
}

impl DockerRegistry {
    pub(crate) fn builder<'a>() -> Builder<'a> {
        Builder::default()
    }

    /// HTTP without authentication.
    pub(crate) fn start() -> Self {
        Self::builder().start()
    }

    fn spawn(scheme: &str, config: &Value, scratch: TempDir) -> Self {
        let path = scratch.path().join("config.yml");
        fs::write(&path, config.to_string()).unwrap(); // JSON is YAML
        let mut child = Command::new(program("docker-registry", "usr/bin/docker-registry"))
            .arg("serve")
            .arg(path)
            .env_clear() // REGISTRY_* would change the configuration
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, seen) = mpsc::channel();
        // Reads on after the start, so that the pipe never fills.
        let log = thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
        });
        let mut registry = Self { url: String::new(), child, log: Some(log), _scratch: scratch };
        // The port is the kernel's choice. Once it is in the log, connections are accepted.
        let mut output = String::new();
        while registry.url.is_empty() {
            let Ok(line) = seen.recv_timeout(STARTED_WITHIN) else {
                panic!("docker-registry did not start:\n{output}");
            };
            output = output + &line + "\n";
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address = rest.split(['"', ',']).next().unwrap();
                registry.url = format!("{scheme}://{address}");
            }
        }
        registry
    }

    /// `http://127.0.0.1:port`, or `https:`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// `127.0.0.1:port`, as it stands in image names.
    pub(crate) fn host(&self) -> &str {
        self.url.split_once("//").unwrap().1
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}
