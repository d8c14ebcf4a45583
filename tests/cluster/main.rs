//! Against a real API server and a real etcd: what only these can show.
//!
//! `make test-cluster` runs it, since `tests/cluster/servers` has to build the API servers first.
//! Each test has a control plane of its own.
#![allow(clippy::unwrap_used, reason = "clippy knows only #[test] functions as tests")]

mod bring_up;
mod cluster;
mod crds;
mod enforce;
mod follow;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use cluster::{
    Cluster,
    Server::{Definitions, Whole},
};

fn main() -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), trials()).exit_code()
}

/// Every test by its name, with the API servers that it is about.
fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    macro_rules! tests {
        ($($module:ident: $($test:ident on $($server:ident)|+),*;)*) => { $($($(
            let name = concat!(stringify!($module), "::", stringify!($test), "::", stringify!($server));
            trials.push(Trial::test(name.to_lowercase(), || {
                $module::$test(Cluster::start($server));
                Ok(())
            }));
        )+)*)* };
    }
    tests! {
        enforce:
            what_is_applied_is_enforced_and_outlives_the_server on Definitions;
        bring_up:
            it_tells_its_version on Whole | Definitions,
            it_stops_and_starts_with_its_data on Whole | Definitions,
            what_is_past_is_gone on Whole | Definitions,
            a_node_may_do_what_nodes_do on Whole,
            an_account_may_do_what_it_was_given on Whole;
        crds:
            they_are_established on Whole | Definitions,
            people_can_read_the_tables on Definitions,
            what_is_accepted_is_accepted on Definitions,
            what_is_refused_is_refused on Definitions,
            what_only_the_node_knows_is_refused_by_the_node on Definitions,
            what_an_api_server_drops_does_no_harm on Definitions;
        follow:
            every_change_is_heard_within_a_second on Whole | Definitions,
            a_restart_of_the_api_server_is_survived on Whole | Definitions,
            without_crds_and_permission_the_remedy_is_told on Whole | Definitions,
            a_node_tells_its_condition_and_its_refusals on Whole,
            the_permissions_are_these_and_no_more on Whole;
    }
    trials
}
