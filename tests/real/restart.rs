//! containerd goes and comes back.

use crate::{
    lab::{Lab, Node, blocking},
    support::{
        cri::{PULL_IMAGE, PullImageResponse, VERSION, VersionRequest, pull},
        gate::Setup,
        registry::TestRegistry,
        sign::{Signer, policy},
    },
};

pub(crate) async fn containerd_restarts_and_the_next_call_works(_: &Lab) {
    let node = blocking(Node::start).await;
    let (signer, registry) = (Signer::new(), TestRegistry::start());
    let digest = registry.push_image("app", Some("v1"));
    signer.sign_bundle(&registry, "app", digest);
    node.host("restart.example.com", registry.url());
    let gate = Setup::before(&node.socket())
        .registry_config(&node.hosts())
        .policy("p.yaml", &policy("p", "restart.example.com/**", &[("k", &signer)]))
        .start();
    let client = gate.client().await;
    let image = pull("restart.example.com/app:v1", "shop");
    client.unary(PULL_IMAGE, &image).await.message::<PullImageResponse>();

    node.stop();
    let (code, message) = client.unary(VERSION, &VersionRequest::default()).await.status();
    assert_eq!(code, 14, "{message}");
    let (code, message) = client.unary(PULL_IMAGE, &image).await.status();
    assert_eq!(code, 14, "{message}");

    let _node = blocking(move || {
        node.restart();
        node
    })
    .await;
    assert_eq!(client.unary(VERSION, &VersionRequest::default()).await.status().0, 0);
    client.unary(PULL_IMAGE, &image).await.message::<PullImageResponse>();
}
