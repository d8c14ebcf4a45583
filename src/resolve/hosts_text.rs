//! The words of `hosts.toml`: hosts, base URLs and durations as Go reads them.

use std::{
    net::IpAddr,
    path::{Component, Path},
    time::Duration,
};

use url::Url;

use crate::image::shorten;

/// Whether this is one of the names of Docker Hub.
pub(super) fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Whether this host is the machine itself, as far as its name says.
pub(super) fn is_localhost(authority: &str) -> bool {
    let (host, port) = split_port(authority);
    // Without a port containerd takes `[::1]` for a name like any other.
    let address = if port.is_some() { host.trim_matches(['[', ']']) } else { host };
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Host and, where one is named, port.
pub(super) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// The base URL of a host and its authority as written. `/v2` is appended unless it is there
/// already or the path is said to be all of it.
pub(super) fn parse_base(name: &str, override_path: bool) -> Result<(Url, String), String> {
    let named = match name.starts_with("http://") || name.starts_with("https://") {
        true => name.to_owned(),
        false => format!("https://{name}"),
    };
    let bad = |why| format!("{} {why}", shorten(name));
    let mut url = Url::parse(&named).map_err(|_| bad("is no URL"))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("names no host"));
    }
    let rest = named.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned();
    // A URL parser drops white space and decodes escapes: another host than the one that is named
    // would be asked. Go, and so containerd, refuses these.
    if authority.is_empty()
        || authority.contains(|c: char| c.is_whitespace() || c.is_control() || c == '%')
    {
        return Err(bad("is no URL"));
    }
    let path = match url.path() {
        "" | "/" if !rest.contains('/') => String::new(),
        path => clean(path),
    };
    let path = match override_path || path.ends_with("/v2") {
        true => path,
        false => format!("{}/v2", path.trim_end_matches('/')),
    };
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok((url, authority))
}

/// The path without empty, `.` and `..` segments and without a slash at its end.
fn clean(path: &str) -> String {
    let mut segments = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(segment) => segments.push(segment.to_string_lossy()),
            Component::ParentDir => drop(segments.pop()),
            _ => {}
        }
    }
    format!("/{}", segments.join("/"))
}

/// A duration as Go writes it: `1s`, `1m30s`, `1.5h`, `500ms`. Zero means "as usual".
pub(super) fn parse_duration(text: &str) -> Option<Option<Duration>> {
    if text == "0" {
        return Some(None);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = 0.0;
    while !rest.is_empty() {
        let number =
            rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let value: f64 = rest[..number].parse().ok()?;
        rest = &rest[number..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    let duration = Duration::try_from_secs_f64(total).ok()?;
    (!text.is_empty()).then(|| (!duration.is_zero()).then_some(duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = |text| parse_duration(text).map(|d| d.map(|d| d.as_millis()));
        assert_eq!(ms("500ms"), Some(Some(500)));
        assert_eq!(ms("1m30s"), Some(Some(90_000)));
        assert_eq!(ms("1.5s"), Some(Some(1500)));
        assert_eq!(ms("0"), Some(None));
        assert_eq!(ms("0s"), Some(None));
        for bad in ["", "5", "-1s", "s", "1x", "1 s", "1e9h", "99999999999999999999h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
