//! `portcullis status`: how the daemon on this node stands.

use std::{
    io::{self, Write},
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    forward::{self, Unanswered},
    status::{ClientReport, PoliciesReport, Report},
};

use super::{
    Exit, config,
    style::{Style, printable},
    wrong,
};

/// Most unproven images that are told one by one; JSON has more.
const MAX_SHOWN: usize = 5;

/// Asks the daemon that the configuration names.
///
/// Exit: [`Exit::Success`] it enforces and pods can start, [`Exit::Refused`] it can only refuse,
/// since no policy is in force or the audit log takes nothing, or no pod can start,
/// [`Exit::Inconclusive`] it does not answer.
pub(super) fn run(path: &Path, json: bool, style: Style, out: &mut impl Write) -> io::Result<Exit> {
    // Without it, the defaults say where the daemon listens.
    let config = match config(path, true) {
        Ok(config) => config,
        Err(error) => return wrong(&error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(forward::node_status(&config.listen.socket));
    // Who may not ask does not know.
    let running = match &asked {
        Err(Unanswered::Forbidden { .. }) => Value::Null,
        _ => false.into(),
    };
    let read = |answer: Vec<u8>| {
        let report: Report = serde_json::from_slice(&answer)?;
        Ok::<_, serde_json::Error>((serde_json::from_slice(&answer)?, report))
    };
    let told = asked.map_err(|error| error.to_string()).and_then(|answer| {
        read(answer).map_err(|error| format!("the daemon's answer cannot be read: {error}"))
    });
    let (value, report): (Value, Report) = match told {
        Ok(told) => told,
        Err(problem) => {
            let problem = printable(&problem);
            match json {
                true => writeln!(out, "{}", json!({"running": running, "problem": problem}))?,
                false => writeln!(out, "{}", style.red(problem))?,
            }
            return Ok(Exit::Inconclusive);
        }
    };
    match json {
        true => {
            let mut value = value;
            value["running"] = true.into();
            writeln!(out, "{value}")?;
        }
        false => write_text(&report, style, out)?,
    }
    Ok(if report.enforcing && report.sandbox.proven { Exit::Success } else { Exit::Refused })
}

fn write_text(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    let version = printable(&report.version);
    let standing = standing(report, style);
    writeln!(out, "Portcullis {version} {standing}, up {}", ago(report.uptime_seconds))?;
    let mut line = |what: &str, text: String, trouble: Option<&str>| {
        writeln!(out, "  {} {}", style.dim(format_args!("{what:<10}")), printable(&text))?;
        let Some(trouble) = trouble else { return Ok(()) };
        trouble
            .lines()
            .try_for_each(|trouble| writeln!(out, "  {:<10} {}", "", style.red(printable(trouble))))
    };
    let (text, trouble) = policies(&report.policies);
    line("policies", text, trouble.as_deref())?;
    let audit = &report.audit;
    let drift = audit.drift.as_ref().map(|drift| format!("not as Portcullis left it: {drift}"));
    let trouble: Vec<_> = audit.unavailable.iter().chain(&drift).map(String::as_str).collect();
    let trouble = (!trouble.is_empty()).then(|| trouble.join("\n"));
    line("audit", format!("seq {} in {}", audit.seq, audit.file), trouble.as_deref())?;
    let (text, trouble) = kubelet(report);
    line("kubelet", text, trouble.as_deref())?;
    let runtime = &report.runtime;
    let said = runtime.version.as_deref().unwrap_or("not reached");
    line("runtime", format!("{said} at {}", runtime.endpoint), runtime.problem.as_deref())?;
    let sandbox = &report.sandbox;
    let name = sandbox.image.as_deref().unwrap_or("image not known");
    let said = if sandbox.proven { "proven" } else { "not proven: no pod can start" };
    // Of a runtime that is away, one line is enough.
    let trouble = sandbox.problem.as_deref().filter(|_| runtime.problem.is_none());
    line("sandbox", format!("{name}, {said}"), trouble)?;
    if !report.evidence.is_empty() {
        line("evidence", "needs a look".to_owned(), Some(&report.evidence.join("\n")))?;
    }
    if report.faults > 0 {
        let since = count(report.faults as usize, "fault", "faults") + " since start";
        let trouble =
            "what they ended was refused; the daemon's log says where: please report them";
        line("Portcullis", since, Some(trouble))?;
    }
    if let Some(inventory) = &report.inventory {
        let (text, trouble) = looked(inventory);
        line("inventory", text, trouble.as_deref())?;
    }
    decisions(report, style, out)?;
    refusals(report, style, out)
}

/// The policies, and what is wrong with them.
fn policies(policies: &PoliciesReport) -> (String, Option<String>) {
    let revision = policies.revision.map(|revision| format!(" revision {revision}"));
    let revision = revision.unwrap_or_default();
    let expired = policies.trouble.as_deref() == Some("Expired");
    let floor_alone = policies.source_digest.is_none() || expired;
    let text = match &policies.digest {
        Some(digest) if floor_alone => format!(
            "{} of the floor alone, set {}; none in force from {}",
            count(policies.count, "policy", "policies"),
            short(digest),
            policies.source
        ),
        Some(digest) => format!(
            "{}, set {}{revision}, loaded {} ago from {}",
            count(policies.count, "policy", "policies"),
            short(digest),
            ago(policies.age_seconds),
            policies.source
        ),
        None => format!("none in force, from {}", policies.source),
    };
    // Of a directory that is read every half minute that says nothing.
    let heard = policies.confirmed_seconds_ago.filter(|seconds| *seconds > 60);
    let text = match (heard, &policies.until) {
        _ if expired => text,
        (_, Some(until)) => format!("{text}, in force until {until}"),
        (Some(seconds), None) => format!("{text}, last heard {} ago", ago(seconds)),
        (None, None) => text,
    };
    let Some(why) = &policies.rejected else { return (text, None) };
    let what = match (policies.trouble.as_deref(), &policies.digest) {
        _ if floor_alone => "",
        (Some("Rejected" | "NotKept"), Some(_)) => {
            "what is there now is not accepted, and the set in force stays:\n"
        }
        (Some("Unreachable"), Some(_)) => "the source is not heard, and the set in force stays:\n",
        _ => "",
    };
    (text, Some(format!("{what}{why}")))
}

/// What the gate does, in short. What only warns keeps nothing out, and what nobody calls judges
/// nothing: neither is to look like a gate that is in use.
fn standing(report: &Report, style: Style) -> String {
    if !report.enforcing {
        return style.red("is refusing everything that it judges").to_string();
    }
    let (count, only_warn) = (report.policies.count, report.policies.only_warn);
    let warns = only_warn > 0 && only_warn >= count;
    if let Some(why) = grounded(report) {
        let does = if warns { ONLY_WARNS } else { "is enforcing" };
        return style.red(format!("{does}, and no pod can start: {why}")).to_string();
    }
    let some_warn = match only_warn {
        0 => String::new(),
        _ => format!("; {only_warn} of {count} policies only warn"),
    };
    let painted = match (warns, report.kubelet.is_some()) {
        (true, true) => style.yellow(ONLY_WARNS.to_owned()),
        (true, false) => style.yellow(format!("{ONLY_WARNS}, and kubelet has not called yet")),
        (false, true) => style.green(format!("is enforcing{some_warn}")),
        (false, false) => {
            style.yellow(format!("is ready, and kubelet has not called yet{some_warn}"))
        }
    };
    painted.to_string()
}

const ONLY_WARNS: &str = "only warns: no policy in force enforces";

/// Why no pod can start, in short; the lines on the runtime and the sandbox image say more.
fn grounded(report: &Report) -> Option<&'static str> {
    let Report { runtime, sandbox, .. } = report;
    match (sandbox.proven, runtime.version.is_some(), sandbox.image.is_some()) {
        (true, _, _) => None,
        (false, false, _) => Some("the container runtime does not answer"),
        (false, true, false) => Some("the sandbox image is not known"),
        (false, true, true) => Some("the sandbox image is not proven"),
    }
}

/// Whether kubelet talks to the gate, and what to do if not.
fn kubelet(report: &Report) -> (String, Option<String>) {
    let called = |client: &ClientReport| {
        format!("pid {}, last call {} ago", client.pid, ago(client.seconds_ago))
    };
    if let Some(kubelet) = &report.kubelet {
        return (called(kubelet), None);
    }
    let text = match &report.other_client {
        Some(client) => format!("has not called; {:?} did: {}", client.name, called(client)),
        None => "has not called".to_owned(),
    };
    let question = format!(
        "no kubelet has called since start ({}): is containerRuntimeEndpoint set to unix://{}?",
        ago(report.uptime_seconds),
        report.socket
    );
    (text, Some(question))
}

/// What the last look at the runtime found, and what is worth a look by people.
fn looked(inventory: &Value) -> (String, Option<String>) {
    let number = |path: &str| inventory.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let (unproven, drifted) = (number("/images/unproven"), number("/containers/drifted"));
    let text = format!(
        "{}, {unproven} not proven; {}, {} not created through Portcullis",
        count(number("/images/total") as usize, "image", "images"),
        count(number("/containers/running") as usize, "running container", "running containers"),
        number("/containers/unpermitted"),
    );
    let age = inventory.pointer("/age_seconds").and_then(Value::as_u64);
    let age = age.map(|seconds| format!("; as of {} ago", ago(seconds))).unwrap_or_default();
    let text = text + &age;
    let why = inventory.pointer("/images/why").and_then(Value::as_array).into_iter().flatten();
    let why = why.filter_map(|one| one.get("message")?.as_str()).take(MAX_SHOWN);
    let drifted = (drifted > 0).then(|| {
        let containers = count(drifted as usize, "running container", "running containers");
        format!("{containers} would be refused now")
    });
    let trouble: Vec<_> = drifted.into_iter().chain(why.map(str::to_owned)).collect();
    (text, (!trouble.is_empty()).then(|| trouble.join("\n")))
}

fn decisions(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    writeln!(out)?;
    if report.decisions.is_empty() && report.unrecorded == 0 {
        return writeln!(out, "nothing was judged since {}", printable(&report.started));
    }
    let head = format!("{:<14} {:>9} {:>9} {:>9}", "since start", "allowed", "denied", "warned");
    writeln!(out, "{}", style.bold(head))?;
    for (event, count) in &report.decisions {
        let event = printable(event);
        writeln!(out, "  {event:<12} {:>9} {:>9} {:>9}", count.allow, count.deny, count.warn)?;
    }
    if report.unrecorded > 0 {
        let what = count(report.unrecorded as usize, "record", "records");
        let text = format!("  {what} not written, and what waited for it refused");
        writeln!(out, "{}", style.red(text))?;
    }
    Ok(())
}

fn refusals(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    if report.refusals.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", style.bold("last refusals"))?;
    for refusal in &report.refusals {
        let pod = refusal.pod.as_ref().map(|pod| format!(" for {pod}")).unwrap_or_default();
        let head = format!("{}{pod}", refusal.image);
        writeln!(
            out,
            "  {} {} {} {}",
            style.dim(printable(&refusal.time)),
            printable(&refusal.event),
            printable(&head),
            style.red(printable(&refusal.reason))
        )?;
        writeln!(out, "    {}", printable(&refusal.message))?;
    }
    Ok(())
}

fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Enough of a digest to tell two apart.
fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

/// A duration in its largest unit.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::status::{Count, RefusalReport};

    fn text(report: &Report) -> String {
        let mut out = Vec::new();
        write_text(report, Style::plain(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_without_anything_enforces_nothing() {
        let expected = "Portcullis  is refusing everything that it judges, up 0 s
  policies   none in force, from \n  audit      seq 0 in \n  kubelet    has not called
             no kubelet has called since start (0 s): is containerRuntimeEndpoint set to unix://?
  runtime    not reached at \n  sandbox    image not known, not proven: no pod can start

nothing was judged since \n";
        assert_eq!(text(&serde_json::from_str("{}").unwrap()), expected);
    }

    #[test]
    fn a_gate_under_which_no_pod_can_start_says_so_first() {
        let mut report = Report { enforcing: true, ..Report::default() };
        let head = |report: &Report| text(report).lines().next().map(str::to_owned).unwrap();
        let grounded =
            |why: &str| format!("Portcullis  is enforcing, and no pod can start: {why}, up 0 s");
        assert_eq!(head(&report), grounded("the container runtime does not answer"));
        report.runtime.version = Some("containerd 2.1.9".into());
        assert_eq!(head(&report), grounded("the sandbox image is not known"));
        report.sandbox.image = Some("pause:3.10".into());
        assert_eq!(head(&report), grounded("the sandbox image is not proven"));
        report.sandbox.proven = true;
        assert_eq!(head(&report), "Portcullis  is ready, and kubelet has not called yet, up 0 s");
        report.kubelet = Some(ClientReport::default());
        assert_eq!(head(&report), "Portcullis  is enforcing, up 0 s");
        report.enforcing = false;
        assert_eq!(head(&report), "Portcullis  is refusing everything that it judges, up 0 s");
    }

    #[test]
    fn a_gate_that_lets_through_or_that_nobody_calls_says_so_first() {
        let mut report = Report { enforcing: true, ..Report::default() };
        report.sandbox.proven = true;
        report.policies.count = 3;
        let head = |report: &Report, only_warn: usize, called: bool| {
            let mut report = report.clone();
            report.policies.only_warn = only_warn;
            report.kubelet = called.then(ClientReport::default);
            text(&report).lines().next().map(str::to_owned).unwrap()
        };
        for (only_warn, called, expected) in [
            (0, true, "is enforcing"),
            (0, false, "is ready, and kubelet has not called yet"),
            (1, true, "is enforcing; 1 of 3 policies only warn"),
            (1, false, "is ready, and kubelet has not called yet; 1 of 3 policies only warn"),
            (3, true, "only warns: no policy in force enforces"),
            (3, false, "only warns: no policy in force enforces, and kubelet has not called yet"),
        ] {
            let expected = format!("Portcullis  {expected}, up 0 s");
            assert_eq!(head(&report, only_warn, called), expected);
        }
        report.sandbox.proven = false;
        let expected = "Portcullis  only warns: no policy in force enforces, and no pod can start: \
                        the container runtime does not answer, up 0 s";
        assert_eq!(head(&report, 3, true), expected);
    }

    #[test]
    fn policies_that_are_not_accepted_are_told() {
        let mut report = Report::default();
        report.policies.rejected = Some("a.yaml: is empty".to_owned());
        report.policies.trouble = Some("Rejected".to_owned());
        let expected = "none in force, from \n             a.yaml: is empty\n";
        assert!(text(&report).contains(expected), "{}", text(&report));
        report.policies.digest = Some("sha256:1".to_owned());
        report.policies.source_digest = report.policies.digest.clone();
        let expected = "             what is there now is not accepted, and the set in force \
                        stays:\n             a.yaml: is empty\n";
        assert!(text(&report).contains(expected), "{}", text(&report));
        report.policies.trouble = Some("Unreachable".to_owned());
        assert!(text(&report).contains("the source is not heard, and the set in force stays:\n"));
    }

    #[test]
    fn how_long_the_source_is_believed_is_told() {
        let mut report = Report::default();
        report.policies.digest = Some("sha256:1".to_owned());
        report.policies.source_digest = report.policies.digest.clone();
        report.policies.source = "kubernetes:".to_owned();
        report.policies.revision = Some(7);
        report.policies.confirmed_seconds_ago = Some(120);
        let expected =
            "set sha256:1 revision 7, loaded 0 s ago from kubernetes:, last heard 2 min ago\n";
        assert!(text(&report).contains(expected), "{}", text(&report));
        report.policies.until = Some("2026-01-01T00:00:00Z".to_owned());
        let expected = "from kubernetes:, in force until 2026-01-01T00:00:00Z\n";
        assert!(text(&report).contains(expected), "{}", text(&report));
    }

    #[test]
    fn policies_whose_time_is_over_are_not_shown_as_in_force() {
        let mut report = Report::default();
        report.policies.source = "kubernetes:".to_owned();
        report.policies.until = Some("2026-01-01T00:00:00Z".to_owned());
        report.policies.trouble = Some("Expired".to_owned());
        report.policies.rejected = Some("they expired".to_owned());
        let expected = "none in force, from kubernetes:\n             they expired\n";
        assert!(text(&report).contains(expected), "{}", text(&report));
    }

    #[test]
    fn a_floor_that_decides_alone_is_not_shown_as_the_source() {
        let mut report = Report::default();
        report.policies.source = "kubernetes:".to_owned();
        report.policies.digest = Some("sha256:1".to_owned());
        report.policies.count = 1;
        report.policies.rejected = Some("no answer".to_owned());
        for (trouble, source_digest) in [("Unreachable", None), ("Expired", Some("sha256:2"))] {
            report.policies.trouble = Some(trouble.to_owned());
            report.policies.source_digest = source_digest.map(str::to_owned);
            let expected = "1 policy of the floor alone, set sha256:1; none in force from \
                            kubernetes:\n             no answer\n";
            assert!(text(&report).contains(expected), "{}", text(&report));
        }
    }

    #[test]
    fn faults_and_files_that_changed_are_told() {
        let mut report = Report { faults: 2, ..Report::default() };
        report.audit.drift = Some("its head was removed".to_owned());
        report.audit.unavailable = Some("full".to_owned());
        let expected = "  audit      seq 0 in \n             full\n             \
                        not as Portcullis left it: its head was removed\n";
        let text = text(&report);
        assert!(text.contains(expected), "{text}");
        let expected = "  Portcullis 2 faults since start\n             what they ended was refused; \
                        the daemon's log says where: please report them\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_look_at_the_node_has_an_age() {
        let looked = |age: Value| looked(&json!({"images": {"total": 1}, "age_seconds": age})).0;
        let found = "1 image, 0 not proven; 0 running containers, 0 not created through Portcullis";
        assert_eq!(looked(json!(9)), format!("{found}; as of 9 s ago"));
        assert_eq!(looked(json!(600)), format!("{found}; as of 10 min ago"));
        assert_eq!(looked(Value::Null), found);
    }

    #[test]
    fn a_terminal_obeys_nothing_of_a_report() {
        let evil = "\x1b[2J\nx".to_owned();
        let refusal = RefusalReport {
            time: evil.clone(),
            event: evil.clone(),
            image: evil.clone(),
            pod: Some(evil.clone()),
            reason: evil.clone(),
            message: evil.clone(),
        };
        let mut report = Report {
            version: evil.clone(),
            started: evil.clone(),
            socket: evil.clone(),
            evidence: vec![evil.clone()],
            inventory: Some(Value::String(evil.clone())),
            decisions: BTreeMap::from([(evil.clone(), Count::default())]),
            refusals: vec![refusal],
            ..Report::default()
        };
        report.policies.rejected = Some(evil.clone());
        report.runtime.version = Some(evil.clone());
        report.sandbox.image = Some(evil.clone());
        report.other_client = Some(ClientReport { pid: 1, name: evil.clone(), seconds_ago: 1 });
        report.audit.drift = Some(evil.clone());
        report.audit.file = evil;
        assert!(!text(&report).contains('\x1b'));
    }

    #[test]
    fn durations_are_told_in_their_largest_unit() {
        let cases = [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min")];
        for (seconds, expected) in cases.into_iter().chain([(7200, "2 h"), (172_800, "2 d")]) {
            assert_eq!(ago(seconds), expected);
        }
    }
}
