//! The registry of the tests keeps the distribution specification as a real registry does:
//! one suite for both.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use portcullis::image::Digest;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::{
    ca::TestCa,
    docker_registry::{self, DockerRegistry},
    fixtures::Fixtures,
    registry::{IMAGE_INDEX, IMAGE_MANIFEST, TestRegistry},
    remote::{Remote, location},
};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const REPO: &str = "library/app";

struct Target {
    remote: Remote,
    referrers_api: bool,
}

/// What an answer says, without its connection.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    async fn of(answer: Response) -> Self {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Self { status, headers, body: answer.bytes().await.unwrap() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    fn is_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.json()["errors"][0]["code"], code);
    }

    #[track_caller]
    fn is_manifest(&self, media_type: &str, bytes: &[u8]) {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.header("content-type"), Some(media_type));
        let digest = Digest::of(bytes).to_string();
        assert_eq!(self.header("docker-content-digest"), Some(&*digest));
        assert_eq!(self.header("content-length"), Some(&*bytes.len().to_string()));
    }
}

impl Target {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.remote.client.request(method, format!("{}/v2/{path}", self.remote.url))
    }

    async fn get(&self, path: &str) -> Answer {
        let accepted = [IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST].join(", ");
        let request = self.request(Method::GET, path).header(header::ACCEPT, accepted);
        Answer::of(request.send().await.unwrap()).await
    }

    async fn head(&self, path: &str) -> Answer {
        let request = self.request(Method::HEAD, path).header(header::ACCEPT, IMAGE_MANIFEST);
        Answer::of(request.send().await.unwrap()).await
    }

    async fn manifest(&self, reference: impl std::fmt::Display) -> Answer {
        self.get(&format!("{REPO}/manifests/{reference}")).await
    }

    async fn put(&self, reference: &str, manifest: &Value) -> Answer {
        let kind = manifest["mediaType"].as_str().unwrap();
        Answer::of(self.remote.put_manifest(REPO, reference, kind, manifest.to_string()).await)
            .await
    }

    async fn put_ok(&self, reference: &str, manifest: &Value) -> Answer {
        let answer = self.put(reference, manifest).await;
        let digest = digest_of(manifest).to_string();
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!(answer.header("docker-content-digest"), Some(&*digest));
        let location = answer.header("location").unwrap();
        assert!(location.ends_with(&format!("/v2/{REPO}/manifests/{digest}")), "{location}");
        answer
    }

    /// An image manifest whose blobs are pushed; `mark` makes it unlike others.
    async fn image(&self, media_type: &str, mark: &str) -> Value {
        let config = json!({"architecture": "amd64", "os": "linux", "mark": mark}).to_string();
        let layer = vec![0; 1024];
        json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": {
                "mediaType": CONFIG, "size": config.len(),
                "digest": self.remote.push_blob(REPO, config).await,
            },
            "layers": [{
                "mediaType": LAYER, "size": layer.len(),
                "digest": self.remote.push_blob(REPO, layer).await,
            }],
        })
    }
}

fn digest_of(manifest: &Value) -> Digest {
    Digest::of(manifest.to_string().as_bytes())
}

async fn conforms(target: &Target) {
    assert_eq!(target.get("").await.status, 200);
    blobs_are_there_or_not(target).await;
    blobs_come_in_parts(target).await;
    blobs_come_at_once(target).await;
    uploads_are_checked(target).await;
    manifests_by_tag_and_digest(target).await;
    manifests_are_checked(target).await;
    indexes_need_their_children(target).await;
    tags_move(target).await;
    referrers_or_their_tag(target).await;
}

