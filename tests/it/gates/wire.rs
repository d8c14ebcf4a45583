//! Requests that are not what CRI defines, or more of it than a container takes.

use crate::support::{
    cri::{CREATE_CONTAINER, IMAGE_STATUS, RUN_POD_SANDBOX},
    gate::Gate,
    grpc::{Client, framed},
};

use super::{Node, creation, field, line, spec, told};

const MIB: usize = 1 << 20;

/// The call is refused with this code, and on record once; the runtime hears nothing of it.
async fn refused(
    node: &Node,
    gate: &Gate,
    client: &Client,
    call: (&str, &str),
    body: bytes::Bytes,
    why: (i32, &str, &str),
) {
    let ((path, event), (code, reason, message)) = (call, why);
    let before = (gate.records(event).len(), node.calls(path));
    let answer = client.call(path, &[], body).await;
    let prefix = if code == 2 { "SignatureValidationFailed: " } else { "" };
    assert_eq!(answer.status(), (code, format!("{prefix}{message}")));
    assert_eq!(told(gate, event)[before.0..], [line("deny", reason, message)]);
    assert_eq!(node.calls(path), before.1, "{path} {message}");
}

const CREATE: (&str, &str) = (CREATE_CONTAINER, "create");
const STATUS: (&str, &str) = (IMAGE_STATUS, "image_status");
const SANDBOX: (&str, &str) = (RUN_POD_SANDBOX, "sandbox");

/// A creation with this configuration.
fn config(parts: &[Vec<u8>]) -> Vec<u8> {
    field(2, &parts.concat())
}

#[tokio::test]
async fn what_is_no_creation_is_refused_with_the_reason() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let app = node.name("app:v1");
    let image = || field(2, &spec(&app, ""));
    let volume = |image: &str| field(7, &[field(1, b"/v"), field(9, &spec(image, ""))].concat());
    let path = |path: &str| {
        format!(
            "\"{path}\" is a path: a checkpoint archive is not restored, since that starts \
             processes that no signature covers; use an image"
        )
    };
    let twice = |name: &str| format!("the field {name:?} occurs twice");
    let missing = |name: &str| format!("the field {name:?} is missing");
    let not_cri = || "a field that Portcullis reads is not what CRI defines".to_owned();
    let wire_type =
        |kind: u8| format!("a field has wire type {kind}, which CRI does not use there");
    let cases = [
        (creation("/var/lib/c.tar", &app).message(), path("/var/lib/c.tar")),
        (creation("./c.tar", "").message(), path("./c.tar")),
        (config(&[image(), volume("/c.tar")]), path("/c.tar")),
        (Vec::new(), missing("config")),
        (field(1, b"pod"), missing("config")),
        (config(&[]), missing("config.image")),
        (config(&[field(2, b"")]), missing("config.image.image")),
        (config(&[field(2, &field(1, b""))]), "the image reference is empty".into()),
        (config(&[image(), field(7, &field(9, b""))]), missing("config.mounts.image.image")),
        ([config(&[image()]), config(&[image()])].concat(), twice("config")),
        (config(&[image(), image()]), twice("config.image")),
        (
            config(&[field(2, &[field(1, app.as_bytes()), field(1, b"evil")].concat())]),
            twice("config.image.image"),
        ),
        (
            config(&[image(), field(7, &[field(9, &spec(&app, "")), field(9, b"")].concat())]),
            twice("config.mounts.image"),
        ),
        ([config(&[image()]), field(3, b""), field(3, b"")].concat(), twice("sandbox_config")),
        (b"\x10\x01".to_vec(), wire_type(0)),
        (config(&[b"\x15\x01\x02\x03\x04".to_vec()]), wire_type(5)),
        (config(&[field(2, b"\x08\x01")]), wire_type(0)),
        (b"\x13\x14".to_vec(), wire_type(3)),
        (b"\x12\x05\x12".to_vec(), "a field is cut short".into()),
        (b"\x12".to_vec(), "a field is cut short".into()),
        (vec![0xff; 11], "a number has more than 64 bits".into()),
        (b"\x02\x00".to_vec(), "field number 0 does not exist".into()),
        (config(&[field(2, &field(1, b"\xff\xfe"))]), not_cri()),
        ([config(&[image()]), field(3, &field(1, b"\x1a\x01\xff"))].concat(), not_cri()),
        (config(&[field(2, &[field(1, app.as_bytes()), field(18, b"\xff")].concat())]), not_cri()),
        (
            config(&[field(2, &spec("A B", ""))]),
            "\"A B\" is no repository: a path component must be lower-case letters and digits, \
             separated by '.', '_', '__' or dashes"
                .into(),
        ),
        (
            [config(&[image()]), field(3, &vec![b'\n'; MIB + 1])].concat(),
            format!("its sandbox_config has {} bytes, {MIB} are allowed", MIB + 1),
        ),
        (config(&[image(), field(7, b"").repeat(4097)]), "it has more than 4096 mounts".into()),
    ];
    for (message, why) in cases {
        let why = format!("CreateContainer request: {why}");
        let why = (3, "malformed_request", &*why);
        refused(&node, &gate, &client, CREATE, framed(&message), why).await;
    }
}

