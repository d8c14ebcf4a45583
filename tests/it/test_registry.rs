//! The registry of the tests misbehaves as told, and only then.

use std::time::Duration;

use http::{Method, StatusCode, Version, header};
use reqwest::{Certificate, Client, ClientBuilder, Identity, RequestBuilder, Response, redirect};
use serde_json::Value;

use crate::support::{
    ca::TestCa,
    registry::{Fault, Gate, IMAGE_INDEX, IMAGE_MANIFEST, Match, TestRegistry},
};

fn builder() -> ClientBuilder {
    Client::builder().no_proxy().redirect(redirect::Policy::none())
}

fn client() -> Client {
    builder().build().unwrap()
}

fn manifest(registry: &TestRegistry, client: &Client, reference: &str) -> RequestBuilder {
    client
        .get(format!("{}/v2/app/manifests/{reference}", registry.url()))
        .header(header::ACCEPT, IMAGE_MANIFEST)
        .header(header::ACCEPT, IMAGE_INDEX)
}

async fn get(registry: &TestRegistry) -> reqwest::Result<Response> {
    manifest(registry, &client(), "v1").send().await
}

fn digest_header(answer: &Response) -> &str {
    answer.headers()["docker-content-digest"].to_str().unwrap()
}

#[tokio::test]
async fn requests_are_logged_with_their_credentials() {
    let registry = TestRegistry::start();
    let answer = manifest(&registry, &client(), "v1").basic_auth("me", Some("pw")).send().await;
    assert_eq!(answer.unwrap().status(), StatusCode::NOT_FOUND);
    let requests = registry.requests();
    assert_eq!(registry.asked(), ["GET /v2/app/manifests/v1"]);
    assert_eq!(requests[0].authorization(), Some("Basic bWU6cHc="));
    assert_eq!(requests[0].version, Version::HTTP_11);
    assert_eq!(registry.connections(), 1);
}

#[tokio::test]
async fn a_fault_hits_the_request_it_is_for() {
    let registry = TestRegistry::start();
    let digest = registry.push_image("app", "v1");
    registry.fault(Match::manifest("app", "v1").nth(2), Fault::Status(503, vec![], "no".into()));
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(get(&registry).await.unwrap().status().as_u16());
        let other = manifest(&registry, &client(), &digest.to_string()).send().await.unwrap();
        assert_eq!(other.status(), StatusCode::OK);
    }
    assert_eq!(statuses, [200, 503, 200]);

    registry.heal();
    registry.fault(Match::any().method(Method::GET).starting_at(2), Fault::CloseConnection);
    assert_eq!(get(&registry).await.unwrap().status(), StatusCode::OK);
    assert!(get(&registry).await.is_err());
    assert!(get(&registry).await.is_err());
    let head = client().head(format!("{}/v2/", registry.url())).send().await;
    assert_eq!(head.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn spoiled_bodies_and_headers() {
    let registry = TestRegistry::start();
    let digest = registry.push_image("app", "v1").to_string();
    let good = get(&registry).await.unwrap().bytes().await.unwrap();
    let spoiled = async |fault: Fault| {
        registry.heal();
        registry.fault(Match::manifest("app", "v1"), fault);
        get(&registry).await.unwrap()
    };

    let answer = spoiled(Fault::Corrupt).await;
    assert_eq!(digest_header(&answer), digest);
    assert_ne!(answer.bytes().await.unwrap(), good);

    let answer = spoiled(Fault::LyingDigestHeader).await;
    assert_ne!(digest_header(&answer), digest);
    assert_eq!(answer.bytes().await.unwrap(), good);

    let answer = spoiled(Fault::NoDigestHeader).await;
    assert!(answer.headers().get("docker-content-digest").is_none());

    let answer = spoiled(Fault::ContentType("text/html")).await;
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/html");

    let answer = spoiled(Fault::OtherBytes("other".into())).await;
    assert_eq!(digest_header(&answer), portcullis::image::Digest::of(b"other").to_string());
    assert_eq!(answer.bytes().await.unwrap(), "other");

    let answer = spoiled(Fault::RedirectTo("http://other.example/x".into())).await;
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(answer.headers()[header::LOCATION], "http://other.example/x");

    let answer = spoiled(Fault::RedirectLoop).await;
    assert_eq!(answer.headers()[header::LOCATION], answer.url().as_str());

    let mut answer = spoiled(Fault::Truncate).await;
    assert_eq!(answer.content_length(), Some(good.len() as u64));
    assert_eq!(answer.chunk().await.unwrap().unwrap(), good[..good.len() / 2]);
    assert!(answer.chunk().await.is_err());

    let mut answer = spoiled(Fault::StallBody).await;
    assert_eq!(answer.chunk().await.unwrap().unwrap(), good[..good.len() / 2]);
    tokio::time::timeout(Duration::from_millis(50), answer.chunk()).await.unwrap_err();

    let mut answer = spoiled(Fault::EndlessBody).await;
    assert_eq!(answer.content_length(), None);
    let mut seen = 0;
    while seen < 8 << 20 {
        seen += answer.chunk().await.unwrap().expect("no end").len();
    }
}

#[tokio::test]
async fn hanging_requests_end_with_the_registry_and_waiting_ones_with_the_gate() {
    let registry = TestRegistry::start();
    registry.push_image("app", "v1");
    let gate = Gate::closed();
    registry.fault(Match::manifest("app", "v1").nth(1), Fault::Wait(gate.clone()));
    registry.fault(Match::manifest("app", "v1"), Fault::Hang);
    let ask = || tokio::spawn(manifest(&registry, &client(), "v1").send());

    let waiting = ask();
    registry.until(|requests| requests.len() == 1).await;
    let hanging = ask();
    registry.until(|requests| requests.len() == 2).await;
    assert!(!waiting.is_finished());
    gate.open();
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);

    assert!(!hanging.is_finished());
    let url = registry.url().to_owned();
    drop(registry);
    assert!(hanging.await.unwrap().is_err());
    assert!(client().get(url).send().await.unwrap_err().is_connect());
}

