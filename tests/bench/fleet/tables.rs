//! What was measured, a table for each phase and a line for each fleet.

use crate::{
    measure::{AWAY, Figures, Times},
    stand_in::Seen,
    table::{head, heading, row},
};

pub(crate) fn print(alone: &Figures, fleets: &[Figures]) {
    heading("Ten thousand nodes before one API server");
    let about = |key: &str| alone.about[key].as_u64().unwrap_or_default() as usize;
    println!(
        "N nodes in one process, each with the code and the times of the daemon: both kinds \
         listed and watched, the set read, kept on disk and in force, the Node's condition, \
         Events. The stand-in for the API server of the tests is another process with one \
         thread, HTTP/1.1 and mutual TLS 1.3 (P-256, one certificate for all nodes). It holds {} \
         objects of {} kB together, as `kubectl apply` leaves them; a policy has {} bytes, \
         and a Node, which each patch answers, {}. Bytes are those of TLS, without TCP and IP; \
         \"in\" is what the server receives. All nodes share the CPUs and the disk of this \
         machine with the server.\n",
        about("objects"),
        kb(about("bytes") as u64, 1),
        about("policy"),
        about("node"),
    );
    println!(
        "All start at once: two lists, two watches, two patches of which the first only reads. \
         More than these are of nodes whose condition was due, by chance, before this machine \
         had come to their set:\n"
    );
    head(&[
        "nodes",
        "requests",
        "a node",
        "kB in, a node",
        "kB out, a node",
        "connections, a node",
        "all in force, s",
        "ms of CPU, a node",
        "MiB resident, a node",
    ]);
    for one in std::iter::once(alone).chain(fleets) {
        row(&[
            &one.nodes.to_string(),
            &one.start.requests.to_string(),
            &per(one.start.requests, one),
            &kb(one.start.received, one.nodes),
            &kb(one.start.sent, one.nodes),
            &per(one.start.connections, one),
            &format!("{:.2}", one.started.most / 1000.0),
            &format!("{:.1}", one.start_cpu.as_secs_f64() * 1000.0 / one.nodes as f64),
            &format!("{:.2}", one.memory / 1024.0 / one.nodes as f64),
        ]);
    }
    println!("\nLeft alone for 8 s, with one bookmark for each watch, as comes once a minute:\n");
    head(&["nodes", "requests", "bytes in, a node", "bytes out, a node", "a bookmark, bytes"]);
    for one in fleets {
        row(&[
            &one.nodes.to_string(),
            &one.quiet.requests.to_string(),
            &each(one.quiet.received, one.nodes),
            &each(one.quiet.sent, one.nodes),
            &each(one.quiet.sent, 2 * one.nodes),
        ]);
    }
    println!(
        "\nOne policy is changed: from the order to the stand-in until the node has the new set \
         in force (a node alone: 20 changes), and the patches of conditions that follow:\n"
    );
    head(&[
        "nodes",
        "p50 ms",
        "p99",
        "most",
        "ms of CPU, a node",
        "ms of the server's CPU, a node",
        "patches",
        "within s",
        "most in 1 s",
        "bytes in, a node",
        "bytes out, a node",
    ]);
    for one in std::iter::once(alone).chain(fleets) {
        let Times { p50, p99, most } = &one.changed;
        let cpu = one.change_cpu.as_secs_f64() * 1000.0 / one.nodes as f64;
        let mut cells = vec![one.nodes.to_string()];
        cells.extend([p50, p99, most, &cpu].map(|figure| format!("{figure:.1}")));
        if one.nodes > 1 {
            let seen = &one.change;
            cells.extend([
                format!("{:.3}", one.told_cpu.as_secs_f64() * 1000.0 / one.nodes as f64),
                seen.patches.to_string(),
                format!("{:.1}", seen.patches_within.as_secs_f64()),
                seen.patch_peak.to_string(),
                each(seen.received, one.nodes),
                each(seen.sent, one.nodes),
            ]);
        } else {
            cells.extend(vec![String::new(); 6]);
        }
        row(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    println!("\nOne pod is refused on each node at once, an Event each:\n");
    head(&["nodes", "requests", "bytes in, an Event", "bytes out"]);
    for one in fleets {
        let seen = &one.refused;
        let [received, sent] = [seen.received, seen.sent].map(|bytes| each(bytes, one.nodes));
        row(&[&one.nodes.to_string(), &seen.requests.to_string(), &received, &sent]);
    }
    println!(
        "\nThe server drops all watches at once: it ends them in good order; their connections \
         break; their connections break and for {} s each new one is closed without an answer. \
         Nothing is listed anew:\n",
        AWAY.as_secs()
    );
    head(&[
        "nodes",
        "what",
        "watches",
        "within s",
        "most in 1 s",
        "all requests",
        "most in 1 s",
        "of them lists",
        "new connections",
        "kB in, a node",
        "kB out, a node",
    ]);
    for one in fleets {
        dropped(one, "end", &one.ended);
        dropped(one, "break", &one.broken);
        dropped(one, "while it is away", &one.away);
        dropped(one, "once it is back", &one.back);
    }
}

fn dropped(one: &Figures, what: &str, seen: &Seen) {
    row(&[
        &one.nodes.to_string(),
        what,
        &seen.watches.to_string(),
        &format!("{:.1}", seen.watches_within.as_secs_f64()),
        &seen.watch_peak.to_string(),
        &seen.requests.to_string(),
        &seen.peak.to_string(),
        &seen.lists.to_string(),
        &seen.connections.to_string(),
        &kb(seen.received, one.nodes),
        &kb(seen.sent, one.nodes),
    ]);
}

fn per(count: usize, one: &Figures) -> String {
    format!("{:.2}", count as f64 / one.nodes as f64)
}

fn each(bytes: u64, of: usize) -> String {
    format!("{:.0}", bytes as f64 / of as f64)
}

fn kb(bytes: u64, of: usize) -> String {
    format!("{:.1}", bytes as f64 / 1000.0 / of as f64)
}
