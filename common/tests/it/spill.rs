//! Full backlogs: Redis stays bounded, the rest comes in from Postgres.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{SubsecRound, TimeDelta};
use common::config::Leases;
use common::ids::JobId;
use common::job::NewJob;
use common::job::decision::Decision;
use common::job::spec::LEVEL_HEAD_START;
use common::queue::{Dispatch, Dispatched, Spilled};
use common::store::backlog::Place;
use common::store::recent::{Left, Rows};
use common::testing::{TestEnv, failure, ids, leases};
use sqlx::PgPool;

use crate::crowd::{analyze, crowd, rows_read, rows_read_since};

async fn small(pool: PgPool) -> TestEnv {
    TestEnv::with_leases(
        pool,
        &Leases {
            dispatched_max: 10,
            ..leases()
        },
    )
    .await
}

/// As the redispatch duty does.
async fn page_in(env: &TestEnv) -> usize {
    let mut added = 0;
    for lane in env.queue.spilled().await.unwrap() {
        if lane.room < 5 {
            continue;
        }
        let (tenant_id, queue, class) = (lane.tenant_id, lane.queue, lane.class);
        let next = env.store.next_queued(tenant_id, &queue, &class, 10).await.unwrap();
        let jobs: Vec<_> = next.iter().map(|id| (tenant_id, *id)).collect();
        let unknown = env.queue.unknown(&jobs).await.unwrap();
        let unknown: Vec<JobId> = unknown.into_iter().map(|index| next[index]).collect();
        let briefs = env.store.briefs(&unknown).await.unwrap();
        let dispatches: Vec<Dispatch> = briefs.iter().map(Dispatch::from_brief).collect();
        let dispatched = env.queue.dispatch(&dispatches).await.unwrap();
        added += dispatched
            .iter()
            .filter(|dispatched| **dispatched == Dispatched::Added)
            .count();
        if next.len() < 10 {
            env.queue.unspill(&queue, &class, tenant_id).await.unwrap();
        }
    }
    added
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_backlog_larger_than_redis_may_hold_is_worked_off_in_order(pool: PgPool) {
    let env = small(pool).await;
    let jobs: Vec<NewJob> = (0..35).map(|_| env.noop()).collect();
    for job in &jobs {
        env.insert(job).await;
    }
    let dispatched = env
        .queue
        .dispatch(&jobs.iter().map(Dispatch::from_new).collect::<Vec<_>>())
        .await
        .unwrap();
    assert_eq!(
        dispatched
            .iter()
            .filter(|dispatched| **dispatched == Dispatched::Spilled)
            .count(),
        25
    );
    assert_eq!(page_in(&env).await, 0); // there is no room yet
    let worker = env.worker();
    let mut done = Vec::new();
    while done.len() < jobs.len() {
        let claimed = worker.claim(3).await;
        if claimed.is_empty() {
            assert!(page_in(&env).await > 0, "{} of {} done", done.len(), jobs.len());
        }
        for claimed in claimed {
            assert!(worker.succeed(&claimed).await);
            done.push(claimed.job.id);
        }
        page_in(&env).await;
    }
    assert_eq!(done, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
    page_in(&env).await;
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_that_are_tried_again_leave_redis_until_there_is_room(pool: PgPool) {
    let env = small(pool).await;
    let (worker, due) = (env.worker(), env.clock.now() + TimeDelta::seconds(10));
    let (mut jobs, keyed) = (BTreeSet::new(), env.keyed("k", 1));
    for _ in 0..3 {
        for _ in 0..10 {
            let job = env.noop();
            env.enqueue(&job).await;
            jobs.insert(job.id);
        }
        for claimed in worker.claim(10).await {
            assert!(worker.settle(&claimed, Decision::RetryAt(due, failure())).await);
        }
    }
    env.enqueue(&keyed).await;
    assert!(
        worker
            .settle(&worker.one().await, Decision::RetryAt(due, failure()))
            .await
    );
    jobs.insert(keyed.id);
    let known = async || -> Vec<String> {
        let contents = env.contents().await.into_iter();
        let index = contents.filter(|(key, _)| key.ends_with("}:idx"));
        index.flat_map(|(_, jobs)| jobs.into_keys()).collect()
    };
    assert_eq!(known().await, [keyed.id.to_string()], "it keeps the place of its key");

    env.advance(Duration::from_secs(10));
    assert_eq!(env.promote().await.len(), 31);
    assert_eq!(known().await.len(), 10, "a full backlog");
    let mut done = BTreeSet::new();
    while done.len() < jobs.len() {
        for claimed in worker.claim(3).await {
            assert_eq!(claimed.job.attempt, 2);
            assert!(worker.succeed(&claimed).await);
            done.insert(claimed.job.id);
        }
        let is_stuck = page_in(&env).await == 0 && known().await.is_empty();
        assert!(
            !is_stuck || done.len() == jobs.len(),
            "{} of {} done",
            done.len(),
            jobs.len()
        );
    }
    assert_eq!(done, jobs);
    page_in(&env).await;
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn another_tenants_backlog_has_room_of_its_own(pool: PgPool) {
    let env = small(pool).await;
    for _ in 0..12 {
        env.enqueue(&env.noop()).await;
    }
    let other = NewJob {
        tenant_id: common::ids::TenantId::new(),
        ..env.noop()
    };
    env.insert(&other).await;
    assert_eq!(
        env.queue.dispatch(&[Dispatch::from_new(&other)]).await.unwrap(),
        [Dispatched::Added]
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_was_spilled_survives_a_wipe(pool: PgPool) {
    let env = small(pool).await;
    let jobs: Vec<NewJob> = (0..25).map(|_| env.noop()).collect();
    for job in &jobs {
        env.enqueue(job).await;
    }
    env.wipe_redis().await;
    env.rebuild().await;
    let worker = env.worker();
    let mut done = Vec::new();
    loop {
        let claimed = worker.claim(4).await;
        if claimed.is_empty() && page_in(&env).await == 0 {
            break;
        }
        for claimed in &claimed {
            assert!(worker.succeed(claimed).await);
        }
        done.extend(ids(&claimed));
    }
    assert_eq!(done.len(), 25);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// What the redispatch duty leaves in Postgres.
async fn left(env: &TestEnv) -> Vec<Left> {
    let left = |lane: Spilled| Left {
        from: lane.last.unwrap(),
        tenant_id: lane.tenant_id,
        queue: lane.queue,
        class: lane.class,
    };
    env.queue.spilled().await.unwrap().into_iter().map(left).collect()
}

/// As the redispatch duty asks for recent rows, page by page.
async fn recent(env: &TestEnv, limit: u32) -> Vec<JobId> {
    let left = left(env).await;
    let (mut after, until) = (JobId(uuid::Uuid::nil()), JobId(uuid::Uuid::max()));
    let now = env.clock.now();
    let ids = |rows: &Rows| rows.queued.iter().map(|job| job.id).collect::<BTreeSet<_>>();
    let mut found = Vec::new();
    loop {
        let recent = env
            .store
            .recent((after, until), now, now, (&left, limit))
            .await
            .unwrap();
        let rows = env.store.rows_between((after, until), (&left, limit)).await.unwrap();
        assert_eq!((ids(&recent.rows), recent.rows.last), (ids(&rows), rows.last));
        assert!(rows.queued.len() <= limit as usize);
        found.extend(ids(&rows));
        let Some(last) = rows.last else { return found };
        after = last;
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_look_at_recent_rows_leaves_out_those_of_a_full_backlog_that_come_after_its_last(pool: PgPool) {
    let env = small(pool).await;
    let mut jobs: Vec<NewJob> = (0..25).map(|_| env.noop()).collect();
    for (job, second) in jobs.iter_mut().zip(0..) {
        job.created_at = job.created_at.trunc_subsecs(3) + TimeDelta::seconds(second);
        env.enqueue(job).await;
    }
    let known: Vec<JobId> = jobs[..10].iter().map(|job| job.id).collect();
    let lanes = env.queue.spilled().await.unwrap();
    let [lane] = lanes.as_slice() else { panic!("{lanes:?}") };
    assert_eq!((lane.room, lane.parked, lane.is_alone), (0, 0, false));
    let last = jobs[9].created_at - LEVEL_HEAD_START * u32::from(jobs[9].spec.priority);
    assert_eq!(lane.last.unwrap().timestamp_millis(), last.timestamp_millis());
    assert_eq!(recent(&env, 100).await, known);

    // Their dispatch was lost: one that comes before the last of the backlog, and one of another queue.
    let mut first = env.noop();
    (first.spec.priority, first.created_at) = (9, jobs[24].created_at);
    let mut elsewhere = env.noop();
    elsewhere.spec.queue = "elsewhere".to_owned();
    env.insert(&first).await;
    env.insert(&elsewhere).await;
    let mut expected = [known, vec![first.id, elsewhere.id]].concat();
    expected.sort_unstable();
    assert_eq!(recent(&env, 100).await, expected);
    // A page ends where so many rows were read, of which all may be left; one of 27 rows is followed by an empty one.
    for limit in [1, 3, 20, 27] {
        assert_eq!(recent(&env, limit).await, expected);
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_look_at_all_rows_goes_past_those_of_a_full_backlog_that_come_after_its_last(pool: PgPool) {
    let env = small(pool).await;
    let mut jobs: Vec<NewJob> = (0..25).map(|_| env.noop()).collect();
    for (job, second) in jobs.iter_mut().zip(0..) {
        job.created_at = job.created_at.trunc_subsecs(3) + TimeDelta::seconds(second);
        job.id = JobId::child_of(JobId(uuid::Uuid::nil()), job.created_at, 0);
        env.enqueue(job).await;
    }
    let mut elsewhere = env.noop();
    elsewhere.spec.queue = "elsewhere".to_owned();
    env.insert(&elsewhere).await;
    let left = left(&env).await;
    let (mut found, mut pages, mut after) = (Vec::new(), 0, Some(Place::first()));
    while let Some(place) = after {
        let page = env.store.queued_after(&place, &left, 4).await.unwrap();
        found.extend(page.jobs.iter().map(|(_, id)| *id));
        (pages, after) = (pages + 1, page.next);
    }
    let known = jobs[..10].iter().map(|job| job.id);
    assert_eq!(found, known.chain([elsewhere.id]).collect::<Vec<_>>());
    assert_eq!(
        pages, 4,
        "three for what Redis has, and one for what comes behind all that is left"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn paging_in_reads_no_more_rows_than_it_brings_however_many_there_are(pool: PgPool) {
    const WANTED: u32 = 50;
    let env = small(pool.clone()).await;
    let job = env.noop();
    env.insert(&job).await;
    // History before it and a long backlog behind, of which the planner knows: joining all of both looks cheap then.
    crowd(&pool, job.id, [("succeeded", 1..=20_000), ("queued", 20_001..=40_000)]).await;
    analyze(&pool).await;
    let before = rows_read(&pool).await;
    let next = env
        .store
        .next_queued(job.tenant_id, &job.spec.queue, &job.class, WANTED)
        .await
        .unwrap();
    let briefs = env.store.briefs(&next).await.unwrap();
    assert_eq!(briefs.len(), usize::try_from(WANTED).unwrap());
    let told = rows_read_since(&pool, before, i64::from(WANTED)).await;
    assert!(told < 10 * i64::from(WANTED), "{told} rows for {WANTED} jobs");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_look_at_recent_rows_reads_each_of_them_once_however_many_came_at_once(pool: PgPool) {
    const ROWS: u32 = 20_000;
    let env = TestEnv::new(pool.clone()).await;
    let job = env.noop();
    env.insert(&job).await;
    crowd(&pool, job.id, [("queued", 2..=ROWS)]).await;
    // What a flood left behind may be many backlogs.
    let left: Vec<Left> = (0..500)
        .map(|n| Left {
            tenant_id: job.tenant_id,
            queue: format!("full-{n}"),
            class: job.class.clone(),
            from: job.created_at,
        })
        .collect();
    let before = rows_read(&pool).await;
    let (mut after, until) = (JobId(uuid::Uuid::nil()), JobId(uuid::Uuid::max()));
    let (mut queued, mut pages) = (0, 0);
    loop {
        let rows = env.store.rows_between((after, until), (&left, 500)).await.unwrap();
        (queued, pages) = (queued + rows.queued.len(), pages + 1);
        let Some(last) = rows.last else { break };
        after = last;
    }
    assert_eq!((queued, pages), (ROWS as usize, 41));
    let told = rows_read_since(&pool, before, i64::from(ROWS)).await;
    assert!(told < 2 * i64::from(ROWS), "{told} rows were read of {ROWS}");
}
