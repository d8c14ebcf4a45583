//! What goes wrong on the way, and what is then told.

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::support::api_server::{Fault, Request, policy, revocation};

const POLICIES: &str = "/apis/portcullis.dev/v1alpha1/imagepolicies";

/// A node that follows a server with one policy, and watches both kinds.
async fn following(server: &ApiServer) -> Node {
    server.apply(&policy("p", "registry.example/**"));
    let mut node = Node::of(server);
    node.offer().await;
    server.until_watched(2).await;
    node
}

fn watches(line: &str) -> bool {
    line.contains("watch=true")
}

fn lists(line: &str) -> bool {
    line.contains("?limit=")
}

fn count(server: &ApiServer, what: impl Fn(&str) -> bool) -> usize {
    server.asked().iter().filter(|line| what(line)).count()
}

/// Waits until both kinds are watched anew after `before` watches. How many are open says nothing:
/// one may be back before the other one is gone.
async fn resumed(server: &ApiServer, before: usize) {
    let line = |request: &Request| format!("{} {}", request.method, request.target);
    let since = |requests: &[Request]| requests.iter().filter(|one| watches(&line(one))).count();
    server.until(|requests| since(requests) >= before + 2).await;
    server.until_watched(2).await;
}

/// The same with its server for the subject.
fn of(server: &ApiServer, why: &str) -> String {
    format!("the API server {} {why}", server.url())
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_where_it_was() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    let version = server.apply(&policy("q", "registry.example/**"));
    node.offer().await;
    server.end_watches();
    let from = format!("resourceVersion={version}&");
    server.until(|all| all.iter().any(|one| one.target.contains(&from))).await;
    server.until_watched(2).await;
    server.apply(&policy("r", "registry.example/**"));
    assert_eq!(names(&node.offer().await).len(), 3);
    assert_eq!(count(&server, lists), 2);
    node.silent();
}

#[tokio::test]
async fn changes_while_no_watch_was_open_are_heard_of() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    let gate = crate::support::api_server::Gate::closed();
    server.fault(2, watches, Fault::Wait(gate.clone()));
    server.end_watches();
    server.until(|all| all.iter().filter(|one| watches(&one.target)).count() == 4).await;
    server.apply(&policy("q", "registry.example/**"));
    server.delete("ImagePolicy", "p");
    gate.open();
    assert_eq!(names(&node.offer().await), ["imagepolicies/q"]);
    assert_eq!(count(&server, lists), 2);
}

#[tokio::test]
async fn half_an_event_is_not_taken_and_comes_again() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    let event = json!({"type": "DELETED", "object": policy("p", "x")}).to_string();
    for half in [&event[..event.len() / 2], "{", "\n{\"type\":"] {
        let before = count(&server, watches);
        server.break_watches(Bytes::from(half.to_owned()));
        // A connection that breaks is no news yet.
        resumed(&server, before).await;
        server.bookmark();
        node.unchanged().await;
    }
    // Nor is an event whose line does not end, whether or not the connection ends in good order.
    server.say(event);
    let before = count(&server, watches);
    server.end_watches();
    resumed(&server, before).await;
    server.apply(&policy("q", "registry.example/**"));
    assert_eq!(names(&node.offer().await), ["imagepolicies/p", "imagepolicies/q"]);
    assert_eq!(count(&server, lists), 2);
}

#[tokio::test]
async fn a_list_that_breaks_off_is_no_list() {
    let server = ApiServer::start();
    server.apply(&policy("p", "registry.example/**"));
    server.fault(1, |line| line.contains(POLICIES), Fault::Half);
    let mut node = Node::of(&server);
    assert_eq!(node.failed().await, of(&server, "broke off in the middle of its answer"));
    assert_eq!(names(&node.offer().await), ["imagepolicies/p"]);
}

