//! Many pulls at once, pulls that nobody waits for any more, and policies that change under them.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{
    cri::{PULL_IMAGE, VERSION, pull},
    grpc::{Client, framed},
    registry::{Fault, Gate as Held, Match, Request, TestRegistry},
    sign::{self, Signer},
};

use super::{Node, swap, until, whole};

/// Returns when the daemon has taken up every call that was begun on this connection before.
async fn taken_up(client: &Client) {
    for _ in 0..10 {
        assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
    }
}

impl Node {
    /// Holds back the next request for the manifest.
    fn hold(&self) -> Held {
        let held = Held::closed();
        let manifest = Match::manifest("app", self.digest);
        self.registry.fault(manifest, Fault::Wait(held.clone()));
        held
    }

    /// Waits until the manifest was asked for so often.
    async fn asked(&self, times: usize) {
        let path = format!("/v2/app/manifests/{}", self.digest);
        let count = |requests: &[Request]| requests.iter().filter(|r| r.target == path).count();
        self.registry.until(|requests| count(requests) >= times).await;
    }

    fn pulls(&self) -> usize {
        self.runtime.paths().iter().filter(|path| *path == PULL_IMAGE).count()
    }
}

#[tokio::test]
async fn a_wave_of_equal_pulls_is_one_judgement_and_each_is_recorded() {
    const WAVE: usize = 200;
    let node = Node::new();
    let gate = node.setup().start();
    let held = node.hold();
    let client = gate.client().await;
    let mut calls = JoinSet::new();
    for _ in 0..WAVE {
        let (client, request) = (client.clone(), pull(&node.image(), "shop"));
        calls.spawn(async move { client.unary(PULL_IMAGE, &request).await.status() });
    }
    node.asked(1).await;
    taken_up(&client).await;
    held.open();
    assert_eq!(calls.join_all().await, vec![(0, String::new()); WAVE]);

    let asked: BTreeSet<_> = node.registry.asked().into_iter().collect();
    assert_eq!((node.registry.requests().len(), asked.len()), (4, 4), "{asked:?}");
    assert_eq!(node.pulls(), WAVE);
    let records = gate.records("pull");
    assert_eq!(records.len(), WAVE);
    assert!(records.iter().all(|record| record["decision"] == "allow"));
    let numbers: BTreeSet<_> = records.iter().map(|record| record["seq"].as_u64()).collect();
    assert_eq!(numbers.len(), WAVE);
    whole(&gate);
}

#[tokio::test]
async fn a_registry_that_hangs_holds_up_no_pull_from_another() {
    let (node, hung) = (Node::new(), TestRegistry::start());
    hung.fault(Match::any(), Fault::Hang);
    let policy = sign::policy("hung", &format!("{}/**", hung.host()), &[("k", &node.key)]);
    let gate = node.setup().policy("hung.yaml", &policy).start();
    let client = gate.client().await;
    let mut calls = JoinSet::new();
    for number in 0..100 {
        let request = pull(&format!("{}/app-{number}:v1", hung.host()), "shop");
        let client = client.clone();
        calls.spawn(async move { client.unary(PULL_IMAGE, &request).await.status() });
    }
    hung.until(|requests| requests.len() >= 32).await;
    taken_up(&client).await;
    let answer = client.unary(PULL_IMAGE, &pull(&node.image(), "shop")).await;
    assert_eq!(answer.status(), (0, String::new()));
    // Of the others, none was answered meanwhile.
    assert!(calls.try_join_next().is_none());
}

#[tokio::test]
async fn a_wave_of_refusals_is_recorded_too() {
    const WAVE: usize = 200;
    let node = Node::new();
    let gate = node.setup().start();
    let clients = [gate.client().await, gate.client().await];
    let mut calls = JoinSet::new();
    for number in 0..WAVE {
        let client = clients[number % 2].clone();
        let request = pull(&format!("other.example.com/app-{number}"), "shop");
        calls.spawn(async move { client.unary(PULL_IMAGE, &request).await.status().0 });
    }
    assert_eq!(calls.join_all().await, [2; WAVE]);
    let records = gate.records("pull");
    let repositories: BTreeSet<_> =
        records.iter().map(|record| record["image"]["repository"].to_string()).collect();
    assert_eq!((records.len(), repositories.len()), (WAVE, WAVE));
    assert_eq!(node.runtime.paths(), Vec::<String>::new());
    whole(&gate);
}

#[tokio::test]
async fn a_pull_that_its_client_gave_up_does_not_reach_the_runtime() {
    let node = Node::new();
    let gate = node.setup().start();
    let held = node.hold();
    let (first, second) = (gate.client().await, gate.client().await);
    let request = pull(&node.image(), "shop");
    let given_up = tokio::spawn({
        let request = request.clone();
        async move { first.unary(PULL_IMAGE, &request).await.status() }
    });
    node.asked(1).await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    // The gate has heard of it before it takes up what comes after.
    taken_up(&second).await;
    let mut patient = tokio::spawn({
        let (second, request) = (second.clone(), request.clone());
        async move { second.unary(PULL_IMAGE, &request).await.status() }
    });
    taken_up(&second).await;
    held.open();
    assert_eq!((&mut patient).await.unwrap(), (0, String::new()));
    assert_eq!(second.unary(PULL_IMAGE, &request).await.status().0, 0);
    assert_eq!((node.pulls(), gate.records("pull").len()), (2, 2));
}

