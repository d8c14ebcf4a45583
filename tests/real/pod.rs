//! A pod with one container, from a signed image, through the gate.

use std::{fs, path::PathBuf};

use crate::{
    lab::{FALLBACK, Lab},
    support::{
        cri::{
            CREATE_CONTAINER, ContainerConfig, ContainerMetadata, CreateContainerRequest,
            IdResponse, ImageSpec, LinuxPodSandboxConfig, NODE, NamespaceOption, PULL_IMAGE,
            PodConfig, PodSandboxMetadata, PullImageResponse, REMOVE_POD_SANDBOX, RUN_POD_SANDBOX,
            RunPodSandboxRequest, START_CONTAINER, SandboxSecurityContext, by_id, pull,
        },
        gate::Gate,
        grpc::{Client, framed},
    },
};

/// A gate that lets the pod's image in.
pub(crate) fn gate(lab: &Lab) -> Gate {
    let key = lab.fixtures.file("keys/ecdsa-p256.pub");
    let policy = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: run}}\nspec:\n  \
         match: {{images: [\"{FALLBACK}/**\"]}}\n  authorities:\n    - name: run\n      publicKey:\n        \
         pem: |\n          {}\n",
        key.trim_end().replace('\n', "\n          ")
    );
    lab.gate().policy("run.yaml", &policy).start()
}

/// A pod whose container was started.
pub(crate) struct Pod {
    pub(crate) sandbox: String,
    pub(crate) container: String,
    /// What the container says.
    pub(crate) log: PathBuf,
    cgroup: String,
}

impl Pod {
    /// Pulls, creates and starts, as kubelet does.
    pub(crate) async fn run(lab: &Lab, client: &Client, name: &str) -> Self {
        let image = format!("{FALLBACK}/cosign2/ecdsa-p256:v1");
        let pulled: PullImageResponse =
            client.unary(PULL_IMAGE, &pull(&image, "shop")).await.message();
        let logs = lab.node.path().join("pod-logs").join(name);
        fs::create_dir_all(&logs).unwrap();
        let cgroup = format!("portcullis-test-{}-{name}", std::process::id());
        let metadata = PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: "shop".into(),
            attempt: 0,
        };
        let on_host =
            SandboxSecurityContext { namespace_options: Some(NamespaceOption { network: NODE }) };
        let linux = LinuxPodSandboxConfig {
            cgroup_parent: format!("/{cgroup}"),
            security_context: Some(on_host),
        };
        let pod = PodConfig {
            metadata: Some(metadata),
            log_directory: logs.display().to_string(),
            linux: Some(linux),
        };
        let run = RunPodSandboxRequest { config: Some(pod.clone()) };
        let sandbox: IdResponse = client.unary(RUN_POD_SANDBOX, &run).await.message();
        let image = ImageSpec {
            image: pulled.image_ref,
            user_specified_image: image,
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "app".into() }),
            image: Some(image),
            log_path: "app.log".into(),
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod),
        };
        let container: IdResponse = client.unary(CREATE_CONTAINER, &create).await.message();
        let start = client.call(START_CONTAINER, &[], framed(&by_id(1, &container.id))).await;
        assert_eq!(start.status(), (0, String::new()));
        Self { sandbox: sandbox.id, container: container.id, log: logs.join("app.log"), cgroup }
    }

    /// Stops and removes it, with the empty cgroups that the kernel keeps.
    pub(crate) async fn remove(self, client: &Client) {
        let removed = client.call(REMOVE_POD_SANDBOX, &[], framed(&by_id(1, &self.sandbox))).await;
        assert_eq!(removed.status(), (0, String::new()));
        // One hierarchy, or one for each controller.
        remove_cgroup(&format!("/sys/fs/cgroup/{}", self.cgroup));
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_cgroup(&format!("{}/{}", controller.path().display(), self.cgroup));
        }
    }
}

fn remove_cgroup(path: &str) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path().display().to_string());
        }
    }
    let _ = fs::remove_dir(path);
}
