//! The node's own settings: `/etc/portcullis/config.toml`, strict and complete before any socket
//! is opened.
//!
//! Every key has a default, so an empty file is a configuration; a key that is unknown, or a value
//! that this version cannot honour, is an error that names file, line and column.

mod policy;
mod values;

use std::{
    fmt,
    marker::PhantomData,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::Spanned;

use crate::{
    image::ImageRef,
    problem::{Position, Problem, Problems, Report},
};

pub(crate) use policy::source as policy_source;
pub use policy::{Bundle, Kubernetes, Policy, PolicySource};

use policy::{WireKubernetes, WirePolicy};
use values::{image, method, metrics_address, path, path_list, socket_path};

/// Largest configuration, in bytes.
const MAX_CONFIG: usize = 64 * 1024;

/// The daemon's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[listen]`
    pub listen: Listen,
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[policy]`
    pub policy: Policy,
    /// `[state]`
    pub state: State,
    /// `[audit]`
    pub audit: Audit,
    /// `[kubernetes]`
    pub kubernetes: Kubernetes,
    /// `[metrics]`
    pub metrics: Metrics,
}

/// Where kubelet connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The unix socket; absolute.
    pub socket: PathBuf,
}

/// The container runtime behind Portcullis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// The runtime's unix socket; absolute, and not the one that Portcullis listens on.
    pub endpoint: PathBuf,
    /// Directories with a `hosts.toml` per registry, as the runtime has them; absolute. None:
    /// registries are asked under their own name.
    pub registry_config: Vec<PathBuf>,
    /// The sandbox (pause) image of the runtime's own configuration. None: the runtime is asked.
    pub sandbox_image: Option<ImageRef>,
    /// Methods of the two `runtime.v1` services that pass although this build does not know
    /// them, as in `/runtime.v1.RuntimeService/Foo`.
    pub forward_methods: Vec<String>,
}

/// What Portcullis keeps on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The directory; absolute.
    pub directory: PathBuf,
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The file; absolute.
    pub file: PathBuf,
}

/// Metrics for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Where they are served. None: nowhere.
    pub listen: Option<MetricsAddress>,
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// `127.0.0.1:9464`
    Tcp(SocketAddr),
    /// `unix:/path`; absolute.
    Unix(PathBuf),
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddress::Tcp(address) => address.fmt(f),
            MetricsAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Listen { socket: "/run/portcullis/portcullis.sock".into() },
            runtime: Runtime {
                endpoint: "/run/containerd/containerd.sock".into(),
                registry_config: vec!["/etc/containerd/certs.d".into()],
                sandbox_image: None,
                forward_methods: Vec::new(),
            },
            policy: Policy::default(),
            kubernetes: Kubernetes::default(),
            state: State { directory: "/var/lib/portcullis".into() },
            audit: Audit { file: "/var/log/portcullis/audit.jsonl".into() },
            metrics: Metrics::default(),
        }
    }
}

impl Config {
    /// Reads a file of at most 64 KiB. Everything that is wrong with its values is reported at
    /// once.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        Self::parse(&crate::policy::source::shown(path), &Self::text(path)?)
    }

    /// The text of a file of at most 64 KiB.
    pub(crate) fn text(path: &Path) -> Result<String, Problems> {
        crate::policy::source::read_text(path, MAX_CONFIG)
            .map_err(|why| Problem::of_file(crate::policy::source::shown(path), why).into())
    }

    /// Reads a text; `file` is its name in messages.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        let wire: Wire = toml::from_str(text).map_err(|error| {
            let at = Position::of_offset(text, error.span().map_or(0, |span| span.start));
            Problem::at(file, text, at, None, error.message())
        })?;
        let mut reader = Reader { file, text, report: Report::default() };
        let config = reader.config(wire);
        reader.report.finish(config)
    }
}

type Text = Option<Spanned<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(default, deserialize_with = "table")]
    listen: WireListen,
    #[serde(default, deserialize_with = "table")]
    runtime: WireRuntime,
    #[serde(default, deserialize_with = "table")]
    policy: WirePolicy,
    #[serde(default, deserialize_with = "table")]
    kubernetes: WireKubernetes,
    #[serde(default, deserialize_with = "table")]
    state: WireState,
    #[serde(default, deserialize_with = "table")]
    audit: WireAudit,
    #[serde(default, deserialize_with = "table")]
    metrics: WireMetrics,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireListen {
    socket: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRuntime {
    endpoint: Text,
    registry_config: Text,
    sandbox_image: Text,
    #[serde(default)]
    forward_methods: Vec<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireState {
    directory: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireAudit {
    file: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMetrics {
    listen: Text,
}

/// Reads a section, and does not take a list for one as derived code would.
fn table<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Table<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Table<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_map(Table(PhantomData))
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    report: Report,
}

impl Reader<'_> {
    /// Where a value is wrong, its default stands in; the report then refuses the whole.
    fn config(&mut self, wire: Wire) -> Config {
        let Config { listen, runtime, state, audit, metrics, .. } = Config::default();
        let socket = wire.listen.socket.as_ref();
        let endpoint = wire.runtime.endpoint.as_ref();
        let config = Config {
            listen: Listen {
                socket: self.value(socket, "listen.socket", socket_path, listen.socket),
            },
            runtime: Runtime {
                endpoint: self.value(endpoint, "runtime.endpoint", socket_path, runtime.endpoint),
                registry_config: self.value(
                    wire.runtime.registry_config.as_ref(),
                    "runtime.registry_config",
                    path_list,
                    runtime.registry_config,
                ),
                sandbox_image: self.value(
                    wire.runtime.sandbox_image.as_ref(),
                    "runtime.sandbox_image",
                    image,
                    None,
                ),
                forward_methods: self.methods(&wire.runtime.forward_methods),
            },
            policy: policy::policy(self, &wire.policy),
            kubernetes: policy::kubernetes(self, &wire.kubernetes),
            state: State {
                directory: self.value(
                    wire.state.directory.as_ref(),
                    "state.directory",
                    path,
                    state.directory,
                ),
            },
            audit: Audit {
                file: self.value(wire.audit.file.as_ref(), "audit.file", path, audit.file),
            },
            metrics: Metrics {
                listen: self.value(
                    wire.metrics.listen.as_ref(),
                    "metrics.listen",
                    metrics_address,
                    metrics.listen,
                ),
            },
        };
        if config.listen.socket == config.runtime.endpoint
            && let Some(value) = socket.or(endpoint)
        {
            let why = "listen.socket and runtime.endpoint are the same; Portcullis stands between \
                       the two";
            self.wrong(value, "listen.socket", why.into());
        }
        config
    }

    fn value<T>(
        &mut self,
        value: Option<&Spanned<String>>,
        field: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
        default: T,
    ) -> T {
        let Some(value) = value else { return default };
        match read(value.get_ref()) {
            Ok(read) => read,
            Err(why) => {
                self.wrong(value, field, why);
                default
            }
        }
    }

    fn methods(&mut self, methods: &[Spanned<String>]) -> Vec<String> {
        for (index, value) in methods.iter().enumerate() {
            if let Err(why) = method(value.get_ref()) {
                self.wrong(value, &format!("runtime.forward_methods[{index}]"), why);
            }
        }
        methods.iter().map(|value| value.get_ref().clone()).collect()
    }

    fn wrong(&mut self, value: &Spanned<String>, field: &str, why: String) {
        let at = Position::of_offset(self.text, value.span().start);
        self.report.add(Problem::at(self.file, self.text, at, Some(field.into()), why));
    }
}

#[cfg(test)]
mod tests;