async fn blobs_are_there_or_not(target: &Target) {
    let missing = format!("{REPO}/blobs/{}", Digest::of(b"missing"));
    target.get(&missing).await.is_error(404, "BLOB_UNKNOWN");
    assert_eq!(target.head(&missing).await.status, 404);

    let digest = target.remote.push_blob(REPO, "content").await;
    let path = format!("{REPO}/blobs/{digest}");
    for answer in [target.get(&path).await, target.head(&path).await] {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("docker-content-digest"), Some(&*digest.to_string()));
        assert_eq!(answer.header("content-length"), Some("7"));
    }
    assert_eq!(target.get(&path).await.body, "content");
    assert_eq!(target.head(&path).await.body, "");
    let elsewhere = format!("library/other/blobs/{digest}");
    target.get(&elsewhere).await.is_error(404, "BLOB_UNKNOWN");
}

async fn blobs_come_in_parts(target: &Target) {
    let mut at = target.remote.begin_upload(REPO).await;
    for (part, range) in [("one ", "0-3"), ("two ", "0-7")] {
        let end: usize = range[2..].parse().unwrap();
        let request = target
            .remote
            .client
            .patch(at.clone())
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_RANGE, format!("{}-{end}", end + 1 - part.len()))
            .body(part);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        assert_eq!(answer.headers()[header::RANGE], range);
        at = location(&answer);
    }
    let digest = Digest::of(b"one two three").to_string();
    let answer = target.remote.finish_upload(at.clone(), &digest, "three".into()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["docker-content-digest"], *digest);
    let blob = target.remote.client.get(location(&answer)).send().await.unwrap();
    assert_eq!(blob.bytes().await.unwrap(), "one two three");

    let again = target.remote.finish_upload(at, &digest, "three".into()).await;
    Answer::of(again).await.is_error(404, "BLOB_UPLOAD_UNKNOWN");
}

/// A registry may take a blob with the POST or ask for a PUT (distribution-spec, "Single
/// POST"), and may mount one or begin an upload ("Mounting a blob from another repository").
async fn blobs_come_at_once(target: &Target) {
    let digest = Digest::of(b"at once").to_string();
    let post = target.request(Method::POST, &format!("{REPO}/blobs/uploads/?digest={digest}"));
    let mut answer = post.body("at once").send().await.unwrap();
    if answer.status() == StatusCode::ACCEPTED {
        let at = location(&answer);
        answer = target.remote.finish_upload(at, &digest, "at once".into()).await;
    }
    assert_eq!(answer.status(), StatusCode::CREATED);

    let mount = format!("library/mounted/blobs/uploads/?mount={digest}&from={REPO}");
    let answer = target.request(Method::POST, &mount).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(target.get(&format!("library/mounted/blobs/{digest}")).await.body, "at once");
    let unknown = format!("{}&from={REPO}", Digest::of(b"nowhere"));
    let unknown = format!("library/mounted/blobs/uploads/?mount={unknown}");
    let answer = target.request(Method::POST, &unknown).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
}

async fn uploads_are_checked(target: &Target) {
    let at = target.remote.begin_upload(REPO).await;
    let claimed = Digest::of(b"claimed").to_string();
    let answer = target.remote.finish_upload(at, &claimed, "sent".into()).await;
    Answer::of(answer).await.is_error(400, "DIGEST_INVALID");
    for digest in [claimed, Digest::of(b"sent").to_string()] {
        let answer = target.get(&format!("{REPO}/blobs/{digest}")).await;
        answer.is_error(404, "BLOB_UNKNOWN");
    }
}

