//! Which call goes where. The runtime's socket serves more than CRI, and each other way to pull
//! or start an image is a way round the gate: so what is forwarded is a list.

/// Methods of `runtime.v1.RuntimeService` that pass unjudged, as of cri-api 0.38. `RestorePod` is
/// not among them: it starts containers from a file that nobody judged.
const RUNTIME: &[&str] = &[
    "Attach",
    "CheckpointContainer",
    "CheckpointPod",
    "ContainerStats",
    "ContainerStatus",
    "CreateContainer",
    "Exec",
    "ExecSync",
    "GetContainerEvents",
    "ListContainers",
    "ListContainerStats",
    "ListMetricDescriptors",
    "ListPodSandbox",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "PodSandboxStatus",
    "PortForward",
    "RemoveContainer",
    "RemovePodSandbox",
    "ReopenContainerLog",
    "RunPodSandbox",
    "RuntimeConfig",
    "StartContainer",
    "Status",
    "StopContainer",
    "StopPodSandbox",
    "StreamContainers",
    "StreamContainerStats",
    "StreamPodSandboxes",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "UpdateRuntimeConfig",
    "Version",
];
/// Methods of `runtime.v1.ImageService` that pass unjudged.
const IMAGE: &[&str] = &["ImageFsInfo", "ImageStatus", "ListImages", "RemoveImage", "StreamImages"];

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `PullImage`: through the pipeline.
    Pull,
    /// As opaque frames to the runtime.
    Relay,
    /// Not at all.
    Refuse,
}

/// The call table, with the methods that the operator added to it.
#[derive(Clone, Debug, Default)]
pub struct Methods {
    forwarded: Vec<String>,
}

impl Methods {
    /// The table with these full paths (`/runtime.v1.RuntimeService/New`) relayed as well:
    /// `runtime.forward_methods`.
    pub fn with(forwarded: Vec<String>) -> Self {
        Self { forwarded }
    }

    /// Where the call with this path goes.
    pub fn route(&self, path: &str) -> Route {
        let known = match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some(("runtime.v1.ImageService", "PullImage")) => return Route::Pull,
            Some(("runtime.v1.RuntimeService", method)) => RUNTIME.contains(&method),
            Some(("runtime.v1.ImageService", method)) => IMAGE.contains(&method),
            _ => false,
        };
        if known || self.forwarded.iter().any(|method| method == path) {
            Route::Relay
        } else {
            Route::Refuse
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_passes_pulls_are_judged_and_all_else_is_refused() {
        let table = Methods::default();
        assert_eq!(table.route("/runtime.v1.ImageService/PullImage"), Route::Pull);
        for path in ["/runtime.v1.RuntimeService/Version", "/runtime.v1.ImageService/ImageStatus"] {
            assert_eq!(table.route(path), Route::Relay);
        }
        for path in [
            "/runtime.v1alpha2.ImageService/PullImage",
            "/runtime.v1alpha2.RuntimeService/Version",
            "/containerd.services.images.v1.Images/Create",
            "/containerd.services.content.v1.Content/Write",
            "/runtime.v1.RuntimeService/RestorePod",
            "/runtime.v1.RuntimeService/PullImage",
            "/runtime.v1.ImageService/Version",
            "/runtime.v1.ImageService/pullImage",
            "/runtime.v1.ImageService/PullImage/",
            "//runtime.v1.ImageService/PullImage",
            "/runtime.v1.ImageService/%50ullImage",
            "/runtime.v1.RuntimeService/",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/",
            "",
        ] {
            assert_eq!(table.route(path), Route::Refuse, "{path}");
        }
    }

    #[test]
    fn an_operator_may_add_a_method() {
        let new = "/runtime.v1.RuntimeService/NewMethod";
        assert_eq!(Methods::default().route(new), Route::Refuse);
        assert_eq!(Methods::with(vec![new.to_owned()]).route(new), Route::Relay);
    }
}
