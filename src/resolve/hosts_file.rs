//! The text of `hosts.toml`, read as containerd reads it (`docs/hosts.md`; `parseHostsFile` in
//! `core/remotes/docker/config/hosts.go`, 2.1 to 2.3).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;

use crate::image::shorten;

use super::hosts_text::{is_localhost, parse_base, parse_duration, split_port};

/// Most hosts of one registry.
const MAX_HOSTS: usize = 32;
/// Most custom headers of one host.
const MAX_HEADERS: usize = 32;

/// One host that a registry's images may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// Scheme, host, port and the root of the API: `https://mirror.example.com:5000/v2`.
    pub(super) base: Url,
    /// Host and port as configured; what `?ns=` is decided by and messages name.
    pub(super) authority: String,
    pub(super) capabilities: Capabilities,
    pub(super) tls: TlsFiles,
    /// Sent with each request to this host, and to no other.
    pub(super) header: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
}

/// What a host may be asked for. To push is none of our business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) pull: bool,
    pub(super) resolve: bool,
    pub(super) referrers: bool,
}

impl Capabilities {
    pub(super) const ALL: Self = Self { pull: true, resolve: true, referrers: true };
}

/// The TLS settings of a host, as they are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    /// PEM files with certificates that are trusted beside those of the system.
    pub(super) ca: Vec<PathBuf>,
    /// PEM files with a client certificate, each with that of its key, if it is another one.
    pub(super) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(super) skip_verify: Option<bool>,
}

impl TlsFiles {
    fn are_any(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify.is_some()
    }
}

impl Host {
    /// The registry itself, with these TLS settings: what is asked where `hosts.toml` names no
    /// `server`.
    pub(super) fn registry_itself(registry: &str, tls: TlsFiles) -> Result<Self, String> {
        let (_, port) = split_port(registry);
        let mut host = Self {
            base: Url::parse("https://registry.invalid/v2").map_err(|e| e.to_string())?,
            authority: registry.to_owned(),
            capabilities: Capabilities::ALL,
            tls,
            header: HeaderMap::new(),
            dial_timeout: None,
        };
        let mut scheme = "https";
        if registry == "docker.io" {
            host.authority = "registry-1.docker.io".to_owned();
        } else if is_localhost(registry) {
            if !matches!(port, None | Some("443")) {
                scheme = "http";
            }
            if port != Some("80") {
                host.tls.skip_verify = Some(true);
            }
        }
        host.base = parse_base(&format!("{scheme}://{}", host.authority), false)?.0;
        Ok(host)
    }

    /// Whether plain HTTP is only the second choice: TLS settings say that there may be TLS, and
    /// the port does not say otherwise.
    pub(super) fn tries_tls_first(&self) -> bool {
        self.base.scheme() == "http"
            && self.tls.are_any()
            && split_port(&self.authority).1 != Some("80")
    }

    /// Whether a port is named, so that HTTP and HTTPS would share it.
    pub(super) fn names_port(&self) -> bool {
        split_port(&self.authority).1.is_some()
    }

    /// Whether this is the same place as another host, reached in the same way and with the same to
    /// show. A CA more or less decides whether there is an answer, and not which.
    pub(super) fn repeats(&self, other: &Host) -> bool {
        self.base == other.base
            && self.authority == other.authority
            && self.header == other.header
            && self.tls.client == other.tls.client
            && self.tls.skip_verify == other.tls.skip_verify
            && self.tries_tls_first() == other.tries_tls_first()
    }

