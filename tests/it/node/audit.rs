//! Nothing is allowed unrecorded: the disk under the audit log fails.

use std::{fs, process::Stdio};

use crate::support::{
    cri::{PULL_IMAGE, VERSION, pull},
    grpc::framed,
};

use super::{Node, verify};

/// A limit on the size of files, in blocks of 512 bytes (1 KiB where sh is bash), that makes
/// writes fail as a full disk does.
fn full_after(blocks: usize) -> String {
    format!("trap '' XFSZ; ulimit -S -f {blocks}; exec \"$0\" \"$@\"")
}

#[tokio::test]
async fn with_a_full_disk_nothing_is_pulled_and_other_calls_pass() {
    let node = Node::new();
    let gate = node.setup().start_by(&full_after(0), Stdio::null());
    let client = gate.client().await;
    let told = client.unary(PULL_IMAGE, &pull(&node.image(), "shop")).await.status();
    let message = format!(
        "SignatureValidationFailed: nothing is allowed unrecorded, and the audit log is not \
         writable: cannot write {}: File too large (os error 27): check the path, the disk and the \
         kernel's log",
        gate.audit_file().display()
    );
    assert_eq!(told, (2, message.clone()));
    // A refusal is no exception.
    let told = client.unary(PULL_IMAGE, &pull("other.example.com/app", "shop")).await.status();
    assert_eq!(told, (2, message));
    assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
    assert_eq!(node.runtime.paths(), [VERSION]);
}

#[tokio::test]
async fn a_disk_that_fills_up_stops_pulls_until_there_is_room() {
    let node = Node::new();
    let gate = node.setup().start_by(&full_after(16), Stdio::null());
    let client = gate.client().await;
    let request = pull(&node.image(), "shop");
    let mut allowed = 0;
    let message = loop {
        let (code, message) = client.unary(PULL_IMAGE, &request).await.status();
        if code != 0 {
            break message;
        }
        allowed += 1;
        assert!(allowed < 100, "the disk never fills up");
    };
    assert!(message.starts_with("SignatureValidationFailed: nothing is allowed"), "{message}");
    assert!(allowed > 0);
    assert_eq!(client.unary(PULL_IMAGE, &request).await.status().1, message);
    assert_eq!(node.runtime.take().len(), allowed);
    // Whole lines only, one an allowed pull.
    assert_eq!(gate.records("pull").len(), allowed);

    // Room: the log is rotated away.
    let rotated = gate.path().join("audit.jsonl.1");
    fs::rename(gate.audit_file(), &rotated).unwrap();
    assert_eq!(client.unary(PULL_IMAGE, &request).await.status(), (0, String::new()));
    assert_eq!(node.runtime.paths(), [PULL_IMAGE]);
    assert_eq!(gate.records("pull").len(), 1);
    let state = gate.path().join("state");
    let (code, text) = verify(&[&rotated, &gate.audit_file()], &state);
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test]
async fn a_log_that_is_none_keeps_the_gate_closed() {
    let node = Node::new();
    let scratch = tempfile::tempdir().unwrap();
    let foreign = scratch.path().join("foreign");
    fs::write(&foreign, "precious\n").unwrap();
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(&foreign, &link).unwrap();
    let none = "is not a regular file: name one as the audit file";
    let other = "holds something else than audit records: move it away, or name another file";
    for (path, code, why) in [
        ("/dev/full".as_ref(), 78, none),
        (scratch.path(), 78, none),
        (&*foreign, 78, other),
        (&link, 2, "name the file itself, not a symbolic link"),
    ] {
        let setup = node.setup().audit_file(path);
        let (status, log) = setup.start_in_vain();
        assert_eq!(status.code(), Some(code), "{log}");
        assert!(log.contains(why), "{log}");
        assert!(!setup.path().join("p.sock").exists());
    }
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "precious\n");
}
