//! The floor: what holds beside the source, and while there is none.

use super::*;

/// A policy of the floor: it lets in `app` by its digest.
fn floor(node: &Node) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: boot}}\nspec:\n  \
         match: {{images: [{:?}]}}\n  authorities: [{{name: known, digests: [{:?}]}}]\n",
        node.repository("app"),
        node.app.to_string(),
    )
}

/// A gate with a floor, which follows an API server.
fn start(node: &Node, server: &ApiServer, text: &str) -> Gate {
    let directory = node.file("floor");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("boot.yaml"), text).unwrap();
    node.follows(server, &format!("floor = {directory:?}")).start()
}

/// What is refused by a floor that is alone.
fn alone(why: &str) -> String {
    format!(
        "IMAGE: of the policies on this node there is the floor alone, which does not match this image: \
         {why}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_boots_a_node_whose_control_plane_is_not_there_yet() {
    let (node, server) = (Node::new(), ApiServer::start());
    take_down(&server);
    let gate = start(&node, &server, &floor(&node));
    told(&gate, 0, "is not heard").await;
    node.starts(&gate, "app").await;
    let record = gate.records("pull").pop().unwrap();
    assert_eq!(record["policies"][0]["name"], "floor/boot");
    let why = alone(&closed(&server));
    node.is_refused(&gate, "other", "policy_unavailable", &why).await;
    assert_eq!(trouble(&gate), ("Unreachable".into(), closed(&server)));
    // Then the source holds for everything, and the floor for what it names.
    server.heal();
    let both = server.apply(&api_server::policy("all", &format!("{}/**", node.registry.host())));
    comes_to(&gate, 0, "policy set in force: 2 policies").await;
    in_force(&gate, both).await;
    node.starts(&gate, "app").await;
    let record = gate.records("pull").pop().unwrap();
    let names: Vec<_> = record["policies"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["all", "floor/boot"]);
    node.starts(&gate, "other").await;
    let policies = &status(&gate)["policies"];
    assert_ne!(policies["digest"], policies["source_digest"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_both_match_must_satisfy_both() {
    let (node, server) = (Node::new(), ApiServer::start());
    let mut strict = node.lets_in("app");
    let wrong = format!("sha256:{}", "1".repeat(64));
    strict["spec"]["authorities"] = serde_json::json!([{"name": "list", "digests": [wrong]}]);
    let version = server.apply(&strict);
    // The floor would let it in, and the source does not.
    let gate = start(&node, &server, &floor(&node));
    in_force(&gate, version).await;
    let answer = node.pull(&gate, "app").await;
    assert!(
        answer.1.contains("policy \"app\" requires 1 of 1 authority: \"list\": "),
        "{answer:?}"
    );
    // The source would let it in, and the floor does not.
    let floor = fs::read_to_string(node.file("floor/boot.yaml")).unwrap();
    fs::write(node.file("boot.new"), floor.replace(&node.app.to_string(), &wrong)).unwrap();
    fs::rename(node.file("boot.new"), node.file("floor/boot.yaml")).unwrap();
    let before = gate.records("policy").len();
    in_force(&gate, server.apply(&node.lets_in("app"))).await;
    until(&gate, "the floor", || gate.records("policy").into_iter().nth(before + 1)).await;
    let answer = node.pull(&gate, "app").await;
    let why = "policy \"floor/boot\" requires 1 of 1 authority: \"known\": ";
    assert!(answer.1.contains(why) && !answer.1.contains("\"app\""), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_takes_nothing_from_the_one_that_was_kept() {
    let (node, server) = (Node::new(), ApiServer::start());
    take_down(&server);
    let mut gate = start(&node, &server, &floor(&node));
    told(&gate, 0, "is not heard").await;
    gate.crash();
    let file = node.file("floor/boot.yaml");
    fs::write(&file, "kind: [").unwrap();
    let before = gate.records("policy").len();
    gate.start_again();
    let records = gate.records("policy");
    let recalled = "policy set that this node had last, in force: 1 policy";
    assert_eq!(records[before]["message"], recalled);
    let said = records[before + 1]["message"].as_str().unwrap();
    let expected =
        format!("policies are not loaded, the set in force stays: {}:1:", file.display());
    assert!(said.starts_with(&expected), "{said}");
    assert_eq!(trouble(&gate).0, "Rejected");
    node.starts(&gate, "app").await;
    told(&gate, before, "is not heard").await;
    node.is_refused(&gate, "other", "policy_unavailable", &alone(&closed(&server))).await;
    // And where nothing is kept either, nothing is let in.
    gate.crash();
    fs::remove_dir_all(gate.path().join("state/policy")).unwrap();
    gate.start_again();
    let answer = node.pull(&gate, "app").await;
    let why = format!(
        "{NONE}the floor {} is not known: {}:1:",
        node.file("floor").display(),
        file.display()
    );
    assert!(answer.1.contains(&why), "{answer:?}");
    serves(&gate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_only_warns_is_none() {
    let (node, server) = (Node::new(), ApiServer::start());
    let version = server.apply(&node.lets_in("app"));
    let warns = floor(&node).replace("spec:\n", "spec:\n  mode: Warn\n");
    let gate = start(&node, &server, &warns);
    told(&gate, 0, "policy \"boot\" has mode: Warn; the floor decides alone").await;
    // Not even the source's own: what the floor would refuse is not known.
    until(&gate, "the source", || {
        (status(&gate)["policies"]["confirmed"].is_string()).then_some(())
    })
    .await;
    let answer = node.pull(&gate, "app").await;
    let why = format!("{NONE}the floor {} is not known: ", node.file("floor").display());
    assert!(answer.1.contains(&why), "{answer:?}");
    let last = gate.records("policy").pop().unwrap();
    let said = last["message"].as_str().unwrap();
    assert!(said.contains("none is in force") && last["policy_set"].is_null(), "{last}");
    // The same, when it is right.
    fs::write(node.file("floor/boot.yaml"), floor(&node)).unwrap();
    let record = in_force(&gate, version).await;
    assert!(record["message"].as_str().unwrap().ends_with("2 policies"), "{record}");
    until(&gate, "it starts", || (trouble(&gate).0.is_empty()).then_some(())).await;
    node.starts(&gate, "app").await;
}
