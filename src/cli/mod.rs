//! The commands: one file each. Every other output of the program is made here.

mod arguments;
mod audit;
mod check;
mod evidence;
mod explain;
mod judge;
mod policy;
mod preflight;
mod run;
mod status;
mod style;
mod verify;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
};

use clap::Parser;

use arguments::{Arguments, AuditCommand, Command, EvidenceCommand};
use style::Style;

use crate::config::Config;

/// How a command ended; the process's exit code (sysexits.h where it has a name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; the image is accepted; the chain is whole.
    Success = 0,
    /// Judged and refused; the chain is broken.
    Refused = 1,
    /// Could not judge, or could not begin.
    Inconclusive = 2,
    /// The command line is wrong.
    Usage = 64,
    /// The configuration or a policy is wrong.
    Config = 78,
}

/// Runs the program with these arguments, the first of which is its name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version were asked for and go to standard output.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Success };
            let _ = error.print();
            return exit;
        }
    };
    let out = &mut Unheard(io::stdout().lock());
    let json = arguments.output.is_json();
    let style = Style::of(&io::stdout());
    let done = match arguments.command {
        Command::Run { output, .. } if json || output.is_json() => {
            eprintln!(
                "portcullis: run prints nothing but its log; -o json is for the other commands"
            );
            Ok(Exit::Usage)
        }
        Command::Run { config, .. } => Ok(run::run(&config)),
        Command::Check { paths } => check::run(&paths, json, out),
        Command::Verify(question) => verify::run(&question, json, style, out),
        Command::Explain(question) => explain::run(&question, json, style, out),
        Command::Status { config } => status::run(&config, json, style, out),
        Command::Preflight(candidate) => preflight::run(&candidate, json, style, out),
        Command::Audit(AuditCommand::Verify { files, state }) => {
            audit::verify(&files, state.as_deref(), json, style, out)
        }
        Command::Audit(AuditCommand::Tail { file, config: of, lines, follow }) => {
            match file.map_or_else(|| config(&of, true).map(|config| config.audit.file), Ok) {
                // Ends itself when nobody reads.
                Ok(file) => audit::tail(&file, lines, follow, json, style, &mut out.0),
                Err(error) => wrong(&error),
            }
        }
        // A pack that nobody took is no success.
        Command::Evidence(EvidenceCommand::Export(asked)) => {
            evidence::export(&asked, json, &mut out.0)
        }
        Command::Evidence(EvidenceCommand::Import(asked)) => evidence::import(&asked, json, out),
        // Nor a bundle.
        Command::Policy(asked) => policy::run(&asked, json, style, &mut out.0),
    };
    match done.and_then(|exit| out.flush().map(|()| exit)) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("portcullis: {error}");
            Exit::Inconclusive
        }
    }
}

/// The daemon's configuration. That in its usual place may be absent where its defaults will do.
fn config(path: &Path, defaults_do: bool) -> Result<Config, String> {
    if defaults_do && path == Path::new(arguments::CONFIG) && !path.exists() {
        return Ok(Config::default());
    }
    Config::load(path).map_err(|error| error.to_string())
}

/// Says what is wrong with the configuration.
fn wrong(error: &str) -> io::Result<Exit> {
    eprintln!("portcullis: {error}");
    Ok(Exit::Config)
}

/// An output whose reader may go away: what is then said is lost, and the exit code still tells
/// the verdict.
struct Unheard<W>(W);

impl<W: Write> Write for Unheard<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_broken(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_broken(self.0.flush(), ())
    }
}

fn unless_broken<T>(done: io::Result<T>, unheard: T) -> io::Result<T> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(unheard),
        done => done,
    }
}
