//! Firing, without anybody else who fires.

use std::time::Duration;

use assert_matches::assert_matches;
use chrono::TimeDelta;
use common::cron::Cron;
use common::job::{Concurrency, FailureCode, StateName, Strategy};
use common::schedule::Overlap;
use common::store::Error;
use common::store::fire::Manual;
use sqlx::PgPool;
use uuid::Uuid;

use crate::fixture::{Fixture, limits};

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_leader_whose_epoch_is_over_is_refused(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let store = &fixture.env.store;
    let schedule = fixture.due(Overlap::Allow).await;
    let old = store
        .acquire_or_renew("test", Uuid::now_v7(), Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    assert_matches!(
        store.fire_due(&old, limits()).await,
        Err(Error::LeaseLost),
        "its lease has expired"
    );
    let new = fixture.elect().await;
    assert_eq!(new.epoch, old.epoch + 1);
    assert_matches!(store.fire_due(&old, limits()).await, Err(Error::LeaseLost));
    assert_eq!(fixture.jobs(schedule.id).await.len(), 0);

    assert_eq!(store.fire_due(&new, limits()).await.unwrap().jobs.len(), 1);
    assert_eq!(fixture.jobs(schedule.id).await.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_due_time_is_fired_once_even_when_the_schedule_is_set_back(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let leader = fixture.elect().await;
    let schedule = fixture.due(Overlap::Allow).await;
    let (one, two) = tokio::join!(
        fixture.env.store.fire_due(&leader, limits()),
        fixture.env.store.fire_due(&leader, limits())
    );
    assert_eq!(one.unwrap().jobs.len() + two.unwrap().jobs.len(), 1);
    sqlx::query("update schedules set next_fire_at = $2, due_at = $2 where id = $1")
        .bind(schedule.id)
        .bind(schedule.next_fire_at)
        .execute(&fixture.pool)
        .await
        .unwrap();
    let again = fixture.env.store.fire_due(&leader, limits()).await.unwrap();
    assert_eq!((again.jobs.len(), again.schedules), (0, 1));
    assert_eq!(fixture.jobs(schedule.id).await.len(), 1);
    let (moved, last) = fixture
        .env
        .store
        .schedule(schedule.tenant_id, schedule.id)
        .await
        .unwrap()
        .unwrap();
    assert!(moved.next_fire_at > schedule.next_fire_at);
    assert_eq!(last.unwrap().job_id, moved.last_job_id);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_schedule_that_cannot_be_fired_never_holds_up_the_others(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let leader = fixture.elect().await;
    let mut good = Vec::new();
    for _ in 0..9 {
        good.push(fixture.due(Overlap::Allow).await.id);
    }
    // Both can only come from a fault of ours: the API refuses them.
    let unreadable = fixture.due(Overlap::Allow).await.id;
    sqlx::query("update schedules set cron = '61 * * * *' where id = $1")
        .bind(unreadable)
        .execute(&fixture.pool)
        .await
        .unwrap();
    let mut refused = fixture.schedule("0 * * * *", Overlap::Allow);
    refused.next_fire_at = Some(fixture.env.clock.now() - TimeDelta::seconds(2));
    refused.target.spec.metadata.insert("nul".to_owned(), "\0".into());
    fixture.save(&refused).await;

    let mut paused = 0;
    while paused < 2 {
        paused += fixture.env.store.fire_due(&leader, limits()).await.unwrap().paused;
    }
    for id in good {
        assert_eq!(fixture.jobs(id).await.len(), 1);
    }
    for (id, says) in [(unreadable, "cannot be read"), (refused.id, "is refused")] {
        let sql = "select paused_reason from schedules where id = $1 and not enabled";
        let reason: String = sqlx::query_scalar(sql).bind(id).fetch_one(&fixture.pool).await.unwrap();
        assert!(reason.contains(says), "{reason}");
    }
    assert!(
        !fixture
            .env
            .store
            .fire_due(&leader, limits())
            .await
            .unwrap()
            .next_in
            .unwrap()
            .is_zero()
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn skip_waits_for_the_last_job_and_cancel_running_cancels_it(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let (store, leader) = (&fixture.env.store, fixture.elect().await);
    let skip = fixture.due(Overlap::Skip).await;
    let cancel = fixture.due(Overlap::CancelRunning).await;
    assert_eq!(store.fire_due(&leader, limits()).await.unwrap().jobs.len(), 2);

    let hour = common::store::fire::Limits {
        grace: Duration::from_hours(2),
        ..limits()
    };
    store.set_clock_offset(TimeDelta::hours(1));
    let waits = store.fire_due(&leader, hour).await.unwrap();
    assert_eq!((waits.jobs.len(), waits.to_cancel.len()), (0, 1));
    let (tenant_id, job_id) = waits.to_cancel[0];
    let cancelled = store
        .cancel(tenant_id, job_id, fixture.env.clock.now())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(cancelled.state.name(), StateName::Cancelled);
    let fired = store.fire_due(&leader, hour).await.unwrap();
    assert_eq!((fired.jobs.len(), fired.to_cancel.len()), (1, 0));

    assert_eq!(fixture.jobs(cancel.id).await.len(), 2);
    assert_eq!(fixture.jobs(skip.id).await.len(), 1);
    let skipped = &fixture.fires(skip.id).await[1];
    assert_eq!((skipped.outcome.as_str(), skipped.job_id), ("skipped", None));
    assert_eq!(skipped.reason.as_deref(), Some("the last job has not ended"));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn downtime_is_missed_or_caught_up_as_the_schedule_says(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let leader = fixture.elect().await;
    let mut missing = fixture.schedule("0 * * * *", Overlap::Allow);
    missing.next_fire_at = missing
        .timing
        .cron
        .next_after(fixture.env.clock.now() - TimeDelta::hours(6));
    let mut catching_up = fixture.schedule("0 * * * *", Overlap::Allow);
    catching_up.next_fire_at = missing.next_fire_at;
    catching_up.timing.catch_up = Duration::from_hours(24);
    fixture.save(&missing).await;
    fixture.save(&catching_up).await;
    // Half an hour after the last due time, so that none lies within the grace.
    let past = fixture.env.clock.now().timestamp() % 3600;
    fixture.env.store.set_clock_offset(TimeDelta::seconds(1800 - past));
    fixture.env.store.fire_due(&leader, limits()).await.unwrap();

    let missed = fixture.fires(missing.id).await;
    assert_eq!(
        missed.iter().map(|fire| fire.outcome.as_str()).collect::<Vec<_>>(),
        ["missed"]
    );
    assert!(
        missed[0].reason.as_deref().unwrap().contains("6 due from"),
        "{missed:?}"
    );
    assert_eq!(fixture.jobs(catching_up.id).await.len(), 6);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_person_can_fire_a_paused_schedule_of_its_own_tenant(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let store = &fixture.env.store;
    let mut schedule = fixture.schedule("@daily", Overlap::Queue);
    schedule.enabled = false;
    fixture.save(&schedule).await;
    assert_matches!(
        store.fire_now(common::ids::TenantId::new(), schedule.id).await.unwrap(),
        Manual::NotFound
    );
    let job =
        assert_matches!(store.fire_now(schedule.tenant_id, schedule.id).await.unwrap(), Manual::Fired(job, _) => job);
    assert_eq!(fixture.jobs(schedule.id).await, [job.id]);
    assert_eq!(job.spec.concurrency.unwrap().key, schedule.concurrency_key());
    let (after, last) = store.schedule(schedule.tenant_id, schedule.id).await.unwrap().unwrap();
    assert_eq!(
        (after.next_fire_at, after.last_job_id),
        (schedule.next_fire_at, Some(job.id))
    );
    assert!(last.unwrap().manual);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_edit_keeps_its_version_and_moves_the_due_time_only_when_it_says_so(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let store = &fixture.env.store;
    let mut schedule = fixture.schedule("@daily", Overlap::Skip);
    fixture.save(&schedule).await;
    let due = schedule.next_fire_at;
    schedule.name = "other".to_owned();
    schedule.timing.cron = Cron::parse("@yearly", "Europe/Berlin").unwrap();
    schedule.next_fire_at = None;
    assert!(store.update_schedule(&schedule, 1, false).await.unwrap());
    assert!(
        !store.update_schedule(&schedule, 1, true).await.unwrap(),
        "somebody else edited it"
    );
    let (read, _) = store.schedule(schedule.tenant_id, schedule.id).await.unwrap().unwrap();
    assert_eq!((read.next_fire_at, read.version, read.name.as_str()), (due, 2, "other"));
    assert_eq!(read.timing.cron, schedule.timing.cron);
    assert!(store.update_schedule(&schedule, 2, true).await.unwrap());
    assert!(
        !store
            .delete_schedule(schedule.tenant_id, schedule.id, Some(2), schedule.created_at)
            .await
            .unwrap()
    );
    assert!(
        store
            .delete_schedule(schedule.tenant_id, schedule.id, Some(3), schedule.created_at)
            .await
            .unwrap()
    );
    assert!(store.schedules(schedule.tenant_id, None, 10).await.unwrap().is_empty());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_strategy_of_a_concurrency_key_decides_over_fired_jobs_too(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let (store, leader) = (&fixture.env.store, fixture.elect().await);
    let due = async |strategy| {
        let mut schedule = fixture.schedule("0 * * * *", Overlap::Allow);
        schedule.next_fire_at = Some(fixture.env.clock.now() - TimeDelta::seconds(1));
        schedule.target.spec.concurrency = Some(Concurrency {
            key: "key".to_owned(),
            limit: 1,
            strategy,
        });
        fixture.save(&schedule).await;
        schedule
    };
    due(Strategy::Reject).await;
    let first = store.fire_due(&leader, limits()).await.unwrap().jobs;
    assert_eq!(first.len(), 1);

    let late = due(Strategy::Reject).await;
    assert!(store.fire_due(&leader, limits()).await.unwrap().jobs.is_empty());
    let refused = fixture.env.row(fixture.jobs(late.id).await[0]).await;
    assert_eq!(refused.error.unwrap().code, FailureCode::ConcurrencyLimit);
    assert_matches!(
        store.fire_now(late.tenant_id, late.id).await.unwrap(),
        Manual::Refused(_)
    );
    assert_eq!(
        fixture.jobs(late.id).await.len(),
        1,
        "what was refused left nothing behind"
    );

    due(Strategy::CancelRunning).await;
    let fired = store.fire_due(&leader, limits()).await.unwrap();
    assert_eq!(
        (fired.jobs.len(), fired.to_cancel),
        (1, vec![(late.tenant_id, first[0].id)])
    );
}
