//! Which call goes where. The runtime's socket serves more than CRI, and each other way to pull
//! or start an image is a way round the gate: so what is forwarded is a list.

use crate::forward::NODE_STATUS;

/// Methods of `runtime.v1.RuntimeService` that pass unjudged, as of cri-api 0.38. `RestorePod` is
/// not among them: it starts containers from a file that nobody judged.
const RUNTIME: &[&str] = &[
    "Attach",
    "CheckpointContainer",
    "CheckpointPod",
    "ContainerStats",
    "ContainerStatus",
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
const IMAGE: &[&str] = &["ImageFsInfo", "ListImages", "RemoveImage", "StreamImages"];

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Through the pipeline.
    Judge(Judged),
    /// As opaque frames to the runtime.
    Relay,
    /// To Portcullis itself.
    Own(Own),
    /// Not at all.
    Refuse,
}

/// The calls that are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// `PullImage`.
    Pull,
    /// `CreateContainer`.
    Create,
    /// `ImageStatus`.
    ImageStatus,
    /// `RunPodSandbox`.
    RunPodSandbox,
}

/// The calls that Portcullis answers by itself, to whoever may call CRI on its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// How the gate stands: `portcullis status`.
    Status,
}

impl Judged {
    /// The method's name.
    pub fn method(self) -> &'static str {
        match self {
            Judged::Pull => "PullImage",
            Judged::Create => "CreateContainer",
            Judged::ImageStatus => "ImageStatus",
            Judged::RunPodSandbox => "RunPodSandbox",
        }
    }
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
            Some(("runtime.v1.ImageService", method)) => match method {
                "PullImage" => return Route::Judge(Judged::Pull),
                "ImageStatus" => return Route::Judge(Judged::ImageStatus),
                _ => IMAGE.contains(&method),
            },
            Some(("runtime.v1.RuntimeService", method)) => match method {
                "CreateContainer" => return Route::Judge(Judged::Create),
                "RunPodSandbox" => return Route::Judge(Judged::RunPodSandbox),
                _ => RUNTIME.contains(&method),
            },
            _ if path == NODE_STATUS => return Route::Own(Own::Status),
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
    fn cri_passes_what_starts_is_judged_and_all_else_is_refused() {
        let table = Methods::default();
        for (path, judged) in [
            ("/runtime.v1.ImageService/PullImage", Judged::Pull),
            ("/runtime.v1.ImageService/ImageStatus", Judged::ImageStatus),
            ("/runtime.v1.RuntimeService/CreateContainer", Judged::Create),
            ("/runtime.v1.RuntimeService/RunPodSandbox", Judged::RunPodSandbox),
        ] {
            assert_eq!(table.route(path), Route::Judge(judged), "{path}");
            assert!(path.ends_with(judged.method()));
        }
        for path in ["/runtime.v1.RuntimeService/Version", "/runtime.v1.ImageService/ListImages"] {
            assert_eq!(table.route(path), Route::Relay);
        }
        for path in [
            "/runtime.v1alpha2.ImageService/PullImage",
            "/runtime.v1alpha2.RuntimeService/Version",
            "/containerd.services.images.v1.Images/Create",
            "/containerd.services.content.v1.Content/Write",
            "/runtime.v1.RuntimeService/RestorePod",
            "/runtime.v1.RuntimeService/PullImage",
            "/runtime.v1.ImageService/CreateContainer",
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
    fn portcullis_answers_for_itself() {
        let own = Route::Own(Own::Status);
        assert_eq!(Methods::default().route("/portcullis.v1alpha1.Node/Status"), own);
        for path in ["/portcullis.v1alpha1.Node/status", "/portcullis.v1alpha1.Node/Status?x"] {
            assert_eq!(Methods::default().route(path), Route::Refuse, "{path}");
        }
    }

    #[test]
    fn an_operator_may_add_a_method() {
        let new = "/runtime.v1.RuntimeService/NewMethod";
        assert_eq!(Methods::default().route(new), Route::Refuse);
        assert_eq!(Methods::with(vec![new.to_owned()]).route(new), Route::Relay);
    }
}