#[tokio::test]
async fn what_cannot_be_read_drops_the_watch_and_is_told() {
    let object = |version: u64| {
        let mut object = policy("q", "registry.example/**");
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        object
    };
    let line =
        |event: &str, object: Value| format!("{}\n", json!({"type": event, "object": object}));
    let mut other = object(1000);
    other["kind"] = json!("Pod");
    let mut number = object(1000);
    number["metadata"]["resourceVersion"] = json!("abc");
    for (said, why) in [
        ("no JSON\n".to_owned(), "expected ident at line 1 column 2"),
        (line("SYNC", object(1000)), "its type is unknown, \"SYNC\""),
        (line("ADDED", other), "an object in it is of another kind, \"Pod\""),
        (
            line("ADDED", number),
            "its resourceVersion is no decimal number that could grow, \"abc\"",
        ),
        (line("ERROR", json!({"kind": "Status"})), "its error has no code"),
    ] {
        let server = ApiServer::start();
        let mut node = following(&server).await;
        server.say_of("imagepolicies", said);
        let told = of(
            &server,
            &format!("sent an event of imagepolicies.portcullis.dev that cannot be read: {why}"),
        );
        assert_eq!(node.failed().await, told);
        node.unchanged().await;
        assert_eq!(count(&server, lists), 2, "{why}");
    }
}

#[tokio::test]
async fn who_sends_what_cannot_be_read_again_and_again_is_asked_for_everything() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    server.fault(
        3,
        |line| line.contains(POLICIES) && watches(line),
        Fault::Status(200, vec![], "{}\n".into()),
    );
    server.end_watches();
    server.until(|all| all.iter().filter(|one| lists(&one.target)).count() == 3).await;
    let mut told = node.next().await;
    while matches!(told, Heard::Failed(_)) {
        told = node.next().await;
    }
    assert!(matches!(told, Heard::Unchanged), "{told:?}");
}

#[tokio::test]
async fn when_changes_are_no_longer_known_everything_is_listed() {
    // In the watch, and as the answer to it.
    for as_status in [false, true] {
        let server = ApiServer::start();
        let mut node = following(&server).await;
        let gone = Fault::Status(410, vec![], "{}".into());
        server.fault(if as_status { 2 } else { 0 }, watches, gone);
        server.touch();
        server.compact();
        server.end_watches();
        server.until(|all| all.iter().filter(|one| lists(&one.target)).count() == 4).await;
        server.until_watched(2).await;
        let version = server.apply(&policy("q", "registry.example/**"));
        let mut heard = node.next().await;
        while matches!(heard, Heard::Unchanged) {
            heard = node.next().await;
        }
        let Heard::Offer(offer) = heard else { panic!("{heard:?}") };
        assert_eq!((names(&offer).len(), offer.revision), (2, Some(version)));
    }
}

#[tokio::test]
async fn what_was_deleted_meanwhile_is_gone_after_a_list() {
    let server = ApiServer::start();
    server.apply(&revocation("r", 'a'));
    let mut node = following(&server).await;
    let gate = crate::support::api_server::Gate::closed();
    server.fault(2, watches, Fault::Wait(gate.clone()));
    server.end_watches();
    server.until(|all| all.iter().filter(|one| watches(&one.target)).count() == 4).await;
    server.delete("ImagePolicy", "p");
    let version = server.apply(&policy("q", "registry.example/**"));
    server.compact();
    gate.open();
    let offer = node.offer().await;
    assert_eq!(names(&offer), ["imagepolicies/q", "revocations/r"]);
    assert_eq!(offer.revision, Some(version));
}

#[tokio::test]
async fn a_list_whose_pages_are_forgotten_is_begun_anew() {
    let server = ApiServer::builder().page(1).start();
    for name in ["a", "b"] {
        server.apply(&policy(name, "registry.example/**"));
    }
    server.fault(1, |line| line.contains("continue="), Fault::Status(410, vec![], "{}".into()));
    let mut node = Node::of(&server);
    let heard = node.next().await;
    let offer = match heard {
        Heard::Offer(offer) => offer,
        other => panic!("{other:?}"),
    };
    assert_eq!(names(&offer), ["imagepolicies/a", "imagepolicies/b"]);
}

#[tokio::test]
async fn pages_of_different_times_are_no_list() {
    let server = ApiServer::builder().page(1).start();
    for name in ["a", "b"] {
        server.apply(&policy(name, "registry.example/**"));
    }
    let page = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ImagePolicyList",
                      "metadata": {"resourceVersion": "999"}, "items": []});
    server.fault(
        1,
        |line| line.contains("continue="),
        Fault::Status(200, vec![], page.to_string()),
    );
    let mut node = Node::of(&server);
    let why = "sent a list of imagepolicies.portcullis.dev that cannot be read: its pages are of \
               different times";
    assert_eq!(node.failed().await, of(&server, why));
    assert_eq!(names(&node.offer().await).len(), 2);
}

