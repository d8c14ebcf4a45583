//! Resident memory of the daemon, after what a node does to it.

use std::{collections::HashMap, fs, time::Duration};

use futures_util::future::join_all;

use crate::{
    scene::pull_by,
    support::{
        containerd::Shelf,
        gate::{Gate, Setup},
        grpc::Client,
        registry::TestRegistry,
        runtime::{FakeRuntime, constant},
        sign::{Signer, policy},
    },
    table::{head, heading, progress, row, verdict},
};

const IMAGES: usize = 200;
const PULLS: usize = 10_000;
/// Pulls in flight at once: kubelet's own bound is 5 where it pulls in parallel at all.
const AT_ONCE: usize = 5;
/// In MiB.
const IDLE: f64 = 16.0;
const BUSY: f64 = 32.0;
/// Pods of a full node, at two containers each.
const PODS: usize = 110;
/// Minutes of kubelet's rhythm that are played.
const MINUTES: usize = 30;

pub(crate) async fn run() {
    heading("Resident memory of the daemon");
    println!("Runtime and registry of the tests, `VmRSS` and `VmHWM` of the process in MiB.\n");
    head(&["when", "resident", "most so far", "budget", "within"]);
    pulls().await;
    polling().await;
}

async fn pulls() {
    let (registry, signer) = (TestRegistry::start(), Signer::new());
    let runtime = Shelf::beside(&registry).runtime();
    let names: Vec<_> = (0..IMAGES)
        .map(|number| {
            let repository = format!("app-{number}");
            let digest = registry.push_image(&repository, Some("v1"));
            signer.sign_simple(&registry, &repository, digest);
            format!("{}/{repository}:v1", registry.host())
        })
        .collect();
    let rule = policy("bench", &format!("{}/**", registry.host()), &[("bench", &signer)]);
    let gate = Setup::before(runtime.socket()).policy("bench.yaml", &rule).start();
    let client = gate.client().await;
    rest().await;
    tell(&gate, "idle, just started", Some(IDLE));
    let mut done = 0;
    for (what, until) in [
        ("200 pulls of 200 images", 200),
        ("2,000", 2_000),
        ("4,000", 4_000),
        ("6,000", 6_000),
        ("8,000", 8_000),
        ("10,000", PULLS),
    ] {
        progress(&format!("{until} pulls"));
        while done < until {
            let some = (0..AT_ONCE).map(|more| pull_by(&client, &names[(done + more) % IMAGES]));
            for pulled in join_all(some).await {
                pulled.unwrap();
            }
            done += AT_ONCE;
            // What came is not of interest.
            drop(runtime.take());
        }
        tell(&gate, &format!("after {what}"), Some(BUSY));
    }
    rest().await;
    tell(&gate, "a moment later", Some(BUSY));
}

/// What kubelet asks on its own account (facts of its sources, 1.33): relisting of pods each
/// second, images and runtime status every five minutes at most, statistics each ten seconds.
async fn polling() {
    const SERVICE: &str = "/runtime.v1.RuntimeService/";
    let answers: HashMap<&'static str, Vec<u8>> = [
        ("/runtime.v1.RuntimeService/ListPodSandbox", entries(PODS, 700)),
        ("/runtime.v1.RuntimeService/ListContainers", entries(2 * PODS, 900)),
        ("/runtime.v1.RuntimeService/ListContainerStats", entries(2 * PODS, 600)),
        ("/runtime.v1.RuntimeService/ListPodSandboxStats", entries(PODS, 900)),
        ("/runtime.v1.ImageService/ImageFsInfo", entries(1, 120)),
        ("/runtime.v1.ImageService/ListImages", entries(200, 300)),
    ]
    .into();
    let runtime = FakeRuntime::start(constant(answers));
    let gate = Setup::before(runtime.socket()).start();
    let (pods, images) = (gate.client().await, gate.client().await);
    progress(&format!("{MINUTES} minutes of kubelet's polling"));
    for second in 0..60 * MINUTES {
        for method in ["ListPodSandbox", "ListContainers"] {
            ask(&pods, &format!("{SERVICE}{method}")).await;
        }
        if second % 5 == 0 {
            ask(&pods, &format!("{SERVICE}Status")).await;
        }
        if second % 10 == 0 {
            for method in ["ListContainerStats", "ListPodSandboxStats", "Version"] {
                ask(&pods, &format!("{SERVICE}{method}")).await;
            }
            ask(&images, "/runtime.v1.ImageService/ImageFsInfo").await;
        }
        if second % 30 == 0 {
            ask(&images, "/runtime.v1.ImageService/ListImages").await;
            // The probes of many pods at once.
            let all =
                (0..PODS).map(|_| async { ask(&pods, &format!("{SERVICE}ContainerStatus")).await });
            join_all(all).await;
        }
        drop(runtime.take());
        if second == 60 {
            tell(&gate, "after a minute of polling 110 pods", Some(BUSY));
        }
    }
    tell(&gate, &format!("after {MINUTES} minutes of it, played fast"), Some(BUSY));
}

/// So many messages in field 1.
fn entries(count: usize, bytes: usize) -> Vec<u8> {
    let mut message = Vec::new();
    for _ in 0..count {
        prost::encoding::string::encode(1, &"x".repeat(bytes), &mut message);
    }
    message
}

async fn ask(client: &Client, path: &str) {
    let answer = client.call(path, &[], crate::support::grpc::framed(b"")).await;
    assert_eq!(answer.status().0, 0, "{path}");
}

async fn rest() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

fn tell(gate: &Gate, when: &str, budget: Option<f64>) {
    let status = fs::read_to_string(format!("/proc/{}/status", gate.pid())).unwrap();
    let mib = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    let resident = mib("VmRSS:");
    let (budget, within) = match budget {
        Some(budget) => (budget.to_string(), verdict(resident, budget)),
        None => Default::default(),
    };
    row(&[when, &format!("{resident:.1}"), &format!("{:.1}", mib("VmHWM:")), &budget, within]);
}
