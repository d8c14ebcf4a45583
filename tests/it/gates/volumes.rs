//! Image volumes: each is judged as the container's image is, and all must be proven.

use crate::support::{
    cri::CREATE_CONTAINER,
    grpc::framed,
    sign::{self, Signer},
};

use super::{Creation, Node, creation, invalid, line, pull_by, send, told, unknown};

#[tokio::test]
async fn each_good_volume_has_a_line_of_its_own() {
    let node = Node::new();
    let data = node.signed("data", &node.key);
    let gate = node.setup().policy("data.yaml", &node.policy("data", &node.key)).start();
    let client = gate.client().await;
    let (app, volume) = (node.name("app:v1"), node.name("data:v1"));
    let (app_id, volume_id) = (pull_by(&client, &app).await, pull_by(&client, &volume).await);
    node.runtime.take();
    let volumes = vec![(&*volume, &*volume), (&volume_id, &volume), (&app_id[7..], &app)];
    let asked = Creation { volumes, ..creation(&app_id, &app) };
    assert_eq!(send(&client, &asked.message()).await.status(), (0, String::new()));
    let pinned = [&volume_id, &volume_id, &app_id].map(|id| &**id);
    let users = [&volume, &volume, &app].map(|user| &**user);
    let volumes = pinned.into_iter().zip(users).collect();
    let expected = Creation { volumes, ..creation(&app_id, &app) };
    let calls = node.runtime.take();
    let created: Vec<_> =
        calls.iter().filter(|call| call.head.uri.path() == CREATE_CONTAINER).collect();
    assert_eq!(created.len(), 1);
    assert_eq!(created[0].body, framed(&expected.message()));
    let allowed = |repository: &str, digest| {
        line("allow", "", format!("{}@{digest} may be started", node.name(repository)))
    };
    let (app, data) = (allowed("app", node.digest), allowed("data", data));
    assert_eq!(told(&gate, "create"), [app.clone(), data.clone(), data, app]);
}

#[tokio::test]
async fn one_bad_image_refuses_the_whole_container() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let app = node.name("app:v1");
    let id = pull_by(&client, &app).await;
    let nothing = format!("sha256:{}", "0".repeat(64));
    let why = unknown(&app, &nothing);
    let good = (&*id, &*app);
    let bad = (&*nothing, &*app);
    let mut expected = Vec::new();
    for (image, volumes) in [
        (bad, vec![good, good]),
        (good, vec![bad]),
        (good, vec![good, bad, good]),
        (good, vec![good, good, bad]),
    ] {
        let asked = Creation { volumes, ..creation(image.0, image.1) };
        assert_eq!(send(&client, &asked.message()).await.status(), invalid(&why));
        // The good ones start nothing, and so are not on record.
        expected.push(line("deny", "not_proven_locally", &*why));
        assert_eq!(told(&gate, "create"), expected);
    }
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}

#[tokio::test]
async fn a_volume_is_judged_by_its_own_policy() {
    let node = Node::new();
    let strict = Signer::new();
    let data = node.signed("data", &node.key);
    let policy = sign::policy("data", &node.name("data"), &[("release", &strict)]);
    let open = node.policy("data", &node.key);
    let gate = node.setup().policy("data.yaml", &open).start();
    let client = gate.client().await;
    let (app, volume) = (node.name("app:v1"), node.name("data:v1"));
    let (app_id, volume_id) = (pull_by(&client, &app).await, pull_by(&client, &volume).await);
    super::swap(&gate, "data.yaml", &policy).await;
    let asked = Creation { volumes: vec![(&volume_id, &volume)], ..creation(&app_id, &app) };
    let why = format!(
        "{}@{data}: policy \"data\" requires 1 of 1 authority: \"release\": no signature by this \
         key (1 signature found)",
        node.name("data")
    );
    assert_eq!(send(&client, &asked.message()).await.status(), invalid(&why));
    assert_eq!(told(&gate, "create"), [line("deny", "authority_not_satisfied", why)]);
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}
