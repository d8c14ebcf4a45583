//! The sources of policies that a configuration names: followed by the daemon, asked once by
//! commands.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};

use crate::{
    config::{Config, PolicySource},
    kubernetes::{self, Server},
    policy::{
        self, Offer, PolicySet,
        source::{self, read_text, shown},
        watch::{Plan, Proof, Remote, Source},
    },
    verify::PublicKey,
};

/// Largest file of a pinned key, in bytes.
const MAX_KEY: usize = 16 * 1024;
/// How much a source can say before it is heard.
const WORDS: usize = 1;

/// Begins to follow the source; must be called from a Tokio runtime.
///
/// # Errors
///
/// What is wrong with a pinned key, in a sentence.
pub(crate) fn follow(config: &Config) -> Result<(Plan, Option<Arc<Server>>), String> {
    let name = config.policy.source.to_string();
    let asked = Arc::new(Notify::new());
    let (tell, heard) = mpsc::channel(WORDS);
    let remote = |proof| Source::Remote(Remote { name, proof, heard, asked: asked.clone() });
    let mut api_server = None;
    let source = match &config.policy.source {
        PolicySource::Directory(directory) => Source::Directory(directory.clone()),
        PolicySource::Kubernetes => {
            let server = Arc::new(server(config));
            api_server = Some(server.clone());
            let asked = asked.clone();
            tokio::spawn(async move { kubernetes::run(&server, tell, asked).await });
            remote(Proof::Mark)
        }
        PolicySource::Https(_) | PolicySource::Oci(_) => {
            let keys = keys(config)?;
            remote(Proof::Keys(keys))
        }
    };
    let plan = Plan {
        source,
        floor: config.policy.floor.clone(),
        max_age: config.policy.max_age,
        state_directory: config.state.directory.clone(),
        audit_file: config.audit.file.clone(),
    };
    Ok((plan, api_server))
}

/// The set that the source holds now.
///
/// # Errors
///
/// Why it is not known, or no set, in a sentence.
pub(crate) async fn once(config: &Config, now: Timestamp) -> Result<PolicySet, String> {
    let name = config.policy.source.to_string();
    let offer = match &config.policy.source {
        PolicySource::Directory(directory) => {
            return source::load(directory, now).map_err(|problems| problems.to_string());
        }
        PolicySource::Kubernetes => kubernetes::once(&server(config)).await?,
        PolicySource::Https(_) | PolicySource::Oci(_) => return Err("later".into()),
    };
    read(&offer, &name, now)
}

fn read(offer: &Offer, source: &str, now: Timestamp) -> Result<PolicySet, String> {
    if let Some(at) = offer.expires_at.filter(|at| *at <= now) {
        return Err(format!("{source}: it expired at {at:.0}"));
    }
    offer.read(source, now).map_err(|problems| problems.to_string())
}

fn server(config: &Config) -> Server {
    let kubeconfig = config.kubernetes.kubeconfig.clone();
    Server::new(kubernetes::Config { kubeconfig, times: kubernetes::Times::default() })
}

/// The pinned keys.
fn keys(config: &Config) -> Result<Vec<PublicKey>, String> {
    let read = |path: &std::path::PathBuf| {
        let wrong = |why: String| format!("policy.keys: {}: {why}", shown(path));
        let pem = read_text(path, MAX_KEY).map_err(wrong)?;
        PublicKey::from_pem(&pem).map_err(|error| wrong(error.to_string()))
    };
    config.policy.bundle.keys.iter().map(read).collect()
}

/// The policies of a candidate or, without one, of the source, with the floor of this node.
pub(crate) fn with_floor(
    config: &Config,
    set: PolicySet,
    now: Timestamp,
) -> Result<PolicySet, String> {
    match &config.policy.floor {
        Some(floor) => {
            policy::beside_floor(floor, &set, now).map_err(|problems| problems.to_string())
        }
        None => Ok(set),
    }
}
