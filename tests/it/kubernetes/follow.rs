//! Lists and watches, where all goes well.

use serde_json::json;

use super::*;
use crate::support::api_server::{Fault, Gate, policy, revocation};

#[tokio::test]
async fn a_set_is_listed_and_then_follows_every_change() {
    let server = ApiServer::start();
    server.apply(&policy("b", "registry.example/b/**"));
    server.apply(&policy("a", "registry.example/a/**"));
    let version = server.apply(&revocation("bad", 'a'));
    let mut node = Node::of(&server);
    let first = node.offer().await;
    assert_eq!(names(&first), ["imagepolicies/a", "imagepolicies/b", "revocations/bad"]);
    assert_eq!((first.revision, first.expires_at), (Some(version), None));
    first.texts.read("the API server", jiff::Timestamp::now()).unwrap();

    let version = server.apply(&policy("a", "registry.example/other/**"));
    let second = node.offer().await;
    assert_eq!((names(&second), second.revision), (names(&first), Some(version)));
    assert!(second.texts.files[0].text.contains("registry.example/other/**"));
    assert_eq!(second.texts.files[1..], first.texts.files[1..]);

    let version = server.delete("Revocation", "bad");
    let third = node.offer().await;
    assert_eq!(names(&third), ["imagepolicies/a", "imagepolicies/b"]);
    assert_eq!(third.revision, Some(version));
}

#[tokio::test]
async fn the_questions_are_those_of_a_consistent_list_and_a_watch_with_bookmarks() {
    let server = ApiServer::start();
    let version = server.touch();
    let mut node = Node::of(&server);
    node.offer().await;
    server.until_watched(2).await;
    let asked = server.asked();
    let of = |plural: &str| -> Vec<&str> {
        asked.iter().filter(|line| line.contains(plural)).map(|line| &**line).collect()
    };
    for plural in ["imagepolicies", "revocations"] {
        let path = format!("GET /apis/portcullis.dev/v1alpha1/{plural}");
        let [list, watch] = of(plural)[..] else { panic!("{asked:?}") };
        // Neither resourceVersion=0 nor any other: the newest there is.
        assert_eq!(list, format!("{path}?limit=500"));
        let watch = watch.strip_prefix(&format!(
            "{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds="
        ));
        let seconds: u64 = watch.unwrap().parse().unwrap();
        assert!((300..=600).contains(&seconds), "{seconds}");
    }
    assert_eq!(asked.len(), 4);
    let agent = concat!("portcullis/", env!("CARGO_PKG_VERSION"));
    assert!(server.requests().iter().all(|request| request.headers["user-agent"] == agent));
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let server = ApiServer::builder().page(2).start();
    for number in 0..5 {
        server.apply(&policy(&format!("p{number}"), "registry.example/**"));
    }
    let mut node = Node::of(&server);
    let offer = node.offer().await;
    let expected: Vec<_> = (0..5).map(|number| format!("imagepolicies/p{number}")).collect();
    assert_eq!(names(&offer), expected);
    let asked = server.asked();
    let of = |part: &str| asked.iter().filter(|line| line.contains(part)).count();
    assert_eq!(of("/imagepolicies?limit=500"), 3);
    assert_eq!(of("/imagepolicies?limit=500&continue="), 2);
}

#[tokio::test]
async fn what_changes_between_two_pages_is_heard_of() {
    let server = ApiServer::builder().page(1).start();
    for name in ["a", "b"] {
        server.apply(&policy(name, "registry.example/**"));
    }
    let gate = Gate::closed();
    server.fault(1, |line| line.contains("continue="), Fault::Wait(gate.clone()));
    let mut node = Node::of(&server);
    server.until(|all| all.iter().any(|request| request.target.contains("continue="))).await;
    server.delete("ImagePolicy", "b");
    let version = server.apply(&policy("c", "registry.example/**"));
    gate.open();
    // The list is as it was when it began. The watch tells the rest: at once, or a little later.
    let mut offer = node.offer().await;
    while offer.revision < Some(version) {
        let known = ["imagepolicies/b", "imagepolicies/c"];
        assert!(known.contains(names(&offer).last().unwrap()), "{offer:?}");
        if names(&offer) == ["imagepolicies/a", "imagepolicies/c"] {
            return;
        }
        offer = node.offer().await;
    }
    assert_eq!(names(&offer), ["imagepolicies/a", "imagepolicies/c"]);
}

#[tokio::test]
async fn objects_that_are_applied_together_are_one_set() {
    let server = ApiServer::start();
    // Longer than in production, since the machine of a test may be busy.
    let (settle, settle_at_most) = (Duration::from_secs(1), Duration::from_secs(10));
    let times = Times { settle, settle_at_most, ..times() };
    let mut node = Node::with(&server, times, "", "");
    node.offer().await;
    server.until_watched(2).await;
    let mut version = 0;
    for number in 0..20 {
        version = server.apply(&policy(&format!("p{number}"), "registry.example/**"));
        server.apply(&revocation(&format!("r{number}"), 'a'));
    }
    let offer = node.offer().await;
    assert_eq!((names(&offer).len(), offer.revision), (40, Some(version + 1)));
    node.silent();
}

