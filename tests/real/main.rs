//! End to end: the real daemon before a real containerd, with real registries.
//!
//! One containerd serves all tests of a run; `PORTCULLIS_CONTAINERD` chooses its version (1.6,
//! 1.7 or 2.1). Each test has repositories and a gate of its own.
#![allow(clippy::unwrap_used, reason = "clippy knows only #[test] functions as tests")]

mod compare;
mod crash;
mod faults;
mod image;
mod kubelet;
mod lab;
mod offline;
mod pause;
mod pod;
mod pull;
mod restart;
mod scene;
mod signatures;
#[path = "../support/mod.rs"]
mod support;
mod ways;

use std::{future::Future, process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Trial};

use lab::Lab;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(None)).exit_code();
    }
    let lab = Arc::new(Lab::start());
    let conclusion = libtest_mimic::run(&arguments, trials(Some(lab)));
    // The lab is gone here, with containerd and the registries.
    conclusion.exit_code()
}

/// Every test, by its name. Without a lab they are listed only.
fn trials(lab: Option<Arc<Lab>>) -> Vec<Trial> {
    let mut trials = Vec::new();
    macro_rules! tests {
        ($($module:ident: $($test:ident),*;)*) => { $($(
            let lab_of_test = lab.clone();
            let name = concat!(stringify!($module), "::", stringify!($test));
            trials.push(Trial::test(name, move || {
                let lab = lab_of_test.expect("tests are run with a lab");
                run($module::$test(&lab));
                Ok(())
            }));
        )*)* };
    }
    tests! {
        signatures: every_signature_of_the_fixtures_is_judged_as_expected, real_cosign_signs_and_the_image_is_pulled;
        pull:
            a_tag_pull_shows_exactly_that_tag_at_once,
            a_digest_pull_shows_no_tag,
            a_tag_that_moves_is_judged_anew,
            a_container_runs_from_the_pulled_image,
            a_registry_that_is_gone_is_not_a_verdict,
            credentials_of_the_caller_reach_the_registry,
            a_refused_image_leaves_nothing_in_containerd;
        compare: direct_and_through_are_the_same, events_flow_as_they_happen;
        ways:
            pulled_before_portcullis_was_there,
            imported_by_ctr,
            pulled_past_the_socket,
            evidence_is_gathered_for_what_is_there,
            a_signed_name_leads_to_other_bytes,
            under_a_tag_that_moves,
            by_whatever_name,
            by_a_short_name,
            by_the_id_of_another_image,
            as_a_volume,
            as_a_checkpoint;
        kubelet:
            pull_policies_hold_over_restarts_and_offline,
            if_not_present_pulls_what_is_missing_once,
            each_credential_hears_the_same_refusal,
            image_volumes_are_made_sure_of_like_images;
        pause:
            the_operators_word_is_held_against_the_runtimes,
            a_missing_one_is_brought_through_the_gate,
            an_unsigned_one_starts_no_pod,
            a_repointed_one_starts_no_pod,
            a_copy_of_it_lends_it_no_name,
            another_one_by_configuration_is_judged;
        offline:
            proven_starts_and_unproven_does_not,
            a_policy_on_disk_counts_at_once,
            evidence_goes_from_node_to_node;
        crash: killed_at_any_moment;
        restart: containerd_restarts_and_the_next_call_works;
        faults:
            containerd_is_killed_under_load,
            containerd_becomes_another_one,
            a_full_disk_under_the_audit_log_stops_what_is_judged,
            a_full_disk_under_the_state_takes_no_proof_away;
    }
    trials
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}