#[tokio::test]
async fn an_older_state_is_not_taken_in() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    let old = server.backup();
    server.apply(&revocation("bad", 'a'));
    node.offer().await;
    server.bookmark();
    node.unchanged().await;
    // Another replica that lags behind, or a copy that was restored.
    server.restore(old);
    node.asked.notify_one();
    let lags = |resource: &str| {
        let why = format!(
            "has an older state of {resource} than it had before: it lags behind others, or was \
             restored from a copy"
        );
        of(&server, &why)
    };
    assert_eq!(node.failed().await, lags("imagepolicies.portcullis.dev"));
    // It catches up.
    let version = server.apply(&revocation("bad", 'a'));
    assert!(version > 0);
    let mut heard = node.next().await;
    while matches!(heard, Heard::Failed(_)) {
        heard = node.next().await;
    }
    let Heard::Offer(offer) = heard else { panic!("{heard:?}") };
    assert_eq!(names(&offer), ["imagepolicies/p", "revocations/bad"]);
}

#[tokio::test]
async fn a_watch_that_goes_back_is_dropped() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    let mut object = policy("p", "registry.example/older/**");
    object["metadata"]["resourceVersion"] = json!("50");
    let event = format!("{}\n", json!({"type": "MODIFIED", "object": object}));
    server.say_of("imagepolicies", event);
    let why = "has an older state of imagepolicies.portcullis.dev than it had before: it lags \
               behind others, or was restored from a copy";
    assert_eq!(node.failed().await, of(&server, why));
    node.unchanged().await;
}

#[tokio::test]
async fn a_kind_that_is_not_defined_is_trouble_and_no_empty_list() {
    let server = ApiServer::start();
    server.apply(&policy("p", "registry.example/**"));
    server.forget_kind("revocations");
    let mut node = Node::of(&server);
    let why = "does not know revocations.portcullis.dev (404 Not Found): apply \
               packaging/kubernetes/crds";
    assert_eq!(node.failed().await, of(&server, why));
    // Policies alone are not the set, however often they change.
    server.apply(&policy("q", "registry.example/**"));
    let tried = count(&server, |line| line.contains("revocations"));
    server
        .until(|all| {
            all.iter().filter(|one| one.target.contains("revocations")).count() > tried + 3
        })
        .await;
    node.silent();
    server.define_kind("Revocation", "revocations");
    assert_eq!(names(&node.offer().await).len(), 2);
}

#[tokio::test]
async fn a_server_that_wants_to_be_left_alone_is() {
    for status in [429, 503] {
        let server = ApiServer::start();
        let busy = Fault::Status(status, vec![("retry-after", "1".into())], "busy".into());
        server.fault(1, |line| line.contains(POLICIES), busy);
        let began = std::time::Instant::now();
        let mut node = Node::of(&server);
        let name = if status == 429 { "Too Many Requests" } else { "Service Unavailable" };
        assert_eq!(node.failed().await, of(&server, &format!("answered {status} {name}")));
        node.offer().await;
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(count(&server, lists), 3);
    }
}

#[tokio::test]
async fn an_error_within_a_watch_is_told() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    let status = json!({"kind": "Status", "code": 500, "message": "etcd at 10.0.0.1:2379"});
    server.say(format!("{}\n", json!({"type": "ERROR", "object": status})));
    assert_eq!(node.failed().await, of(&server, "answered 500 Internal Server Error"));
    node.unchanged().await;
}