    /// Whether the host has to be told whose images are asked for, by `?ns=`.
    pub(super) fn is_proxy_for(&self, registry: &str) -> bool {
        self.authority != registry
            && !(registry == "docker.io" && self.authority == "registry-1.docker.io")
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    server: String,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    root: HostTable,
}

#[derive(Deserialize)]
struct HostTable {
    #[serde(default)]
    capabilities: Vec<String>,
    ca: Option<OneOrMany>,
    client: Option<Clients>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    dial_timeout: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Many(Vec<Client>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    File(String),
    Pair([String; 2]),
}

/// Reads the text of a `hosts.toml` that lies in `directory`: the hosts to ask, in their order.
/// Unknown keys are passed over, as containerd does.
pub(super) fn parse(text: &str, directory: &Path, registry: &str) -> Result<Vec<Host>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    if file.host.len() >= MAX_HOSTS {
        return Err(format!("{} hosts, {MAX_HOSTS} are allowed", file.host.len() + 1));
    }
    let mut hosts = Vec::with_capacity(file.host.len() + 1);
    for (name, table) in file.host {
        let bad = |why: String| format!("host {}: {why}", shorten(&name));
        let table: HostTable = table.try_into().map_err(|e| bad(e.message().to_owned()))?;
        hosts.push(read_host(&name, table, directory).map_err(bad)?);
    }
    hosts.push(match file.server.as_str() {
        "" => {
            let given = read_host("https://registry.invalid", file.root, directory)?;
            // containerd gives the registry itself every capability, whatever the file says.
            let host = Host::registry_itself(registry, given.tls)?;
            Host { header: given.header, dial_timeout: given.dial_timeout, ..host }
        }
        server => {
            read_host(server, file.root, directory).map_err(|why| format!("server: {why}"))?
        }
    });
    Ok(hosts)
}

fn read_host(name: &str, table: HostTable, directory: &Path) -> Result<Host, String> {
    let (base, authority) = parse_base(name, table.override_path)?;
    let absolute = |path: String| directory.join(path);
    let client = match table.client {
        None => Vec::new(),
        Some(Clients::One(file)) => vec![(absolute(file), None)],
        Some(Clients::Many(many)) => many
            .into_iter()
            .map(|client| match client {
                Client::File(file) => (absolute(file), None),
                Client::Pair([file, key]) => {
                    (absolute(file), (!key.is_empty()).then(|| absolute(key)))
                }
            })
            .collect(),
    };
    Ok(Host {
        base,
        authority,
        capabilities: read_capabilities(&table.capabilities)?,
        tls: TlsFiles {
            ca: table
                .ca
                .map(OneOrMany::into_vec)
                .unwrap_or_default()
                .into_iter()
                .map(absolute)
                .collect(),
            client,
            skip_verify: table.skip_verify,
        },
        header: read_header(table.header)?,
        dial_timeout: match table.dial_timeout.as_str() {
            "" => None,
            text => parse_duration(text).ok_or_else(|| {
                format!("dial_timeout: {} is no duration such as \"500ms\"", shorten(text))
            })?,
        },
    })
}

/// `referrers` came with containerd 2.2 and makes older ones drop the whole file. So a host that
/// may turn names into digests, which takes more trust, may be asked for referrers as well.
fn read_capabilities(names: &[String]) -> Result<Capabilities, String> {
    if names.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut read = Capabilities { pull: false, resolve: false, referrers: false };
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "pull" => read.pull = true,
            "resolve" => read.resolve = true,
            "referrers" => read.referrers = true,
            "push" => {}
            _ => return Err(format!("unknown capability {}", shorten(name))),
        }
    }
    read.referrers |= read.pull && read.resolve;
    Ok(read)
}

