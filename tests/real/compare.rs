//! The same calls straight at containerd and through the gate: the raw answers are the same.

use bytes::Bytes;
use futures_util::future::{join, join_all};
use http_body_util::BodyExt;

use crate::{
    lab::{self, FALLBACK, Lab},
    pod::{Pod, by_kubelet, plain},
    scene::{Scene, pull_by},
    support::{
        cri::{
            CREATE_CONTAINER, ContainerConfig, CreateContainerRequest, IMAGE_STATUS, by_id,
            image_status,
        },
        grpc::{Client, PATIENCE, Raw, framed},
    },
};

const RUNTIME: &str = "/runtime.v1.RuntimeService/";
const IMAGE: &str = "/runtime.v1.ImageService/";

/// Calls over every family of methods, with questions that change nothing.
fn calls() -> Vec<(String, Vec<u8>)> {
    let nobody = || by_id(1, "nobody-has-this-id");
    let runtime: [(&str, Vec<u8>); 35] = [
        ("Version", by_id(1, "0.1.0")),
        ("Status", Vec::new()),
        ("Status", vec![0x08, 0x01]), // verbose
        ("RuntimeConfig", Vec::new()),
        ("UpdateRuntimeConfig", Vec::new()),
        ("ListPodSandbox", Vec::new()),
        ("PodSandboxStatus", nobody()),
        ("StopPodSandbox", nobody()),
        ("RemovePodSandbox", nobody()),
        ("RunPodSandbox", Vec::new()),
        ("PortForward", nobody()),
        ("ListContainers", Vec::new()),
        ("ContainerStatus", nobody()),
        ("StartContainer", nobody()),
        ("StopContainer", nobody()),
        ("RemoveContainer", nobody()),
        ("UpdateContainerResources", nobody()),
        ("ReopenContainerLog", nobody()),
        ("ExecSync", nobody()),
        ("Exec", nobody()),
        ("Attach", nobody()),
        ("CheckpointContainer", nobody()),
        ("ContainerStats", nobody()),
        ("ListContainerStats", Vec::new()),
        ("PodSandboxStats", nobody()),
        ("ListPodSandboxStats", Vec::new()),
        ("ListMetricDescriptors", Vec::new()),
        ("ListPodSandboxMetrics", Vec::new()),
        ("UpdatePodSandboxResources", nobody()),
        ("CheckpointPod", nobody()),
        ("StreamPodSandboxes", Vec::new()),
        ("StreamContainers", Vec::new()),
        ("StreamContainerStats", Vec::new()),
        ("StreamPodSandboxStats", Vec::new()),
        ("StreamPodSandboxMetrics", Vec::new()),
    ];
    let image: [(&str, Vec<u8>); 5] = [
        ("ListImages", Vec::new()),
        ("RemoveImage", by_id(1, "")),
        ("ImageStatus", by_id(1, "")),
        ("ImageFsInfo", Vec::new()),
        ("StreamImages", Vec::new()),
    ];
    let named = |service: &'static str| {
        move |(method, message): (&str, Vec<u8>)| (format!("{service}{method}"), message)
    };
    let mut calls: Vec<_> = runtime
        .into_iter()
        .map(named(RUNTIME))
        .chain(image.into_iter().map(named(IMAGE)))
        .collect();
    // A message that is none, and a method of the future.
    calls.push((format!("{RUNTIME}Version"), vec![0xff; 8]));
    calls
}

/// Answers that tell the time or list what other tests do meanwhile: their form is compared.
const LIVELY: &[&str] = &[
    "Status",
    "ImageFsInfo",
    "ListImages",
    "ListContainers",
    "ListPodSandbox",
    "ListContainerStats",
    "ListPodSandboxStats",
    "ListPodSandboxMetrics",
];

pub(crate) async fn direct_and_through_are_the_same(lab: &Lab) {
    let gate = lab.gate().start();
    let (through, direct) = (gate.client().await, lab.direct().await);
    for (path, message) in calls() {
        compare(&direct, &through, &path, framed(&message)).await;
    }
    use prost::Message;
    let absent = image_status(&format!("{FALLBACK}/nobody/has:this")).encode_to_vec();
    compare(&direct, &through, IMAGE_STATUS, framed(&absent)).await;
    // A container that is accepted, and that the runtime has no pod for.
    let image = lab.fixtures.repository("pause").image();
    let named = format!("{FALLBACK}/pause@{image}");
    pull_by(&through, &named).await.unwrap();
    let config = ContainerConfig { image: Some(plain(&named)), ..Default::default() };
    let create = CreateContainerRequest {
        pod_sandbox_id: "nobody-has-this-id".into(),
        config: Some(config),
        sandbox_config: None,
    };
    compare(&direct, &through, CREATE_CONTAINER, framed(&create.encode_to_vec())).await;
    // A frame that is cut short.
    compare(
        &direct,
        &through,
        &format!("{RUNTIME}Version"),
        Bytes::from_static(b"\0\0\0\0\x09\x0a"),
    )
    .await;
}

async fn compare(direct: &Client, through: &Client, path: &str, framed: Bytes) {
    let headers = [
        ("grpc-timeout", "30S"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    let expected = direct.call(path, &headers, framed.clone()).await;
    let got = through.call(path, &headers, framed).await;
    let method = path.rsplit('/').next().unwrap();
    if LIVELY.contains(&method) {
        assert_eq!(form(&got), form(&expected), "{path}");
    } else {
        assert_eq!(got, expected, "{path}");
    }
}

fn form(raw: &Raw) -> (&http::HeaderMap, Option<&http::HeaderMap>, bool) {
    (&raw.headers, raw.trailers.as_ref(), raw.body.is_empty())
}

/// A container's events, each as it happens.
pub(crate) async fn events_flow_as_they_happen(lab: &Lab) {
    let path = format!("{RUNTIME}GetContainerEvents");
    let scene = Scene::new(lab, "events").await;
    let (through, direct) = (&scene.client, &scene.direct);
    if lab::version() == "1.6" {
        // It has no such method, and says so through the gate as well.
        let answers = [direct, through].map(|client| client.call(&path, &[], framed(b"")));
        let [direct, through] = join_all(answers).await.try_into().unwrap();
        assert_eq!(through, direct);
        assert_eq!(through.status().0, 12);
        return;
    }
    // Some releases give each event to one listener only (containerd#7318): no second one, then.
    let listening = async {
        let mut stream = through.begin(&path, &[], framed(b"")).await.unwrap().into_body();
        let mut heard = 0;
        // The container's creation and start; other tests' pods are heard as well.
        while heard < 2 {
            let event = stream.frame().await.unwrap().unwrap().into_data().unwrap();
            heard += usize::from(event.windows(6).any(|window| window == b"events"));
        }
    };
    let acting = async {
        let (client, image) = (scene.gate.client().await, scene.signed("app"));
        let pod = Pod::run(&lab.node, &client, "events").await;
        let id = scene.pull(&image.name).await.unwrap();
        pod.starts(&client, by_kubelet(&id, &image.name), &image.made.says).await;
        pod.remove(&client).await;
    };
    let both = tokio::time::timeout(PATIENCE, join(listening, acting));
    both.await.expect("events in time");
}
