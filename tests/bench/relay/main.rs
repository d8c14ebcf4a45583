//! What a call costs through Portcullis, side by side with nginx, haproxy and no proxy at all.
//!
//! ```text
//! cargo bench --locked --bench relay [-- [--rounds N] [--only CALL] [--also NAME=PROGRAM]...]
//! ```
//!
//! Everything is started here, on unix sockets in scratch directories, and driven by one load
//! generator. The contenders take turns in small blocks of calls, in another order each round, so
//! that whatever else the machine does hits all of them alike; each is compared with `direct` of
//! the same round. `--also` adds another build of Portcullis, for a comparison before and after a
//! change. It wants root, for containerd, and the parts containerd-2.1, runc, nginx and haproxy.
#![allow(clippy::unwrap_used, reason = "as in tests")]

#[path = "../../real/image.rs"]
#[allow(dead_code, reason = "the tests make more kinds of images")]
mod image;
mod load;
mod peers;
mod runtimes;
#[path = "../../support/mod.rs"]
mod support;
mod table;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use prost::Message;

use load::{Call, Connection};
use peers::{Kind, Peer};
use runtimes::{Containerd, Fake, list_request};
use support::{
    containerd::{LIST_CONTAINERS, Shelf},
    cri::{
        CREATE_CONTAINER, ContainerConfig, ContainerMetadata, CreateContainerRequest, IMAGE_STATUS,
        ImageSpec, PULL_IMAGE, PodConfig, PodSandboxMetadata, VERSION, image_status, pull,
    },
    docker_registry::program,
    gate::{Gate, Setup},
    grpc::Client,
    registry::TestRegistry,
    sign::{Signer, policy},
};
use table::{Measured, cpu_time};

/// How long one block of calls takes, straight, more or less.
const BLOCK: Duration = Duration::from_millis(15);
const ROUNDS: usize = 80;
const IN_FLIGHT: [usize; 2] = [1, 16];
/// The registry of the images here.
const HOST: &str = "registry.example.com";

struct Options {
    rounds: usize,
    only: Option<String>,
    also: Vec<(String, PathBuf)>,
}

/// What was asked for; None: nothing is to be measured.
fn options() -> Option<Options> {
    let mut options = Options { rounds: ROUNDS, only: None, also: Vec::new() };
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            // What `cargo test --benches` passes.
            "--test" => return None,
            "--bench" => {}
            "--rounds" => options.rounds = value().parse().unwrap(),
            "--only" => options.only = Some(value()),
            "--also" => {
                let value = value();
                let (name, program) = value.split_once('=').expect("--also NAME=PROGRAM");
                options.also.push((name.to_owned(), program.into()));
            }
            other => panic!("unknown argument {other}"),
        }
    }
    Some(options)
}

/// One thing that is measured.
struct Cell {
    name: &'static str,
    call: Call,
}

impl Cell {
    fn new(name: &'static str, path: &'static str, message: &[u8]) -> Self {
        Self { name, call: Call::new(path, message) }
    }
}

/// Everyone who is compared, before one runtime.
struct Contenders {
    /// Name, socket and process.
    sockets: Vec<(String, PathBuf, Option<u32>)>,
    gates: Vec<Gate>,
    _peers: Vec<Peer>,
}

impl Contenders {
    fn start(runtime: &Path, options: &Options, setup: impl Fn() -> Setup) -> Self {
        let mut sockets = vec![("direct".to_owned(), runtime.to_owned(), None)];
        let mut gates = vec![setup().start()];
        sockets.push(("Portcullis".into(), gates[0].socket(), Some(gates[0].pid())));
        for (name, program) in &options.also {
            let script = format!("exec {} \"$@\"", program.display());
            let gate = setup().start_by(&script, Stdio::null());
            sockets.push((name.clone(), gate.socket(), Some(gate.pid())));
            gates.push(gate);
        }
        let mut peers = Vec::new();
        for (name, kind) in [
            ("nginx grpc_pass", Kind::Nginx),
            ("haproxy h2", Kind::HaproxyH2),
            ("haproxy tcp", Kind::HaproxyTcp),
        ] {
            let peer = Peer::start(kind, runtime);
            sockets.push((name.into(), peer.socket(), Some(peer.pid())));
            peers.push(peer);
        }
        Self { sockets, gates, _peers: peers }
    }

    /// Has an image pulled through each gate, so that each has proof of it.
    async fn prove(&self, name: &str) {
        for gate in &self.gates {
            let answer = gate.client().await.unary(PULL_IMAGE, &pull(name, "shop")).await;
            assert_eq!(answer.status(), (0, String::new()));
        }
    }

    /// Measures each contender in each cell, and prints the rows.
    async fn measure(&self, cells: &[Cell], options: &Options) {
        let mut connections = Vec::new();
        for (_, socket, _) in &self.sockets {
            connections.push(Connection::open(socket).await);
        }
        for cell in cells.iter().filter(|cell| options.only.as_ref().is_none_or(|o| cell.name == o))
        {
            same_answers(&mut connections, &cell.call).await;
            for in_flight in IN_FLIGHT {
                let calls = block_of(&connections[0], &cell.call, in_flight).await;
                let mut measured: Vec<_> =
                    self.sockets.iter().map(|_| Measured::default()).collect();
                for connection in &connections {
                    connection.block(&cell.call, in_flight, calls).await;
                }
                for round in 0..options.rounds {
                    for turn in 0..connections.len() {
                        let who = (round + turn) % connections.len();
                        let process = self.sockets[who].2;
                        let before = cpu_time(process);
                        let block = connections[who].block(&cell.call, in_flight, calls).await;
                        measured[who].add(block, cpu_time(process) - before);
                    }
                }
                let direct = measured[0].rounds();
                for ((name, ..), measured) in self.sockets.iter().zip(&mut measured) {
                    println!(
                        "| {} | {in_flight} | {name} | {} |",
                        cell.name,
                        measured.row(&direct)
                    );
                }
            }
        }
    }
}

