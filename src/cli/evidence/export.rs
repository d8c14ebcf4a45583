//! `portcullis evidence export`: what is known of images, as a pack.

use std::{
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::time::timeout;

use crate::{
    cli::{
        Exit,
        arguments::{Export, Place},
        style::printable,
    },
    config::Config,
    evidence::{self, Entry, Evidence, Known, Store, pack},
    forward::{Runtime, Upstream},
    image::{Digest, ImageRef, Version},
    named::{ImageId, Named},
    refusal::{Code, Refusal},
    resolve::{self, AuthFile, Fetched, HostsDirectories, MAX_MANIFEST, Registry},
};

use super::{Summary, config, no_directory, unreadable};

/// How long the runtime may take to say what it calls by a name.
const RUNTIME: Duration = Duration::from_secs(10);

/// Why nothing goes into the pack for an image.
struct Missing {
    exit: Exit,
    why: String,
}

impl Missing {
    fn new(exit: Exit, why: impl ToString) -> Self {
        Self { exit, why: why.to_string() }
    }
}

/// A line on standard error.
#[derive(Serialize)]
struct Line<'a> {
    image: &'a str,
    #[serde(flatten)]
    summary: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
}

/// Places to look.
struct Desk<'a> {
    asked: &'a Export,
    store: Store,
    runtime: Runtime,
    registry: Registry,
    json: bool,
}

pub(in crate::cli) fn run(asked: &Export, json: bool, out: &mut impl Write) -> io::Result<Exit> {
    let fail = |exit, why: String| {
        eprintln!("portcullis: {why}");
        Ok(exit)
    };
    if let Some(directories) = &asked.registry_config
        && let Some(missing) =
            directories.split(':').find(|part| !part.is_empty() && !Path::new(part).is_dir())
    {
        return fail(Exit::Usage, format!("--registry-config: {missing} is no directory"));
    }
    let config = match config(&asked.at, false) {
        Ok(config) => config,
        Err(why) => return fail(Exit::Config, why),
    };
    if let Some(why) = no_directory(&asked.at) {
        return fail(Exit::Config, why);
    }
    // Where only the store is asked, one that cannot be read is not one that knows nothing.
    if (asked.all || asked.from == Some(Place::Store))
        && let Some(why) = unreadable(&config.state.directory)
    {
        return fail(Exit::Inconclusive, why);
    }
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let desk = Desk::new(asked, &config, json);
    let (mut exit, mut all) = (Exit::Success, Vec::new());
    let ids = if asked.all { desk.store.all() } else { Vec::new() };
    let ids: Vec<_> = ids.iter().map(ImageId::to_string).collect();
    for image in asked.images.iter().chain(&ids) {
        let (of_image, known) = tokio.block_on(desk.look(image));
        exit = worse(exit, of_image);
        for one in known {
            if !all.contains(&one) {
                all.push(one);
            }
        }
    }
    if all.is_empty() {
        let why = if ids.is_empty() && asked.all { ": this node knows no image" } else { "" };
        return fail(worse(exit, Exit::Refused), format!("there is nothing to export{why}"));
    }
    pack::write(out, all.into_iter())?;
    Ok(exit)
}

/// What could not be asked weighs more than what is not there, and a name that is none most.
fn worse(one: Exit, other: Exit) -> Exit {
    if one as u8 > other as u8 { one } else { other }
}

impl<'a> Desk<'a> {
    fn new(asked: &'a Export, config: &Config, json: bool) -> Self {
        let directories = match &asked.registry_config {
            Some(directories) => HostsDirectories::parse(directories),
            None => HostsDirectories::new(config.runtime.registry_config.clone()),
        };
        let upstream = Upstream::new(Arc::new(config.runtime.endpoint.clone()));
        Self {
            asked,
            store: Store::beside(&config.state.directory),
            runtime: Runtime::new(&upstream),
            registry: Registry::new(directories),
            json,
        }
    }

    /// What goes into the pack for one image, which is told on standard error.
    async fn look(&self, image: &str) -> (Exit, Vec<Known>) {
        let (mut exit, known, problem) = match self.find(image).await {
            Ok((known, None)) => (Exit::Success, known, None),
            Ok((known, Some(gap))) => {
                let why = format!("not every signature could be looked up: {}", gap.message);
                (Exit::Inconclusive, known, Some(why))
            }
            Err(Missing { exit, why }) => (exit, Vec::new(), Some(why)),
        };
        for one in &known {
            let summary = Summary::of(one);
            if summary.signatures == 0 {
                exit = worse(exit, Exit::Refused);
            }
            self.tell(image, Some(summary), None);
        }
        if let Some(why) = problem {
            self.tell(image, None, Some(&why));
        }
        (exit, known)
    }