async fn manifests_by_tag_and_digest(target: &Target) {
    for (media_type, tag) in [(IMAGE_MANIFEST, "oci"), (DOCKER_MANIFEST, "docker")] {
        let manifest = target.image(media_type, tag).await;
        let (bytes, digest) = (manifest.to_string(), digest_of(&manifest).to_string());
        target.put_ok(tag, &manifest).await;
        for reference in [tag, &digest] {
            let answer = target.manifest(reference).await;
            answer.is_manifest(media_type, bytes.as_bytes());
            assert_eq!(answer.body, bytes);
        }
        let untagged = target.image(media_type, &format!("{tag} untagged")).await;
        let digest = digest_of(&untagged).to_string();
        target.put_ok(&digest, &untagged).await;
        assert_eq!(target.manifest(&digest).await.body, untagged.to_string());
    }
    let oci = target.manifest("oci").await.body;
    let head = target.head(&format!("{REPO}/manifests/oci")).await;
    head.is_manifest(IMAGE_MANIFEST, &oci);
    assert_eq!(head.body, "");

    let unknown = Digest::of(b"unknown").to_string();
    for reference in ["unknown", &unknown] {
        target.manifest(reference).await.is_error(404, "MANIFEST_UNKNOWN");
        let path = format!("{REPO}/manifests/{reference}");
        assert_eq!(target.head(&path).await.status, 404);
    }
    target.get("library/unknown/manifests/oci").await.is_error(404, "MANIFEST_UNKNOWN");

    // Without its media type in Accept an OCI manifest is not shown.
    for accept in [None, Some("*/*"), Some(IMAGE_INDEX)] {
        let request = target.request(Method::GET, &format!("{REPO}/manifests/oci"));
        let request = accept.into_iter().fold(request, |r, types| r.header(header::ACCEPT, types));
        let answer = Answer::of(request.send().await.unwrap()).await;
        answer.is_error(404, "MANIFEST_UNKNOWN");
    }
}

async fn manifests_are_checked(target: &Target) {
    let good = target.image(IMAGE_MANIFEST, "checked").await;
    let other = Digest::of(b"other").to_string();
    target.put(&other, &good).await.is_error(400, "DIGEST_INVALID");

    for pointer in ["/config/digest", "/layers/0/digest"] {
        let mut lacking = good.clone();
        *lacking.pointer_mut(pointer).unwrap() = json!(other);
        target.put("checked", &lacking).await.is_error(400, "MANIFEST_BLOB_UNKNOWN");
    }
    for (media_type, body) in
        [(IMAGE_MANIFEST, "no JSON".to_owned()), (IMAGE_INDEX, good.to_string())]
    {
        let answer = target.remote.put_manifest(REPO, "checked", media_type, body).await;
        Answer::of(answer).await.is_error(400, "MANIFEST_INVALID");
    }
    target.manifest("checked").await.is_error(404, "MANIFEST_UNKNOWN");
}

async fn indexes_need_their_children(target: &Target) {
    let child = target.image(IMAGE_MANIFEST, "child").await;
    let index = json!({
        "schemaVersion": 2, "mediaType": IMAGE_INDEX,
        "manifests": [{
            "mediaType": IMAGE_MANIFEST, "digest": digest_of(&child),
            "size": child.to_string().len(),
            "platform": {"os": "linux", "architecture": "amd64"},
        }],
    });
    target.put("index", &index).await.is_error(400, "MANIFEST_BLOB_UNKNOWN");
    target.put_ok(&digest_of(&child).to_string(), &child).await;
    target.put_ok("index", &index).await;
    let answer = target.manifest("index").await;
    answer.is_manifest(IMAGE_INDEX, index.to_string().as_bytes());
}

async fn tags_move(target: &Target) {
    let [first, second] =
        [target.image(IMAGE_MANIFEST, "first").await, target.image(IMAGE_MANIFEST, "second").await];
    for manifest in [&first, &second] {
        target.put_ok("moving", manifest).await;
        assert_eq!(target.manifest("moving").await.body, manifest.to_string());
    }
    assert_eq!(target.manifest(digest_of(&first)).await.body, first.to_string());

    let list = target.get(&format!("{REPO}/tags/list")).await.json();
    let mut tags: Vec<_> = list["tags"].as_array().unwrap().iter().map(Value::to_string).collect();
    tags.sort(); // docker-registry 2.8.2 does not
    assert_eq!(tags, ["\"docker\"", "\"index\"", "\"moving\"", "\"oci\""]);
    target.get("library/unknown/tags/list").await.is_error(404, "NAME_UNKNOWN");
}

