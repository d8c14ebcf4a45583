//! What the API server of the benchmark holds: objects as large as a real one sends them.

use serde_json::{Value, json};

use crate::support::sign::Signer;

/// Policies and revocations.
pub(crate) const POLICIES: usize = 100;
pub(crate) const REVOCATIONS: usize = 20;
/// Images that a node's status names: kubelet's own bound.
const IMAGES: usize = 50;

/// The name of a node.
pub(crate) fn node_name(number: usize) -> String {
    format!(
        "ip-10-{}-{}-{}.eu-west-1.compute.internal",
        number >> 16,
        number >> 8 & 255,
        number & 255
    )
}

/// All objects, as a `kubectl apply` made them.
pub(crate) fn objects() -> Vec<Value> {
    let keys = [Signer::new(), Signer::new()].map(|key| key.pem(0));
    let policies = (0..POLICIES).map(|number| policy(number, &keys));
    policies.chain((0..REVOCATIONS).map(revocation)).collect()
}

/// A team's images need a signature by one of two keys.
fn policy(number: usize, keys: &[String; 2]) -> Value {
    let authority = |name: &str, pem: &str, from: &str| json!({"name": name, "publicKey": {"pem": pem, "notBefore": from}});
    let spec = json!({
        "match": {
            "images": [format!("registry.example.com/team-{number}/**"),
                       format!("mirror.example.com/team-{number}/**")],
            "namespaces": [format!("team-{number}"), format!("team-{number}-*")],
        },
        "authorities": [
            authority("release-2025", &keys[0], "2025-01-01T00:00:00Z"),
            authority("release-2026", &keys[1], "2026-01-01T00:00:00Z"),
        ],
    });
    object("ImagePolicy", &format!("team-{number}"), spec)
}

fn revocation(number: usize) -> Value {
    let digests: Vec<_> = (0..5).map(|more| format!("sha256:{:064x}", number * 5 + more)).collect();
    object("Revocation", &format!("incident-{number}"), json!({"digests": digests}))
}

/// With the metadata that `kubectl apply` and the API server add.
fn object(kind: &str, name: &str, spec: Value) -> Value {
    let version = "portcullis.dev/v1alpha1";
    let applied = json!({"apiVersion": version, "kind": kind,
                         "metadata": {"annotations": {}, "name": name}, "spec": spec});
    let fields: Value =
        spec.as_object().unwrap().keys().map(|key| (format!("f:{key}"), json!({}))).collect();
    json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": name,
            "uid": "0b7d3c2e-5f0a-4a52-9d0e-3f7d2a9b1c11",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/managed-by": "platform", "team": name},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": applied.to_string()},
            "managedFields": [{
                "manager": "kubectl-client-side-apply", "operation": "Update",
                "apiVersion": version, "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/last-applied-configuration": {}}},
                             "f:spec": fields},
            }],
        },
        "spec": spec,
    })
}

/// The first policy, changed for the so manieth time.
pub(crate) fn changed(first: &Value, time: usize) -> Value {
    let mut object = first.clone();
    object["metadata"]["generation"] = json!(time + 1);
    object["spec"]["match"]["images"][1] = json!(format!("mirror-{time}.example.com/team-0/**"));
    object
}

/// What a node's object holds beside its conditions: much the most is the names of its images.
pub(crate) fn furnish(node: &mut Value) {
    let image = |number: usize| {
        let repository = format!("registry.example.com/team-{number}/service");
        json!({"names": [format!("{repository}@sha256:{number:064x}"), format!("{repository}:v1.{number}.0")],
               "sizeBytes": 73_400_320})
    };
    node["status"]["images"] = (0..IMAGES).map(image).collect();
    let condition = |kind: &str| {
        json!({"type": kind, "status": "False", "reason": "KubeletHasNo",
               "message": "kubelet has none of that pressure",
               "lastHeartbeatTime": "2026-01-01T00:00:00Z",
               "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let conditions = node["status"]["conditions"].as_array_mut().unwrap();
    conditions.extend(["MemoryPressure", "DiskPressure", "PIDPressure"].map(condition));
}
