//! The node's clock is set, forward and back, while the daemon runs.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use jiff::{SignedDuration, Timestamp};

use crate::support::{
    containerd::Shelf,
    cri::{
        CREATE_CONTAINER, ContainerConfig, CreateContainerRequest, ImageSpec, PULL_IMAGE,
        PodConfig, PodSandboxMetadata, PullImageResponse, pull,
    },
    gate::{Gate, Setup},
    grpc::Client,
    registry::TestRegistry,
    sign::{self, Signer},
};

use super::{pulled, whole};

const HOUR: i64 = 3600;

/// A clock for a daemon, and what has to be preloaded for it.
struct Clock {
    directory: tempfile::TempDir,
    file: File,
}

impl Clock {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults/clock.c");
        let compiled = Command::new("gcc")
            .args(["-Wall", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(directory.path().join("clock.so"))
            .arg(source)
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let path = directory.path().join("off");
        fs::write(&path, 0i64.to_ne_bytes()).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        Self { directory, file }
    }

    /// Starts a daemon that goes by it.
    fn start(&self, setup: Setup) -> Gate {
        let path = self.directory.path().display();
        let script = format!(
            "LD_PRELOAD={path}/clock.so PORTCULLIS_TEST_CLOCK={path}/off exec \"$0\" \"$@\""
        );
        setup.start_by(&script, Stdio::null())
    }

    /// So many seconds before (or behind) the real time.
    fn set(&self, off: i64) {
        self.file.write_all_at(&off.to_ne_bytes(), 0).unwrap();
    }
}

/// `CreateContainer` as kubelet asks for it; the answer.
async fn create(client: &Client, id: &str, name: &str) -> (i32, String) {
    let metadata = PodSandboxMetadata { name: "web".into(), ..Default::default() };
    let request = CreateContainerRequest {
        pod_sandbox_id: "pod".into(),
        config: Some(ContainerConfig {
            image: Some(ImageSpec {
                image: id.into(),
                user_specified_image: name.into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        sandbox_config: Some(PodConfig { metadata: Some(metadata), ..Default::default() }),
    };
    client.unary(CREATE_CONTAINER, &request).await.status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_a_time_is_judged_by_the_clock_of_now() {
    let (registry, key, clock) = (TestRegistry::start(), Signer::new(), Clock::new());
    let digest = registry.push_image("app", "v1");
    key.sign_simple(&registry, "app", digest);
    let glass = registry.push_image("glass", "v1");
    let shelf = Shelf::beside(&registry);
    let runtime = shelf.runtime();
    let at = |seconds: i64| Timestamp::now() + SignedDuration::from_secs(seconds);
    let window = format!(
        "publicKey:\n        notBefore: {:.0}\n        notAfter: {:.0}\n",
        at(-HOUR),
        at(HOUR)
    );
    let images = |rest: &str| format!("{}/{rest}", registry.host());
    let timed =
        sign::policy("app", &images("app"), &[("release", &key)]).replace("publicKey:\n", &window);
    let breaking = format!(
        "spec:\n  breakGlass: {{annotation: example.com/glass, namespaces: [shop], notAfter: {:.0}}}\n",
        at(HOUR)
    );
    let broken =
        sign::policy("glass", &images("glass"), &[("release", &key)]).replace("spec:\n", &breaking);
    let setup = Setup::before(runtime.socket()).policy("a.yaml", &timed).policy("b.yaml", &broken);
    let gate = clock.start(setup);
    let client = gate.client().await;
    let (app, glass) =
        (format!("{}@{digest}", images("app")), format!("{}@{glass}", images("glass")));
    let pinned = pull(&app, "shop");
    let id = client.unary(PULL_IMAGE, &pinned).await.message::<PullImageResponse>().image_ref;
    let pod = |image: &str| {
        let mut request = pull(image, "shop");
        let annotations = &mut request.sandbox_config.as_mut().unwrap().annotations;
        annotations.insert("example.com/glass".into(), "true".into());
        request
    };
    let mut judged = 1;
    for (off, why) in [
        (0, None),
        (2 * HOUR, Some("key expired")),
        (-2 * HOUR, Some("key not valid before")),
        (30 * 366 * 24 * HOUR, Some("key expired")),
        // As when a battery is empty.
        (-Timestamp::now().as_second(), Some("key not valid before")),
        (0, None),
    ] {
        clock.set(off);
        // Twice: what is remembered is no longer true either.
        for _ in 0..2 {
            for told in [create(&client, &id, &app).await, pulled(&client, &app).await] {
                match why {
                    None => assert_eq!(told, (0, String::new()), "{off}"),
                    Some(why) => assert!(told.0 == 2 && told.1.contains(why), "{off}: {told:?}"),
                }
            }
            judged += 1;
        }
        let (code, message) = client.unary(PULL_IMAGE, &pod(&glass)).await.status();
        assert_eq!(code == 0, off < HOUR, "{off}: {message}");
    }
    // The order on record is that of events, whatever the clock said.
    assert_eq!(gate.records("create").len(), judged - 1);
    assert_eq!(gate.records("break_glass").len() + gate.records("pull").len(), judged + 6);
    assert!(gate.records("drift").is_empty());
    let years: Vec<_> = gate
        .records("create")
        .iter()
        .map(|record| record["time"].as_str().unwrap()[..4].to_owned())
        .collect();
    assert!(years.contains(&"1970".to_owned()), "{years:?}");
    whole(&gate.audit_file(), &gate.path().join("state"));
}
