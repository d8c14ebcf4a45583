//! Requests that are no requests.

use bytes::Bytes;

use crate::support::{
    cri::{PULL_IMAGE, pull},
    gate::Setup,
    grpc::framed,
    runtime::{FakeRuntime, ok},
    sign::{Signer, policy},
};
use prost::Message;
use serde_json::Value;

const HEX: &str = "e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";

/// A `PullImageRequest` for this image.
fn of(image: &str) -> Bytes {
    framed(&pull(image, "shop").encode_to_vec())
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_and_recorded() {
    let bare = |message: &[u8]| framed(message);
    let compressed = [b"\x01".as_slice(), &of("app:v1")[1..]].concat();
    let name_rule = "a path component must be lower-case letters and digits, separated by '.', \
                     '_', '__' or dashes";
    let digest_rule = "is no digest: \"sha256:\" and 64 lower-case hexadecimal characters are \
                       expected";
    let oversized = (16 << 20) + 1;
    #[rustfmt::skip]
    let table: Vec<(&str, Bytes, &str, String)> = vec![
        ("no bytes at all", Bytes::new(), "malformed_request", "the gRPC frame is cut short".into()),
        ("an empty message", bare(b""), "malformed_request", "the field \"image\" is missing".into()),
        ("noise", bare(b"\xff\xff\xff\xff"), "malformed_request", "a field is cut short".into()),
        ("truncated", of("app:v1").slice(..20), "malformed_request",
            "the gRPC frame announces 199 bytes and carries 15".into()),
        ("two messages", [of("app:v1"), of("app:v2")].concat().into(), "malformed_request",
            "the gRPC frame announces 199 bytes and carries 403".into()),
        ("compressed", compressed.into(), "malformed_request",
            "the message is compressed, which CRI clients and this server do not agree on".into()),
        ("announced too large", Bytes::from_static(b"\0\xff\xff\xff\xff"), "limit_exceeded",
            "4294967295 bytes, 16777216 are allowed".into()),
        ("too large", framed(&vec![0; oversized]), "limit_exceeded", "more than 16777216 bytes".into()),
        ("the image twice", bare(b"\x0a\x08\x0a\x06app:v1\x0a\x08\x0a\x06app:v2"), "malformed_request",
            "the field \"image\" occurs twice".into()),
        ("its name twice", bare(b"\x0a\x10\x0a\x06app:v1\x0a\x06app:v2"), "malformed_request",
            "the field \"image.image\" occurs twice".into()),
        ("an image without a name", of(""), "malformed_request",
            "the field \"image.image\" is missing".into()),
        ("an empty name on the wire", bare(b"\x0a\x02\x0a\x00"), "malformed_request",
            "the image reference is empty".into()),
        ("a name that is no UTF-8", bare(b"\x0a\x04\x0a\x02\xc3\x28"), "malformed_request",
            "a field that Portcullis reads is not what CRI defines".into()),
        ("a short digest", of("app@sha256:abc"), "malformed_request",
            format!("\"sha256:abc\" {digest_rule}")),
        ("a digest in capitals", of(&format!("app@sha256:{}", HEX.to_uppercase())), "malformed_request",
            format!("\"sha256:{}\" {digest_rule}", HEX.to_uppercase())),
        ("SHA-512", of(&format!("app@sha512:{HEX}{HEX}")), "malformed_request",
            format!("\"sha512:{HEX}{}…\" {digest_rule}", &HEX[..29])),
        ("two digests", of(&format!("app@sha256:{HEX}@sha256:{HEX}")), "malformed_request",
            format!("\"sha256:{HEX}@sha256:{}…\" {digest_rule}", &HEX[..21])),
        ("an image ID", of(HEX), "malformed_request",
            format!("\"{HEX}\" is no repository: 64 hexadecimal characters are an image ID, not a name")),
        ("10 kB", of(&"a".repeat(10_000)), "malformed_request",
            "the image reference has 10000 bytes, 456 are allowed".into()),
        ("a terminal's escapes", of("app\x1b[2J\x07:v1"), "malformed_request",
            format!(r#""app\u{{1b}}[2J\u{{7}}" is no repository: {name_rule}"#)),
        ("a line of its own", of("app\nallowed: true:v1"), "malformed_request",
            r#"" true:v1" is no tag: letters, digits, '_', '.', '-', at most 128 of them"#.into()),
        ("NUL", of("app\0.example.com/x"), "malformed_request",
            r#""app\u{0}.example.com/x" is no repository: the registry is no host name"#.into()),
        ("right to left", of("app\u{202e}ppa:v1"), "malformed_request",
            format!(r#""app\u{{202e}}ppa" is no repository: {name_rule}"#)),
        ("a path", of("/etc/passwd"), "malformed_request",
            format!("\"/etc/passwd\" is no repository: {name_rule}")),
        ("a way up", of("registry.example.com/../../v2/other"), "malformed_request",
            format!("\"registry.example.com/../../v2/other\" is no repository: {name_rule}")),
        ("a query", of("registry.example.com/app?x=y"), "malformed_request",
            format!("\"registry.example.com/app?x=y\" is no repository: {name_rule}")),
        ("credentials in the name", of("user:secret@registry.example.com/app"), "malformed_request",
            format!("\"registry.example.com/app\" {digest_rule}")),
        ("a scheme", of("https://registry.example.com/app"), "malformed_request",
            "\"https://registry.example.com/app\" is no repository: the registry is no host name".into()),
    ];

    let runtime = FakeRuntime::start(|_| ok(b""));
    let setup = Setup::before(runtime.socket());
    let gate = setup.policy("p.yaml", &policy("all", "**", &[("release", &Signer::new())])).start();
    let client = gate.client().await;
    let mut wrong = Vec::new();
    for (name, request, reason, why) in table {
        let (code, prefix) = super::wire(reason);
        let message = format!("PullImage request: {why}");
        let before = gate.records("pull").len();
        for _ in 0..2 {
            let told = client.call(PULL_IMAGE, &[], request.clone()).await.status();
            if told != (code, format!("{prefix}{message}")) {
                wrong.push(format!("{name}: {told:?}"));
            }
        }
        let records = gate.records("pull").split_off(before);
        let lines: Vec<_> = records
            .iter()
            .map(|record| ["decision", "reason", "message"].map(|field| record[field].clone()))
            .collect();
        let line: [Value; 3] = ["deny".into(), reason.into(), message.into()];
        if lines != [line.clone(), line] {
            wrong.push(format!("{name}: {lines:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(runtime.paths(), Vec::<String>::new());
}
