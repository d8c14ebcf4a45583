//! Processes that end with the test, even if that is killed.

use std::{
    ffi::OsStr,
    process::{Child, Command},
    sync::mpsc,
    thread,
};

/// A command for a program to which the kernel sends the signal when this process is gone. It has
/// to be started by [`spawn`].
pub(crate) fn command(signal: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

/// Starts such a command.
pub(crate) fn spawn(mut command: Command) -> Child {
    // The kernel means the thread that was the parent, so that is one which stays.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(command.spawn());
        loop {
            thread::park();
        }
    });
    receiver.recv().expect("the thread answers").unwrap()
}