#[tokio::test]
async fn tls_speaks_http_2_to_those_who_trust_the_ca() {
    let ca = TestCa::new();
    let registry = TestRegistry::builder().tls(&ca).start();
    let digest = registry.push_image("app", "v1");
    assert!(get(&registry).await.unwrap_err().is_connect());

    let root = Certificate::from_pem(ca.pem().as_bytes()).unwrap();
    let client = builder().tls_certs_only([root]).build().unwrap();
    let answer = manifest(&registry, &client, "v1").send().await.unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    assert_eq!(digest_header(&answer), digest.to_string());
    let url = format!("{}/v2/app/manifests/v1", registry.url());
    let head = client.head(url).header(header::ACCEPT, IMAGE_MANIFEST).send().await.unwrap();
    assert_eq!((head.status(), head.version()), (StatusCode::OK, Version::HTTP_2));
}

#[tokio::test]
async fn a_client_certificate_is_demanded() {
    let ca = TestCa::new();
    let registry = TestRegistry::builder().client_cert_tls(&ca).start();
    registry.push_image("app", "v1");
    let root = Certificate::from_pem(ca.pem().as_bytes()).unwrap();
    let with = |id: Option<crate::support::ca::Identity>| {
        let builder = builder().tls_certs_only([root.clone()]);
        let builder = match id {
            Some(id) => {
                let pem = id.cert_pem + &id.key_pem;
                builder.identity(Identity::from_pem(pem.as_bytes()).unwrap())
            }
            None => builder,
        };
        manifest(&registry, &builder.build().unwrap(), "v1").send()
    };
    assert!(with(None).await.is_err());
    assert!(with(Some(TestCa::new().client("stranger"))).await.is_err());
    assert_eq!(with(Some(ca.client("node"))).await.unwrap().status(), StatusCode::OK);
    assert!(registry.requests().iter().all(|request| request.client_cert));
}

#[tokio::test]
async fn basic_authentication() {
    let registry = TestRegistry::builder().basic("me", "pw").start();
    registry.push_image("app", "v1");
    let answer = get(&registry).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()[header::WWW_AUTHENTICATE], "Basic realm=\"registry\"");
    for (password, status) in [("no", StatusCode::UNAUTHORIZED), ("pw", StatusCode::OK)] {
        let request = manifest(&registry, &client(), "v1").basic_auth("me", Some(password));
        assert_eq!(request.send().await.unwrap().status(), status);
    }
}

