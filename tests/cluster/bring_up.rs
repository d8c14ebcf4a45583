//! The control plane itself, without anything of ours.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::cluster::{Cluster, Server};

/// A definition of nothing much, and one object of it.
const WIDGETS: &str = "\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Cluster
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema: {type: object, properties: {colour: {type: string, enum: [red, blue]}}}
";
const WIDGET: &str = "\
apiVersion: example.com/v1
kind: Widget
metadata: {name: one}
colour: red
";
const PATH: &str = "/apis/example.com/v1/widgets";

pub(crate) fn it_tells_its_version(cluster: Cluster) {
    let version: Value = serde_json::from_str(&cluster.ask(&["get", "--raw", "/version"])).unwrap();
    let minor: u32 = version["minor"].as_str().unwrap().parse().unwrap();
    match cluster.server() {
        Server::Whole => assert_eq!(minor, 20),
        // Since 1.30 a definition can say all that ours do.
        Server::Definitions => assert!(minor >= 30, "{version}"),
    }
}

pub(crate) fn it_stops_and_starts_with_its_data(mut cluster: Cluster) {
    define(&cluster);
    let address = cluster.url().replace("https://", "");
    cluster.stop_api_server();
    assert!(TcpStream::connect(&address).is_err(), "its port is refused");
    assert!(!cluster.kubectl(&["get", "--raw", "/readyz"]).status.success());
    cluster.start_api_server();
    assert_eq!(cluster.ask(&["get", "widgets", "-o", "jsonpath={.items[*].colour}"]), "red");
}

pub(crate) fn what_is_past_is_gone(mut cluster: Cluster) {
    define(&cluster);
    let list: Value = serde_json::from_str(&cluster.ask(&["get", "--raw", PATH])).unwrap();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!("{PATH}?watch=true&timeoutSeconds=1&resourceVersion={version}");
    assert_eq!(cluster.ask(&["get", "--raw", &watch]), "", "nothing has happened since");
    cluster.stop_api_server();
    cluster.compact();
    cluster.start_api_server();
    let said = cluster.kubectl(&["get", "--raw", &watch]);
    let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    assert!(said.contains("too old resource version"), "{said}");
}

pub(crate) fn a_node_may_do_what_nodes_do(cluster: Cluster) {
    let node = cluster.kubeconfig_of("system:node:one", "system:nodes");
    let may = |arguments: &[&str]| {
        let arguments = [&["auth", "can-i"], arguments].concat();
        cluster.kubectl_as(&node, &arguments, "").status.success()
    };
    assert!(may(&["patch", "nodes", "--subresource=status"]));
    assert!(may(&["create", "events"]));
    assert!(!may(&["list", "customresourcedefinitions"]));
}

pub(crate) fn an_account_may_do_what_it_was_given(cluster: Cluster) {
    let account = cluster.kubeconfig_of_account("shop", "watcher");
    let may = |verb: &str| {
        let arguments = ["auth", "can-i", verb, "nodes"];
        cluster.kubectl_as(&account, &arguments, "").status.success()
    };
    assert!(!may("watch"));
    cluster.ask(&["create", "clusterrole", "watcher", "--verb=watch", "--resource=nodes"]);
    let arguments = ["create", "clusterrolebinding", "watcher", "--clusterrole=watcher"];
    cluster.ask(&[&arguments[..], &["--serviceaccount=shop:watcher"]].concat());
    // What is given is known a moment later.
    let begun = Instant::now();
    while !may("watch") {
        assert!(begun.elapsed() < Duration::from_secs(30), "it may not watch");
    }
    assert!(!may("patch"));
}

fn define(cluster: &Cluster) {
    cluster.apply(WIDGETS);
    cluster.ask(&["wait", "--for=condition=Established", "crd/widgets.example.com"]);
    cluster.apply(WIDGET);
}