    fn tell(&self, image: &str, summary: Option<Summary>, problem: Option<&str>) {
        if self.json {
            let line = serde_json::to_string(&Line { image, summary, problem });
            eprintln!("{}", line.expect("text, digests and numbers have a form in JSON"));
            return;
        }
        let image = printable(image);
        if let Some(summary) = summary {
            eprintln!("{image} {}: {}", summary.digest, summary.counted());
        }
        if let Some(problem) = problem {
            eprintln!("{image}: {}", printable(problem));
        }
    }

    async fn find(&self, text: &str) -> Result<(Vec<Known>, Option<Refusal>), Missing> {
        let named: Named = text.parse().map_err(|error| Missing::new(Exit::Usage, error))?;
        if self.asked.from != Some(Place::Registry) {
            let known = self.in_store(text, &named).await;
            match (known, self.asked.from) {
                (Ok(known), _) if !known.is_empty() => return Ok((known, None)),
                (Err(missing), Some(Place::Store)) => return Err(missing),
                (Ok(_), Some(Place::Store)) => {
                    return Err(Missing::new(Exit::Refused, "this node has no evidence about it"));
                }
                _ => {}
            }
        }
        let Named::Reference(image) = &named else {
            let why = "this node has no evidence about it; name it by its repository for its \
                       registry to be asked";
            return Err(Missing::new(Exit::Refused, why));
        };
        if self.asked.from.is_none() && !self.json {
            eprintln!(
                "portcullis: {}: not in the store of this node; asking its registry",
                printable(text)
            );
        }
        self.in_registry(image).await
    }

    /// What the store has. A tag means what the runtime says that it means.
    async fn in_store(&self, text: &str, named: &Named) -> Result<Vec<Known>, Missing> {
        let digest = match named {
            Named::Id(id) => Some(id.config()),
            Named::Reference(ImageRef { version: Version::Digest(digest), .. }) => Some(*digest),
            _ => None,
        };
        // Behind "sha256:" can be the digest of a manifest, or an ID.
        let mut known = digest.map(|digest| self.of(digest)).unwrap_or_default();
        if known.is_empty() && !matches!(named, Named::Id(_)) {
            let asked = timeout(RUNTIME, self.runtime.image(text)).await;
            let could_not = |why: String| Missing::new(Exit::Inconclusive, why);
            let found = asked
                .map_err(|_| could_not("the container runtime does not answer".into()))?
                .map_err(|error| could_not(error.to_string()))?;
            known = found.map(|image| self.store.of_id(image.id)).unwrap_or_default();
        }
        Ok(known)
    }

    fn of(&self, digest: Digest) -> Vec<Known> {
        match self.store.of_id(ImageId::of_config(digest)) {
            none if none.is_empty() => self.store.of_digest(digest),
            known => known,
        }
    }

    /// What the registry has, and the first question that it left open.
    async fn in_registry(
        &self,
        image: &ImageRef,
    ) -> Result<(Vec<Known>, Option<Refusal>), Missing> {
        let credentials = AuthFile::load(self.asked.auth_file.as_deref())
            .and_then(|file| file.credentials(&image.repository))
            .map_err(|why| Missing::new(Exit::Config, why))?;
        let repo = self.registry.repo(&image.repository, &credentials);
        let (resolved, manifest) = resolve::pin(&repo, image).await.map_err(unanswered)?;
        let evidence = evidence::gather(&repo, &resolved).await;
        let child = match resolved.child {
            Some(digest) => {
                let child = repo.manifest(&Version::Digest(digest), MAX_MANIFEST).await;
                Some(child.map_err(|error| unanswered(error.into()))?)
            }
            None if resolved.id.is_none() => {
                let why = "it has no image, or several, for this machine's platform: name the \
                           one by its digest";
                return Err(Missing::new(Exit::Refused, why));
            }
            None => None,
        };
        let known = Known::new(entry(manifest, &evidence), child.map(|one| entry(one, &evidence)));
        let known = known.map_err(|error| Missing::new(Exit::Refused, error))?;
        Ok((vec![known], evidence.gaps.into_iter().next()))
    }
}

fn entry(manifest: Fetched, evidence: &Evidence) -> Entry {
    let own = evidence.claims.iter().filter(|claim| claim.subject == manifest.digest);
    Entry { claims: own.cloned().collect(), whole: evidence.gaps.is_empty(), manifest }
}

fn unanswered(refusal: Refusal) -> Missing {
    let told = refusal.code == Code::ImageNotFound || refusal.code.is_judged();
    Missing::new(if told { Exit::Refused } else { Exit::Inconclusive }, refusal.message)
}
