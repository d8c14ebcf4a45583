//! A node: what the daemon runs where its policies come from the API server, wired as it does.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use portcullis::{
    audit::{self, Observer, Outcome, Pod, Record, RequestedImage},
    kubernetes::{
        self, Config, Server,
        events::{self, Refusals},
    },
    policy::{
        self, Current,
        watch::{Plan, Proof, Remote, Source, Watcher},
    },
    refusal::Code,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use crate::cluster::node_name;

/// A node that runs.
pub(crate) struct Node {
    refusals: Refusals,
    _watcher: Watcher,
    _current: Current,
    tasks: [JoinHandle<()>; 3],
}

impl Node {
    /// Starts the node with this number, with its files below a directory. Each moment at which
    /// another set is in force is told. Must be called from a Tokio runtime.
    pub(crate) fn start(directory: &Path, number: usize, in_force: Sender<Instant>) -> Self {
        let kubeconfig = Some(directory.join("kubeconfig"));
        // Its times are the defaults, as in the daemon.
        let server = Arc::new(Server::new(Config { kubeconfig, ..Config::default() }));
        let (tell, heard) = mpsc::channel(1);
        let asked = Arc::new(Notify::new());
        let following = {
            let (server, asked) = (server.clone(), asked.clone());
            tokio::spawn(async move { kubernetes::run(&server, tell, asked).await })
        };
        let own = directory.join(number.to_string());
        let plan =
            plan(&own, Remote { name: "kubernetes:".into(), proof: Proof::Mark, heard, asked });
        let current = Current::default();
        let watcher = policy::watch::watch(plan, current.clone(), move |event| {
            if let policy::Event::Loaded(_) = event {
                let _ = in_force.send(Instant::now());
            }
        });
        let (standing, name, same) = (watcher.standing(), node_name(number), server.clone());
        let reporting =
            tokio::spawn(async move { kubernetes::report(&server, &name, standing).await });
        let (refusals, events) = events::channel();
        let name = node_name(number);
        let telling = tokio::spawn(async move { events.run(&same, &name).await });
        let tasks = [following, reporting, telling];
        Self { refusals, _watcher: watcher, _current: current, tasks }
    }

    /// A pod of the node is refused.
    pub(crate) fn refuse(&self) {
        let pod = Pod {
            namespace: "team-0".into(),
            name: "service-6d4cf56db6-x7x2p".into(),
            uid: "3f2c1a00-0000-4000-8000-000000000000".into(),
        };
        let digest = "sha256:".to_owned() + &"5".repeat(64);
        let message = format!(
            "registry.example.com/team-0/service@{digest}: policy \"team-0\" requires 1 of 2 \
             authorities: \"release-2025\": no signature by this key (1 signature found); \
             \"release-2026\": no signature by this key (1 signature found)"
        );
        let requested = "registry.example.com/team-0/service:v1".into();
        self.refusals.recorded(
            &Record {
                decision: Some(Outcome::Deny),
                reason: Some(Code::SignatureMissing),
                image: Some(RequestedImage { requested, ..Default::default() }),
                pod: Some(pod),
                ..Record::new(audit::Event::Pull, message)
            },
            1,
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn plan(own: &Path, remote: Remote) -> Plan {
    let (state_directory, log): (PathBuf, _) = (own.join("state"), own.join("log"));
    [&state_directory, &log].into_iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
    let audit_file = log.join("audit.jsonl");
    Plan { source: Source::Remote(remote), floor: None, max_age: None, state_directory, audit_file }
}
