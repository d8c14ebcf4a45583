//! The one binary: hands its arguments to `cli` and turns the result into an exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(portcullis::cli::run(std::env::args_os()) as u8)
}