/// How many calls make a block.
async fn block_of(direct: &Connection, call: &Call, in_flight: usize) -> usize {
    direct.block(call, in_flight, 4 * in_flight).await;
    let trial = direct.block(call, in_flight, 4 * in_flight).await;
    let one = trial.took.as_secs_f64() / (4 * in_flight) as f64;
    ((BLOCK.as_secs_f64() / one) as usize).clamp(2 * in_flight, 400).next_multiple_of(in_flight)
}

/// A contender that answers otherwise than the runtime would not be worth comparing.
async fn same_answers(connections: &mut [Connection], call: &Call) {
    if call.path == CREATE_CONTAINER {
        return; // an ID of its own each time
    }
    let mut answers = Vec::new();
    for connection in connections {
        answers.push(connection.call(call).await.concat());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{}: answers differ", call.path);
}

/// Version, ImageStatus and an empty list, by real containerd.
async fn before_containerd(options: &Options) {
    let (registry, key) = (TestRegistry::start(), Signer::new());
    let made = image::Made::new();
    made.push(&registry, "app", "v1");
    key.sign_simple(&registry, "app", made.digest());
    let containerd = Containerd::start(HOST, registry.url());
    let name = format!("{HOST}/app:v1");
    let setup = || {
        let policy = policy("app", &format!("{HOST}/**"), &[("release", &key)]);
        let setup = Setup::before(&containerd.socket()).policy("p.yaml", &policy);
        setup.registry_config(&containerd.hosts())
    };
    let contenders = Contenders::start(&containerd.socket(), options, setup);
    contenders.prove(&name).await;
    let cells = [
        Cell::new("Version", VERSION, b""),
        Cell::new("ImageStatus (judged)", IMAGE_STATUS, &image_status(&name).encode_to_vec()),
        Cell::new("ListContainers, 0", LIST_CONTAINERS, b""),
    ];
    contenders.measure(&cells, options).await;
}

/// Long lists and creations, by the fake runtime.
async fn before_fake(options: &Options) {
    let (registry, key) = (TestRegistry::start(), Signer::new());
    let digest = registry.push_image("app", "v1");
    key.sign_simple(&registry, "app", digest);
    let shelf = Shelf::beside(&registry);
    let fake = Fake::start(shelf);
    let name = format!("{}/app:v1", registry.host());
    let setup = || {
        let images = format!("{}/**", registry.host());
        Setup::before(fake.socket()).policy("p.yaml", &policy("app", &images, &[("release", &key)]))
    };
    let contenders = Contenders::start(fake.socket(), options, setup);
    contenders.prove(&name).await;
    let answer = Client::connect(fake.socket()).await;
    let answer = answer.unary(IMAGE_STATUS, &image_status(&name)).await;
    let id = answer.message::<support::cri::ImageStatusResponse>().image.unwrap().id;
    let cells = [
        Cell::new("ListContainers, 100", LIST_CONTAINERS, &list_request(100)),
        Cell::new("ListContainers, 1,000", LIST_CONTAINERS, &list_request(1000)),
        Cell::new("CreateContainer (judged, on record)", CREATE_CONTAINER, &create(&id, &name)),
    ];
    contenders.measure(&cells, options).await;
}

/// As kubelet sends it.
fn create(id: &str, name: &str) -> Vec<u8> {
    let metadata = PodSandboxMetadata {
        namespace: "shop".into(),
        name: "web-0".into(),
        uid: "0f0e2ba1-7d9c-4c5b-8f6d-0123456789ab".into(),
        attempt: 0,
    };
    let image =
        ImageSpec { image: id.into(), user_specified_image: name.into(), ..Default::default() };
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "web".into() }),
        image: Some(image),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: "pod".into(),
        config: Some(config),
        sandbox_config: Some(PodConfig { metadata: Some(metadata), ..Default::default() }),
    };
    request.encode_to_vec()
}

fn versions() -> String {
    let part = |part: &str, path: &str, package: &str| {
        let file = program(part, path).ancestors().nth(3).unwrap().join("VERSION");
        let text = fs::read_to_string(file).unwrap();
        let line = text.lines().find(|line| line.split(' ').next() == Some(package));
        line.unwrap_or("?").to_owned()
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "Portcullis {}; {}; {}; {} (one worker); {} (one thread); Linux {}; {} CPUs",
        env!("CARGO_PKG_VERSION"),
        part("containerd-2.1", "usr/bin/containerd", "containerd"),
        part("runc", "usr/sbin/runc", "runc"),
        part("nginx", "usr/sbin/nginx", "nginx"),
        part("haproxy", "usr/sbin/haproxy", "haproxy"),
        release.trim(),
        std::thread::available_parallelism().map_or(0, usize::from),
    )
}

fn main() {
    let Some(options) = options() else { return };
    println!("{}\n", versions());
    println!(
        "| call | in flight | contender | p50 us | p99 us | calls/s | p50 over direct, us \
         | calls/s, of direct | of a CPU, us a call |"
    );
    println!("| --- | --: | --- | --: | --: | --: | --: | --: | --: |");
    let thread = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread.block_on(async {
        before_containerd(&options).await;
        before_fake(&options).await;
    });
    println!(
        "\n{} rounds of blocks of about {} ms. Version, ImageStatus and the empty list: real containerd; \
         the rest: a fake runtime that answers from memory. Of ImageStatus and CreateContainer, Portcullis \
         judges the image, and has each creation on record, synced, before its answer leaves; the others \
         relay them as they relay anything.",
        options.rounds,
        BLOCK.as_millis()
    );
}
