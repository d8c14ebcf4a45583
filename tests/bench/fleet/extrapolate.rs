//! From one fleet to ten thousand nodes, with the arithmetic.
//!
//! Nodes know nothing of each other, so requests and bytes grow as their number. Where they all do
//! something at once, chance spreads it evenly over a time that is the same for any number.

use std::time::Duration;

use portcullis::kubernetes::Times;

use crate::{measure::Figures, stand_in::Seen};

const NODES: f64 = 10_000.0;
/// How often a real API server sends a bookmark on each watch.
const BOOKMARK: Duration = Duration::from_secs(60);

pub(crate) fn print(alone: &Figures, one: &Figures) {
    let times = Times::default();
    println!(
        "\n**10,000 nodes**, from the fleet of {}. Nodes know nothing of each other: requests and \
         bytes are those of a node times 10,000; what all do at once is spread by chance over a \
         time that does not depend on how many they are.\n",
        one.nodes
    );
    start(one, &times);
    steady(one, &times);
    change(alone, one, &times);
    refusals(one);
    lost(one, &times);
    println!(
        "\nWhat the stand-in does not show: etcd (each patch of a condition and each Event is a \
         write there, and a Node's is told to all who watch Nodes), the API server's cost of \
         authentication, RBAC, admission, audit and of serving from its cache, several API \
         servers behind a balancer, and distance. A real API server encodes a change once for \
         all watches, as the stand-in does, and answers lists and patches each anew. It puts \
         requests in queues by priority (APF) and answers 429 with Retry-After where they are \
         full; clients wait that long and a part by chance. It speaks HTTP/2, which this client \
         does not ask for: a node holds two connections for its watches, and a third while it \
         writes, where one of HTTP/2 would do."
    );
}

fn start(one: &Figures, times: &Times) {
    let requests = each(one.start.requests as u64, one);
    let sent = each(one.start.sent, one);
    line(&format!(
        "All start within one minute: {requests:.2} requests a node x 10,000 = {:.0}, of \
         which 20,000 lists; {:.0} kB a node x 10,000 = {:.1} GB, or {:.0} MB/s over that \
         minute. Patches are spread over {} s.",
        requests * NODES,
        sent / 1e3,
        sent * NODES / 1e9,
        sent * NODES / 60.0 / 1e6,
        times.spread.as_secs(),
    ));
}

fn steady(one: &Figures, times: &Times) {
    // A watch lasts anything from once to twice the shortest.
    let lasts = times.watch.as_secs_f64() * 1.5;
    let renewals = 2.0 * NODES / lasts;
    let renewal = (one.ended.received + one.ended.sent) as f64 / one.ended.requests as f64;
    let bookmark = one.quiet.sent as f64 / (2 * one.nodes) as f64;
    let bookmarks = 2.0 * NODES / BOOKMARK.as_secs_f64();
    let refreshes = NODES / times.refresh.as_secs_f64();
    // The change's own event is told to each node as well, and is no part of a patch.
    let policy = one.about["policy"].as_u64().unwrap_or_default() as f64;
    let patch = (one.change.received + one.change.sent) as f64 / one.change.patches as f64 - policy;
    line(&format!(
        "Nothing changes: 2 watches x 10,000 / {lasts:.0} s (they last 5 to 10 minutes) = \
         {renewals:.1} requests/s of {renewal:.0} bytes both ways; 10,000 / {} s = {refreshes:.1} \
         patches/s of {patch:.0} bytes (the answer is the Node); 2 x 10,000 / 60 s = \
         {bookmarks:.0} bookmarks/s of {bookmark:.0} bytes. Together {:.0} requests and {:.1} MB \
         a minute.",
        times.refresh.as_secs(),
        (renewals + refreshes) * 60.0,
        (renewals * renewal + refreshes * patch + bookmarks * bookmark) * 60.0 / 1e6,
    ));
}

fn change(alone: &Figures, one: &Figures, times: &Times) {
    let told = one.told_cpu.as_secs_f64() / one.nodes as f64;
    let spread = times.spread.as_secs_f64();
    let bytes = each(one.change.received + one.change.sent, one);
    line(&format!(
        "One policy changes: 10,000 events and 10,000 patches, {bytes:.0} bytes a node x 10,000 = \
         {:.0} MB; the patches over {spread:.0} s = {:.0} requests/s for that time (this fleet: \
         {} within {:.1} s, at most {} in a second, of {:.0} that even chance gives).",
        bytes * NODES / 1e6,
        NODES / spread,
        one.change.patches,
        one.change.patches_within.as_secs_f64(),
        one.change.patch_peak,
        one.nodes as f64 / spread,
    ));
    line(&format!(
        "Until it is in force: a node alone takes {:.0} ms (p50; {} ms of it is the quiet that \
         must follow a change), and shares its CPU with no other node. To tell all of them costs \
         the stand-in {:.3} ms a node, and so on one core {:.1} s for the last of 10,000: {:.0} + \
         10,000 x {:.3} = {:.0} ms. What the fleet shows beyond is the CPU of this machine: \
         {:.1} ms a node x {} nodes / 2 cores = {:.1} s.",
        alone.changed.p50,
        times.settle.as_millis(),
        told * 1e3,
        told * NODES,
        alone.changed.p50,
        told * 1e3,
        alone.changed.p50 + told * 1e3 * NODES,
        one.change_cpu.as_secs_f64() * 1e3 / one.nodes as f64,
        one.nodes,
        one.change_cpu.as_secs_f64() / 2.0,
    ));
}

fn refusals(one: &Figures) {
    let event = each(one.refused.received + one.refused.sent, one);
    line(&format!(
        "Refusals: a node tells at most 25 at once and then one in 5 s, so 10,000 nodes that \
         refuse everything send 250,000 Events of {event:.0} bytes = {:.0} MB at first, one after \
         the other on each node, and then 2,000 a second. Only a set that refuses what all nodes \
         start does that; kubelet's own bound is 50 a second on each node.",
        250_000.0 * event / 1e6,
    ));
}

fn lost(one: &Figures, times: &Times) {
    let spread = times.spread.as_secs_f64();
    let factor = NODES / one.nodes as f64;
    let scaled = |seen: &Seen| (seen.watch_peak as f64 * factor, seen.peak as f64 * factor);
    let ((broken, _), (back, all)) = (scaled(&one.broken), scaled(&one.back));
    let bytes = each(one.broken.received + one.broken.sent, one);
    line(&format!(
        "All watches are lost at once: 20,000 watches over {spread:.0} s = {:.0}/s (this fleet: at \
         most {} in a second x {factor:.1} = {broken:.0}), and as many new connections, {bytes:.0} \
         bytes a node x 10,000 = {:.0} MB. After a time away, the wait between attempts has grown \
         with it: at most {} watches in a second x {factor:.1} = {back:.0}, and with patches \
         {all:.0} requests. Nothing is listed anew while the server knows the changes since.",
        2.0 * NODES / spread,
        one.broken.watch_peak,
        bytes * NODES / 1e6,
        one.back.watch_peak,
    ));
}

fn each(count: u64, one: &Figures) -> f64 {
    count as f64 / one.nodes as f64
}

fn line(text: &str) {
    println!("- {text}");
}
