//! What is deleted, and what never is.

use std::time::Duration;

use chrono::{Days, TimeDelta};
use common::ids::{ArchiveId, JobId};
use common::objects::{self, Objects, artifact_key};
use common::service::Duty as _;
use common::store::egress::Decision;
use common::store::retention::Dropped;
use common::testing::eventually;
use common::workspace::archive_key;
use scheduler::duties::{Artifacts, Workspaces};
use sqlx::PgPool;
use uuid::{NoContext, Timestamp, Uuid};

use crate::fixture::Fixture;

const PATIENCE: Duration = Duration::from_millis(200);

const SOON: Duration = Duration::from_secs(10);

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_day_of_jobs_is_dropped_when_its_last_job_has_ended(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let store = &fixture.env.store;
    let then = fixture.env.clock.now() - TimeDelta::days(40);
    let day = then.date_naive();
    assert_eq!(store.ensure_partitions(day, day).await.unwrap(), 3);
    let mut job = fixture.env.noop();
    let seconds = u64::try_from(then.timestamp()).unwrap();
    job.id = JobId(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0)));
    fixture.env.insert(&job).await;
    // What the job's sandbox connected to goes with it, and what others did stays.
    let young = fixture.env.noop();
    fixture.env.insert(&young).await;
    for id in [job.id, young.id] {
        let row = fixture.env.row(id).await;
        let decision = Decision {
            attempt: 1,
            seq: 1,
            at: then,
            method: None,
            host: None,
            port: None,
            address: None,
            is_allowed: false,
            reason: Some("too_many".to_owned()),
            sent_bytes: 0,
            received_bytes: 0,
            duration: None,
        };
        store.insert_egress(&row, &[decision]).await.unwrap();
    }

    let old = store
        .partition_days(day.checked_add_days(Days::new(10)).unwrap())
        .await
        .unwrap();
    assert_eq!(old, [day]);
    assert_eq!(store.drop_partitions(day, PATIENCE).await.unwrap(), Dropped::Open);
    store.cancel(job.tenant_id, job.id, then).await.unwrap();
    // Somebody reads the day: nobody is made to wait behind the drop for longer than it says.
    let mut reader = fixture.pool.begin().await.unwrap();
    sqlx::query("select * from jobs where id = $1")
        .bind(job.id)
        .fetch_one(&mut *reader)
        .await
        .unwrap();
    assert_eq!(store.drop_partitions(day, PATIENCE).await.unwrap(), Dropped::Busy);
    reader.commit().await.unwrap();
    // Nor while what lies beside it is deleted, which waits for somebody here.
    let mut holder = fixture.pool.begin().await.unwrap();
    sqlx::query("select * from egress_decisions for update")
        .fetch_all(&mut *holder)
        .await
        .unwrap();
    let dropping = store.drop_partitions(day, PATIENCE);
    let reading = async {
        eventually(SOON, "the drop waits", async || {
            let waits = "select count(*) from pg_stat_activity
                         where datname = current_database() and wait_event_type = 'Lock'";
            let waits: i64 = sqlx::query_scalar(waits).fetch_one(&fixture.pool).await.unwrap();
            (waits > 0).then_some(())
        })
        .await;
        assert_eq!(store.jobs(&[job.id]).await.unwrap().len(), 1);
        holder.rollback().await.unwrap();
    };
    let (dropped, ()) = tokio::join!(dropping, reading);
    assert_eq!(dropped.unwrap(), Dropped::Yes);

    assert!(store.jobs(&[job.id]).await.unwrap().is_empty());
    assert!(store.egress(job.id, (0, 0), 10).await.unwrap().is_empty());
    assert_eq!(store.egress(young.id, (0, 0), 10).await.unwrap().len(), 1);
    assert!(
        store
            .partition_days(day.checked_add_days(Days::new(10)).unwrap())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(store.default_partition_rows().await.unwrap(), 0);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn old_keys_and_workers_are_forgotten_and_young_ones_are_not(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let now = fixture.env.clock.now();
    for hours in [1, 25, 50] {
        sqlx::query(
            "insert into idempotency_keys (tenant_id, key, fingerprint, job_ids, created_at)
             values ($1, $2, '\\x00', '{}', $3)",
        )
        .bind(fixture.env.tenant_id)
        .bind(hours.to_string())
        .bind(now - TimeDelta::hours(hours))
        .execute(&fixture.pool)
        .await
        .unwrap();
        sqlx::query(
            "insert into workers (id, name, version, slots, labels, queues, driver, started_at, seen_at)
             values ($1, $2, '', '{}', '{}', '{}', '', $3, $3)",
        )
        .bind(Uuid::now_v7())
        .bind(hours.to_string())
        .bind(now - TimeDelta::hours(hours))
        .execute(&fixture.pool)
        .await
        .unwrap();
    }
    let day = now - TimeDelta::hours(24);
    assert_eq!(fixture.env.store.delete_idempotency_keys(day, 1).await.unwrap(), 1);
    assert_eq!(fixture.env.store.delete_idempotency_keys(day, 10).await.unwrap(), 1);
    assert_eq!(fixture.env.store.delete_workers(day, 10).await.unwrap(), 2);
    let left: Vec<String> = sqlx::query_scalar("select key from idempotency_keys union all select name from workers")
        .fetch_all(&fixture.pool)
        .await
        .unwrap();
    assert_eq!(left, ["1", "1"]);
}

fn objects() -> (Objects, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    (Objects::open(&objects::Settings { url }).unwrap(), folder)
}

async fn is_there(objects: &Objects, key: &str) -> bool {
    objects.get(key).await.is_ok()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn archives_that_no_workspace_has_are_deleted_when_their_time_is_over(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let env = &fixture.env;
    let (objects, _folder) = objects();
    let duty = Workspaces::new(env.store.clone(), objects.clone(), Duration::from_hours(1));
    let id = ArchiveId::new();
    env.store
        .begin_archive(env.tenant_id, id, env.clock.now())
        .await
        .unwrap();
    objects
        .put(&archive_key(id), bytes::Bytes::from_static(b"x"))
        .await
        .unwrap();
    assert_eq!(duty.tick(env.clock.now()).await.unwrap().changed, 0);
    assert!(is_there(&objects, &archive_key(id)).await);
    env.advance(Duration::from_secs(3_601));
    assert_eq!(duty.tick(env.clock.now()).await.unwrap().changed, 1);
    assert!(!is_there(&objects, &archive_key(id)).await);
    assert_eq!(duty.tick(env.clock.now()).await.unwrap().changed, 0);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn artifacts_go_with_the_day_of_their_job(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let env = &fixture.env;
    let (objects, _folder) = objects();
    let then = env.clock.now() - TimeDelta::days(40);
    let seconds = u64::try_from(then.timestamp()).unwrap();
    let old = JobId(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0)));
    let keys = [old, JobId::new()].map(|id| artifact_key(id, 1, "x"));
    for key in &keys {
        objects.put(key, bytes::Bytes::from_static(b"x")).await.unwrap();
    }
    let tick = async |days: u64| {
        let duty = Artifacts::new(env.store.clone(), objects.clone(), Duration::from_hours(24 * days));
        duty.tick(env.clock.now()).await.unwrap().changed
    };
    assert_eq!((tick(0).await, tick(50).await), (0, 0), "kept for ever, and for longer");
    let day = then.date_naive();
    env.store.ensure_partitions(day, day).await.unwrap();
    assert_eq!(tick(30).await, 0, "the day is still there");
    assert_eq!(env.store.drop_partitions(day, PATIENCE).await.unwrap(), Dropped::Yes);
    assert_eq!(tick(30).await, 1);
    assert!(!is_there(&objects, &keys[0]).await && is_there(&objects, &keys[1]).await);
}
