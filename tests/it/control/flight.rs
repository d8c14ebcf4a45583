//! Policies that change while a pull is judged.

use super::*;
use crate::support::{
    grpc::Client,
    registry::{Fault as Wrong, Gate as Held, Match},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_judged_by_the_set_of_its_start() {
    let (node, server) = (Node::new(), ApiServer::start());
    let first = server.apply(&node.lets_in("app"));
    let gate = node.follows(&server, "").start();
    let before = in_force(&gate, first).await["policy_set"].clone();
    let held = Held::closed();
    let path = format!("/v2/app/manifests/{}", node.app);
    node.registry.fault(Match::path(&path), Wrong::Wait(held.clone()));
    let pulling = tokio::spawn({
        let (socket, request) = (gate.socket(), pull(&node.image("app"), "shop"));
        async move { Client::connect(&socket).await.unary(PULL_IMAGE, &request).await.status() }
    });
    node.registry.until(|requests| requests.iter().any(|one| one.target == path)).await;
    server.delete("ImagePolicy", "app");
    let second = server.apply(&node.lets_in("other"));
    let after = in_force(&gate, second).await["policy_set"].clone();
    assert_ne!(before, after);
    held.open();
    assert_eq!(pulling.await.unwrap(), (0, String::new()));
    let record = gate.records("pull").pop().unwrap();
    assert_eq!(record["policy_set"], before);
    // The next one is judged by the next set.
    node.is_not_covered(&gate, "app").await;
    assert_eq!(gate.records("pull").pop().unwrap()["policy_set"], after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_is_told_what_the_api_server_holds() {
    let (node, server) = (Node::new(), ApiServer::start());
    let first = server.apply(&node.lets_in("app"));
    let gate = node.follows(&server, "").start();
    in_force(&gate, first).await;
    assert_eq!(reload(&gate).await, "policies load; the set in force is unchanged");
    let mut wrong = node.lets_in("app");
    wrong["spec"]["authorities"] = serde_json::json!([]);
    server.apply(&wrong);
    let said = told(&gate, 0, "not loaded").await["message"].as_str().unwrap().to_owned();
    assert_eq!(reload(&gate).await, said);
    take_down(&server);
    assert!(reload(&gate).await.starts_with("the source of policies is not heard, "));
}
