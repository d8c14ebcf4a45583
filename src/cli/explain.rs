//! `portcullis explain`: the road to a verdict, as a tree.

use std::io::{self, Write};

use crate::{
    decide::{AuthorityOutcome, AuthorityReport, Grounds, PolicyOutcome, PolicyReport},
    refusal::Code,
};

use super::{
    Exit,
    arguments::Question,
    judge::{Judged, judge},
    style::Style,
};

pub(super) fn run(
    question: &Question,
    json: bool,
    style: Style,
    out: &mut impl Write,
) -> io::Result<Exit> {
    match judge(question) {
        Ok(judged) if json => judged.write_json(out).map(|()| judged.exit()),
        Ok(judged) => tree(question, &judged, style, out).map(|()| judged.exit()),
        Err(exit) => Ok(exit),
    }
}

fn tree(
    question: &Question,
    judged: &Judged,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    let findings = &judged.judgement.findings;
    writeln!(out, "{}", style.bold(&judged.image))?;
    match &question.namespace {
        Some(namespace) => writeln!(out, "├─ for namespace {namespace:?}")?,
        None => {
            writeln!(out, "├─ for no namespace: policies with spec.match.namespaces do not match")?
        }
    }
    let (in_force, matching) = (judged.policies.policies().len(), findings.policies.len());
    match &findings.image {
        // What is revoked is refused before any policy is asked.
        Some(image) if findings.policies.is_empty() => {
            writeln!(out, "├─ is {}", image.digest)?;
            matching_policies(question, judged, out)?;
        }
        Some(image) => {
            writeln!(out, "├─ is {}", image.digest)?;
            writeln!(
                out,
                "├─ {matching} of {in_force} {} matches",
                plural(in_force, "policy", "policies")
            )?;
        }
        None => {
            matching_policies(question, judged, out)?;
            writeln!(out, "├─ was not resolved")?;
        }
    }
    for policy in &findings.policies {
        self::policy(policy, style, out)?;
    }
    match &judged.judgement.decision {
        Ok(permit) => match permit.grounds() {
            Grounds::Satisfied => writeln!(out, "└─ {}", style.green("accepted")),
            Grounds::Warned(why) => {
                let said = style.yellow("accepted, with a warning");
                writeln!(out, "└─ {said} ({}): {why}", why.code)
            }
            Grounds::BreakGlass(_) => {
                writeln!(out, "└─ {}", style.yellow("accepted, by broken glass"))
            }
        },
        Err(refusal) => {
            let said = if refusal.code.is_judged() {
                style.red("refused")
            } else {
                style.yellow("could not judge")
            };
            writeln!(out, "└─ {said} ({}): {refusal}", refusal.code)
        }
    }
}

/// Which policies match is known without a registry.
fn matching_policies(question: &Question, judged: &Judged, out: &mut impl Write) -> io::Result<()> {
    let in_force = judged.policies.policies().len();
    let count = plural(in_force, "policy", "policies");
    match judged.policies.select(&judged.image, question.namespace.as_deref()) {
        Ok(selected) => {
            let names: Vec<_> =
                selected.policies().iter().map(|policy| format!("{:?}", policy.name)).collect();
            writeln!(out, "├─ {} of {in_force} {count} matches: {}", names.len(), names.join(", "))
        }
        Err(refusal) if refusal.code == Code::NoPolicyMatches => {
            writeln!(out, "├─ 0 of {in_force} {count} matches")
        }
        // A policy matches and says no; the verdict below names it.
        Err(_) => Ok(()),
    }
}

fn policy(policy: &PolicyReport, style: Style, out: &mut impl Write) -> io::Result<()> {
    let said = match policy.outcome {
        PolicyOutcome::Satisfied => style.green("satisfied"),
        PolicyOutcome::Refused => style.red("not satisfied"),
        PolicyOutcome::Warned => style.yellow("not satisfied, and it only warns"),
        PolicyOutcome::BreakGlass => style.yellow("not satisfied, and its glass is broken"),
    };
    let wanted = format!("wants {} of {}", policy.at_least, policy.authorities.len());
    writeln!(out, "├─ policy {:?} {wanted}: {said}", policy.name)?;
    for (number, authority) in policy.authorities.iter().enumerate() {
        let branch = if number + 1 == policy.authorities.len() { "└─" } else { "├─" };
        writeln!(out, "│  {branch} {}", line(authority, style))?;
    }
    Ok(())
}

fn line(authority: &AuthorityReport, style: Style) -> String {
    let name = &authority.name;
    match authority.outcome {
        AuthorityOutcome::Accepted => {
            let identity = authority.identity.as_deref().unwrap_or_default();
            let child = authority
                .child
                .map(|child| format!(", for the platform's child {child}"))
                .unwrap_or_default();
            format!("{} {name:?}: {identity}{child}", style.green("✓"))
        }
        AuthorityOutcome::Missed(code) => {
            let why = authority.why.as_deref().unwrap_or_default();
            format!("{} {name:?}: {why} {}", style.red("✗"), style.dim(format_args!("({code})")))
        }
    }
}

fn plural(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}
