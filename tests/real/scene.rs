//! A registry, a signer who is trusted, and a gate before a node: what most tests begin with.

use std::{collections::HashMap, fs, process::Command, sync::Mutex, time::Duration};

use serde_json::Value;

use crate::{
    image::Made,
    lab::{FALLBACK, Lab, Node, version},
    pod::{Failure, NAMESPACE, Pod},
    support::{
        cri::{
            CreateContainerRequest, IMAGE_STATUS, Image, ImageStatusResponse, PULL_IMAGE,
            PullImageResponse, image_status, pull,
        },
        gate::{Gate, Setup},
        grpc::{Client, PATIENCE},
        registry::TestRegistry,
        sign::{Signer, policy},
    },
};

/// The file of the policy that a scene is about.
pub(crate) const POLICY: &str = "release.yaml";

/// A registry of its own with signed and other images, and a gate that trusts the signer.
pub(crate) struct Scene<'a> {
    pub(crate) node: &'a Node,
    pub(crate) registry: TestRegistry,
    /// The name of the registry.
    pub(crate) host: String,
    pub(crate) signer: Signer,
    pub(crate) gate: Gate,
    /// Through the gate.
    pub(crate) client: Client,
    /// Past it.
    pub(crate) direct: Client,
    /// Records of each event that were looked at.
    seen: Mutex<HashMap<&'static str, usize>>,
}

/// An image of the scene's registry.
pub(crate) struct Shown {
    pub(crate) made: Made,
    /// With its tag.
    pub(crate) name: String,
    /// With its digest.
    pub(crate) pinned: String,
    pub(crate) id: String,
}

impl<'a> Scene<'a> {
    /// On the shared node.
    pub(crate) async fn new(lab: &'a Lab, name: &str) -> Self {
        Self::on(lab, &lab.node, name).await
    }

    /// On this node, behind the registry name `NAME.example.com`.
    pub(crate) async fn on(lab: &Lab, node: &'a Node, name: &str) -> Self {
        let (registry, signer) = (TestRegistry::start(), Signer::new());
        let host = format!("{name}.example.com");
        node.host(&host, registry.url());
        let gate = setup(lab, node).policy(POLICY, &release(&host, &signer)).start();
        let (client, direct) = (gate.client().await, Client::connect(&node.socket()).await);
        Self { node, registry, host, signer, gate, client, direct, seen: Mutex::default() }
    }

    /// An image that the signer vouches for.
    pub(crate) fn signed(&self, repository: &str) -> Shown {
        let shown = self.unsigned(repository);
        self.sign(&shown);
        shown
    }

    /// An image that nobody vouches for.
    pub(crate) fn unsigned(&self, repository: &str) -> Shown {
        self.push(Made::new(), repository)
    }

    pub(crate) fn push(&self, made: Made, repository: &str) -> Shown {
        made.push(&self.registry, repository, "v1");
        self.shown(made, repository)
    }

    /// An image as the registry would show it, had it been pushed.
    pub(crate) fn shown(&self, made: Made, repository: &str) -> Shown {
        let name = format!("{}/{repository}", self.host);
        Shown {
            pinned: format!("{name}@{}", made.digest()),
            name: format!("{name}:v1"),
            id: made.id(),
            made,
        }
    }

    /// Signs what was pushed.
    pub(crate) fn sign(&self, shown: &Shown) {
        let (_, path) = shown.name.split_once('/').unwrap();
        let repository = path.strip_suffix(":v1").unwrap();
        self.signer.sign_simple(&self.registry, repository, shown.made.digest());
    }

    /// `PullImage` through the gate.
    pub(crate) async fn pull(&self, name: &str) -> Result<String, Failure> {
        pull_by(&self.client, name).await
    }

    /// `PullImage` past the gate, which must succeed.
    pub(crate) async fn pull_around(&self, name: &str) {
        let pulled = pull_by(&self.direct, name).await;
        pulled.unwrap_or_else(|(code, message)| panic!("{name}: {code}: {message}"));
    }

    /// `ImageStatus` through the gate.
    pub(crate) async fn status(&self, name: &str) -> Option<Image> {
        status_by(&self.client, name).await
    }

