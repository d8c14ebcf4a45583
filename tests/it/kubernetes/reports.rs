//! What a node tells: its condition, and refusals as Events.

use portcullis::{
    audit::{Event, Observer, Outcome, Pod, Record, RequestedImage},
    image::Digest,
    kubernetes::events,
    policy::standing::{InForce, Standing, Trouble, TroubleKind},
    refusal::Code,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::support::api_server::{Fault, Gate, Request};

fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn standing(set: &str) -> Standing {
    let digest = Digest::of(set.as_bytes());
    let in_force = InForce { digest, revision: Some(7), policies: 2, since: at(0), until: None };
    Standing { in_force: Some(in_force), trouble: None, confirmed: Some(at(1)) }
}

/// A server for a node's reports.
fn client(server: &ApiServer, directory: &tempfile::TempDir, times: Times) -> Server {
    let kubeconfig = directory.path().join("kubeconfig");
    server.kubeconfig(&kubeconfig, "", "");
    Server::new(Config { kubeconfig: Some(kubeconfig), times })
}

/// A node that reports how its policies stand.
struct Reporter {
    standing: watch::Sender<Standing>,
    task: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Reporter {
    fn of(server: &ApiServer, times: Times) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let client = client(server, &directory, times);
        let (tell, heard) = watch::channel(standing("one"));
        let task = tokio::spawn(async move { kubernetes::report(&client, "node-1", heard).await });
        Self { standing: tell, task, _directory: directory }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The condition in a patch, or in a node.
fn condition(of: &Value) -> Option<Value> {
    let conditions = of["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == "ImagePolicyEnforced").cloned()
}

fn patched(requests: &[Request]) -> Vec<Value> {
    let bodies = requests.iter().map(|one| serde_json::from_slice(&one.body).unwrap());
    bodies.filter_map(|body: Value| condition(&body)).collect()
}

/// Waits for so many conditions, and returns the last of them.
async fn written(server: &ApiServer, count: usize) -> Value {
    let wanted = server.until(|all| patched(all).len() >= count);
    timeout(PATIENCE, wanted).await.expect("a condition is written");
    let all = patched(&server.requests());
    assert_eq!(all.len(), count, "{all:?}");
    all[count - 1].clone()
}

#[tokio::test]
async fn a_condition_is_written_once_and_with_every_change() {
    let server = ApiServer::start();
    server.add_node("node-1");
    let reporter = Reporter::of(&server, times());
    let first = written(&server, 1).await;
    let digest = Digest::of(b"one");
    assert_eq!((&first["status"], &first["reason"]), (&json!("True"), &json!("InForce")));
    assert_eq!(
        first["message"],
        format!(
            "set {digest} revision 7 with 2 policies, in force since 2027-01-15T08:00:00Z, \
             confirmed 2027-01-15T08:00:01Z"
        )
    );
    // What is confirmed again is no change.
    reporter.standing.send_modify(|standing| standing.confirmed = Some(at(60)));
    reporter.standing.send_replace(standing("two"));
    let second = written(&server, 2).await;
    assert!(second["message"].as_str().unwrap().contains(&Digest::of(b"two").to_string()));
    assert_eq!(second["lastTransitionTime"], first["lastTransitionTime"]);
    let trouble = Trouble { kind: TroubleKind::Rejected, message: "why".into(), since: at(5) };
    reporter.standing.send_modify(|standing| standing.trouble = Some(trouble));
    let third = written(&server, 3).await;
    assert_eq!((&third["status"], &third["reason"]), (&json!("False"), &json!("Rejected")));
    // The first patch changes nothing and shows the node; no other question is asked.
    let path = "PATCH /api/v1/nodes/node-1/status";
    assert_eq!(server.asked(), [path; 4]);
    assert_eq!(server.requests()[0].body, "{}");
    server.until(|all| all.len() == 4).await;
    let node = server.node("node-1").unwrap();
    assert_eq!(node["status"]["conditions"][0], json!({"type": "Ready", "status": "True"}));
}

#[tokio::test]
async fn a_restart_is_no_transition() {
    let server = ApiServer::start();
    server.add_node("node-1");
    let reporter = Reporter::of(&server, times());
    written(&server, 1).await;
    drop(reporter);
    // As if that had been long ago.
    let moment = "2026-01-01T00:00:00Z";
    server.change_node("node-1", |node| {
        for condition in node["status"]["conditions"].as_array_mut().unwrap() {
            condition["lastTransitionTime"] = json!(moment);
        }
    });
    let reporter = Reporter::of(&server, times());
    assert_eq!(written(&server, 2).await["lastTransitionTime"], moment);
    let trouble = Trouble { kind: TroubleKind::Expired, message: "why".into(), since: at(5) };
    reporter.standing.send_modify(|standing| standing.trouble = Some(trouble));
    assert_ne!(written(&server, 3).await["lastTransitionTime"], moment);
}

#[tokio::test]
async fn a_node_that_is_not_there_yet_is_waited_for() {
    let server = ApiServer::start();
    let _reporter = Reporter::of(&server, times());
    server.until(|all| all.len() >= 3).await;
    assert_eq!(patched(&server.requests()), [] as [Value; 0]);
    server.add_node("node-1");
    written(&server, 1).await;
}

#[tokio::test]
async fn what_changes_meanwhile_is_written_once() {
    let server = ApiServer::start();
    server.add_node("node-1");
    let gate = Gate::closed();
    server.fault(1, |line| line.starts_with("PATCH"), Fault::Wait(gate.clone()));
    let reporter = Reporter::of(&server, times());
    server.until(|all| all.len() == 1).await;
    for number in 0..100 {
        reporter.standing.send_replace(standing(&number.to_string()));
    }
    gate.open();
    // What stood when it was begun, and what stands.
    let last = written(&server, 2).await;
    assert!(last["message"].as_str().unwrap().contains(&Digest::of(b"99").to_string()));
}

#[tokio::test]
async fn a_condition_that_is_not_taken_is_written_again() {
    let server = ApiServer::start();
    server.add_node("node-1");
    for fault in [
        Fault::Status(500, vec![], "{}".into()),
        Fault::Status(429, vec![("retry-after", "0".into())], "{}".into()),
        Fault::Close,
        Fault::Half,
        Fault::Status(200, vec![], "no JSON".into()),
    ] {
        server.fault(1, |line| line.starts_with("PATCH"), fault);
    }
    let _reporter = Reporter::of(&server, times());
    written(&server, 1).await;
}

#[tokio::test]
async fn an_unchanged_condition_is_written_again_after_a_while() {
    let server = ApiServer::start();
    server.add_node("node-1");
    let times = Times { refresh: Duration::from_millis(100), ..times() };
    let _reporter = Reporter::of(&server, times);
    let wanted = server.until(|all| patched(all).len() >= 3);
    timeout(PATIENCE, wanted).await.expect("it is refreshed");
    let all = patched(&server.requests());
    assert_eq!(all[0]["lastTransitionTime"], all[2]["lastTransitionTime"]);
}

#[tokio::test]
async fn a_name_that_no_node_has_is_in_no_path() {
    let server = ApiServer::start();
    let directory = tempfile::tempdir().unwrap();
    let client = client(&server, &directory, times());
    let (_tell, heard) = watch::channel(standing("one"));
    let ended = kubernetes::report(&client, "../../../x", heard);
    timeout(PATIENCE, ended).await.expect("it does not begin");
    assert_eq!(server.count(), 0);
}

fn refusal(pod: &str) -> Record {
    Record {
        decision: Some(Outcome::Deny),
        reason: Some(Code::SignatureMissing),
        image: Some(RequestedImage { requested: "app:v1".into(), ..Default::default() }),
        pod: Some(Pod { namespace: "shop".into(), name: pod.into(), uid: format!("uid-{pod}") }),
        ..Record::new(Event::Pull, "no signature")
    }
}

#[tokio::test]
async fn a_refusal_is_an_event_on_its_pod() {
    let server = ApiServer::start();
    let directory = tempfile::tempdir().unwrap();
    let client = client(&server, &directory, times());
    let (refusals, events) = events::channel();
    refusals.recorded(&refusal("web-0"), 1);
    // Tried again and again, it is told once.
    (2..10).for_each(|seq| refusals.recorded(&refusal("web-0"), seq));
    refusals.recorded(&Record { decision: Some(Outcome::Allow), ..refusal("web-1") }, 10);
    refusals.recorded(&refusal("../web-2"), 11);
    refusals.recorded(&refusal("web-3"), 12);
    drop(refusals);
    timeout(PATIENCE, events.run(&client, "node-1")).await.unwrap();
    assert_eq!(server.asked(), ["POST /api/v1/namespaces/shop/events"; 2]);
    let told = server.events();
    let about: Vec<_> = told.iter().map(|event| &event["involvedObject"]["uid"]).collect();
    assert_eq!(about, ["uid-web-0", "uid-web-3"]);
    assert_eq!(told[0]["message"], "no signature");
    assert_eq!(told[0]["reason"], "ImagePolicyRefused");
    assert_eq!(told[0]["source"], json!({"component": "portcullis", "host": "node-1"}));
}

#[tokio::test]
async fn a_storm_of_refusals_is_told_in_part() {
    let server = ApiServer::start();
    let directory = tempfile::tempdir().unwrap();
    let client = client(&server, &directory, times());
    let (refusals, events) = events::channel();
    (0..1000).for_each(|number| refusals.recorded(&refusal(&format!("web-{number}")), number));
    // More than wait at once are dropped, and more than a burst is not told.
    assert_eq!(refusals.dropped(), 1000 - 256);
    drop(refusals);
    timeout(PATIENCE, events.run(&client, "node-1")).await.unwrap();
    assert!((25..30).contains(&server.events().len()), "{}", server.events().len());
}

#[tokio::test]
async fn an_event_that_is_not_taken_is_not_tried_again() {
    let server = ApiServer::start();
    let directory = tempfile::tempdir().unwrap();
    let client = client(&server, &directory, times());
    for fault in [Fault::Status(403, vec![], "{}".into()), Fault::Close] {
        server.fault(1, |_| true, fault);
    }
    let (refusals, events) = events::channel();
    (0..3).for_each(|number| refusals.recorded(&refusal(&format!("web-{number}")), number));
    let running = tokio::spawn(async move { events.run(&client, "node-1").await });
    server.until(|all| all.len() == 3).await;
    let dropped = refusals.dropped();
    drop(refusals);
    timeout(PATIENCE, running).await.unwrap().unwrap();
    assert_eq!((server.events().len(), dropped), (1, 2));
    assert_eq!(server.count(), 3);
}
