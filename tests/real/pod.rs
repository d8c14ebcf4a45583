//! A pod on the host's network, and its containers, with the fields that kubelet sends.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    lab::Node,
    support::{
        cri::{
            CREATE_CONTAINER, Container, ContainerConfig, ContainerFilter, ContainerMetadata,
            CreateContainerRequest, IdResponse, ImageSpec, LIST_CONTAINERS, LIST_POD_SANDBOX,
            LinuxPodSandboxConfig, ListContainersRequest, ListContainersResponse,
            ListPodSandboxResponse, Mount, NODE, NamespaceOption, PodConfig, PodSandboxMetadata,
            REMOVE_POD_SANDBOX, RUN_POD_SANDBOX, RunPodSandboxRequest, START_CONTAINER,
            SandboxSecurityContext, by_id,
        },
        grpc::{Client, PATIENCE, framed},
    },
};

/// gRPC code and message of a call that failed.
pub(crate) type Failure = (i32, String);

/// The namespace of every pod here.
pub(crate) const NAMESPACE: &str = "shop";

/// A pod sandbox that runs.
pub(crate) struct Pod {
    sandbox: String,
    config: PodConfig,
    logs: PathBuf,
    cgroup: String,
}

impl Pod {
    /// `RunPodSandbox` that must succeed.
    pub(crate) async fn run(node: &Node, client: &Client, name: &str) -> Self {
        match Self::try_run(node, client, name).await {
            Ok(pod) => pod,
            Err((code, message)) => panic!("pod {name} does not run: {code}: {message}"),
        }
    }

    /// `RunPodSandbox` of a pod with this name.
    pub(crate) async fn try_run(node: &Node, client: &Client, name: &str) -> Result<Self, Failure> {
        let logs = node.path().join("pod-logs").join(name);
        fs::create_dir_all(&logs).unwrap();
        let cgroup = format!("portcullis-test-{}-{name}", std::process::id());
        let config = config(name, &logs, &cgroup);
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer = client.unary(RUN_POD_SANDBOX, &request).await;
        match answer.status() {
            (0, _) => {
                let sandbox = answer.message::<IdResponse>().id;
                Ok(Self { sandbox, config, logs, cgroup })
            }
            failure => {
                // What containerd began and gave up is swept away with the node.
                remove_cgroups(&cgroup);
                Err(failure)
            }
        }
    }

    /// A request for a container from this image, named by whatever means.
    pub(crate) fn request(&self, image: ImageSpec) -> CreateContainerRequest {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("app-{}", MADE.fetch_add(1, Ordering::Relaxed));
        let config = ContainerConfig {
            log_path: format!("{name}.log"),
            labels: HashMap::from([("io.kubernetes.container.name".to_owned(), name.clone())]),
            annotations: HashMap::from([(
                "io.kubernetes.container.restartCount".to_owned(),
                "0".to_owned(),
            )]),
            metadata: Some(ContainerMetadata { name }),
            image: Some(image),
            mounts: Vec::new(),
        };
        CreateContainerRequest {
            pod_sandbox_id: self.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        }
    }

    /// The same with an image as a volume.
    pub(crate) fn request_with_volume(
        &self,
        image: ImageSpec,
        volume: ImageSpec,
    ) -> CreateContainerRequest {
        let mut request = self.request(image);
        let mount = Mount { container_path: "/data".into(), readonly: true, image: Some(volume) };
        request.config.as_mut().unwrap().mounts.push(mount);
        request
    }

    /// Creates and starts a container, and waits until it said this.
    pub(crate) async fn starts(&self, client: &Client, image: ImageSpec, says: &str) -> String {
        self.request_starts(client, &self.request(image), says).await
    }

    /// The same by a request that is ready.
    pub(crate) async fn request_starts(
        &self,
        client: &Client,
        request: &CreateContainerRequest,
        says: &str,
    ) -> String {
        let created = create(client, request).await;
        let container =
            created.unwrap_or_else(|(code, message)| panic!("not created: {code}: {message}"));
        self.start(client, request, &container.id, says).await;
        container.id
    }

