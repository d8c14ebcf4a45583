//! Reads single values; each error is a sentence.

use std::path::PathBuf;

use crate::image::{ImageRef, ReferenceError, shorten};

use super::MetricsAddress;

/// Longest path of a unix socket, in bytes (`sun_path` in unix(7), without the final NUL).
const MAX_SOCKET_PATH: usize = 107;
/// Longest other path, in bytes (`PATH_MAX` in limits.h, without the final NUL).
const MAX_PATH: usize = 4095;
/// Longest method name, in bytes, service included.
const MAX_METHOD: usize = 128;

/// The services whose methods can be forwarded.
const SERVICES: [&str; 2] = ["/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/"];
/// Methods that start, fetch or show an image: to forward them unjudged would open the gate.
pub(super) const JUDGED: [&str; 5] = [
    "/runtime.v1.ImageService/PullImage",
    "/runtime.v1.ImageService/ImageStatus",
    "/runtime.v1.RuntimeService/RunPodSandbox",
    "/runtime.v1.RuntimeService/CreateContainer",
    "/runtime.v1.RuntimeService/RestorePod",
];

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    let shown = shorten(text);
    if text.contains("://") {
        return Err(format!("{shown:?} must be a plain path; write what follows the \"://\""));
    }
    if !text.starts_with('/') {
        return Err(format!("{shown:?} must be an absolute path"));
    }
    if text.len() > MAX_PATH || text.chars().any(char::is_control) {
        return Err(format!(
            "{shown:?} must be a path of at most {MAX_PATH} bytes without control characters"
        ));
    }
    Ok(text.into())
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = path(text)?;
    if text.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "has {} bytes, and the path of a socket can have {MAX_SOCKET_PATH}",
            text.len()
        ));
    }
    Ok(path)
}

pub(super) fn metrics_address(text: &str) -> Result<Option<MetricsAddress>, String> {
    if let Some(rest) = text.strip_prefix("unix:") {
        return socket_path(rest).map(|path| Some(MetricsAddress::Unix(path)));
    }
    let wrong = |_| {
        format!(
            "{:?} must be an IP address with a port, as in 127.0.0.1:9464, or the path of a socket, \
             as in unix:/run/portcullis/metrics.sock",
            shorten(text)
        )
    };
    text.parse().map(|address| Some(MetricsAddress::Tcp(address))).map_err(wrong)
}

pub(super) fn image(text: &str) -> Result<Option<ImageRef>, String> {
    text.parse().map(Some).map_err(|error: ReferenceError| error.to_string())
}

pub(super) fn path_list(text: &str) -> Result<Vec<PathBuf>, String> {
    match text {
        "" => Ok(Vec::new()),
        _ => text.split(':').map(path).collect(),
    }
}

pub(super) fn method(text: &str) -> Result<(), String> {
    let shown = shorten(text);
    if JUDGED.contains(&text) {
        return Err(format!("{shown:?} is judged or refused, and never forwarded as it is"));
    }
    let name = SERVICES.iter().find_map(|service| text.strip_prefix(service));
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_uppercase())
            && name.bytes().all(|c| c.is_ascii_alphanumeric())
            && text.len() <= MAX_METHOD
    };
    match name.is_some_and(is_name) {
        true => Ok(()),
        false => Err(format!(
            "{shown:?} is no method that can be forwarded; write it as in {}Name or {}Name",
            SERVICES[0], SERVICES[1]
        )),
    }
}
