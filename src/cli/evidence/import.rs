//! `portcullis evidence import`: a pack into the store of this node.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

use serde::Serialize;

use crate::{
    cli::{Exit, arguments::Import, style::printable},
    evidence::{Known, Store, pack},
};

use super::{Summary, config, no_directory};

/// After how many images progress is told.
const STEP: usize = 1000;

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    summary: Summary,
    new: bool,
}

pub(in crate::cli) fn run(asked: &Import, json: bool, out: &mut impl Write) -> io::Result<Exit> {
    let fail = |exit, why: String| {
        eprintln!("portcullis: {why}");
        Ok(exit)
    };
    let config = match config(&asked.at, asked.at.state.is_none()) {
        Ok(config) => config,
        Err(why) => return fail(Exit::Config, why),
    };
    // A directory that was named by mistake would take the evidence, and no daemon read it.
    if let Some(why) = no_directory(&asked.at) {
        return fail(Exit::Config, why);
    }
    let name = printable(&asked.pack.to_string_lossy());
    let all = match read(&asked.pack) {
        Ok(all) => all,
        Err(why) => return fail(Exit::Config, format!("{name}: {why}; nothing was imported")),
    };
    let (store, findings) = Store::open(&config.state.directory);
    findings.iter().for_each(|finding| eprintln!("portcullis: {finding}"));
    let (mut exit, mut kept, mut fresh) = (Exit::Success, 0, 0);
    for (number, known) in all.iter().enumerate() {
        if number > 0 && number % STEP == 0 {
            eprintln!("portcullis: {number} of {} images", all.len());
        }
        let summary = Summary::of(known);
        let new = match store.import(known) {
            Ok(new) => new,
            Err(error) => {
                eprintln!("portcullis: {} cannot be kept: {error}", summary.digest);
                exit = Exit::Inconclusive;
                continue;
            }
        };
        kept += 1;
        fresh += usize::from(new);
        if json {
            serde_json::to_writer(&mut *out, &Line { summary, new })?;
            writeln!(out)?;
            continue;
        }
        let (Summary { digest, id, .. }, counted) = (summary, summary.counted());
        let new = if new { "new" } else { "known" };
        writeln!(out, "{digest} image {id}: {counted}, {new}")?;
    }
    eprintln!("portcullis: {name}: {kept} of {} images kept, {fresh} new", all.len());
    Ok(exit)
}

/// The whole pack, or nothing of it.
fn read(path: &Path) -> Result<Vec<Known>, String> {
    let input: Box<dyn BufRead> = match path == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => {
            let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
            Box::new(BufReader::new(file))
        }
    };
    pack::read(input).collect::<Result<_, _>>().map_err(|error| error.to_string())
}
