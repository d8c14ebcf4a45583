//! The state directory, or the head of the chain in it, is removed while the daemon runs.

use std::{fs, process::Command};

use super::{Node, pulled, whole};

fn status(gate: &crate::support::gate::Gate) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["status", "--config"])
        .arg(gate.path().join("config.toml"))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_removed_is_made_anew_and_that_is_told() {
    let told = "its head, or the whole state directory with what was kept there, was removed or \
                replaced while Portcullis ran; it is made anew";
    for what in ["state/audit-head", "state"] {
        let node = Node::new();
        let gate = node.setup().start();
        let client = gate.client().await;
        let app = node.pinned("app", node.app);
        assert_eq!(pulled(&client, &app).await.0, 0);
        assert!(!status(&gate).contains("its head"));
        let gone = gate.path().join(what);
        match gone.is_dir() {
            true => fs::remove_dir_all(&gone).unwrap(),
            false => fs::remove_file(&gone).unwrap(),
        }
        assert_eq!(pulled(&client, &app).await.0, 0);
        let drifts = gate.records("drift");
        assert_eq!(drifts.len(), 1, "{drifts:?}");
        assert_eq!(drifts[0]["message"], format!("the audit log: {told}"));
        assert!(gate.log().contains(told), "the daemon's log");
        assert!(status(&gate).contains(&format!("not as Portcullis left it: {told}")), "{what}");
        // The head follows its line.
        super::until("the head is written", || {
            let state = gate.path().join("state");
            let verify = Command::new(env!("CARGO_BIN_EXE_portcullis"))
                .args(["audit", "verify", "--state"])
                .args([&state, &gate.audit_file()])
                .output()
                .unwrap();
            verify.status.success()
        })
        .await;
        node.sound(&gate, &[], 2).await;
        whole(&gate.audit_file(), &gate.path().join("state"));
    }
}