async fn referrers_or_their_tag(target: &Target) {
    let subject = target.image(IMAGE_MANIFEST, "subject").await;
    target.put_ok("subject", &subject).await;
    let digest = digest_of(&subject);
    let mut listed = Vec::new();
    for kind in ["application/vnd.test.a", "application/vnd.test.b"] {
        let mut referrer = target.image(IMAGE_MANIFEST, kind).await;
        referrer["artifactType"] = json!(kind);
        referrer["annotations"] = json!({"note": kind});
        referrer["subject"] = json!({
            "mediaType": IMAGE_MANIFEST, "digest": digest, "size": subject.to_string().len(),
        });
        let referrer_digest = digest_of(&referrer).to_string();
        let answer = target.put_ok(&referrer_digest, &referrer).await;
        let subject = target.referrers_api.then(|| digest.to_string());
        assert_eq!(answer.header("oci-subject"), subject.as_deref());
        assert_eq!(target.manifest(&referrer_digest).await.body, referrer.to_string());
        listed.push(json!({
            "mediaType": IMAGE_MANIFEST, "digest": referrer_digest,
            "size": referrer.to_string().len(), "artifactType": kind,
            "annotations": {"note": kind},
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed});
    let path = format!("{REPO}/referrers/{digest}");
    let answer = target.get(&path).await;
    if target.referrers_api {
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(IMAGE_INDEX)));
        assert_eq!(answer.json(), index);
        let one = target.get(&format!("{path}?artifactType=application/vnd.test.b")).await;
        assert_eq!(one.header("oci-filters-applied"), Some("artifactType"));
        assert_eq!(one.json()["manifests"], json!([listed[1]]));
        let none = target.get(&format!("{REPO}/referrers/{}", Digest::of(b"none"))).await;
        assert_eq!((none.status, &none.json()["manifests"]), (200, &json!([])));
    } else {
        assert_eq!(answer.status, 404);
        let tag = digest.to_string().replace(':', "-");
        target.manifest(&tag).await.is_error(404, "MANIFEST_UNKNOWN");
        target.put_ok(&tag, &index).await;
        assert_eq!(target.manifest(&tag).await.json(), index);
    }
}

#[tokio::test]
async fn the_registry_of_the_tests_conforms() {
    let registry = TestRegistry::start();
    conforms(&Target { remote: Remote::new(registry.url(), None), referrers_api: true }).await;
}

#[tokio::test]
async fn the_registry_of_the_tests_conforms_without_referrers_over_tls() {
    let ca = TestCa::new();
    let registry = TestRegistry::builder().no_referrers_api().tls(&ca).start();
    let remote = Remote::new(registry.url(), Some(ca.pem()));
    conforms(&Target { remote, referrers_api: false }).await;
}

#[tokio::test]
async fn docker_registry_conforms() {
    let registry = DockerRegistry::start();
    conforms(&Target { remote: Remote::new(registry.url(), None), referrers_api: false }).await;
}

#[tokio::test]
async fn docker_registry_conforms_over_tls() {
    let ca = TestCa::new();
    let registry = DockerRegistry::builder().tls(&ca).start();
    let remote = Remote::new(registry.url(), Some(ca.pem()));
    conforms(&Target { remote, referrers_api: false }).await;
}

#[tokio::test]
async fn docker_registry_wants_what_it_was_told_to_want() {
    use docker_registry::{PASSWORD, USER};
    let registry = DockerRegistry::builder().htpasswd().start();
    let remote = Remote::new(registry.url(), None);
    let ask = || remote.client.get(format!("{}/v2/", remote.url));
    let answer = ask().send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()[header::WWW_AUTHENTICATE], "Basic realm=\"registry\"");
    let answer = ask().basic_auth(USER, Some(PASSWORD)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);

    let ca = TestCa::new();
    let registry = DockerRegistry::builder().tls(&ca).require_client_cert().start();
    let remote = Remote::new(registry.url(), Some(ca.pem()));
    remote.client.get(format!("{}/v2/", remote.url)).send().await.unwrap_err();
}

