//! Accounts of model providers: pauses, circuits, places and tokens, shared by all who call.

use std::time::Duration;

use chrono::TimeDelta;
use common::queue::{Admission, CallAsk, CallReport, Obstacle, Queue};
use common::testing::TestEnv;
use sqlx::PgPool;
use uuid::Uuid;

const ACCOUNT: &str = "anthropic:0011";

fn ask(model: &str) -> CallAsk<'_> {
    CallAsk {
        account: ACCOUNT,
        model,
        call: Uuid::now_v7(),
        calls_max: 0,
        tokens_per_minute: 0,
        tokens: 100,
    }
}

fn report(ask: &CallAsk<'_>, is_good: bool) -> CallReport {
    CallReport {
        account: ask.account.to_owned(),
        model: ask.model.to_owned(),
        call: ask.call,
        is_good: Some(is_good),
        pause: None,
        more_tokens: 0,
        trial: None,
    }
}

async fn obstacle(queue: &Queue, ask: &CallAsk<'_>) -> Option<Obstacle> {
    match queue.admit_call(ask).await.unwrap() {
        Admission::Granted { .. } => None,
        Admission::Denied { by, wait } => {
            assert!(!wait.is_zero());
            Some(by)
        }
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_pause_holds_for_every_model_of_the_account_until_its_time_and_is_never_shortened(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let pause = |seconds| CallReport {
        is_good: None,
        pause: Some(Duration::from_secs(seconds)),
        ..report(&ask("a"), true)
    };
    env.queue.report_call(&pause(30)).await.unwrap();
    env.queue.report_call(&pause(5)).await.unwrap();
    assert_eq!(obstacle(&env.queue, &ask("b")).await, Some(Obstacle::Pause));
    let other = CallAsk {
        account: "openai:1",
        ..ask("b")
    };
    assert_eq!(obstacle(&env.queue, &other).await, None, "another account");
    env.queue.set_clock_offset(TimeDelta::seconds(29));
    assert_eq!(obstacle(&env.queue, &ask("b")).await, Some(Obstacle::Pause));
    env.queue.set_clock_offset(TimeDelta::seconds(31));
    assert_eq!(obstacle(&env.queue, &ask("b")).await, None);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_circuit_opens_after_failures_in_a_row_is_tried_by_one_and_closes_when_that_one_succeeds(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let queue = &env.queue;
    let mut opened = Vec::new();
    for is_good in [false, false, true, false, false, false, false, false] {
        opened.push(queue.report_call(&report(&ask("m"), is_good)).await.unwrap());
    }
    assert_eq!(opened, [false, false, false, false, false, false, false, true]);
    assert_eq!(obstacle(queue, &ask("m")).await, Some(Obstacle::Circuit));
    assert_eq!(obstacle(queue, &ask("another")).await, None, "its own model only");

    queue.set_clock_offset(TimeDelta::seconds(16));
    let trial = ask("m");
    assert_eq!(obstacle(queue, &trial).await, None);
    assert_eq!(
        obstacle(queue, &ask("m")).await,
        Some(Obstacle::Circuit),
        "one at a time"
    );
    assert!(queue.report_call(&report(&trial, false)).await.unwrap(), "open again");
    assert_eq!(obstacle(queue, &ask("m")).await, Some(Obstacle::Circuit));

    queue.set_clock_offset(TimeDelta::seconds(32));
    let trial = ask("m");
    assert_eq!(obstacle(queue, &trial).await, None);
    queue.report_call(&report(&trial, true)).await.unwrap();
    for _ in 0..3 {
        assert_eq!(obstacle(queue, &ask("m")).await, None, "closed");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_trial_that_was_never_made_is_anothers_at_once_and_a_later_one_is_left_alone(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let queue = &env.queue;
    for _ in 0..5 {
        queue.report_call(&report(&ask("m"), false)).await.unwrap();
    }
    queue.set_clock_offset(TimeDelta::seconds(16));
    let unmade = ask("m");
    let Admission::Granted { trial } = queue.admit_call(&unmade).await.unwrap() else {
        panic!("nobody tries the circuit");
    };
    assert!(trial.is_some());
    let unmade = CallReport {
        is_good: None,
        trial,
        ..report(&unmade, true)
    };
    queue.report_call(&unmade).await.unwrap();
    queue.set_clock_offset(TimeDelta::seconds(17));
    assert_eq!(obstacle(queue, &ask("m")).await, None, "another tries it");
    // Said again, late: that trial is over, and this one is somebody else's.
    queue.report_call(&unmade).await.unwrap();
    assert_eq!(obstacle(queue, &ask("m")).await, Some(Obstacle::Circuit));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_circuit_opens_when_half_of_the_last_twenty_failed(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mut opened = 0;
    for n in 0..20 {
        if env.queue.report_call(&report(&ask("m"), n % 2 == 1)).await.unwrap() {
            opened += 1;
        }
    }
    assert_eq!(opened, 0, "the twentieth was good");
    assert!(env.queue.report_call(&report(&ask("m"), false)).await.unwrap());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn calls_at_once_are_limited_and_a_place_that_nobody_renews_passes(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let queue = &env.queue;
    let limited = || CallAsk {
        calls_max: 2,
        ..ask("m")
    };
    let (one, two) = (limited(), limited());
    assert_eq!(obstacle(queue, &one).await, None);
    assert_eq!(obstacle(queue, &two).await, None);
    assert_eq!(obstacle(queue, &limited()).await, Some(Obstacle::Calls));
    queue.report_call(&report(&one, true)).await.unwrap();
    let three = limited();
    assert_eq!(obstacle(queue, &three).await, None);

    queue.set_clock_offset(TimeDelta::seconds(50));
    queue.renew_calls(ACCOUNT, &[three.call]).await.unwrap();
    queue.set_clock_offset(TimeDelta::seconds(70));
    assert_eq!(obstacle(queue, &limited()).await, None, "the place of two has passed");
    assert_eq!(
        obstacle(queue, &limited()).await,
        Some(Obstacle::Calls),
        "that of three holds"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn tokens_flow_back_within_a_minute_and_what_was_guessed_wrong_is_set_right(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let queue = &env.queue;
    let limited = |tokens| CallAsk {
        tokens_per_minute: 600,
        tokens,
        ..ask("m")
    };
    let first = limited(400);
    assert_eq!(obstacle(queue, &first).await, None);
    assert_eq!(obstacle(queue, &limited(400)).await, Some(Obstacle::Tokens));
    let settled = CallReport {
        more_tokens: -300,
        ..report(&first, true)
    };
    queue.report_call(&settled).await.unwrap();
    assert_eq!(obstacle(queue, &limited(400)).await, None, "it used 100 only");
    assert_eq!(obstacle(queue, &limited(400)).await, Some(Obstacle::Tokens));
    queue.set_clock_offset(TimeDelta::seconds(61));
    assert_eq!(
        obstacle(queue, &limited(9_999)).await,
        None,
        "a call larger than a minute takes a whole one"
    );
    assert_eq!(obstacle(queue, &limited(1)).await, Some(Obstacle::Tokens));
}
