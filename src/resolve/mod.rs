//! Stage 4: a tag becomes a digest, through the same mirrors and with the same credentials as
//! containerd's own pull.

mod auth;
mod auth_file;
mod client;
mod download;
mod error;
mod header;
mod hosts;
mod hosts_file;
mod hosts_text;
mod manifest;
mod pin;
#[cfg(any(test, fuzzing))]
#[path = "../../tests/fuzz/properties/resolve.rs"]
pub(crate) mod properties;
mod referrers;
mod registry;
mod session;
mod tls;
mod token;
mod transport;

pub use auth::Credentials;
pub use auth_file::AuthFile;
pub use download::{Download, DownloadFault, Downloaded, HttpsAddress, Patience};
pub use error::{Failure, RegistryError};
pub use hosts::HostsDirectories;
pub use manifest::{
    Descriptor, ImageManifest, Index, MAX_MANIFEST, Manifest, ManifestError, Platform,
};
pub use pin::{Resolved, pin, resolved};
pub use registry::{Fetched, Registry, Repo};
pub use transport::Timeouts;
