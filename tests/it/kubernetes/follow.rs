//! Lists and watches, where all goes well.

use super::*;
use crate::support::api_server::{policy, revocation};

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
    assert_eq!(
        (names(&third), third.revision),
        (vec!["imagepolicies/a", "imagepolicies/b"], Some(version))
    );
}