#[tokio::test]
async fn without_permission_the_remedy_is_told() {
    let server = ApiServer::start();
    server.fault(4, |line| line.contains(POLICIES), Fault::Status(403, vec![], "{}".into()));
    let mut node = Node::of(&server);
    let why = "does not let this node read imagepolicies.portcullis.dev (403 Forbidden): apply \
               packaging/kubernetes/rbac.yaml";
    assert_eq!(node.failed().await, of(&server, why));
    // Told once, and not with every try.
    node.offer().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_told_of_once_and_its_return_too() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    server.fault(12, |_| true, Fault::Close);
    server.break_watches("");
    assert_eq!(node.failed().await, of(&server, "closed the connection without an answer"));
    node.unchanged().await;
    assert_eq!(count(&server, lists), 2);
    server.apply(&policy("q", "registry.example/**"));
    assert_eq!(names(&node.offer().await).len(), 2);
}

#[tokio::test]
async fn nobody_there_is_told() {
    let server = ApiServer::start();
    let directory = tempfile::tempdir().unwrap();
    server.kubeconfig(&directory.path().join("kubeconfig"), "", "");
    let expected = of(&server, "refused the connection");
    drop(server);
    let mut node = Node::start(directory, times());
    assert_eq!(node.failed().await, expected);
}

#[tokio::test]
async fn who_does_not_answer_is_not_waited_for() {
    let times = Times { answer: Duration::from_millis(100), ..times() };
    let server = ApiServer::start();
    server.fault(1, |line| line.contains(POLICIES), Fault::Stall);
    let mut node = Node::with(&server, times, "", "");
    assert_eq!(node.failed().await, of(&server, "did not end its answer in time"));
    node.offer().await;

    let server = ApiServer::start();
    let gate = crate::support::api_server::Gate::closed();
    server.fault(1, |line| line.contains(POLICIES), Fault::Wait(gate));
    let mut node = Node::with(&server, times, "", "");
    assert_eq!(node.failed().await, of(&server, "did not answer in time"));
    node.offer().await;
}

#[tokio::test]
async fn a_watch_that_stays_silent_is_dropped() {
    let server = ApiServer::builder().keeps_watches().start();
    let second = Duration::from_millis(200);
    let times = Times { watch: second, grace: second, ..times() };
    let mut node = Node::with(&server, times, "", "");
    node.offer().await;
    // Nothing comes on them, and they do not end: others are opened, from the same version.
    server.until(|all| all.iter().filter(|one| watches(&one.target)).count() >= 4).await;
    assert_eq!(count(&server, lists), 2);
    assert!(server.connections() >= 4, "{}", server.connections());
}

#[tokio::test]
async fn an_endless_line_is_no_event() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    for _ in 0..5 {
        server.say_of("imagepolicies", vec![b' '; 1024 * 1024]);
    }
    let why = "sent an event of imagepolicies.portcullis.dev that cannot be read: it has no end";
    assert_eq!(node.failed().await, of(&server, why));
}

#[tokio::test]
async fn a_watch_without_an_end_is_cut_and_resumed() {
    let server = ApiServer::start();
    let mut node = following(&server).await;
    let empty = Bytes::from(vec![b'\n'; 1024 * 1024]);
    for _ in 0..64 {
        server.say_of("imagepolicies", empty.clone());
    }
    server.say_of("imagepolicies", "\n");
    server.until(|all| all.iter().filter(|one| watches(&one.target)).count() == 3).await;
    server.until_watched(2).await;
    server.apply(&policy("q", "registry.example/**"));
    assert_eq!(names(&node.offer().await).len(), 2);
    assert_eq!(count(&server, lists), 2);
}

#[tokio::test]
async fn an_endless_list_is_not_read_to_its_end() {
    let server = ApiServer::start();
    let huge = " ".repeat(64 * 1024 * 1024 + 1);
    server.fault(1, |line| line.contains(POLICIES), Fault::Status(200, vec![], huge));
    let mut node = Node::of(&server);
    assert_eq!(node.failed().await, of(&server, "sent more than 67108864 bytes"));
    // And neither is one that always has another page.
    let server = ApiServer::start();
    let page = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ImagePolicyList", "items": [],
                      "metadata": {"resourceVersion": "999", "continue": "more"}});
    server.fault(
        1000,
        |line| line.contains(POLICIES),
        Fault::Status(200, vec![], page.to_string()),
    );
    let mut node = Node::of(&server);
    let why = "sent a list of imagepolicies.portcullis.dev that cannot be read: it has more than \
               1000 pages";
    assert_eq!(node.failed().await, of(&server, why));
}
