//! A container starts from what is proven on this node, and from nothing else.

use bytes::Bytes;

use crate::support::{
    cri::{CREATE_CONTAINER, IMAGE_STATUS, IdResponse, RUN_POD_SANDBOX, image_status},
    gate::Setup,
    grpc::{Raw, framed},
    runtime::{Reply, headers},
    sign::{self, Signer},
};

use super::{
    Creation, Node, creation, invalid, line, pull_by, send, shown, swap, told, unasked, unknown,
    without_date,
};

#[tokio::test]
async fn what_was_pulled_starts_by_its_id_and_nothing_else_changes() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    assert_eq!(shown(&client, &name).await, id);

    let content_type = [("content-type", "application/grpc"), ("x-runtime", "yes")];
    let trailers = [("grpc-status", "0"), ("x-trailer", "t"), ("grpc-status-details-bin", "AAAA")];
    let data = framed(b"\x0a\x01c\xba\x06\x02\xff\xfe");
    let sent = Raw {
        headers: headers(&content_type),
        body: data.clone(),
        trailers: Some(headers(&trailers)),
    };
    node.instead(CREATE_CONTAINER, move |_| {
        Some(Reply::whole(headers(&content_type), data.clone(), headers(&trailers)))
    });
    node.runtime.take();
    for asked in [&*id, &id[7..], &name] {
        let message = creation(asked, &name).message();
        let answer = client.call(CREATE_CONTAINER, &[("x-trace", "t")], framed(&message)).await;
        assert_eq!(without_date(answer), sent);
        let calls = node.runtime.take();
        let created: Vec<_> =
            calls.iter().filter(|call| call.head.uri.path() == CREATE_CONTAINER).collect();
        assert_eq!(created.len(), 1);
        assert_eq!(created[0].body, framed(&creation(&id, &name).message()), "{asked}");
        assert_eq!(created[0].head.headers["x-trace"], "t");
    }
    // kubelet's own way asks the runtime nothing.
    send(&client, &creation(&id, &name).message()).await;
    assert_eq!(node.runtime.paths(), [CREATE_CONTAINER]);

    let records = gate.records("create");
    assert_eq!(records.len(), 4);
    for record in records {
        assert_eq!(record["decision"], "allow");
        assert_eq!(
            record["message"],
            format!("{}@{} may be started", node.name("app"), node.digest)
        );
        assert_eq!(record["image"]["requested"], name);
        assert_eq!(record["image"]["repository"], node.name("app"));
        assert_eq!(record["image"]["tag"], "v1");
        assert_eq!(record["image"]["digest"], node.digest.to_string());
        assert_eq!(record["image"]["id"], id);
        let pod = serde_json::json!({"namespace": "shop", "name": "web-0", "uid": "uid-1"});
        assert_eq!(record["pod"], pod);
        assert_eq!(record["policies"][0]["authorities"][0]["outcome"], "accepted");
        assert!(record["policy_set"]["digest"].is_string());
    }
}

#[tokio::test]
async fn a_failure_of_the_runtime_is_told_as_it_is() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let id = pull_by(&client, &node.name("app:v1")).await;
    let failed = headers(&[
        ("content-type", "application/grpc"),
        ("grpc-status", "6"),
        ("grpc-message", "name%20is%20reserved"),
        ("grpc-status-details-bin", "CAYSAXg"),
    ]);
    let answer = failed.clone();
    node.instead(CREATE_CONTAINER, move |_| {
        Some(Reply::whole(answer.clone(), Bytes::new(), headers(&[])))
    });
    let told = send(&client, &creation(&id, &node.name("app:v1")).message()).await;
    let (body, trailers) = (Bytes::new(), None);
    assert_eq!(without_date(told), Raw { headers: failed, body, trailers });
}

