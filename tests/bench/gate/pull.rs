//! Pulls through Portcullis beside pulls past it, on one containerd, in turns.

use std::time::{Duration, Instant};

use crate::{
    lab::{Node, blocking, version},
    registry::{HOST, Shop},
    scene::pull_by,
    support::{gate::Setup, grpc::Client},
    table::{Samples, head, heading, ms, progress, row, verdict},
};

/// Pairs of first pulls, and some before that are not counted: connections are made then.
const FIRST: usize = 60;
const WARM: usize = 5;
/// Pairs of repeated pulls, of each kind of reference.
const REPEATED: usize = 300;
/// Images that are pulled again, in turns.
const KEPT: usize = 10;

pub(crate) async fn run() {
    heading("Pulls of an image of 380 kB, registry on loopback over TLS");
    let (node, shop) =
        blocking(|| (Node::with_pause(&format!("{HOST}/pause:v1")), Shop::open())).await;
    shop.show_to(&node);
    let mut signed = Vec::new();
    progress("pushing and signing");
    let mut digests = Vec::new();
    for number in 0..WARM + FIRST {
        let through = format!("through/app-{number}");
        let digest = shop.push(&through).await;
        signed.push((through, digest));
        digests.push((shop.push(&format!("direct/app-{number}")).await, digest));
    }
    shop.sign(&signed);
    let gate = Setup::before(&node.socket())
        .registry_config(&node.hosts())
        .policy("bench.yaml", &shop.policy())
        .sandbox_image(Some(&node.pause()))
        .start();
    let (direct, through) = (Client::connect(&node.socket()).await, gate.client().await);
    let tag = |way: &str, number: usize| format!("{HOST}/{way}/app-{number}:v1");
    println!(
        "containerd {}, cosign 2 signatures by a key, {FIRST} and {REPEATED} pairs in turns; ms\n",
        version()
    );
    head(&[
        "pull",
        "direct p50",
        "p90",
        "Portcullis p50",
        "p90",
        "ratio of p50",
        "budget",
        "within",
    ]);

    progress("first pulls");
    let mut pair = Pair::default();
    for number in 0..WARM + FIRST {
        let names = [tag("direct", number), tag("through", number)];
        let times = pair.once(number, [&direct, &through], &names).await;
        if number >= WARM {
            pair.add(times);
        }
    }
    pair.print("first, by tag", 1.25);

    for (what, by_digest) in [("repeated, by tag", false), ("repeated, by digest", true)] {
        progress(what);
        let mut pair = Pair::default();
        for number in 0..REPEATED {
            let image = number % KEPT;
            let names = match by_digest {
                false => [tag("direct", image), tag("through", image)],
                true => [
                    format!("{HOST}/direct/app-{image}@{}", digests[image].0),
                    format!("{HOST}/through/app-{image}@{}", digests[image].1),
                ],
            };
            let times = pair.once(number, [&direct, &through], &names).await;
            if number >= KEPT {
                pair.add(times);
            }
        }
        pair.print(what, 1.10);
    }
}

/// Times past Portcullis, and through it.
#[derive(Default)]
struct Pair([Samples; 2]);

impl Pair {
    /// Both once, either one first in turns.
    async fn once(
        &self,
        number: usize,
        clients: [&Client; 2],
        names: &[String; 2],
    ) -> [Duration; 2] {
        let mut times = [Duration::ZERO; 2];
        for turn in 0..2 {
            let way = (number + turn) % 2;
            let begun = Instant::now();
            let pulled = pull_by(clients[way], &names[way]).await;
            times[way] = begun.elapsed();
            pulled.unwrap_or_else(|(code, message)| panic!("{}: {code}: {message}", names[way]));
        }
        times
    }

    fn add(&mut self, times: [Duration; 2]) {
        self.0.iter_mut().zip(times).for_each(|(samples, time)| samples.add(time));
    }

    fn print(&self, what: &str, budget: f64) {
        let [direct, through] = &self.0;
        let ratio = through.at(50) / direct.at(50);
        row(&[
            what,
            &ms(direct.at(50)),
            &ms(direct.at(90)),
            &ms(through.at(50)),
            &ms(through.at(90)),
            &format!("{ratio:.2}"),
            &format!("{budget:.2}"),
            verdict(ratio, budget),
        ]);
    }
}
