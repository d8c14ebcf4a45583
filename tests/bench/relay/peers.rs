//! nginx and haproxy, each as one process with one worker, before a socket.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::docker_registry::program;

/// How long a peer may take to listen.
const STARTED_WITHIN: Duration = Duration::from_secs(20);

const NGINX: &str = "daemon off; master_process off; worker_processes 1; pid @DIR@/nginx.pid;
error_log @DIR@/nginx.log error;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path @DIR@/body; proxy_temp_path @DIR@/proxy; fastcgi_temp_path @DIR@/fastcgi;
  uwsgi_temp_path @DIR@/uwsgi; scgi_temp_path @DIR@/scgi;
  upstream runtime { server unix:@RUNTIME@; keepalive 64; keepalive_requests 1000000000; keepalive_timeout 1d; }
  server {
    listen unix:@DIR@/s http2;
    keepalive_requests 1000000000; keepalive_timeout 1d; client_max_body_size 16m;
    http2_max_concurrent_streams 1024; grpc_buffer_size 64k; grpc_read_timeout 1d; grpc_send_timeout 1d;
    location / { grpc_pass grpc://runtime; }
  }
}
";

const HAPROXY: &str = "global
  nbthread 1
  maxconn 1000
  tune.h2.initial-window-size 16777216
defaults
  mode @MODE@
  timeout connect 5s
  timeout client 1d
  timeout server 1d
  http-reuse always
frontend f
  bind unix@@DIR@/s @PROTO@
  default_backend b
backend b
  server runtime unix@@RUNTIME@ @PROTO@
";

/// What stands between the load generator and the runtime for comparison.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// `grpc_pass`.
    Nginx,
    /// `mode http` with `proto h2` on both sides.
    HaproxyH2,
    /// `mode tcp`: a copy of bytes.
    HaproxyTcp,
}

/// A running peer; killed when dropped.
pub(crate) struct Peer {
    child: Child,
    directory: tempfile::TempDir,
}

impl Peer {
    pub(crate) fn start(kind: Kind, runtime: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("peer").tempdir_in("/tmp").unwrap();
        let (part, path, text) = match kind {
            Kind::Nginx => ("nginx", "usr/sbin/nginx", NGINX.to_owned()),
            Kind::HaproxyH2 => {
                let text = HAPROXY.replace("@MODE@", "http").replace("@PROTO@", "proto h2");
                ("haproxy", "usr/sbin/haproxy", text)
            }
            Kind::HaproxyTcp => {
                let text = HAPROXY.replace("@MODE@", "tcp").replace("@PROTO@", "");
                ("haproxy", "usr/sbin/haproxy", text.replace("  http-reuse always\n", ""))
            }
        };
        let text = text
            .replace("@RUNTIME@", &runtime.display().to_string())
            .replace("@DIR@", &directory.path().display().to_string());
        let config = directory.path().join("config");
        fs::write(&config, text).unwrap();
        let program = program(part, path);
        let libraries = program.ancestors().nth(2).unwrap().join("lib/x86_64-linux-gnu");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(&program)
            .env("LD_LIBRARY_PATH", libraries)
            .stdin(Stdio::null());
        match kind {
            Kind::Nginx => command.arg("-p").arg(directory.path()).arg("-c").arg(&config),
            Kind::HaproxyH2 | Kind::HaproxyTcp => command.args(["-db", "-f"]).arg(&config),
        };
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut peer = Self { child, directory };
        peer.wait();
        peer
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            let ended = self.child.try_wait().unwrap().is_some();
            if ended || begun.elapsed() > STARTED_WITHIN {
                let said = fs::read_to_string(self.directory.path().join("log"));
                panic!("it does not listen: {}", said.unwrap_or_default());
            }
            thread::sleep(Duration::from_millis(5)); // there is nothing to be woken by
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