#[tokio::test]
async fn tokens_are_for_one_service_and_scope_and_expire() {
    let registry = TestRegistry::builder().bearer("me", "pw").token_lifetime(60).start();
    registry.push_image("app", "v1");
    let (url, host) = (registry.url(), registry.host());
    let challenge = |answer: &Response| {
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        answer.headers()[header::WWW_AUTHENTICATE].to_str().unwrap().to_owned()
    };
    let wanted =
        format!("Bearer realm=\"{url}/token\",service=\"{host}\",scope=\"repository:app:pull\"");
    assert_eq!(challenge(&get(&registry).await.unwrap()), wanted);

    let token = async |query: &str, password: &str| {
        let request = client().get(format!("{url}/token?{query}"));
        request.basic_auth("me", Some(password)).send().await.unwrap()
    };
    let scope = "scope=repository:app:pull";
    assert_eq!(token(scope, "pw").await.status(), StatusCode::BAD_REQUEST);
    let query = format!("service={host}&{scope}");
    assert_eq!(token(&query, "no").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(client().get(format!("{url}/token?{query}")).send().await.unwrap().status(), 401);
    let granted = token(&query, "pw").await.bytes().await.unwrap();
    let granted: Value = serde_json::from_slice(&granted).unwrap();
    assert_eq!(granted["expires_in"], 60);

    let with = async |token: &str| {
        manifest(&registry, &client(), "v1").bearer_auth(token).send().await.unwrap()
    };
    let token = granted["token"].as_str().unwrap();
    assert_eq!(with(token).await.status(), StatusCode::OK);
    let other = registry.issue_token(&["repository:other:pull", "repository:app:push"]);
    assert_eq!(challenge(&with(&other).await), wanted.clone() + ",error=\"insufficient_scope\"");
    registry.expire_tokens();
    assert_eq!(challenge(&with(token).await), wanted + ",error=\"invalid_token\"");
}

#[tokio::test]
async fn refresh_tokens_and_passwords_by_oauth2() {
    let registry = TestRegistry::builder().bearer("me", "pw").start();
    registry.push_image("app", "v1");
    let scope = "repository:app:pull";
    let post = async |fields: &[(&str, &str)]| {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("service", registry.host()).append_pair("scope", scope);
        let request = client()
            .post(format!("{}/token", registry.url()))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.extend_pairs(fields).finish());
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap())
    };
    let id = ("client_id", "test");
    let refresh = ("grant_type", "refresh_token");
    assert_eq!(post(&[refresh, ("refresh_token", registry.refresh_token())]).await.0, 400);
    assert_eq!(post(&[id, refresh, ("refresh_token", "guessed")]).await.0, 401);
    let password = [id, ("grant_type", "password"), ("username", "me"), ("password", "pw")];
    assert_eq!(post(&password).await.0, 200);
    let (status, body) = post(&[id, refresh, ("refresh_token", registry.refresh_token())]).await;
    assert_eq!(status, 200);
    let body: Value = serde_json::from_slice(&body).unwrap();
    let token = body["access_token"].as_str().unwrap();
    let answer = manifest(&registry, &client(), "v1").bearer_auth(token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn anonymous_tokens_are_to_pull_only() {
    let registry = TestRegistry::builder().bearer("me", "pw").anonymous_pull().start();
    registry.push_image("app", "v1");
    let granted = async |actions: &str| {
        let (url, host) = (registry.url(), registry.host());
        let scope = format!("scope=repository:app:{actions}");
        let answer = client().get(format!("{url}/token?service={host}&{scope}")).send().await;
        let body = answer.unwrap().bytes().await.unwrap();
        let token = serde_json::from_slice::<Value>(&body).unwrap()["token"].clone();
        let token = token.as_str().unwrap();
        let pull = manifest(&registry, &client(), "v1").bearer_auth(token);
        let push = client().post(format!("{url}/v2/app/blobs/uploads/")).bearer_auth(token);
        let status = async |request: RequestBuilder| request.send().await.unwrap().status();
        (status(pull).await.as_u16(), status(push).await.as_u16())
    };
    assert_eq!(granted("pull").await, (200, 401));
    assert_eq!(granted("pull,push").await, (200, 401));
    assert_eq!(granted("push").await, (401, 401));
}
