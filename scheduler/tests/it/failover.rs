//! Several schedulers, and the death of the one that leads.

use std::time::{Duration, Instant};

use common::schedule::Overlap;
use common::testing::eventually;
use nix::sys::signal::Signal;
use sqlx::PgPool;

use crate::fixture::Fixture;

const PATIENCE: Duration = Duration::from_secs(20);

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn two_schedulers_fire_every_second_once(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let schedule = fixture.schedule("* * * * * *", Overlap::Allow);
    fixture.save(&schedule).await;
    let parts = [fixture.start(), fixture.start()];

    eventually(PATIENCE, "five fires", || async {
        (fixture.fires(schedule.id).await.len() >= 5).then_some(())
    })
    .await;
    eventually(PATIENCE, "all are dispatched", || async {
        let jobs = fixture.jobs(schedule.id).await;
        let jobs: Vec<_> = jobs.into_iter().map(|id| (fixture.env.tenant_id, id)).collect();
        fixture.env.queue.unknown(&jobs).await.unwrap().is_empty().then_some(())
    })
    .await;
    for part in parts {
        part.stop().await;
    }

    fixture.assert_each_second_fired_once(schedule.id).await;
    assert_eq!(fixture.epoch().await, None, "the lease is given up");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_killed_leader_is_succeeded_within_five_seconds_and_no_second_is_lost(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let schedule = fixture.schedule("* * * * * *", Overlap::Allow);
    fixture.save(&schedule).await;
    let mut leader = fixture.spawn();
    let first = eventually(PATIENCE, "a leader", || fixture.epoch()).await;
    let _successor = fixture.spawn();
    eventually(PATIENCE, "two fires", || async {
        (fixture.fires(schedule.id).await.len() >= 2).then_some(())
    })
    .await;

    leader.signal(Signal::SIGKILL);
    let killed = Instant::now();
    leader.wait();
    let second = eventually(PATIENCE, "a new leader", || async {
        fixture.epoch().await.filter(|epoch| *epoch > first)
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());

    assert_eq!(second, first + 1);
    let before = fixture.fires(schedule.id).await.len();
    eventually(PATIENCE, "fires", || async {
        (fixture.fires(schedule.id).await.len() >= before + 3).then_some(())
    })
    .await;
    fixture.assert_each_second_fired_once(schedule.id).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_frozen_leader_that_wakes_up_fires_nothing_twice(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let schedule = fixture.schedule("* * * * * *", Overlap::Allow);
    fixture.save(&schedule).await;
    let mut frozen = fixture.spawn();
    let first = eventually(PATIENCE, "a leader", || fixture.epoch()).await;
    let mut successor = fixture.spawn();

    frozen.signal(Signal::SIGSTOP);
    eventually(PATIENCE, "a new leader", || async {
        fixture.epoch().await.filter(|epoch| *epoch > first)
    })
    .await;
    frozen.signal(Signal::SIGCONT);
    let before = fixture.fires(schedule.id).await.len();
    eventually(PATIENCE, "fires", || async {
        (fixture.fires(schedule.id).await.len() >= before + 3).then_some(())
    })
    .await;
    assert_eq!(fixture.epoch().await, Some(first + 1), "the lease stays where it is");

    // A terminated leader gives the lease to the other at once, which leads again.
    successor.signal(Signal::SIGTERM);
    assert!(successor.wait().success());
    eventually(PATIENCE, "the first leads again", || async {
        fixture.epoch().await.filter(|epoch| *epoch > first + 1)
    })
    .await;
    frozen.signal(Signal::SIGTERM);
    assert!(frozen.wait().success());
    fixture.assert_each_second_fired_once(schedule.id).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn every_duty_says_what_it_did(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let part = fixture.start();
    let expected = [
        "fire",
        "orphans",
        "outcomes",
        "partitions",
        "promote",
        "reclaim",
        "redispatch",
        "retention",
        "forget",
        "sweep",
    ];
    let duties = eventually(PATIENCE, "a report of each", || async {
        let duties = fixture.env.store.duties().await.unwrap();
        expected
            .iter()
            .all(|name| duties.iter().any(|duty| duty.name == *name && duty.ticks > 0))
            .then_some(duties)
    })
    .await;
    part.stop().await;
    for duty in duties {
        assert_eq!((duty.error, duty.failures, duty.epoch), (None, 0, 1), "{}", duty.name);
        assert_eq!(duty.last_ok_at, Some(duty.last_at), "{}", duty.name);
    }
}
