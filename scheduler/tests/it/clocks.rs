//! Clocks that jump, leaders that are wrong about themselves, stores that go away.

use std::time::Duration;

use assert_matches::assert_matches;
use chrono::TimeDelta;
use common::schedule::Overlap;
use common::store::Error;
use common::testing::eventually;
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use crate::fixture::{Fixture, limits};

const PATIENCE: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(3);

/// Waits for so many more fires of a schedule.
async fn more_fires(fixture: &Fixture, id: common::ids::ScheduleId, count: usize) {
    let before = fixture.fires(id).await.len();
    eventually(PATIENCE, "fires", || async {
        (fixture.fires(id).await.len() >= before + count).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn two_that_both_lead_fire_each_due_time_once(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let store = &fixture.env.store;
    let mut ids = Vec::new();
    for _ in 0..300 {
        ids.push(fixture.due(Overlap::Allow).await.id);
    }
    // Nothing could be more wrong than this: two roles, each with a leader whose lease holds.
    let lead = |role| store.acquire_or_renew(role, Uuid::now_v7(), TTL * 100);
    let (one, two) = (lead("one").await.unwrap().unwrap(), lead("two").await.unwrap().unwrap());
    let all = |leader| async move {
        let mut jobs = 0;
        loop {
            let fired = store.fire_due(leader, limits()).await.unwrap();
            jobs += fired.jobs.len();
            if fired.next_in.is_none_or(|next| !next.is_zero()) {
                return jobs;
            }
        }
    };
    let (by_one, by_two) = tokio::join!(all(&one), all(&two));
    assert_eq!(by_one + by_two, ids.len());
    for id in ids {
        assert_eq!((fixture.fires(id).await.len(), fixture.jobs(id).await.len()), (1, 1));
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_lease_of_a_clock_that_was_set_back_holds_nobody_up(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let store = &fixture.env.store;
    fixture.due(Overlap::Allow).await;
    let old = store
        .acquire_or_renew("test", Uuid::now_v7(), TTL)
        .await
        .unwrap()
        .unwrap();
    let other = Uuid::now_v7();
    assert_eq!(store.acquire_or_renew("test", other, TTL).await.unwrap(), None);

    store.set_clock_offset(TimeDelta::hours(-1));
    let new = store.acquire_or_renew("test", other, TTL).await.unwrap().unwrap();
    assert_eq!(new.epoch, old.epoch + 1);
    store.set_clock_offset(TimeDelta::zero());
    assert_matches!(store.fire_due(&old, limits()).await, Err(Error::LeaseLost));
    // Set forward, its lease has expired.
    assert_matches!(store.fire_due(&new, limits()).await, Err(Error::LeaseLost));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_clock_that_jumps_an_hour_either_way_fires_nothing_twice(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let schedule = fixture.schedule("* * * * * *", Overlap::Allow);
    fixture.save(&schedule).await;
    let (one, one_store) = fixture.start_with_store();
    let (two, two_store) = fixture.start_with_store();
    let jump = |hours| {
        one_store.set_clock_offset(TimeDelta::hours(hours));
        two_store.set_clock_offset(TimeDelta::hours(hours));
    };
    more_fires(&fixture, schedule.id, 2).await;

    jump(1);
    more_fires(&fixture, schedule.id, 3).await;
    let ahead = fixture.fires(schedule.id).await;
    let missed: Vec<_> = ahead.iter().filter(|fire| fire.outcome == "missed").collect();
    assert_eq!(missed.len(), 1, "the hour that never was is one row");

    jump(0);
    // The due times of this hour are decided; others are not, and somebody leads.
    eventually(PATIENCE, "a leader by this clock", || fixture.epoch()).await;
    let behind = fixture.fires(schedule.id).await.len();
    let another = fixture.schedule("* * * * * *", Overlap::Allow);
    fixture.save(&another).await;
    more_fires(&fixture, another.id, 2).await;
    assert_eq!(
        fixture.fires(schedule.id).await.len(),
        behind,
        "nothing is due before its time"
    );

    jump(1);
    more_fires(&fixture, schedule.id, 2).await;
    one.stop().await;
    two.stop().await;
    let fires = fixture.fires(schedule.id).await;
    let fired = fires.iter().filter(|fire| fire.outcome == "fired").count();
    assert_eq!(fixture.jobs(schedule.id).await.len(), fired);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn three_schedulers_fire_through_a_wiped_redis_and_a_postgres_that_is_away(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let schedule = fixture.schedule("* * * * * *", Overlap::Allow);
    fixture.save(&schedule).await;
    let _schedulers = [fixture.spawn(), fixture.spawn(), fixture.spawn()];
    more_fires(&fixture, schedule.id, 2).await;

    fixture.env.wipe_redis().await;
    more_fires(&fixture, schedule.id, 2).await;
    eventually(PATIENCE, "what was fired can be claimed", || async {
        let jobs = fixture.jobs(schedule.id).await.into_iter();
        let jobs: Vec<_> = jobs.map(|id| (fixture.env.tenant_id, id)).collect();
        fixture.env.queue.unknown(&jobs).await.unwrap().is_empty().then_some(())
    })
    .await;

    let before = fixture.fires(schedule.id).await.len();
    away(&fixture, Duration::from_secs(4)).await;
    eventually(PATIENCE, "fires after it came back", || async {
        (fixture.fires(schedule.id).await.len() >= before + 6).then_some(())
    })
    .await;
    fixture.assert_each_second_fired_once(schedule.id).await;
}

/// Ends every connection to the test's database and lets nobody in for a while, as a restart does.
async fn away(fixture: &Fixture, lasts: Duration) {
    let options = fixture.pool.connect_options();
    let name = options.get_database().unwrap().to_owned();
    let admin = (*options).clone().database("postgres");
    let mut admin = PgConnection::connect_with(&admin).await.unwrap();
    let door = |open: bool| sqlx::AssertSqlSafe(format!("alter database \"{name}\" with allow_connections {open}"));
    sqlx::query(door(false)).execute(&mut admin).await.unwrap();
    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1")
        .bind(&name)
        .execute(&mut admin)
        .await
        .unwrap();
    // Not for something to happen, but so that nothing can: this is how long it is away.
    tokio::time::sleep(lasts).await;
    sqlx::query(door(true)).execute(&mut admin).await.unwrap();
}
