//! `portcullis verify` beside `cosign verify`: the whole process, in turns.

use std::{path::Path, time::Instant};

use crate::{
    lab::blocking,
    registry::Shop,
    support::docker_registry::program,
    table::{Samples, head, heading, ms, row},
};

const ROUNDS: usize = 40;

pub(crate) async fn run() {
    heading("`verify` with a key, whole process");
    let shop = blocking(Shop::open).await;
    let digest = shop.push("app").await;
    shop.sign(&[("app".to_owned(), digest)]);
    let image = format!("{}/app:v1", shop.host());
    let key = shop.key_file().display().to_string();
    let ours = Path::new(env!("CARGO_BIN_EXE_portcullis")).to_owned();
    let cosign = ["verify", "--key", &key, "--insecure-ignore-tlog=true", &image];
    let programs = [
        ("portcullis verify", ours, &["verify", "--key", &key, &image][..]),
        ("cosign 2 verify", program("cosign-2", "usr/bin/cosign"), &cosign[..]),
        ("cosign 3 verify", program("cosign-3", "usr/bin/cosign"), &cosign[..]),
    ];
    let mut times: [Samples; 3] = Default::default();
    for round in 0..=ROUNDS {
        for turn in 0..programs.len() {
            let which = (round + turn) % programs.len();
            let (name, program, arguments) = &programs[which];
            let mut command = shop.command(program);
            command.args(*arguments);
            let begun = Instant::now();
            let output = command.output().unwrap();
            let elapsed = begun.elapsed();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {error}");
            // In the first round programs come from the disk.
            if round > 0 {
                times[which].add(elapsed);
            }
        }
    }
    println!(
        "One image and one signature, registry on loopback over TLS, {ROUNDS} rounds in turns; ms\n"
    );
    head(&["program", "p50", "p90", "times ours"]);
    for ((name, ..), samples) in programs.iter().zip(&times) {
        let ratio = samples.at(50) / times[0].at(50);
        row(&[name, &ms(samples.at(50)), &ms(samples.at(90)), &format!("{ratio:.1}")]);
    }
}
