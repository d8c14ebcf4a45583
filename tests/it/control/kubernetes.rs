//! The API server as the source.

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::{
    metrics::talk,
    support::{api_server::revocation, ca::TestCa},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_at_the_api_server_is_enforced() {
    let (node, ca) = (Node::new(), TestCa::new());
    let client = ca.user("system:node:node-1", "system:nodes");
    let server = ApiServer::builder().client_cert(&ca, &client).start();
    fs::write(node.file("ca.pem"), ca.pem()).unwrap();
    fs::write(node.file("node.pem"), format!("{}{}", client.cert_pem, client.key_pem)).unwrap();
    let first = server.apply(&node.lets_in("app"));
    let setup = node.follows(&server, "");
    let (cluster, user) =
        ("certificate-authority: ca.pem", "client-certificate: node.pem, client-key: node.pem");
    server.kubeconfig(&node.file("kubeconfig"), cluster, user);
    let gate = setup.start();
    let record = in_force(&gate, first).await;
    assert_eq!(record["message"], "policy set in force: 1 policy");
    node.starts(&gate, "app").await;
    node.is_not_covered(&gate, "other").await;
    // Created.
    let second = server.apply(&node.lets_in("other"));
    let record = in_force(&gate, second).await;
    assert_eq!(record["message"], "policy set in force: 2 policies");
    node.starts(&gate, "other").await;
    assert_eq!(gate.records("pull").pop().unwrap()["policy_set"], record["policy_set"]);
    // Changed.
    let mut changed = node.lets_in("other");
    changed["spec"]["match"]["namespaces"] = json!(["kitchen"]);
    let began = Instant::now();
    let third = server.apply(&changed);
    while node.pull(&gate, "other").await.0 == 0 {}
    println!("from a change at the API server to the first refused pull: {:?}", began.elapsed());
    let why = "IMAGE: no policy matches this image in namespace \"shop\"; policy \"other\" covers it in \
               other namespaces only";
    node.is_refused(&gate, "other", "no_policy_matches", why).await;
    // Deleted.
    in_force(&gate, third).await;
    in_force(&gate, server.delete("ImagePolicy", "other")).await;
    node.is_not_covered(&gate, "other").await;
    // Revoked.
    let mut revoked = revocation("lost", '1');
    revoked["spec"]["digests"] = json!([node.app]);
    in_force(&gate, server.apply(&revoked)).await;
    let why = format!("IMAGE: {} is revoked by \"lost\"", node.app);
    node.is_refused(&gate, "app", "revoked", &why).await;
    let last = server.delete("Revocation", "lost");
    let record = in_force(&gate, last).await;
    node.starts(&gate, "app").await;
    let policies = &status(&gate)["policies"];
    assert_eq!(policies["count"], 1);
    for name in ["digest", "revision"] {
        assert_eq!(policies[name], record["policy_set"][name]);
    }
    assert_eq!((&policies["source"], &policies["trouble"]), (&json!("kubernetes:"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_policy_set_leaves_the_old_one_and_is_told_everywhere() {
    let (node, server) = (Node::new(), ApiServer::start());
    server.add_node("node-1");
    let first = server.apply(&node.lets_in("app"));
    let setup = node.follows(&server, "");
    let socket = setup.path().join("metrics.sock");
    let gate = setup.metrics(&format!("unix:{}", socket.display())).start();
    let good = in_force(&gate, first).await["policy_set"].clone();
    let mut wrong = node.lets_in("other");
    wrong["spec"]["modus"] = json!("Warn");
    server.apply(&wrong);
    let record = told(&gate, 0, "policies are not loaded, the set in force stays: ").await;
    let why = record["message"].as_str().unwrap();
    let why = why.strip_prefix("policies are not loaded, the set in force stays: ").unwrap();
    assert!(why.starts_with("imagepolicies/other: spec.modus: is unknown"), "{why}");
    // Whole: not even what is right of it.
    node.starts(&gate, "app").await;
    node.is_not_covered(&gate, "other").await;
    assert_eq!(gate.records("pull").pop().unwrap()["policy_set"], good);
    assert_eq!(trouble(&gate), ("Rejected".into(), why.into()));
    assert_eq!(status(&gate)["enforcing"], true);
    let page = talk(&socket, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    for sample in [
        "portcullis_policies_rejected 1",
        "portcullis_policy_trouble{kind=\"Rejected\"} 1",
        "portcullis_policies 1",
        &format!("revision=\"{first}\"}} 1"),
    ] {
        assert!(page.contains(sample), "{sample}: {page}");
    }
    // The node says so, once its turn has come: up to ten seconds after its start.
    let condition = || {
        let node = server.node("node-1").unwrap();
        let all = node["status"]["conditions"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["type"] == "ImagePolicyEnforced")
    };
    let is = |status: &'static str| {
        move || condition().filter(|condition| condition["status"] == status)
    };
    let told = until(&gate, "False", is("False")).await;
    assert_eq!(told["reason"], "Rejected");
    let message = told["message"].as_str().unwrap();
    let digest = good["digest"].as_str().unwrap();
    let head = format!("set {digest} revision {first} with 1 policy, in force since ");
    assert!(message.starts_with(&head) && message.ends_with(why), "{message}");
    // And the refusal of its pod stands where the pod's author looks.
    let event = until(&gate, "an Event", || server.events().pop()).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "uid-1",
    });
    let refused = gate.records("pull").pop().unwrap();
    assert_eq!(
        (&event["involvedObject"]["name"], &event["type"]),
        (&pod["name"], &json!("Warning"))
    );
    assert_eq!(event["involvedObject"]["namespace"], "shop");
    assert_eq!(event["involvedObject"]["uid"], refused["pod"]["uid"]);
    assert_eq!(
        (&event["reason"], &event["message"]),
        (&json!("ImagePolicyRefused"), &refused["message"])
    );
    assert_eq!(event["source"], json!({"component": "portcullis", "host": "node-1"}));

    // Nothing is not a set: the last policy stays when its object goes.
    server.delete("ImagePolicy", "other");
    let before = gate.records("policy").len();
    server.delete("ImagePolicy", "app");
    let record = self::told(&gate, before, "not loaded").await;
    let empty = "policies are not loaded, the set in force stays: kubernetes: holds no policy";
    assert_eq!(record["message"], empty);
    node.starts(&gate, "app").await;
    // What was wrong is told until it is right, and no longer.
    in_force(&gate, server.apply(&node.lets_in("other"))).await;
    node.starts(&gate, "other").await;
    node.is_not_covered(&gate, "app").await;
    assert_eq!(trouble(&gate), <(String, String)>::default());
    let told = until(&gate, "True", is("True")).await;
    assert_eq!(told["reason"], "InForce");
    assert_eq!(rights_of(&server), Vec::<String>::new());
}

/// What was asked beyond what packaging/kubernetes/rbac.yaml allows.
fn rights_of(server: &ApiServer) -> Vec<String> {
    let allowed = |line: &str| {
        let (method, target) = line.split_once(' ').unwrap();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let policies = ["imagepolicies", "revocations"];
        match (method, path.strip_prefix("/apis/portcullis.dev/v1alpha1/")) {
            // get, list and watch, of all objects at once.
            ("GET", Some(plural)) => {
                let known = ["limit=", "continue=", "watch=true", "resourceVersion", "allowWatch"];
                policies.contains(&plural) && known.iter().any(|known| query.starts_with(known))
            }
            ("PATCH", None) => target == "/api/v1/nodes/node-1/status",
            ("POST", None) => target == "/api/v1/namespaces/shop/events",
            _ => false,
        }
    };
    server.asked().into_iter().filter(|line| !allowed(line)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_api_server_what_was_kept_is_in_force_and_else_nothing() {
    let (node, server) = (Node::new(), ApiServer::start());
    let first = server.apply(&node.lets_in("app"));
    take_down(&server);
    let mut gate = node.follows(&server, "").start();
    let record = told(&gate, 0, "is not heard").await;
    let nothing = format!(
        "the source of policies is not heard, and none is in force: every image is refused: {}",
        closed(&server)
    );
    assert_eq!(record["message"], nothing);
    serves(&gate).await;
    let why = format!("{NONE}{}", closed(&server));
    node.is_refused(&gate, "app", "policy_unavailable", &why).await;
    assert_eq!(trouble(&gate), ("Unreachable".into(), closed(&server)));
    assert_eq!(status(&gate)["enforcing"], false);
    // It comes, and goes again.
    server.heal();
    comes_to(&gate, 0, "policy set in force: 1 policy").await;
    node.starts(&gate, "app").await;
    take_down(&server);
    let stays =
        format!("the source of policies is not heard, the set in force stays: {}", closed(&server));
    comes_to(&gate, 0, &stays).await;
    node.starts(&gate, "app").await;
    let before = gate.records("policy").len();
    gate.crash_and_restart();
    // Before anything was heard, and after it was heard that there is nothing to hear.
    let recalled = &gate.records("policy")[before];
    assert_eq!(recalled["message"], "policy set that this node had last, in force: 1 policy");
    assert!(recalled["policy_set"]["revision"].as_u64() >= Some(first));
    node.starts(&gate, "app").await;
    node.is_not_covered(&gate, "other").await;
    told(&gate, before, &stays).await;
    node.starts(&gate, "app").await;
    assert_eq!(trouble(&gate), ("Unreachable".into(), closed(&server)));
    // And what changed meanwhile counts as soon as it is heard.
    server.heal();
    server.apply(&node.lets_in("other"));
    comes_to(&gate, before, "policy set in force: 2 policies").await;
    node.starts(&gate, "other").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_silent_for_too_long_is_believed_no_more() {
    let (node, server) = (Node::new(), ApiServer::start());
    let first = server.apply(&node.lets_in("app"));
    let mut gate = node.follows(&server, "max_age = \"72h\"").start();
    in_force(&gate, first).await;
    gate.crash();
    // As if that had been years ago.
    let text = fs::read_to_string(mark(&gate)).unwrap();
    let mut written: Value = serde_json::from_str(&text).unwrap();
    written["accepted"]["kubernetes"]["confirmed"] = json!("2020-01-01T00:00:00Z");
    fs::write(mark(&gate), written.to_string()).unwrap();
    take_down(&server);
    let before = gate.records("policy").len();
    gate.start_again();
    let why = "kubernetes: was not heard of for longer than policy.max_age, which is 72h; until it \
               is, the policies of this node are not in force";
    // At once, whether or not anybody has told yet.
    node.is_refused(&gate, "app", "policy_expired", why).await;
    told(&gate, before, why).await;
    assert_eq!(trouble(&gate), ("Expired".into(), why.into()));
    assert_eq!(status(&gate)["enforcing"], false);
    serves(&gate).await;
    server.heal();
    comes_to(&gate, before, "policy set in force: 1 policy").await;
    node.starts(&gate, "app").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_was_restored_from_a_copy_turns_nothing_back() {
    let (node, server) = (Node::new(), ApiServer::start());
    let old = server.apply(&node.lets_in("app"));
    let backup = server.backup();
    server.delete("ImagePolicy", "app");
    let new = server.apply(&node.lets_in("other"));
    let mut gate = node.follows(&server, "").start();
    in_force(&gate, new).await;
    server.restore(backup);
    let before = gate.records("policy").len();
    gate.crash_and_restart();
    let record = told(&gate, before, "not loaded").await;
    let why =
        format!("resourceVersion {old}, and this node had policies as of {new}: it was restored");
    assert!(record["message"].as_str().unwrap().contains(&why), "{record}");
    node.starts(&gate, "other").await;
    node.is_not_covered(&gate, "app").await;
    // It goes on counting from where it was, and is heard again when it is past that.
    server.touch();
    server.touch();
    let next = server.apply(&node.lets_in("app"));
    assert!(next > new);
    reload(&gate).await;
    in_force(&gate, next).await;
    node.starts(&gate, "app").await;
}