#[tokio::test]
async fn steady_changes_do_not_hold_a_set_back() {
    let server = ApiServer::start();
    let (settle, settle_at_most) = (Duration::from_secs(3600), Duration::from_millis(300));
    let mut node = Node::with(&server, Times { settle, settle_at_most, ..times() }, "", "");
    node.offer().await;
    server.until_watched(2).await;
    let began = std::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let heard = loop {
        tokio::select! {
            heard = node.next() => break heard,
            _ = ticks.tick() => {
                let images = format!("registry.example/{}", began.elapsed().as_nanos());
                server.apply(&policy("p", &images));
            }
        }
    };
    assert!(matches!(heard, Heard::Offer(_)), "{heard:?}");
    assert!(began.elapsed() >= settle_at_most, "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_changes_no_text_is_no_new_set() {
    let server = ApiServer::start();
    server.apply(&policy("p", "registry.example/**"));
    let mut node = Node::of(&server);
    let first = node.offer().await;
    server.until_watched(2).await;
    let mut labelled = policy("p", "registry.example/**");
    labelled["metadata"]["labels"] = json!({"team": "a"});
    server.apply(&labelled);
    server.bookmark();
    node.unchanged().await;
    assert!(first.texts.files[0].text.contains("registry.example"));
    assert!(!first.texts.files[0].text.contains("resourceVersion"));
}

#[tokio::test]
async fn bookmarks_confirm_and_advance() {
    let server = ApiServer::start();
    let mut node = Node::of(&server);
    node.offer().await;
    server.until_watched(2).await;
    let version = server.touch();
    server.bookmark();
    node.unchanged().await;
    server.end_watches();
    let from = format!("resourceVersion={version}&");
    server.until(|all| all.iter().filter(|one| one.target.contains(&from)).count() == 2).await;
    node.silent();
}

#[tokio::test]
async fn bookmarks_in_quick_succession_are_told_rarely() {
    let server = ApiServer::start();
    let times = Times { unchanged: Duration::from_secs(3600), ..times() };
    let mut node = Node::with(&server, times, "", "");
    node.offer().await;
    server.until_watched(2).await;
    for number in 0..10 {
        server.bookmark();
        server.apply(&policy("p", &format!("registry.example/{number}")));
        // Nothing but the changes.
        node.offer().await;
    }
    node.silent();
}

#[tokio::test]
async fn objects_that_are_no_policies_are_offered_as_they_are() {
    let server = ApiServer::start();
    let mut wrong = policy("p", "registry.example/**");
    wrong["spec"]["unknown"] = json!(true);
    server.apply(&wrong);
    let offer = Node::of(&server).offer().await;
    let problems = offer.texts.read("the API server", jiff::Timestamp::now()).unwrap_err();
    assert!(problems.to_string().contains("spec.unknown"), "{problems}");
}

#[tokio::test]
async fn what_is_too_large_to_be_a_policy_is_rejected_by_name() {
    let server = ApiServer::start();
    let mut node = Node::of(&server);
    node.offer().await;
    server.until_watched(2).await;
    server.apply(&policy("huge", &"x".repeat(1_100_000)));
    let Heard::Rejected(problems) = node.next().await else { panic!() };
    assert_eq!(problems.to_string(), "imagepolicies/huge: is larger than 1048576 bytes");
    server.delete("ImagePolicy", "huge");
    assert_eq!(names(&node.offer().await), [""; 0]);
}

#[tokio::test]
async fn whoever_asks_is_told_what_there_is_now() {
    let server = ApiServer::start();
    server.apply(&policy("p", "registry.example/**"));
    let mut node = Node::of(&server);
    let first = node.offer().await;
    server.until_watched(2).await;
    let version = server.touch();
    node.asked.notify_one();
    let second = node.offer().await;
    assert_eq!((second.texts, second.revision), (first.texts, Some(version)));
    let lists = server.asked().iter().filter(|line| line.contains("?limit")).count();
    assert_eq!(lists, 4);
}

#[tokio::test]
async fn one_look_is_all_that_is_asked_for() {
    let server = ApiServer::start();
    let version = server.apply(&policy("p", "registry.example/**"));
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    server.kubeconfig(&kubeconfig, "", "");
    let config = Config { kubeconfig: Some(kubeconfig), times: times() };
    let offer = kubernetes::once(&Server::new(config.clone())).await.unwrap();
    assert_eq!((names(&offer), offer.revision), (vec!["imagepolicies/p"], Some(version)));
    assert_eq!(server.count(), 2);
    server.forget_kind("revocations");
    let why = kubernetes::once(&Server::new(config)).await.unwrap_err();
    assert_eq!(
        why,
        format!(
            "the API server {} does not know revocations.portcullis.dev (404 Not Found): apply \
             packaging/kubernetes/crds",
            server.url()
        )
    );
}
