//! The sources of policies that a configuration names: followed by the daemon, asked once by
//! commands.

use std::{path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};

use crate::{
    config::{Config, PolicySource},
    kubernetes::{self, Server},
    policy::{
        Heard, PolicySet, beside_floor,
        fetch::{self, Fetcher, Place},
        source::{self, read_text, shown},
        watch::{Plan, Proof, Remote, Source},
    },
    problem::Problems,
    resolve::{HostsDirectories, Registry},
    verify::PublicKey,
};

/// Largest file of a pinned key, in bytes.
const MAX_KEY: usize = 16 * 1024;

/// A source that is followed.
#[derive(Debug)]
pub(crate) struct Followed {
    /// What the policies are kept in force by.
    pub(crate) plan: Plan,
    /// The API server, where it is the source.
    pub(crate) api_server: Option<Arc<Server>>,
}

/// Begins to follow the source; must be called from a Tokio runtime.
///
/// # Errors
///
/// What is wrong with a pinned key, in a sentence.
pub(crate) fn follow(config: &Config) -> Result<Followed, String> {
    let asked = Arc::new(Notify::new());
    // One word waits to be heard; who has more to say waits with it.
    let (tell, heard) = mpsc::channel(1);
    let name = config.policy.source.to_string();
    let mut api_server = None;
    let proof = match &config.policy.source {
        PolicySource::Directory(_) => Proof::Mark,
        PolicySource::Kubernetes => {
            let (server, asked) = (Arc::new(server(config)), asked.clone());
            api_server = Some(server.clone());
            tokio::spawn(async move { kubernetes::run(&server, tell, asked).await });
            Proof::Mark
        }
        PolicySource::Https(_) | PolicySource::Oci(_) => {
            let keys = keys(config)?;
            let poll = Duration::try_from(config.policy.bundle.poll).unwrap_or_default();
            let fetcher = Fetcher::new(place(config)?, keys.clone().into());
            tokio::spawn(fetch::run(fetcher, poll, tell, asked.clone()));
            Proof::Keys(keys)
        }
    };
    let source = match &config.policy.source {
        PolicySource::Directory(directory) => Source::Directory(directory.clone()),
        _ => Source::Remote(Remote { name, proof, heard, asked }),
    };
    let plan = Plan {
        source,
        floor: config.policy.floor.clone(),
        max_age: config.policy.max_age,
        state_directory: config.state.directory.clone(),
        audit_file: config.audit.file.clone(),
    };
    Ok(Followed { plan, api_server })
}

/// Why a set is not known.
#[derive(Debug)]
pub(crate) enum NoSet {
    /// The source cannot be reached, or does not answer as it should: it may another time.
    Unanswered(String),
    /// What it holds is no set, or the configuration is wrong.
    Unusable(String),
}

impl From<String> for NoSet {
    fn from(why: String) -> Self {
        Self::Unusable(why)
    }
}

/// The set that the source holds now, whether or not it may come into force on this node.
///
/// # Errors
///
/// Why it is not known, or no set, in a sentence.
pub(crate) async fn once(config: &Config, now: Timestamp) -> Result<PolicySet, NoSet> {
    let name = config.policy.source.to_string();
    let sentence = |problems: Problems| NoSet::Unusable(problems.to_string());
    let offer = match &config.policy.source {
        PolicySource::Directory(directory) => {
            return source::load(directory, now).map_err(sentence);
        }
        PolicySource::Kubernetes => {
            kubernetes::once(&server(config)).await.map_err(NoSet::Unanswered)?
        }
        PolicySource::Https(_) | PolicySource::Oci(_) => {
            let mut fetcher = Fetcher::new(place(config)?, keys(config)?.into());
            match fetcher.ask(true).await.heard {
                Heard::Offer(offer) => offer,
                Heard::Rejected(problems) => return Err(sentence(problems)),
                Heard::Failed(why) => return Err(NoSet::Unanswered(format!("{name}: {why}"))),
                Heard::Unchanged => {
                    let why = format!("{name}: says that nothing has changed");
                    return Err(NoSet::Unanswered(why));
                }
            }
        }
    };
    match offer.expires_at.filter(|at| *at <= now) {
        Some(at) => Err(NoSet::Unusable(format!("{name}: the bundle expired at {at:.0}"))),
        None => offer.read(name.trim_end_matches(':'), now).map_err(sentence),
    }
}

/// A set with the floor of this node beside it, if there is one.
///
/// # Errors
///
/// What is wrong with the floor.
pub(crate) fn with_floor(
    config: &Config,
    set: PolicySet,
    now: Timestamp,
) -> Result<PolicySet, NoSet> {
    match &config.policy.floor {
        Some(floor) => {
            beside_floor(floor, &set, now).map_err(|problems| problems.to_string().into())
        }
        None => Ok(set),
    }
}

fn server(config: &Config) -> Server {
    let kubeconfig = config.kubernetes.kubeconfig.clone();
    Server::new(kubernetes::Config { kubeconfig, ..kubernetes::Config::default() })
}

/// Where the bundle is.
fn place(config: &Config) -> Result<Place, String> {
    let bundle = &config.policy.bundle;
    match &config.policy.source {
        PolicySource::Https(address) => {
            Ok(Place::Https { address: address.clone(), ca: bundle.certificate_authority.clone() })
        }
        PolicySource::Oci(image) => Ok(Place::Oci {
            image: image.clone(),
            credentials: bundle.auth_file.clone(),
            registry: Registry::new(HostsDirectories::new(config.runtime.registry_config.clone())),
        }),
        other => Err(format!("{other} is no signed bundle")),
    }
}

/// The pinned keys: at least one.
pub(crate) fn keys(config: &Config) -> Result<Vec<PublicKey>, String> {
    let read = |path: &Path| {
        let wrong = |why: String| format!("policy.keys: {} {why}", shown(path));
        let pem = read_text(path, MAX_KEY).map_err(wrong)?;
        PublicKey::from_pem(&pem).map_err(|error| wrong(format!("holds no public key: {error}")))
    };
    let keys =
        config.policy.bundle.keys.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err("policy.keys names no public key that must have signed the bundle; --config \
                    names a configuration with such a source and its keys"
            .into());
    }
    Ok(keys)
}