    /// Starts what was created by this request, and waits until it said this.
    pub(crate) async fn start(
        &self,
        client: &Client,
        request: &CreateContainerRequest,
        container: &str,
        says: &str,
    ) {
        let start = client.call(START_CONTAINER, &[], framed(&by_id(1, container))).await;
        assert_eq!(start.status(), (0, String::new()));
        let log = self.logs.join(&request.config.as_ref().unwrap().log_path);
        hear(&log, says).await;
    }

    /// The containers that the runtime has in it.
    pub(crate) async fn list(&self, direct: &Client) -> Vec<Container> {
        let filter = ContainerFilter { pod_sandbox_id: self.sandbox.clone() };
        let listing = ListContainersRequest { filter: Some(filter) };
        direct.unary(LIST_CONTAINERS, &listing).await.message::<ListContainersResponse>().containers
    }

    /// How many containers the runtime has in it.
    pub(crate) async fn containers(&self, direct: &Client) -> usize {
        self.list(direct).await.len()
    }

    /// Stops and removes it, with the empty cgroups that the kernel keeps.
    pub(crate) async fn remove(self, client: &Client) {
        let removed = client.call(REMOVE_POD_SANDBOX, &[], framed(&by_id(1, &self.sandbox))).await;
        assert_eq!(removed.status(), (0, String::new()));
        remove_cgroups(&self.cgroup);
    }
}

/// `CreateContainer` as it is.
pub(crate) async fn create(
    client: &Client,
    request: &CreateContainerRequest,
) -> Result<IdResponse, Failure> {
    let answer = client.unary(CREATE_CONTAINER, request).await;
    match answer.status() {
        (0, _) => Ok(answer.message()),
        failure => Err(failure),
    }
}

/// Whether the runtime has a pod of this name.
pub(crate) async fn exists(direct: &Client, name: &str) -> bool {
    let listed: ListPodSandboxResponse =
        direct.call(LIST_POD_SANDBOX, &[], framed(b"")).await.message();
    listed.items.iter().any(|pod| pod.metadata.as_ref().is_some_and(|known| known.name == name))
}

/// An image as kubelet names it to `CreateContainer`: the ID, and what the pod's author wrote.
pub(crate) fn by_kubelet(id: &str, name: &str) -> ImageSpec {
    ImageSpec { image: id.into(), user_specified_image: name.into(), ..Default::default() }
}

/// An image named by one string, as by any other client.
pub(crate) fn plain(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), ..Default::default() }
}

fn config(name: &str, logs: &Path, cgroup: &str) -> PodConfig {
    let label = |key: &str, value: &str| (format!("io.kubernetes.pod.{key}"), value.to_owned());
    let on_host =
        SandboxSecurityContext { namespace_options: Some(NamespaceOption { network: NODE }) };
    PodConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: NAMESPACE.into(),
            attempt: 0,
        }),
        log_directory: logs.display().to_string(),
        labels: HashMap::from([
            label("name", name),
            label("namespace", NAMESPACE),
            label("uid", name),
        ]),
        annotations: HashMap::from([("kubernetes.io/config.source".to_owned(), "api".to_owned())]),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/{cgroup}"),
            security_context: Some(on_host),
        }),
    }
}

async fn hear(log: &Path, says: &str) {
    let said = async {
        while !fs::read_to_string(log).unwrap_or_default().contains(says) {
            tokio::time::sleep(Duration::from_millis(10)).await; // a file is no event source here
        }
    };
    let heard = tokio::time::timeout(PATIENCE, said).await;
    heard.unwrap_or_else(|_| panic!("{} never has {says:?}", log.display()));
}

/// One hierarchy, or one for each controller. Processes that end leave theirs a moment later.
fn remove_cgroups(name: &str) {
    let below = |directory: PathBuf| directory.join(name);
    let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let mut left: Vec<_> = controllers.map(|one| below(one.path())).collect();
    left.push(below("/sys/fs/cgroup".into()));
    let begun = Instant::now();
    loop {
        left.iter().for_each(|cgroup| remove_cgroup(cgroup));
        left.retain(|cgroup| cgroup.exists());
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "somebody is still in {left:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}