fn read_header(given: BTreeMap<String, OneOrMany>) -> Result<HeaderMap, String> {
    let mut header = HeaderMap::new();
    for (name, values) in given {
        let bad = |_| format!("header {}: not a header", shorten(&name));
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(()))?;
        // The HTTP client makes these itself, as Go's does.
        if matches!(key.as_str(), "host" | "content-length" | "transfer-encoding" | "connection") {
            continue;
        }
        for value in values.into_vec() {
            let mut value = HeaderValue::from_str(&value).map_err(|_| bad(()))?;
            value.set_sensitive(true);
            header.append(key.clone(), value);
            if header.len() > MAX_HEADERS {
                return Err(format!("more than {MAX_HEADERS} headers"));
            }
        }
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = "/etc/containerd/certs.d/docker.io";

    #[track_caller]
    fn reads(text: &str, registry: &str) -> Vec<Host> {
        parse(text, Path::new(DIR), registry).unwrap()
    }

    #[track_caller]
    fn bases(text: &str, registry: &str) -> Vec<String> {
        reads(text, registry).iter().map(|host| host.base.to_string()).collect()
    }

    #[track_caller]
    fn refuses(text: &str, why: &str) {
        assert_eq!(parse(text, Path::new(DIR), "docker.io").unwrap_err(), why);
    }

    /// Whoever says that there is nothing says so of this place, reached like this.
    #[test]
    fn an_entry_is_repeated_only_by_one_that_asks_the_same() {
        let repeated = |server: &str, host: &str| {
            let text = |url, keys| format!("server = {url:?}\n{server}\n[host.{url:?}]\n{keys}");
            ["https://r.example", "http://r.example"].map(|url| {
                let hosts = reads(&text(url, host), "r.example");
                hosts[1].repeats(&hosts[0]) && hosts[0].repeats(&hosts[1])
            })
        };
        assert_eq!(repeated("", ""), [true, true]);
        assert_eq!(repeated("ca = \"a.pem\"", "ca = \"b.pem\""), [true, true]);
        // Beside plain HTTP, TLS settings mean another port.
        assert_eq!(repeated("", "ca = \"a.pem\""), [true, false]);
        let others = ["skip_verify = true", "client = \"c.pem\"", "[header]\nx-key = \"k\""];
        for other in others {
            assert_eq!(repeated(other, ""), [false, false], "{other}");
            let other = other.replace("[header]", "[host.\"https://r.example\".header]");
            assert!(!repeated("", &other)[0], "{other}");
        }
        let two =
            reads("server = \"https://a.example\"\n[host.\"https://b.example\"]", "r.example");
        assert!(!two[0].repeats(&two[1]));
    }

    #[test]
    fn hosts_come_in_file_order_and_the_server_last() {
        let text = r#"
            server = "https://registry.example.com"
            [host."https://z.example.com"]
            [host."http://a.example.com:5000"]
              skip_verify = true
              [host."http://a.example.com:5000".header]
                x-team = "one"
            [host."m.example.com"]
              capabilities = ["pull"]
        "#;
        assert_eq!(
            bases(text, "docker.io"),
            [
                "https://z.example.com/v2",
                "http://a.example.com:5000/v2",
                "https://m.example.com/v2",
                "https://registry.example.com/v2",
            ]
        );
        let hosts = reads(text, "docker.io");
        assert_eq!(hosts[1].tls.skip_verify, Some(true));
        assert_eq!(hosts[1].header.get("x-team").unwrap(), "one");
        assert!(hosts[1].tries_tls_first());
        assert_eq!(
            hosts[2].capabilities,
            Capabilities { pull: true, resolve: false, referrers: false }
        );
    }

    #[test]
    fn without_a_server_the_registry_is_asked() {
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("registry.example.com", "https://registry.example.com/v2"),
            ("registry.example.com:5000", "https://registry.example.com:5000/v2"),
            ("localhost", "https://localhost/v2"),
            ("localhost:443", "https://localhost/v2"),
            ("localhost:80", "http://localhost/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("127.8.8.8:5000", "http://127.8.8.8:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("[::1]", "https://[::1]/v2"),
        ] {
            assert_eq!(bases("", registry), [base], "{registry}");
        }
        let capable = reads("capabilities = [\"pull\"]\nca = \"/x.pem\"", "r.example.com");
        assert_eq!(capable[0].capabilities, Capabilities::ALL);
        assert_eq!(capable[0].tls.ca, [PathBuf::from("/x.pem")]);
    }

    #[test]
    fn only_loopback_is_spared_verification_and_port_80_is_plain() {
        let tls = |registry| {
            let host = &reads("", registry)[0];
            (host.tls.skip_verify, host.tries_tls_first())
        };
        assert_eq!(tls("localhost"), (Some(true), false));
        assert_eq!(tls("localhost:5000"), (Some(true), true));
        assert_eq!(tls("127.0.0.1:80"), (None, false));
        assert_eq!(tls("registry.example.com:5000"), (None, false));
        assert_eq!(tls("localhost.example.com:5000"), (None, false));
        assert_eq!(tls("[::1]"), (None, false));
        assert_eq!(tls("[::1]:5000"), (Some(true), true));
    }

    #[test]
    fn paths() {
        for (given, base) in [
            ("[host.\"https://a.example/\"]", "https://a.example/v2"),
            ("[host.\"https://a.example/v2\"]", "https://a.example/v2"),
            ("[host.\"https://a.example/v2/\"]", "https://a.example/v2"),
            ("[host.\"https://a.example/x//y/../z/\"]", "https://a.example/x/z/v2"),
            ("[host.\"https://a.example/v2/up\"]\noverride_path = true", "https://a.example/v2/up"),
            ("[host.\"https://a.example\"]\noverride_path = true", "https://a.example/"),
            ("[host.\"https://u:p@a.example/?q=1#f\"]", "https://a.example/v2"),
        ] {
            assert_eq!(bases(given, "docker.io")[0], base, "{given}");
        }
        assert_eq!(reads("server = \"u:p@a.example:1\"", "x")[0].authority, "a.example:1");
    }

    #[test]
    fn certificates_in_every_form() {
        let hosts = reads(
            r#"
            ca = ["a.pem", "/abs/b.pem"]
            client = [["c.cert", "c.key"], ["/abs/d.pem", ""]]
            [host."https://one.example"]
              ca = "one.pem"
              client = "one-client.pem"
            [host."https://two.example"]
              client = ["x.pem", "y.pem"]
            "#,
            "docker.io",
        );
        let path = |name: &str| Path::new(DIR).join(name);
        assert_eq!(hosts[0].tls.ca, [path("one.pem")]);
        assert_eq!(hosts[0].tls.client, [(path("one-client.pem"), None)]);
        assert_eq!(hosts[1].tls.client, [(path("x.pem"), None), (path("y.pem"), None)]);
        assert_eq!(hosts[2].tls.ca, [path("a.pem"), PathBuf::from("/abs/b.pem")]);
        assert_eq!(
            hosts[2].tls.client,
            [(path("c.cert"), Some(path("c.key"))), (PathBuf::from("/abs/d.pem"), None)]
        );
    }

    #[test]
    fn a_resolving_host_may_list_referrers() {
        let of = |list: &str| {
            let text = format!("server = \"a.example\"\ncapabilities = {list}");
            reads(&text, "docker.io")[0].capabilities
        };
        let capabilities = |pull, resolve, referrers| Capabilities { pull, resolve, referrers };
        assert_eq!(of(r#"["Pull", "RESOLVE"]"#), capabilities(true, true, true));
        assert_eq!(of(r#"["pull", "referrers"]"#), capabilities(true, false, true));
        assert_eq!(of(r#"["resolve", "push"]"#), capabilities(false, true, false));
        assert_eq!(of("[]"), Capabilities::ALL);
    }

    #[test]
    fn namespaces() {
        let proxy = |server: &str, registry| {
            reads(&format!("server = \"{server}\""), registry)[0].is_proxy_for(registry)
        };
        assert!(proxy("mirror.example.com", "docker.io"));
        assert!(!proxy("registry-1.docker.io", "docker.io"));
        assert!(proxy("docker.io", "registry-1.docker.io"));
        assert!(!proxy("r.example.com:443", "r.example.com:443"));
        assert!(proxy("r.example.com", "r.example.com:5000"));
    }

    #[test]
    fn refused_texts() {
        refuses("capabilities = [\"pul\"]", "unknown capability pul");
        refuses(
            "[host.\"https://a.example\"]\ncapabilities = [\"all\"]",
            "host https://a.example: unknown capability all",
        );
        refuses("dial_timeout = \"5\"", "dial_timeout: 5 is no duration such as \"500ms\"");
        refuses("[host.\"https://\"]", "host https://: https:// is no URL");
        refuses("server = \"https://a b\"", "server: https://a b is no URL");
        refuses("server = \"a\\tb.example\"", "server: a\\tb.example is no URL");
        refuses("server = \"a%2eexample\"", "server: a%2eexample is no URL");
        refuses("server = \"https:///a.example\"", "server: https:///a.example is no URL");
        refuses("[header]\n\"a b\" = \"x\"", "header a b: not a header");
        refuses("[header]\na = \"x\\ny\"", "header a: not a header");
        assert!(parse("ca = 1", Path::new(DIR), "docker.io").is_err());
        assert!(parse("client = [[\"a\"]]", Path::new(DIR), "docker.io").is_err());
        assert!(parse("skip_verify = \"yes\"", Path::new(DIR), "docker.io").is_err());
        assert!(parse("server =", Path::new(DIR), "docker.io").is_err());
        let many: String = (0..MAX_HOSTS).map(|n| format!("[host.\"h{n}.example\"]\n")).collect();
        refuses(&many, "33 hosts, 32 are allowed");
    }

    #[test]
    fn header_values_are_not_shown() {
        let hosts = reads("[header]\nauthorization = \"Bearer secret\"", "docker.io");
        assert!(!format!("{hosts:?}").contains("secret"));
    }
}
