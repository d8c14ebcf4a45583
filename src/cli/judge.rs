//! What `verify` and `explain` share: the question, judged by the daemon's own stages.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    audit::{Outcome, PolicySetId},
    config::{Config, PolicySource, policy_source},
    decide::{Grounds, Permit, PolicyReport},
    decode::Wanted,
    image::{Digest, ImageRef},
    judgement::Judgement,
    pipeline,
    policy::{Caller, PolicySet, source},
    refusal::Code,
    resolve::{AuthFile, HostsDirectories, Registry},
    sources::{self, NoSet},
    verify::PublicKey,
};

use super::{Exit, arguments::Question, config};

/// Largest key file, in bytes.
const MAX_KEY: u64 = 64 << 10;

/// A question and the judgement on it.
pub(super) struct Judged {
    pub(super) image: ImageRef,
    pub(super) policies: Arc<PolicySet>,
    pub(super) judgement: Judgement,
}

/// What a machine reads; the fields are those of the audit record.
#[derive(Serialize)]
struct Verdict<'a> {
    image: String,
    digest: Option<Digest>,
    decision: Outcome,
    reason: Option<Code>,
    message: Option<&'a str>,
    policies: &'a [PolicyReport],
    policy_set: &'a Option<PolicySetId>,
}

impl Judged {
    /// The exit code that says the decision.
    pub(super) fn exit(&self) -> Exit {
        match &self.judgement.decision {
            Ok(_) => Exit::Success,
            Err(refusal) if refusal.code.is_judged() => Exit::Refused,
            Err(_) => Exit::Inconclusive,
        }
    }

    /// One JSON object.
    pub(super) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let Judgement { decision, findings } = &self.judgement;
        let (decision, refusal) = match decision.as_ref().map(Permit::grounds) {
            Ok(Grounds::Satisfied) => (Outcome::Allow, None),
            Ok(Grounds::BreakGlass(_)) => (Outcome::Warn, None),
            Ok(Grounds::Warned(why)) => (Outcome::Warn, Some(why)),
            Err(refusal) => (Outcome::Deny, Some(refusal)),
        };
        let verdict = Verdict {
            image: self.image.to_string(),
            digest: findings.image.as_ref().map(|image| image.digest),
            decision,
            reason: refusal.map(|refusal| refusal.code),
            message: refusal.map(|refusal| refusal.message.as_str()),
            policies: &findings.policies,
            policy_set: &findings.policy_set,
        };
        serde_json::to_writer(&mut *out, &verdict)?;
        writeln!(out)
    }
}

/// Judges what was asked; what keeps it from being asked is printed, with its exit code.
pub(super) fn judge(question: &Question) -> Result<Judged, Exit> {
    let fail = |exit| {
        move |why: String| {
            eprintln!("portcullis: {why}");
            exit
        }
    };
    let image: ImageRef =
        question.image.parse().map_err(|error| fail(Exit::Usage)(format!("{error}")))?;
    if let Some(directories) = &question.registry_config
        && let Some(missing) =
            directories.split(':').find(|part| !part.is_empty() && !Path::new(part).is_dir())
    {
        return Err(fail(Exit::Usage)(format!("--registry-config: {missing} is no directory")));
    }
    let answered = question.policy.is_some() || question.key.is_some();
    let remedy = if answered { "" } else { "; or name --policy or --key" };
    let config = config(&question.config, answered)
        .map_err(|error| fail(Exit::Config)(format!("{error}{remedy}")))?;
    let policies = policies(question, &config).map_err(|why| fail(exit_of(&why))(sentence(why)))?;
    let policies = Arc::new(policies);
    let credentials = AuthFile::load(question.auth_file.as_deref())
        .and_then(|file| file.credentials(&image.repository))
        .map_err(fail(Exit::Config))?;
    let wanted = Wanted {
        image: image.clone(),
        credentials,
        caller: Caller::of(question.namespace.clone()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| fail(Exit::Inconclusive)(format!("cannot begin: {error}")))?;
    let directories = match &question.registry_config {
        Some(directories) => HostsDirectories::parse(directories),
        None => HostsDirectories::new(config.runtime.registry_config.clone()),
    };
    let registry = Registry::new(directories);
    let judgement =
        runtime.block_on(pipeline::examine(&registry, None, &policies, &wanted, Timestamp::now()));
    Ok(Judged { image, policies, judgement })
}

fn policies(question: &Question, config: &Config) -> Result<PolicySet, NoSet> {
    if let Some(path) = &question.key {
        let mut pem = String::new();
        let read =
            fs::File::open(path).and_then(|file| file.take(MAX_KEY).read_to_string(&mut pem));
        read.map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
        let key =
            PublicKey::from_pem(&pem).map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(PolicySet::of_key(key, Timestamp::now()));
    }
    load(question.policy.as_deref(), config)
}

/// The policies that were named, or those that the daemon's source holds, beside the daemon's floor.
pub(super) fn load(named: Option<&str>, config: &Config) -> Result<PolicySet, NoSet> {
    let now = Timestamp::now();
    let set = match named {
        Some(source) if is_source(source) => {
            let mut config = config.clone();
            config.policy.source = policy_source(source)?;
            ask(&config, now)
        }
        Some(path) => {
            let path = Path::new(path);
            let read = if path.is_dir() { source::load } else { source::load_file };
            read(path, now).map_err(|problems| problems.to_string().into())
        }
        None => {
            if let PolicySource::Directory(directory) = &config.policy.source
                && let Some(why) = no_directory(directory)
            {
                return Err(format!("policy.source: {why}").into());
            }
            ask(config, now)
        }
    };
    sources::with_floor(config, set?, now)
}

/// How a command ends that knows no policies for this.
pub(super) fn exit_of(why: &NoSet) -> Exit {
    match why {
        NoSet::Unanswered(_) => Exit::Inconclusive,
        NoSet::Unusable(_) => Exit::Config,
    }
}

pub(super) fn sentence(why: NoSet) -> String {
    match why {
        NoSet::Unanswered(why) | NoSet::Unusable(why) => why,
    }
}

/// Whether this names a source of policies as the configuration does, and no path.
fn is_source(text: &str) -> bool {
    text == "kubernetes:" || text.contains("://")
}

fn ask(config: &Config, now: Timestamp) -> Result<PolicySet, NoSet> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot begin: {error}"))?;
    runtime.block_on(sources::once(config, now))
}

/// Why the daemon cannot read this source of policies, where that is because of a file: it reads
/// directories alone, and an answer by the file would be another than the daemon's.
pub(super) fn no_directory(source: &Path) -> Option<String> {
    let is_file = source.exists() && !source.is_dir();
    is_file.then(|| format!("{} is a file; name its directory", source::shown(source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_does_not_answer_is_no_mistake_of_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("policy.pub");
        fs::write(&key, crate::verify::testing::Pair::p256().pem()).unwrap();
        let asked = |source: &str, keys: &str| {
            let text = format!("[policy]\nsource = '{source}'\nkeys = ['{keys}']\n");
            let config = Config::parse("c.toml", &text).unwrap();
            exit_of(&load(None, &config).unwrap_err())
        };
        // Nobody can listen on port 0.
        let away = "https://127.0.0.1:0/policies";
        assert_eq!(asked(away, key.to_str().unwrap()), Exit::Inconclusive);
        assert_eq!(asked(away, "/nowhere/policy.pub"), Exit::Config);
    }
}