#[tokio::test]
async fn what_is_not_proven_does_not_start() {
    let node = Node::new();
    let other = Signer::new();
    let wrong = node.signed("wrong", &other);
    node.signed("elsewhere", &node.key);
    let by = |repository: &str, key| node.policy(repository, key);
    let elsewhere =
        by("elsewhere", &node.key).replace("match: {", "match: {namespaces: [kitchen], ");
    let gate = node
        .setup()
        .policy("wrong.yaml", &by("wrong", &other))
        .policy("elsewhere.yaml", &elsewhere)
        .start();
    let client = gate.client().await;
    let name = |rest: &str| node.name(rest);
    let nothing = format!("sha256:{}", "0".repeat(64));
    // Pulled past the gate: it is signed, and nobody here has seen that.
    let unseen = node.shelf.pull(&name("app:v1"));
    let seen = pull_by(&client, &name("wrong:v1")).await;
    let foreign = node.shelf.pull(&name("elsewhere:v1"));
    swap(&gate, "wrong.yaml", &by("wrong", &node.key)).await;

    let pinned = format!("{}@{}", name("app"), node.digest);
    let wrong = format!("{}@{wrong}", name("wrong"));
    let cases = [
        (&nothing, "app:v1", "not_proven_locally", unknown(&name("app:v1"), &nothing)),
        (&unseen, "app:v1", "not_proven_locally", unasked(&pinned, "app")),
        (
            &seen,
            "wrong:v1",
            "authority_not_satisfied",
            format!(
                "{wrong}: policy \"wrong\" requires 1 of 1 authority: \"release\": no signature by \
                 this key (1 signature found)"
            ),
        ),
        (
            &foreign,
            "elsewhere:v1",
            "no_policy_matches",
            format!(
                "{}: no policy matches this image in namespace \"shop\"; policy \"elsewhere\" \
                 covers it in other namespaces only",
                name("elsewhere:v1")
            ),
        ),
        (
            &unseen,
            "nobody:v1",
            "no_policy_matches",
            format!(
                "{}: no policy matches this image in namespace \"shop\"; an ImagePolicy whose \
                 spec.match.images covers it is needed",
                name("nobody:v1")
            ),
        ),
    ];
    let mut expected = Vec::new();
    for (id, user, reason, message) in cases {
        let answer = send(&client, &creation(id, &name(user)).message()).await;
        assert_eq!(answer.status(), invalid(&message), "{user}");
        expected.push(line("deny", reason, message));
        assert_eq!(told(&gate, "create"), expected);
    }
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}

#[tokio::test]
async fn what_is_revoked_starts_no_more_and_what_is_allowed_again_does() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    let message = creation(&id, &name).message();
    assert_eq!(send(&client, &message).await.status().0, 0);

    let revocation = |digest: &str| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: bad}}\n\
             spec: {{digests: ['{digest}']}}\n"
        )
    };
    let pinned = format!("{}@{}", node.name("app"), node.digest);
    for digest in [node.digest.to_string(), id.clone()] {
        swap(&gate, "revoked.yaml", &revocation(&digest)).await;
        let revoked = format!("{pinned}: {digest} is revoked by \"bad\"");
        assert_eq!(send(&client, &message).await.status(), invalid(&revoked));
        assert_eq!(told(&gate, "create").pop().unwrap(), line("deny", "revoked", revoked));
    }
    let before = gate.records("policy").len();
    std::fs::remove_file(gate.path().join("policies/revoked.yaml")).unwrap();
    super::until("it is allowed again", || gate.records("policy").len() > before).await;
    assert_eq!(send(&client, &message).await.status().0, 0);
    assert_eq!(node.calls(CREATE_CONTAINER), 2);
}

#[tokio::test]
async fn without_policies_nothing_starts() {
    let node = Node::new();
    let gate = Setup::before(node.runtime.socket()).start();
    let client = gate.client().await;
    let id = node.shelf.pull(&node.name("app:v1"));
    let answer = send(&client, &creation(&id, &node.name("app:v1")).message()).await;
    let (code, message) = answer.status();
    assert_eq!(code, 2);
    assert!(
        message.starts_with("SignatureValidationFailed: no policy is in force on this node"),
        "{message}"
    );
    assert_eq!(shown(&client, &node.name("app:v1")).await, "");
    let records = [&gate.records("create")[..], &gate.records("image_status")[..]].concat();
    let reasons: Vec<_> = records.iter().map(|record| &record["reason"]).collect();
    assert_eq!(reasons, ["policy_unavailable", "policy_unavailable"]);
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}