    /// The audit records of one event since this was asked last.
    pub(crate) fn news(&self, event: &'static str) -> Vec<Value> {
        let mut records = self.gate.records(event);
        let mut seen = self.seen.lock().unwrap();
        let known = seen.insert(event, records.len()).unwrap_or(0);
        records.split_off(known)
    }

    /// Since this was asked last there is one record of the event, with this decision and one of
    /// these reasons.
    #[track_caller]
    pub(crate) fn recorded(&self, event: &'static str, decision: &str, reasons: &[&str]) {
        let mut news = self.news(event);
        if event == "sandbox" {
            // The image may have been brought meanwhile: for the node, and for no pod.
            news.retain(|record| record["pod"]["namespace"] == NAMESPACE);
        }
        assert_eq!(news.len(), 1, "records of {event}: {news:#?}");
        assert_eq!(news[0]["decision"], decision, "{:#}", news[0]);
        match news[0]["reason"].as_str() {
            Some(reason) => assert!(reasons.contains(&reason), "{reasons:?}: {:#}", news[0]),
            None => assert!(reasons.is_empty(), "{reasons:?}: {:#}", news[0]),
        }
    }

    /// This container is refused for one of these reasons, on record, and the runtime has none
    /// more. Returns the message behind its prefix.
    pub(crate) async fn refuses(
        &self,
        pod: &Pod,
        request: &CreateContainerRequest,
        reasons: &[&str],
    ) -> String {
        let before = pod.containers(&self.direct).await;
        self.news("create");
        let created = crate::pod::create(&self.client, request).await;
        let (code, message) = created.expect_err("a container from an image that is not proven");
        let why = match reasons {
            // No judgement, but an answer to a call that is none.
            ["malformed_request"] => message.strip_prefix("CreateContainer request: "),
            _ => message.strip_prefix("SignatureValidationFailed: "),
        };
        let why = why.unwrap_or_else(|| panic!("{message}")).to_owned();
        assert_eq!(code, if reasons == ["malformed_request"] { 3 } else { 2 }, "{message}");
        self.recorded("create", "deny", reasons);
        assert_eq!(pod.containers(&self.direct).await, before, "{message}");
        why
    }

    /// This container starts and says this, on record.
    pub(crate) async fn accepts(&self, pod: &Pod, request: &CreateContainerRequest, says: &str) {
        self.news("create");
        pod.request_starts(&self.client, request, says).await;
        self.recorded("create", "allow", &[]);
    }

    /// `ImageStatus` answers that there is no such image, and why is on record: from this call, or
    /// from an earlier one that was answered the same not long ago.
    pub(crate) async fn hides(&self, name: &str) {
        self.news("image_status");
        assert!(status_by(&self.direct, name).await.is_some(), "{name} is not there at all");
        assert_eq!(self.status(name).await, None, "{name}");
        let news = self.news("image_status");
        assert!(news.len() <= 1, "{news:#?}");
        let told = self.gate.records("image_status");
        let mut about = told.iter().filter(|record| record["image"]["requested"] == name);
        let last = about.next_back().unwrap_or_else(|| panic!("{name}: not on record: {told:#?}"));
        assert_eq!(last["decision"], "deny", "{last:#}");
    }

