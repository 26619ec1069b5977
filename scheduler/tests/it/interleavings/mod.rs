//! Random interleavings of everything that happens to jobs, on the real scripts, the real Postgres and the real duties,
//! compared after each step with the pure state machine.
//!
//! `HOTHOUSE_INTERLEAVINGS` is how many runs there are, `HOTHOUSE_INTERLEAVINGS_SEED` where they begin. A failing run is
//! made as short as it can be and printed.

#![expect(clippy::print_stdout, reason = "the seed, and how many runs there were")]

mod claims;
mod index;
mod oracle;
mod steps;
mod world;

use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use sqlx::PgPool;
use tokio::runtime::Handle;

use steps::{End, Step, Ticks, run};
use world::World;

/// Time that the runs take when nobody says how many there should be.
const TIME: Duration = Duration::from_secs(20);

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn every_interleaving_agrees_with_the_state_machine(pool: PgPool) {
    let number = |name: &str| -> Option<u64> {
        let (_, value) = std::env::vars().find(|(set, _)| set == name)?;
        Some(value.parse().expect("a number"))
    };
    let cases = number("HOTHOUSE_INTERLEAVINGS");
    let seed = number("HOTHOUSE_INTERLEAVINGS_SEED").unwrap_or_else(rand_seed);
    println!("HOTHOUSE_INTERLEAVINGS_SEED={seed}");
    let until = cases.is_none().then(|| Instant::now() + TIME);
    let (handle, mut ran) = (Handle::current(), 0_u32);
    let check = move || -> Result<u32, String> {
        let walked = std::cell::Cell::new(0_u32);
        loop {
            let is_over = match (cases, until) {
                (Some(cases), _) => u64::from(ran) >= cases,
                (None, until) => until.is_some_and(|until| Instant::now() > until),
            };
            if is_over {
                return Ok(ran);
            }
            // A runner of its own for each: one that has had its successes runs nothing more.
            let seed = seed + u64::from(ran);
            let one = |steps: Vec<Step>| {
                walked.set(walked.get() + 1);
                handle.block_on(walk(pool.clone(), &steps)).map_err(TestCaseError::fail)
            };
            let outcome = runner(seed).run(&steps::strategy(), one);
            outcome.map_err(|error| format!("HOTHOUSE_INTERLEAVINGS_SEED={seed} HOTHOUSE_INTERLEAVINGS=1: {error}"))?;
            assert!(walked.get() > ran, "nothing was walked");
            ran += 1;
        }
    };
    let ran = tokio::task::spawn_blocking(check).await.unwrap();
    println!("{ran:?} runs");
    assert!(ran.unwrap() > 0);
}

/// A runner of one case.
fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// One run.
async fn walk(pool: PgPool, steps: &[Step]) -> Result<(), String> {
    // Nothing of a run that broke may be seen by the shorter ones that follow it.
    sqlx::query("truncate jobs, attempts, job_events, queued_jobs, handouts cascade")
        .execute(&pool)
        .await
        .map_err(|e| e.to_string())?;
    let mut world = World::new(pool).await;
    for step in steps {
        let broken = |when: &str, what: String| format!("{when} {step:?}: {what}");
        run(&mut world, step).await.map_err(|what| broken("at", what))?;
        world.check().await.map_err(|what| broken("after", what))?;
    }
    world.end().await.map_err(|what| format!("at the end: {what}"))
}

fn rand_seed() -> u64 {
    u64::try_from(uuid::Uuid::new_v4().as_u128() & 0xffff_ffff).unwrap_or(0)
}

/// What was found before stays found: each of these broke something once.
async fn holds(pool: PgPool, steps: &[Step]) {
    Box::pin(walk(pool, steps)).await.unwrap();
}

const fn submit(key: bool) -> Step {
    Step::Submit {
        tenant: 0,
        key,
        later: false,
        told: true,
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_of_unknown_outcome_frees_no_place(pool: PgPool) {
    let steps = [
        submit(true),
        submit(true),
        Step::Take { worker: 0, free: 3 },
        Step::ConfirmUnanswered { worker: 0 },
        Step::Advance { ms: 3_000 },
        Step::Take { worker: 1, free: 3 },
        Step::Confirm { worker: 1 },
    ];
    holds(pool, &steps).await;
}

/// Whoever was handed the job next is refused, and gives up the place.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_that_is_decided_late_takes_nobodys_place(pool: PgPool) {
    let steps = [
        submit(true),
        submit(true),
        submit(true),
        Step::Take { worker: 0, free: 1 },
        Step::Send { worker: 0 },
        Step::Advance { ms: 7_000 },
        Step::Tick { duty: Ticks::Reclaim },
        Step::Take { worker: 1, free: 1 },
        Step::Take { worker: 2, free: 1 },
        Step::Confirm { worker: 2 },
        Step::Decide { which: 0 },
        Step::Confirm { worker: 1 },
        Step::Take { worker: 2, free: 1 },
        Step::Confirm { worker: 2 },
        Step::Answer { worker: 0 },
        Step::Beat { worker: 0 },
    ];
    holds(pool, &steps).await;
}

/// Nothing runs yet, and the new index does not know what the old one handed out.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_on_its_way_at_a_wipe_takes_nobodys_place(pool: PgPool) {
    let steps = [
        submit(true),
        submit(true),
        submit(true),
        Step::Take { worker: 0, free: 2 },
        Step::Send { worker: 0 },
        Step::Wipe,
        Step::Tick {
            duty: Ticks::Redispatch,
        },
        Step::Take { worker: 1, free: 3 },
        Step::Decide { which: 0 },
        Step::Confirm { worker: 1 },
        Step::Advance { ms: 2_000 },
        Step::Tick {
            duty: Ticks::Redispatch,
        },
        Step::Take { worker: 2, free: 3 },
        Step::Confirm { worker: 2 },
        Step::Answer { worker: 0 },
    ];
    holds(pool, &steps).await;
}

/// It was taken over before its worker read the answer, and the next attempt has ended.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_that_is_answered_late_begins_nothing_that_has_ended(pool: PgPool) {
    let (which, how, acked) = (0, End::Succeed, true);
    let steps = [
        submit(false),
        Step::Take { worker: 0, free: 1 },
        Step::Send { worker: 0 },
        Step::Decide { which: 0 },
        Step::Advance { ms: 7_000 },
        Step::Tick { duty: Ticks::Reclaim },
        Step::Take { worker: 1, free: 1 },
        Step::Confirm { worker: 1 },
        Step::End {
            worker: 1,
            which,
            how,
            acked,
        },
        Step::Answer { worker: 0 },
        Step::Beat { worker: 0 },
    ];
    holds(pool, &steps).await;
}

/// Nobody has dropped its lease, and there is time left in it.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_that_is_answered_late_begins_while_its_lease_lives(pool: PgPool) {
    let late = u64::try_from(World::run_on().num_milliseconds()).unwrap();
    let steps = [
        submit(true),
        Step::Take { worker: 0, free: 1 },
        Step::Send { worker: 0 },
        Step::Decide { which: 0 },
        Step::Advance { ms: late },
        Step::Answer { worker: 0 },
    ];
    let mut world = World::new(pool).await;
    for step in &steps {
        run(&mut world, step).await.unwrap();
        world.check().await.unwrap();
    }
    let now = world.now();
    let held: Vec<_> = world.workers[0].held.iter().map(|held| held.run_until > now).collect();
    assert_eq!(held, [true]);
    world.end().await.unwrap();
}
