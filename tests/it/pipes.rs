//! Who reads the output goes away: what is decided stays.

use std::{
    fs, io,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::support::{
    cri::VERSION,
    gate::Setup,
    grpc::{PATIENCE, framed},
    runtime::{FakeRuntime, constant},
};

fn policy(images: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: p}}\nspec:\n  \
         match: {{images: ['{images}']}}\n  authorities: [{{name: a, unsigned: {{reason: test}}}}]\n"
    )
}

#[tokio::test]
async fn a_daemon_whose_log_nobody_reads_goes_on() {
    let runtime = FakeRuntime::start(constant(Default::default()));
    let mut gate = Setup::before(runtime.socket()).policy("p.yaml", &policy("a.io/*")).start();
    gate.close_log();
    // Each of these is told in the log.
    fs::write(gate.path().join("policies/p.yaml"), policy("b.io/*")).unwrap();
    gate.signal(Signal::SIGHUP);
    let loaded = async {
        while gate.records("policy").len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, loaded).await.expect("the new policies come into force");
    assert_eq!(gate.client().await.call(VERSION, &[], framed(b"")).await.status().0, 0);
    let (status, _files) = tokio::task::spawn_blocking(|| gate.stop()).await.unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn a_refusal_that_nobody_reads_is_no_success() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("p.yaml"), policy("a.io/*")).unwrap();
    for (command, format) in
        [("verify", "human"), ("verify", "json"), ("explain", "human"), ("explain", "json")]
    {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let status = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args([command, "-o", format, "b.io/app:v1", "--policy"])
            .arg(directory.path())
            .stdout(Stdio::from(writer))
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1), "{command} {format}");
    }
}