    /// Waits until `ImageStatus` shows an image, as it does once evidence was gathered.
    pub(crate) async fn shows(&self, name: &str) {
        let shown = async {
            while self.status(name).await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await; // there is no event
            }
        };
        let shown = tokio::time::timeout(PATIENCE, shown).await;
        shown.unwrap_or_else(|_| panic!("never shown: {name}"));
    }

    /// Puts a gate that knows nothing yet in the place of this one, as on the day of its
    /// installation.
    pub(crate) async fn install(&mut self, lab: &Lab) {
        let setup = setup(lab, self.node);
        self.gate = setup.policy(POLICY, &release(&self.host, &self.signer)).start();
        self.client = self.gate.client().await;
        self.seen.lock().unwrap().clear();
    }

    /// The same, and nobody tells it which sandbox image the runtime uses.
    pub(crate) async fn install_unconfigured(&mut self, lab: &Lab) {
        let setup = setup(lab, self.node).sandbox_image(None);
        self.gate = setup.policy(POLICY, &release(&self.host, &self.signer)).start();
        self.client = self.gate.client().await;
        self.seen.lock().unwrap().clear();
    }

    /// The same, and the operator says that it is this one.
    pub(crate) async fn install_configured(&mut self, lab: &Lab, sandbox_image: &str) {
        let setup = setup(lab, self.node).sandbox_image(Some(sandbox_image));
        self.gate = setup.policy(POLICY, &release(&self.host, &self.signer)).start();
        self.client = self.gate.client().await;
        self.seen.lock().unwrap().clear();
    }

    /// Kills the gate, starts it on the same files and connects anew.
    pub(crate) async fn restart_gate(&mut self) {
        let gate = &mut self.gate;
        tokio::task::block_in_place(|| gate.crash_and_restart());
        self.client = self.gate.client().await;
    }

    /// Restarts containerd, with which all its pods end, and connects anew.
    pub(crate) async fn restart_node(&mut self) {
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| scope.spawn(|| self.node.restart()).join().unwrap());
        });
        self.direct = Client::connect(&self.node.socket()).await;
    }

    /// Stops the registry: its connections are refused from now on.
    pub(crate) fn stop_registry(&mut self) {
        self.registry = TestRegistry::start();
    }

    /// Puts a policy file in place, whole, and waits until it is in force.
    pub(crate) async fn policy(&self, file: &str, text: &str) {
        let file = self.gate.path().join("policies").join(file);
        let new = file.with_extension("new");
        fs::write(&new, text).unwrap();
        self.policies_change(|| fs::rename(&new, &file).unwrap()).await;
    }

    /// Changes policies, and waits until they are in force.
    pub(crate) async fn policies_change(&self, change: impl FnOnce()) {
        let before = self.gate.records("policy").len();
        change();
        until("the policy is in force", || self.gate.records("policy").len() > before).await;
        let last = self.gate.records("policy").pop().unwrap();
        let message = last["message"].as_str().unwrap();
        assert!(message.starts_with("policy set in force"), "{message}");
    }

    /// A gate before another node, for the same images.
    pub(crate) async fn beside<'b>(&self, lab: &Lab, node: &'b Node) -> Scene<'b> {
        let setup = setup(lab, node);
        let gate = setup.policy(POLICY, &release(&self.host, &self.signer)).start();
        let (client, direct) = (gate.client().await, Client::connect(&node.socket()).await);
        Scene {
            node,
            registry: TestRegistry::start(),
            host: self.host.clone(),
            signer: Signer::new(),
            gate,
            client,
            direct,
            seen: Mutex::default(),
        }
    }

    /// `portcullis` with these arguments and the gate's configuration; what it says.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        command(&self.gate, arguments)
    }
}

/// `portcullis` with these arguments beside this gate; what it says. It must succeed.
#[track_caller]
pub(crate) fn command(gate: &Gate, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .arg("--config")
        .arg(gate.path().join("config.toml"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let error = text(&output.stderr);
    assert!(output.status.success(), "portcullis {arguments:?}: {error}");
    text(&output.stdout)
}

/// A gate before this node that trusts the lab's sandbox image; more policies may come.
pub(crate) fn setup(lab: &Lab, node: &Node) -> Setup {
    let setup = Setup::before(&node.socket())
        .registry_config(&node.hosts())
        .policy("pause.yaml", &lab.policy("pause", &format!("{FALLBACK}/pause")));
    // containerd 2 does not tell; the others are asked.
    setup.sandbox_image((version() == "2.1").then(|| node.pause()).as_deref())
}

/// The policy of a scene.
pub(crate) fn release(host: &str, signer: &Signer) -> String {
    policy("release", &format!("{host}/**"), &[("release", signer)])
}

pub(crate) async fn pull_by(client: &Client, name: &str) -> Result<String, Failure> {
    let answer = client.unary(PULL_IMAGE, &pull(name, NAMESPACE)).await;
    match answer.status() {
        (0, _) => Ok(answer.message::<PullImageResponse>().image_ref),
        failure => Err(failure),
    }
}

pub(crate) async fn status_by(client: &Client, name: &str) -> Option<Image> {
    client.unary(IMAGE_STATUS, &image_status(name)).await.message::<ImageStatusResponse>().image
}

/// Waits for something that only files and other processes tell.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}
