//! Credentials of the caller.

use std::fmt;

use super::hosts_text::is_docker_hub;

/// The caller's credentials for one registry, from CRI's `AuthConfig`. Never printed.
///
/// They are sent to a host only after that host itself asked for credentials, to the token
/// service that it names, and never on to where a redirect leads. A mirror of `hosts.toml` gets
/// them as containerd gives it them, unless `AuthConfig.server_address` names another host: see
/// [`Credentials::only_for`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// None were given.
    Anonymous,
    /// User name and password (also from the base64 field `auth`).
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken(String),
    /// A bearer token for the registry itself.
    RegistryToken(String),
    /// Credentials for one host only. Made by [`Credentials::only_for`].
    OnlyFor {
        /// Host and, where one is named, port. Empty: for no host at all.
        host: String,
        /// What that host may get.
        credentials: Box<Credentials>,
    },
}

impl Credentials {
    /// The same credentials, kept from every host but that of `AuthConfig.server_address`, as
    /// containerd does. The address is a URL or a bare host; an empty one binds to nothing, one
    /// that cannot be read keeps the credentials from every host.
    pub fn only_for(self, server_address: &str) -> Self {
        if server_address.is_empty() {
            return self;
        }
        let rest = server_address.split_once("://").map_or(server_address, |(_, rest)| rest);
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = if host.contains('@') { "" } else { host };
        Credentials::OnlyFor { host: host.to_ascii_lowercase(), credentials: Box::new(self) }
    }

    /// What a host, with its port where one is configured, may get.
    pub(super) fn for_host(&self, asked: &str) -> &Credentials {
        match self {
            Credentials::OnlyFor { host, credentials } => {
                let same = *host == asked.to_ascii_lowercase()
                    || is_docker_hub(host) && is_docker_hub(asked);
                if same { credentials.for_host(asked) } else { &Credentials::Anonymous }
            }
            other => other,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic(redacted)",
            Credentials::IdentityToken(_) => "IdentityToken(redacted)",
            Credentials::RegistryToken(_) => "RegistryToken(redacted)",
            Credentials::OnlyFor { host, credentials } => {
                return write!(f, "OnlyFor({host:?}, {credentials:?})");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic() -> Credentials {
        Credentials::Basic { username: "user".into(), password: "secret".into() }
    }

    #[test]
    fn a_server_address_binds() {
        for (address, host) in [
            ("https://registry.example.com", "registry.example.com"),
            ("https://Registry.example.com:5000/v2/", "registry.example.com:5000"),
            ("registry.example.com:5000", "registry.example.com:5000"),
            ("https://index.docker.io/v1/", "registry-1.docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "registry-1.docker.io"),
        ] {
            assert_eq!(basic().only_for(address).for_host(host), &basic(), "{address} {host}");
        }
        for (address, host) in [
            ("https://registry.example.com", "mirror.example.com"),
            ("https://registry.example.com", "registry.example.com:5000"),
            ("https://registry.example.com@evil.example", "evil.example"),
            ("https://registry.example.com@evil.example", "registry.example.com"),
            ("https://", "registry.example.com"),
            ("docker.io", "docker.io.evil.example"),
        ] {
            let bound = basic().only_for(address);
            assert_eq!(bound.for_host(host), &Credentials::Anonymous, "{address} {host}");
        }
        assert_eq!(basic().only_for("").for_host("any.example"), &basic());
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", basic()), "Basic(redacted)");
        let shown = format!("{:?}", Credentials::IdentityToken("secret".into()).only_for("a.b"));
        assert_eq!(shown, r#"OnlyFor("a.b", IdentityToken(redacted))"#);
    }
}