#[tokio::test]
async fn a_deadline_that_passes_ends_the_pull() {
    let node = Node::new();
    let gate = node.setup().start();
    let held = node.hold();
    let client = gate.client().await;
    let request = framed(&prost::Message::encode_to_vec(&pull(&node.image(), "shop")));
    let answer = client.call(PULL_IMAGE, &[("grpc-timeout", "1m")], request).await;
    assert_eq!(answer.status(), (4, "context deadline exceeded".to_owned()));
    held.open();
    assert_eq!(client.unary(PULL_IMAGE, &pull(&node.image(), "shop")).await.status().0, 0);
    assert_eq!(node.pulls(), 1);
}

#[tokio::test]
async fn without_a_runtime_a_pull_fails_at_once() {
    let node = Node::new();
    let nobody = node.runtime.socket().with_file_name("nobody.sock");
    let setup = crate::support::gate::Setup::before(&nobody);
    let gate = setup.policy("p.yaml", &node.policy(&node.key)).start();
    let client = gate.client().await;
    assert_eq!(
        client.unary(PULL_IMAGE, &pull(&node.image(), "shop")).await.status(),
        (
            14,
            format!(
                "cannot connect to the container runtime at {}: No such file or directory (os \
                 error 2)",
                nobody.display()
            )
        )
    );
    assert_eq!(gate.records("pull")[0]["decision"], "allow");
}

/// Pulls on and on, until it is told to stop; the codes it got.
async fn keep_pulling(
    client: Client,
    image: String,
    stop: tokio::sync::watch::Receiver<bool>,
) -> Vec<i32> {
    let mut codes = Vec::new();
    while !*stop.borrow() {
        codes.push(client.unary(PULL_IMAGE, &pull(&image, "shop")).await.status().0);
    }
    codes
}

#[tokio::test]
async fn a_stricter_set_is_in_force_for_the_next_pull_and_a_broken_one_never() {
    let node = Node::new();
    let gate = node.setup().start();
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let mut load = JoinSet::new();
    for _ in 0..4 {
        load.spawn(keep_pulling(gate.client().await, node.image(), stopping.clone()));
    }
    let client = gate.client().await;
    let file = gate.path().join("policies/p.yaml");
    let policy_events = || gate.records("policy");

    // A broken set.
    swap(&file, "kind: [");
    until("the broken set is noticed", || policy_events().len() == 2).await;
    let message = policy_events()[1]["message"].as_str().unwrap().to_owned();
    let place = format!("policies are not loaded, the set in force stays: {}:1:", file.display());
    assert!(message.starts_with(&place), "{message}");
    assert_eq!(client.unary(PULL_IMAGE, &pull(&node.image(), "shop")).await.status().0, 0);

    // A stricter one.
    swap(&file, &node.policy(&Signer::new()));
    until("the stricter set is in force", || policy_events().len() == 3).await;
    let told = client.unary(PULL_IMAGE, &pull(&node.image(), "shop")).await.status();
    assert_eq!(told.0, 2, "{told:?}");
    stop.send(true).unwrap();
    let codes = load.join_all().await.concat();

    // Each judgement was under one set, and each set judged in one way.
    let sets: Vec<_> =
        policy_events().iter().map(|record| record["policy_set"]["digest"].clone()).collect();
    assert!(sets[0].is_string() && sets[1] == Value::Null && sets[2].is_string());
    let records = gate.records("pull");
    assert_eq!(records.len(), codes.len() + 2);
    for record in &records {
        let expected = if record["policy_set"]["digest"] == sets[0] { "allow" } else { "deny" };
        assert_eq!(record["decision"], expected, "{record}");
    }
    let allowed = records.iter().filter(|record| record["decision"] == "allow").count();
    assert_eq!(
        (node.pulls(), codes.iter().filter(|code| **code == 0).count()),
        (allowed, allowed - 1)
    );
    assert!(codes.iter().all(|code| [0, 2].contains(code)), "{codes:?}");
    whole(&gate);
}

#[tokio::test]
async fn a_hang_up_reads_the_policies_anew() {
    let node = Node::new();
    let gate = node.setup().start();
    gate.signal(Signal::SIGHUP);
    until("the set is read again", || gate.records("policy").len() == 2).await;
    let unchanged = "policies load; the set in force is unchanged";
    assert_eq!(gate.records("policy")[1]["message"], unchanged);
    swap(&gate.path().join("policies/q.yaml"), "");
    until("the broken set is noticed", || gate.records("policy").len() == 3).await;
    gate.signal(Signal::SIGHUP);
    until("and told again", || gate.records("policy").len() == 4).await;
    std::fs::remove_file(gate.path().join("policies/q.yaml")).unwrap();
    until("and its end as well", || gate.records("policy").len() == 5).await;
    let events = gate.records("policy");
    assert_eq!(events[2]["message"], events[3]["message"]);
    assert_eq!(events[4]["message"], unchanged);
    let client = gate.client().await;
    assert_eq!(client.unary(PULL_IMAGE, &pull(&node.image(), "shop")).await.status().0, 0);
}