/// A limit on the size of files, in blocks, that makes writes fail as a full disk does.
fn full_after(blocks: usize) -> String {
    format!("trap '' XFSZ; ulimit -S -f {blocks}; exec \"$0\" \"$@\"")
}

#[tokio::test]
async fn what_cannot_be_recorded_does_not_start() {
    let node = Node::new();
    let unsigned = "unsigned: {reason: test}";
    let policy = node.policy("app", &node.key).replace("publicKey:", &format!("{unsigned} #"));
    let policy = policy.split_once("        pem").unwrap().0;
    let setup = Setup::before(node.runtime.socket()).policy("app.yaml", policy);
    let name = node.name("app:v1");
    let id = node.shelf.pull(&name);
    node.shelf.name(&node.name("nobody:v1"), &node.shelf.pull(&node.name("app:v1")));
    node.shelf.name("127.0.0.1:1/pause:v1", &id);
    let gate = setup.start_by(&full_after(0), std::process::Stdio::null());
    let client = gate.client().await;
    let message = format!(
        "nothing is allowed unrecorded, and the audit log is not writable: cannot write {}: File \
         too large (os error 27): check the path, the disk and the kernel's log",
        gate.audit_file().display()
    );
    let nothing = format!("sha256:{}", "0".repeat(64));
    for (image, user) in [(&id, &*name), (&nothing, &name), (&id, "nobody"), (&id, "")] {
        let told = send(&client, &creation(image, user).message()).await.status();
        assert_eq!(told, invalid(&message), "{image} {user}");
    }
    assert_eq!(send(&client, b"\xff").await.status(), invalid(&message));
    let sandbox = client.call(RUN_POD_SANDBOX, &[], framed(b"")).await;
    assert_eq!(sandbox.status(), invalid(&message));
    // What is accepted is shown; that something is hidden would have to be on record.
    assert_eq!(shown(&client, &name).await, id);
    node.shelf.pull(&node.name("app:v1"));
    node.signed("hidden", &node.key);
    node.shelf.pull(&node.name("hidden:v1"));
    let hidden = client.unary(IMAGE_STATUS, &image_status(&node.name("hidden:v1"))).await;
    assert_eq!(hidden.status(), invalid(&message));
    assert_eq!(node.calls(CREATE_CONTAINER) + node.calls(RUN_POD_SANDBOX), 0);
}

#[tokio::test]
async fn a_disk_that_fills_up_stops_creations() {
    let node = Node::new();
    let gate = node.setup().start_by(&full_after(16), std::process::Stdio::null());
    let client = gate.client().await;
    let name = node.name("app:v1");
    let message = creation(&pull_by(&client, &name).await, &name).message();
    let mut allowed = 0;
    while send(&client, &message).await.status().0 == 0 {
        allowed += 1;
        assert!(allowed < 100, "the disk never fills up");
    }
    assert!(allowed > 0);
    assert_eq!((node.calls(CREATE_CONTAINER), gate.records("create").len()), (allowed, allowed));
}

#[tokio::test]
async fn a_creation_without_a_namespace_meets_policies_for_all_namespaces_only() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    let nowhere = Creation { namespace: "", ..creation(&id, &name) };
    assert!(!send(&client, &nowhere.message()).await.message::<IdResponse>().id.is_empty());
    let text = sign::policy("app", &node.name("app"), &[("release", &node.key)]);
    swap(&gate, "app.yaml", &text.replace("match: {", "match: {namespaces: ['*'], ")).await;
    let refused = format!(
        "{name}: no policy matches this image in a call that names no namespace; policy \"app\" \
         covers it in other namespaces only"
    );
    assert_eq!(send(&client, &nowhere.message()).await.status(), invalid(&refused));
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
}
