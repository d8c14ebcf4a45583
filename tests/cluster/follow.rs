//! A node that follows a real API server, with the permissions of packaging/kubernetes/rbac.yaml
//! and no other, where the server knows permissions.

use std::{path::Path, sync::Arc, time::Duration};

use portcullis::{
    audit::{Event, Observer, Outcome, Pod, Record, RequestedImage},
    image::Digest,
    kubernetes::{self, Config, Server, Times, events},
    policy::{
        Heard, Offer,
        standing::{InForce, Standing},
    },
    refusal::Code,
};
use serde_json::Value;
use tokio::{
    runtime::Runtime,
    sync::{Notify, mpsc, watch},
    time::timeout,
};

use crate::{
    cluster::{Cluster, Server as Kind},
    crds::install,
};

/// Longer than a restart takes to be noticed.
const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "system:node:one";

fn policy(name: &str, images: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: {name}}}\n\
         spec:\n  match: {{images: [{images:?}]}}\n\
         \x20 authorities: [{{name: a, unsigned: {{reason: a test}}}}]\n"
    )
}

fn revocation(digit: char) -> String {
    let digest = digit.to_string().repeat(64);
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: bad}}\n\
         spec: {{digests: ['sha256:{digest}']}}\n"
    )
}

fn allow(cluster: &Cluster) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes/rbac.yaml");
    cluster.ask(&["apply", "-f", file.to_str().unwrap()]);
}

/// A client of the API server with kubelet's certificate.
fn client(cluster: &Cluster) -> Server {
    let kubeconfig = Some(cluster.kubeconfig_of(NODE, "system:nodes"));
    let times = Times { spread: Duration::ZERO, ..Times::default() };
    Server::new(Config { kubeconfig, times })
}

/// A node that follows, on threads of its own.
struct Node {
    runtime: Runtime,
    heard: mpsc::Receiver<Heard>,
    asked: Arc<Notify>,
}

impl Node {
    fn of(cluster: &Cluster) -> Self {
        let runtime = Runtime::new().unwrap();
        let (tell, heard) = mpsc::channel(16);
        let asked = Arc::new(Notify::new());
        let (server, again) = (client(cluster), asked.clone());
        runtime.spawn(async move { kubernetes::run(&server, tell, again).await });
        Self { runtime, heard, asked }
    }

    /// What is heard next, but for word that nothing has changed.
    fn next(&mut self) -> Heard {
        let heard = async {
            loop {
                match self.heard.recv().await.unwrap() {
                    Heard::Unchanged => {}
                    other => return other,
                }
            }
        };
        self.runtime.block_on(async { timeout(PATIENCE, heard).await.expect("something is heard") })
    }

    #[track_caller]
    fn offer(&mut self) -> Offer {
        match self.next() {
            Heard::Offer(offer) => offer,
            other => panic!("{other:?} is no offer"),
        }
    }
}

fn names(offer: &Offer) -> Vec<&str> {
    offer.texts.files.iter().map(|text| &*text.name).collect()
}

pub(crate) fn every_change_is_heard_within_a_second(cluster: Cluster) {
    install(&cluster);
    if cluster.server() == Kind::Whole {
        allow(&cluster);
    }
    cluster.apply(&policy("one", "registry.example.com/**"));
    let mut node = Node::of(&cluster);
    let first = node.offer();
    assert_eq!(names(&first), ["imagepolicies/one"]);
    first.texts.read("the API server", jiff::Timestamp::now()).unwrap();
    cluster.apply(&format!("{}---\n{}", policy("two", "other.example.com/**"), revocation('a')));
    let applied = std::time::Instant::now();
    let mut second = node.offer();
    // Two requests, which are mostly one set.
    if names(&second).len() < 3 {
        second = node.offer();
    }
    assert!(applied.elapsed() < Duration::from_secs(1), "{:?}", applied.elapsed());
    assert_eq!(names(&second), ["imagepolicies/one", "imagepolicies/two", "revocations/bad"]);
    assert!(second.revision > first.revision);
    cluster.ask(&["delete", "imagepolicy", "one"]);
    let third = node.offer();
    assert_eq!(names(&third), ["imagepolicies/two", "revocations/bad"]);
    assert!(third.revision > second.revision);
    node.asked.notify_one();
    let again = node.offer();
    assert_eq!(again.texts, third.texts);
    assert!(again.revision >= third.revision);
}

pub(crate) fn a_restart_of_the_api_server_is_survived(mut cluster: Cluster) {
    install(&cluster);
    if cluster.server() == Kind::Whole {
        allow(&cluster);
    }
    cluster.apply(&policy("one", "registry.example.com/**"));
    let mut node = Node::of(&cluster);
    let first = node.offer();
    cluster.stop_api_server();
    // A question that was under way may have been cut off first.
    let end = format!("the API server {} refused the connection", cluster.url());
    while !matches!(node.next(), Heard::Failed(why) if why == end) {}
    // What was watched from is past, so that everything is listed.
    cluster.compact();
    cluster.start_api_server();
    cluster.apply(&policy("two", "registry.example.com/**"));
    // While it starts it answers in part, and what it has may be told before what is applied.
    let second = loop {
        if let Heard::Offer(offer) = node.next()
            && names(&offer).len() == 2
        {
            break offer;
        }
    };
    assert_eq!(names(&second), ["imagepolicies/one", "imagepolicies/two"]);
    assert!(second.revision > first.revision);
}

