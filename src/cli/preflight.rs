//! `portcullis preflight`: what policies would refuse of this node, before they are in force.

use std::{
    io::{self, IsTerminal, Write},
    sync::Arc,
};

use jiff::Timestamp;

use crate::{
    evidence::Store,
    forward::{Runtime, Upstream},
    pipeline::SandboxImage,
    preflight::{ContainerFinding, ImageFinding, Preflight, Report, State, Verdict},
    resolve::{AuthFile, HostsDirectories, Registry},
    sources::NoSet,
};

use super::{
    Exit,
    arguments::Candidate,
    judge,
    style::{Style, printable},
};

/// Exit: [`Exit::Success`] nothing would be refused, [`Exit::Refused`] something would be,
/// [`Exit::Inconclusive`] the runtime does not tell, or something could not be judged.
pub(super) fn run(
    candidate: &Candidate,
    json: bool,
    style: Style,
    out: &mut impl Write,
) -> io::Result<Exit> {
    let preflight = match prepare(candidate) {
        Ok(preflight) => preflight,
        Err(why) => {
            let exit = judge::exit_of(&why);
            eprintln!("portcullis: {}", judge::sentence(why));
            return Ok(exit);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let progress = Progress { shown: io::stderr().is_terminal() };
    let show = |done, total| progress.show(done, total);
    let surveyed = runtime.block_on(preflight.survey(Timestamp::now(), &show));
    progress.clear();
    let report = match surveyed {
        Ok(report) => report,
        Err(error) => {
            eprintln!("portcullis: {}", printable(&error.to_string()));
            return Ok(Exit::Inconclusive);
        }
    };
    match json {
        true => {
            serde_json::to_writer(&mut *out, &report)?;
            writeln!(out)?;
        }
        false => write_text(&report, style, out)?,
    }
    Ok(match (report.summary.refused, report.summary.not_judged) {
        (0, 0) => Exit::Success,
        (0, _) => Exit::Inconclusive,
        _ => Exit::Refused,
    })
}

fn prepare(candidate: &Candidate) -> Result<Preflight, NoSet> {
    let config = super::config(&candidate.config, candidate.policy.is_some())?;
    let policies = Arc::new(judge::load(candidate.policy.as_deref(), &config)?);
    let auth_file = match candidate.offline {
        true => None,
        false => Some(AuthFile::load(candidate.auth_file.as_deref())?),
    };
    let registry = auth_file
        .is_some()
        .then(|| Registry::new(HostsDirectories::new(config.runtime.registry_config.clone())));
    Ok(Preflight {
        policies,
        runtime: Runtime::new(&Upstream::new(Arc::new(config.runtime.endpoint))),
        store: Store::beside(&config.state.directory),
        registry,
        credentials: Box::new(move |repository| match &auth_file {
            Some(file) => file.credentials(repository),
            None => Err("no registry is asked".to_owned()),
        }),
        sandbox: SandboxImage::new(config.runtime.sandbox_image),
    })
}

/// One line on the terminal that is overwritten while registries are asked.
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&self, done: usize, total: usize) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[Kasking registries: {done} of {total}");
        }
    }

    fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn write_text(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    if !report.images.is_empty() {
        writeln!(out, "{}", style.bold("images"))?;
        report.images.iter().try_for_each(|one| image(one, style, out))?;
        writeln!(out)?;
    }
    if !report.containers.is_empty() {
        writeln!(out, "{}", style.bold("running containers"))?;
        report.containers.iter().try_for_each(|one| container(one, style, out))?;
        writeln!(out)?;
    }
    writeln!(out, "{}", style.bold("sandbox image"))?;
    let name = report.sandbox.image.as_deref().unwrap_or("not known");
    let head = match &report.sandbox.digest {
        Some(digest) => format!("{name} ({digest})"),
        None => name.to_owned(),
    };
    entry(&report.sandbox.verdict, &head, &[], style, out)?;
    writeln!(out)?;
    let sum = &report.summary;
    write!(
        out,
        "{}, {}: {} would be refused",
        count(sum.images, "image"),
        count(sum.containers, "running container"),
        sum.refused
    )?;
    if sum.not_judged > 0 {
        write!(out, ", {} could not be judged", sum.not_judged)?;
    }
    if sum.would_warn > 0 {
        write!(out, ", {} would be warned about", sum.would_warn)?;
    }
    writeln!(out)
}

fn image(image: &ImageFinding, style: Style, out: &mut impl Write) -> io::Result<()> {
    let tags: Vec<_> = image.names.iter().filter(|name| !name.contains('@')).cloned().collect();
    let repository = image.names.first().and_then(|name| name.split('@').next());
    let name = match (tags.is_empty(), repository) {
        (false, _) => tags.join(", "),
        (true, Some(repository)) => repository.to_owned(),
        (true, None) => "no name".to_owned(),
    };
    let head = format!("{name} ({})", image.digest);
    let used = (!image.used_by.is_empty()).then(|| format!("used by {}", image.used_by.join(", ")));
    entry(&image.verdict, &head, used.as_slice(), style, out)
}

fn container(container: &ContainerFinding, style: Style, out: &mut impl Write) -> io::Result<()> {
    let pod = match &container.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => "no pod".to_owned(),
    };
    let head = format!("{pod}, container {:?}: {}", container.name, container.image);
    entry(&container.verdict, &head, &[], style, out)
}

/// One line with the state, and below it why and what else there is to say.
fn entry(
    verdict: &Verdict,
    head: &str,
    more: &[String],
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    let state = match verdict.state {
        State::Refused => style.red("refused"),
        State::NotJudged => style.yellow("could not judge"),
        State::WouldWarn => style.yellow("would warn"),
        State::AcceptedForSome => style.yellow("accepted for some pods"),
        State::Accepted => style.green("accepted"),
    };
    writeln!(out, "  {state} {}", printable(head))?;
    let below: Vec<_> = verdict.message.iter().chain(more).collect();
    for (number, line) in below.iter().enumerate() {
        let branch = if number + 1 == below.len() { "└─" } else { "├─" };
        writeln!(out, "  {branch} {}", printable(line))?;
    }
    Ok(())
}

fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
