//! A registry that hangs, on each request of a pull. In this process, since the product's own
//! patience is thirty seconds.

use std::time::Duration;

use portcullis::resolve::Timeouts;

use crate::support::{
    inside::{Patience, gate},
    registry::Fault,
    runtime::{FakeRuntime, ok},
};

use super::{answers, attempt_all, hold, stage};

/// Two tries of each question, then no time is left.
const HASTY: Timeouts = Timeouts {
    connect: Duration::from_secs(20),
    request: Duration::from_millis(1500),
    call: Duration::from_millis(3500),
    backoff: Duration::from_millis(1),
};

#[tokio::test]
async fn a_registry_that_hangs_is_no_judgement() {
    let faults = [("nothing", Fault::Hang), ("half an answer and no end", Fault::StallBody)];
    let cases = answers::requests().flat_map(|request| {
        faults.clone().map(|(name, fault)| {
            let message = request.open("did not answer in time");
            request.goes_wrong(name, fault).refused("registry_unreachable", message)
        })
    });
    let staged: Vec<_> = cases.enumerate().map(|(n, case)| stage(n, case)).collect();
    let policies: Vec<_> = staged.iter().map(super::Staged::policy_text).collect();

    let runtime = FakeRuntime::start(|_| ok(b""));
    let directory = tempfile::tempdir().unwrap();
    let (socket, audit_file) = (directory.path().join("s"), directory.path().join("a.jsonl"));
    let patience = Patience { registries: HASTY, ..Patience::default() };
    let policies = policies.join("---\n");
    let _gate = gate(directory.path(), runtime.socket(), &policies, patience);
    let attempts = attempt_all(&staged, &socket).await;
    hold(&staged, &attempts, &runtime, &audit_file);
}
