//! The protocol in every order of steps, and each of its rules taken out.

#![expect(clippy::print_stdout, reason = "what broke, and how much was looked at")]

use std::time::Duration;

use hothouse_model::{Drift, Protocol, Rules};
use stateright::{Checker, HasDiscoveries, Model};

const SANDBOXES: &str = "at most one sandbox runs";
const STALE: &str = "a stale attempt never commits";
const STARTS: &str = "no sandbox starts for a stale attempt";
const ONCE: &str = "an attempt ends once";
const ENDS: &str = "the job ends when nothing more goes wrong";

/// Clocks as far apart as the protocol allows for.
fn drifts() -> Vec<Drift> {
    vec![Drift::None, Drift::Sandbox, Drift::Leader]
}

/// A number from the environment.
fn set(name: &str) -> Option<usize> {
    let (_, value) = std::env::vars().find(|(set, _)| set == name)?;
    Some(value.parse().expect("a number"))
}

/// How many things go wrong: `HOTHOUSE_MODEL_FAULTS`, else `default`.
fn faults(default: u8) -> u8 {
    set("HOTHOUSE_MODEL_FAULTS").map_or(default, |faults| u8::try_from(faults).expect("a few"))
}

/// How many states are looked at: `HOTHOUSE_MODEL_STATES`, else `default`.
fn states(default: usize) -> usize {
    set("HOTHOUSE_MODEL_STATES").unwrap_or(default)
}

/// The shortest way to break `property` without a rule: how long it is, and what happens.
fn break_it(rules: Rules, faults: u8, drifts: Vec<Drift>, property: &'static str) -> Option<Vec<String>> {
    let protocol = Protocol {
        rules,
        faults,
        drifts,
        checks_ending: false,
    };
    let checker = protocol
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyOf(std::iter::once(property).collect()))
        .timeout(Duration::from_mins(1))
        .spawn_bfs()
        .join();
    let found = checker.discovery(property)?;
    Some(
        found
            .into_actions()
            .into_iter()
            .map(|action| format!("{action:?}"))
            .collect(),
    )
}

#[track_caller]
fn assert_breaks(rules: Rules, faults: u8, property: &'static str) {
    let way =
        break_it(rules, faults, drifts(), property).expect("the rule is not needed, or the model does not see why");
    println!("{property:?} is broken in {} steps:\n{}", way.len(), way.join("\n"));
}

/// Looks at every state, or at as many as `limit` allows for, breadth first.
fn hold(faults: u8, drifts: Vec<Drift>, checks_ending: bool, limit: usize) {
    let protocol = Protocol {
        rules: Rules::ALL,
        faults,
        drifts,
        checks_ending,
    };
    let begun = std::time::Instant::now();
    let checker = protocol
        .checker()
        .threads(2)
        .target_state_count(limit)
        .spawn_bfs()
        .join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{faults} faults: {states} states, depth {depth}, {:?}", begun.elapsed());
    for property in [SANDBOXES, STALE, STARTS, ONCE, ENDS] {
        checker.assert_no_discovery(property);
    }
}

#[test]
fn the_protocol_holds_in_every_order_of_steps() {
    hold(0, drifts(), false, states(800_000));
}

#[test]
fn the_protocol_holds_whatever_goes_wrong() {
    hold(faults(2), drifts(), false, states(800_000));
}

#[test]
fn the_job_ends_from_every_state() {
    hold(faults(1), vec![Drift::None], true, states(100_000));
}

#[test]
fn without_the_fence_a_stale_attempt_commits() {
    let rules = Rules {
        settle_is_fenced: false,
        ..Rules::ALL
    };
    assert_breaks(rules, 0, STALE);
    assert_breaks(rules, 0, ONCE);
}

#[test]
fn without_registering_again_a_wiped_redis_starts_a_second_sandbox() {
    let rules = Rules {
        unknown_registers: false,
        ..Rules::ALL
    };
    assert_breaks(rules, 1, SANDBOXES);
}

#[test]
fn without_waiting_after_a_wipe_a_second_sandbox_starts() {
    let rules = Rules {
        wipe_waits: false,
        ..Rules::ALL
    };
    assert_breaks(rules, 1, SANDBOXES);
}

#[test]
fn a_renewal_that_counts_from_its_answer_outlives_the_lease() {
    let rules = Rules {
        renewal_counts_from_asking: false,
        ..Rules::ALL
    };
    assert_breaks(rules, 0, SANDBOXES);
}

#[test]
fn clocks_that_differ_by_more_than_allowed_break_it() {
    let way = break_it(Rules::ALL, 0, vec![Drift::TooMuch], SANDBOXES);
    assert!(way.is_some());
}

#[test]
fn taking_over_what_redis_does_not_know_races_with_its_worker() {
    let rules = Rules {
        unknown_is_adopted: false,
        next_attempt_waits: false,
        ..Rules::ALL
    };
    assert_breaks(rules, 2, SANDBOXES);
}

#[test]
fn saying_that_one_lives_without_looking_keeps_what_was_taken() {
    let rules = Rules {
        alive_is_confirmed: false,
        ..Rules::ALL
    };
    assert_breaks(rules, 1, SANDBOXES);
}

#[test]
fn what_is_confirmed_late_and_registered_once_more_runs_after_the_job_has_ended() {
    let rules = Rules {
        late_renews: false,
        ..Rules::ALL
    };
    assert_breaks(rules, 0, STARTS);
}

#[test]
fn a_registration_that_takes_long_may_be_of_a_lost_attempt() {
    let rules = Rules {
        registration_is_timely: false,
        ..Rules::ALL
    };
    assert_breaks(rules, 1, SANDBOXES);
}