pub(crate) fn without_crds_and_permission_the_remedy_is_told(cluster: Cluster) {
    let (url, mut node) = (cluster.url(), Node::of(&cluster));
    let told = |heard: Heard| match heard {
        Heard::Failed(why) => why,
        other => panic!("{other:?} is no failure"),
    };
    let forbidden = format!(
        "the API server {url} does not let this node read imagepolicies.portcullis.dev (403 \
         Forbidden): apply packaging/kubernetes/rbac.yaml"
    );
    let unknown = format!(
        "the API server {url} does not know imagepolicies.portcullis.dev (404 Not Found): apply \
         packaging/kubernetes/crds"
    );
    // The two kinds are asked for side by side, and the first failure is told first.
    let until = |node: &mut Node, wanted: &str| while told(node.next()) != wanted {};
    if cluster.server() == Kind::Whole {
        until(&mut node, &forbidden);
        allow(&cluster);
    }
    until(&mut node, &unknown);
    install(&cluster);
    let mut heard = node.next();
    while let Heard::Failed(_) = heard {
        heard = node.next();
    }
    let Heard::Offer(offer) = heard else { panic!("{heard:?}") };
    assert_eq!(names(&offer), [""; 0]);
}

pub(crate) fn a_node_tells_its_condition_and_its_refusals(cluster: Cluster) {
    let runtime = Runtime::new().unwrap();
    for name in ["one", "two"] {
        cluster.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n"));
    }
    let digest = Digest::of(b"set");
    let since = jiff::Timestamp::UNIX_EPOCH;
    let in_force = InForce { digest, revision: Some(7), policies: 2, since, until: None };
    let standing = Standing { in_force: Some(in_force), trouble: None, confirmed: None };
    let (_tell, heard) = watch::channel(standing);
    let server = client(&cluster);
    let same = heard.clone();
    runtime.spawn(async move { kubernetes::report(&server, "one", same).await });
    let condition = || -> Value {
        let node: Value =
            serde_json::from_str(&cluster.ask(&["get", "node", "one", "-o", "json"])).unwrap();
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == "ImagePolicyEnforced").unwrap_or_default()
    };
    let begun = std::time::Instant::now();
    while condition().is_null() {
        assert!(begun.elapsed() < PATIENCE, "no condition was written");
    }
    let condition = condition();
    assert_eq!((&condition["status"], &condition["reason"]), (&"True".into(), &"InForce".into()));
    assert!(condition["message"].as_str().unwrap().contains(&digest.to_string()));
    // Of another node it may not tell.
    let server = client(&cluster);
    runtime.block_on(async {
        let told = kubernetes::report(&server, "two", heard);
        assert!(timeout(Duration::from_secs(2), told).await.is_err());
    });
    let other = cluster.ask(&["get", "node", "two", "-o", "json"]);
    assert!(!other.contains("ImagePolicyEnforced"), "{other}");

    let (refusals, events) = events::channel();
    let pod = Pod { namespace: "default".into(), name: "web-0".into(), uid: "u-1".into() };
    refusals.recorded(
        &Record {
            decision: Some(Outcome::Deny),
            reason: Some(Code::SignatureMissing),
            image: Some(RequestedImage { requested: "app:v1".into(), ..Default::default() }),
            pod: Some(pod),
            ..Record::new(Event::Pull, "no signature")
        },
        1,
    );
    let dropped = {
        let server = client(&cluster);
        let same = &refusals;
        runtime.block_on(async {
            let told = events.run(&server, "one");
            assert!(timeout(Duration::from_secs(2), told).await.is_err());
            same.dropped()
        })
    };
    assert_eq!(dropped, 0);
    let shown = cluster.ask(&[
        "get",
        "events",
        "--field-selector",
        "involvedObject.uid=u-1",
        "-o",
        "jsonpath={.items[*].type} {.items[*].reason} {.items[*].message} {.items[*].source.host}",
    ]);
    assert_eq!(shown, "Warning ImagePolicyRefused no signature one");
}

pub(crate) fn the_permissions_are_these_and_no_more(cluster: Cluster) {
    allow(&cluster);
    let node = ["--as=system:node:one", "--as-group=system:nodes"];
    let account =
        ["--as=system:serviceaccount:portcullis:portcullis", "--as-group=system:authenticated"];
    let may = |who: [&str; 2], what: &str| {
        let words: Vec<_> = what.split(' ').collect();
        cluster.kubectl(&[&["auth", "can-i"], &words[..], &who[..]].concat()).status.success()
    };
    install(&cluster);
    // The API server takes roles up a moment after it has them.
    let begun = std::time::Instant::now();
    while !may(node, "get imagepolicies.portcullis.dev") || !may(account, "create events") {
        assert!(begun.elapsed() < PATIENCE, "no permission was given");
    }
    for resource in ["imagepolicies.portcullis.dev", "revocations.portcullis.dev"] {
        for who in [node, account] {
            for verb in ["get", "list", "watch"] {
                assert!(may(who, &format!("{verb} {resource}")), "{who:?} {verb} {resource}");
            }
            for verb in ["create", "update", "patch", "delete", "deletecollection"] {
                assert!(!may(who, &format!("{verb} {resource}")), "{who:?} {verb} {resource}");
            }
        }
    }
    assert!(may(account, "patch nodes --subresource=status"));
    assert!(may(account, "create events -n shop"));
    for what in [
        "patch nodes",
        "get nodes",
        "update nodes --subresource=status",
        "list events -n shop",
        "patch events -n shop",
        "get pods -n shop",
        "get secrets -n shop",
        "get customresourcedefinitions",
    ] {
        assert!(!may(account, what), "{what}");
    }
}
