//! `portcullis verify`: one image, one verdict.

use std::io::{self, Write};

use crate::decide::Grounds;

use super::{Exit, arguments::Question, judge::judge, style::Style};

pub(super) fn run(
    question: &Question,
    json: bool,
    style: Style,
    out: &mut impl Write,
) -> io::Result<Exit> {
    let judged = match judge(question) {
        Ok(judged) => judged,
        Err(exit) => return Ok(exit),
    };
    if json {
        judged.write_json(out)?;
        return Ok(judged.exit());
    }
    match &judged.judgement.decision {
        Ok(permit) => {
            writeln!(out, "{} {}", style.green("accepted"), permit.image())?;
            for policy in &judged.judgement.findings.policies {
                for authority in &policy.authorities {
                    let Some(identity) = &authority.identity else { continue };
                    writeln!(out, "  policy {:?}: {:?}, {identity}", policy.name, authority.name)?;
                }
            }
            if let Grounds::Warned(why) = permit.grounds() {
                let said = style.yellow("warned of:");
                writeln!(out, "  {said} {why} ({})", why.code)?;
            }
        }
        Err(refusal) if refusal.code.is_judged() => {
            writeln!(out, "{} {refusal} ({})", style.red("refused"), refusal.code)?;
        }
        Err(refusal) => {
            writeln!(out, "{} {refusal} ({})", style.yellow("could not judge"), refusal.code)?
        }
    }
    Ok(judged.exit())
}