#[tokio::test]
async fn referrers_come_in_pages() {
    let registry = TestRegistry::builder().page_size(2).start();
    let subject = registry.push_image("app", "v1");
    let all: Vec<String> = (0..5)
        .map(|n| {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": "a/b+c",
                "subject": registry.descriptor("app", subject), "annotations": {"n": n.to_string()},
            });
            registry.push_json("app", None, &manifest).to_string()
        })
        .collect();
    let target = Target { remote: Remote::new(registry.url(), None), referrers_api: true };
    for query in ["", "?artifactType=a/b%2Bc"] {
        let mut path = format!("app/referrers/{subject}{query}");
        let (mut found, mut pages) = (Vec::new(), 0);
        loop {
            let answer = target.get(&path).await;
            let page = answer.json();
            let digests = page["manifests"].as_array().unwrap().iter();
            found.extend(digests.map(|entry| entry["digest"].as_str().unwrap().to_owned()));
            pages += 1;
            let Some(link) = answer.header("link") else { break };
            let next = link.strip_prefix("</v2/").and_then(|l| l.strip_suffix(">; rel=\"next\""));
            path = next.expect(link).to_owned();
        }
        assert_eq!((&found, pages), (&all, 3));
    }
}

/// Fixtures of one image with an untagged referrer, in both registries.
#[tokio::test]
async fn fixtures_load_into_both_registries() {
    let root = tempfile::tempdir().unwrap();
    let blobs = root.path().join("registry/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let keep = |text: String| {
        let digest = Digest::of(text.as_bytes());
        std::fs::write(blobs.join(digest.hex()), &text).unwrap();
        json!({"mediaType": CONFIG, "digest": digest, "size": text.len()})
    };
    let manifest = |mut extra: Value| {
        extra["schemaVersion"] = json!(2);
        extra["mediaType"] = json!(IMAGE_MANIFEST);
        extra["config"] = keep("{}".into());
        extra["layers"] = json!([keep("layer".into())]);
        let mut descriptor = keep(extra.to_string());
        descriptor["mediaType"] = json!(IMAGE_MANIFEST);
        descriptor
    };
    let image = manifest(json!({}));
    let referrer = manifest(json!({"subject": image}));
    let listing = json!({"comment": "x", "repositories": {"a/b": {
        "tags": {"v1": image["digest"]}, "manifests": [image["digest"], referrer["digest"]],
        "image": image["digest"], "key": "keys/x.pub",
    }}});
    std::fs::write(root.path().join("registry/registry.json"), listing.to_string()).unwrap();
    let fixtures = Fixtures::at(root.path());
    let fixture = fixtures.repository("a/b");
    assert_eq!(fixture.facts["key"], "keys/x.pub");

    let (ours, docker) = (TestRegistry::start(), DockerRegistry::start());
    fixtures.push("a/b", &ours);
    let docker_remote = Remote::new(docker.url(), None);
    fixtures.push_http("a/b", &docker_remote).await;
    for (remote, referrers_api) in [(Remote::new(ours.url(), None), true), (docker_remote, false)] {
        let target = Target { remote, referrers_api };
        let tagged = target.get("a/b/manifests/v1").await;
        tagged.is_manifest(IMAGE_MANIFEST, &fixtures.blob(&fixture.image().to_string()));
        for path in ["manifests", "referrers"].map(|kind| format!("a/b/{kind}/")) {
            let digest = if path.ends_with("referrers/") { &image } else { &referrer };
            let answer = target.get(&(path.clone() + digest["digest"].as_str().unwrap())).await;
            let there = referrers_api || path.ends_with("manifests/");
            assert_eq!(answer.status, if there { 200 } else { 404 });
        }
        let config = target.get(&format!("a/b/blobs/{}", Digest::of(b"{}"))).await;
        assert_eq!(config.body, "{}");
    }
}