#[tokio::test]
async fn what_is_too_long_is_refused_with_the_reason() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    for (call, method) in
        [(CREATE, "CreateContainer"), (STATUS, "ImageStatus"), (SANDBOX, "RunPodSandbox")]
    {
        let why = format!("{method} request: more than 16777216 bytes");
        let body = framed(&vec![0; 16 * MIB + 1]);
        let why = (2, "limit_exceeded", &*why);
        refused(&node, &gate, &client, call, body, why).await;

        let why = format!("{method} request: the gRPC frame is cut short");
        let why = (3, "malformed_request", &*why);
        refused(&node, &gate, &client, call, bytes::Bytes::new(), why).await;
        let why = format!("{method} request: the gRPC frame announces 1 bytes and carries 2");
        let why = (3, "malformed_request", &*why);
        let two = bytes::Bytes::from_static(b"\0\0\0\0\x01aa");
        refused(&node, &gate, &client, call, two, why).await;
        let why = format!(
            "{method} request: the message is compressed, which CRI clients and this server do not \
             agree on"
        );
        let why = (3, "malformed_request", &*why);
        let zipped = bytes::Bytes::from_static(b"\x01\0\0\0\x01a");
        refused(&node, &gate, &client, call, zipped, why).await;
    }
    let why = (2, "limit_exceeded", "RunPodSandbox request: more than 1048576 bytes");
    let body = framed(&vec![0; MIB + 1]);
    refused(&node, &gate, &client, SANDBOX, body, why).await;
    for (call, method) in [(STATUS, "ImageStatus"), (SANDBOX, "RunPodSandbox")] {
        let why =
            format!("{method} request: a field that Portcullis reads is not what CRI defines");
        let why = (3, "malformed_request", &*why);
        for broken in [&b"\x0a\x05a"[..], b"\x08\x01", b"\xff"] {
            refused(&node, &gate, &client, call, framed(broken), why).await;
        }
    }
}

#[tokio::test]
async fn as_many_mounts_as_are_allowed_pass() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let app = node.name("app:v1");
    let id = super::pull_by(&client, &app).await;
    let mounts = field(7, &field(1, b"/v")).repeat(4096);
    let message = config(&[mounts, field(2, &spec(&id, &app))]);
    let pod = [field(1, b"web"), field(3, b"shop")].concat();
    let message = [message, field(3, &field(1, &pod))].concat();
    let answer = client.call(CREATE_CONTAINER, &[], framed(&message)).await;
    assert_eq!(answer.status(), (0, String::new()));
    let calls = node.runtime.take();
    let created = calls.iter().rfind(|call| call.head.uri.path() == CREATE_CONTAINER).unwrap();
    assert_eq!(created.body, framed(&message));
}
