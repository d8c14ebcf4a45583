//! The program as a whole, measured from outside: pulls beside direct ones, `verify` beside
//! cosign's, memory, and the start. Needs what the end-to-end tests need.
#![allow(clippy::unwrap_used, reason = "as in tests")]
#![allow(dead_code, reason = "of what the end-to-end tests share, this uses a part")]

#[path = "../../real/image.rs"]
mod image;
#[path = "../../real/lab.rs"]
mod lab;
#[path = "../full.rs"]
mod full;
mod memory;
#[path = "../../real/pod.rs"]
mod pod;
mod pull;
mod registry;
#[path = "../../real/scene.rs"]
mod scene;
mod start;
#[path = "../../support/mod.rs"]
mod support;
#[path = "../table.rs"]
mod table;
mod verify;

fn main() {
    // What `cargo test --benches` passes: nothing is measured then.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    // Words choose among the parts, for work on one of them.
    let words: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    if wanted("pull") {
        threads.block_on(pull::run());
    }
    if wanted("verify") {
        threads.block_on(verify::run());
    }
    if wanted("start") {
        threads.block_on(start::run());
    }
    if wanted("memory") {
        threads.block_on(memory::run());
    }
}
