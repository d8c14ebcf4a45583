//! From exec to listening.

use std::time::Instant;

use portcullis::evidence::Store;

use crate::{
    full::{IMAGES, POLICIES, known, policies_text},
    lab::blocking,
    support::{
        gate::Setup,
        runtime::{FakeRuntime, pulling},
        sign::Signer,
    },
    table::{Samples, head, heading, ms, progress, row, verdict},
};

const ROUNDS: usize = 25;
/// In milliseconds.
const BUDGET: f64 = 50.0;

pub(crate) async fn run() {
    heading("From exec to listening");
    println!("{ROUNDS} starts after SIGKILL, runtime of the tests; ms\n");
    head(&["state", "p50", "p90", "most", "budget", "within"]);
    let runtime = FakeRuntime::start(pulling);
    let key = Signer::new();
    for (what, images, policies) in
        [("empty", 0, 1), ("10,000 images, 1,000 policies", IMAGES, POLICIES)]
    {
        let text = policies_text(policies, &key);
        let setup = Setup::before(runtime.socket()).policy("policies.yaml", &text);
        let state = setup.path().join("state");
        progress(&format!("keeping {images} images"));
        blocking(move || {
            let store = Store::open(&state).0;
            let key = Signer::new();
            (0..images).for_each(|number| {
                store.keep(&known(number, &key)).unwrap();
            });
        })
        .await;
        let mut gate = setup.start();
        let mut times = Samples::default();
        progress("starting again and again");
        for _ in 0..ROUNDS {
            gate.crash();
            let begun = Instant::now();
            gate.start_again();
            times.add(begun.elapsed());
        }
        let p50 = times.at(50) / 1000.0;
        row(&[
            what,
            &ms(times.at(50)),
            &ms(times.at(90)),
            &ms(times.at(99)),
            &BUDGET.to_string(),
            verdict(p50, BUDGET),
        ]);
    }
}
