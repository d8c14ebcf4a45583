//! A fleet of nodes before one API server: what they ask of it, and how soon a change is in force.
//!
//! Each node is the client code of the product with the times of the product, many of them in one
//! process. The API server is the stand-in of the tests, in another process, with mutual TLS.
//! From these figures those of ten thousand nodes are worked out, line by line.
#![allow(clippy::unwrap_used, reason = "as in tests")]

mod cluster;
mod extrapolate;
mod measure;
mod node;
mod server;
mod stand_in;
#[path = "../../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "each benchmark uses a part")]
#[path = "../table.rs"]
mod table;
mod tables;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use table::progress;

/// How many nodes there are, where no arguments say it.
const SIZES: [usize; 2] = [200, 800];

fn main() {
    // What `cargo test --benches` passes: nothing is measured then.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let words: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["stand-in", directory, nodes] => stand_in::run(Path::new(directory), number(nodes)),
        ["nodes", nodes] => {
            let figures = measure::run(number(nodes));
            println!("{}", serde_json::to_string(&figures).unwrap());
        }
        [] => run(&SIZES),
        _ => run(&words.iter().map(|word| number(word)).collect::<Vec<_>>()),
    }
}

/// Measures a node alone, and then fleets of these sizes.
fn run(sizes: &[usize]) {
    let alone = measured(1);
    let fleets: Vec<_> = sizes.iter().map(|nodes| measured(*nodes)).collect();
    tables::print(&alone, &fleets);
    extrapolate::print(&alone, fleets.last().unwrap_or(&alone));
}

/// Each fleet has a process of its own, so that its memory is its own.
fn measured(nodes: usize) -> measure::Figures {
    progress(&format!("a fleet of {nodes}"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["nodes", &nodes.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the fleet of {nodes} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(word: &str) -> usize {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number of nodes"))
}
