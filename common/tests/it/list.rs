//! Lists of jobs: what they read to find a few among many.

use common::job::{NewJob, StateName};
use common::store::list::Filter;
use common::testing::TestEnv;
use sqlx::PgPool;

use crate::crowd::{analyze, crowd, rows_read, rows_read_since};

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_page_of_a_queue_or_a_user_reads_its_own_jobs_alone(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mine = |mut job: NewJob| {
        (job.spec.queue, job.spec.user_id) = ("rare".to_owned(), Some("ada".to_owned()));
        job
    };
    let jobs: Vec<NewJob> = (0..3).map(|_| mine(env.noop())).collect();
    for job in &jobs {
        env.insert(job).await;
    }
    let other = env.noop();
    env.insert(&other).await;
    crowd(&pool, other.id, [("succeeded", 1..=20_000)]).await;
    analyze(&pool).await;
    let of_queue = Filter {
        queue: Some("rare".to_owned()),
        ..Filter::default()
    };
    let of_user = Filter {
        user_id: Some("ada".to_owned()),
        ..Filter::default()
    };
    for filter in [of_queue, of_user] {
        let before = rows_read(&pool).await;
        let listed = env.store.list(env.tenant_id, &filter, None, 100).await.unwrap();
        let newest_first: Vec<_> = jobs.iter().rev().map(|job| job.id).collect();
        assert_eq!(listed.iter().map(|job| job.id).collect::<Vec<_>>(), newest_first);
        assert_eq!(env.store.count(env.tenant_id, &filter).await.unwrap(), 3);
        let told = rows_read_since(&pool, before, 6).await;
        assert!(told < 100, "{told} rows for three jobs, twice");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_backlog_of_which_the_planner_knows_nothing_is_listed_and_cancelled_row_by_row(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let job = env.noop();
    env.insert(&job).await;
    for sql in [
        "alter table queued_jobs set (autovacuum_enabled = off)",
        // As it stands when the day has just begun.
        "analyze",
    ] {
        sqlx::query(sql).execute(&pool).await.unwrap();
    }
    crowd(&pool, job.id, [("queued", 1..=5_000)]).await;
    let queued = Filter {
        state: Some(StateName::Queued),
        queue: Some(job.spec.queue.clone()),
        ..Filter::default()
    };
    let before = rows_read(&pool).await;
    let mut newest = None;
    for _ in 0..2 {
        let page = env.store.list(env.tenant_id, &queued, newest, 50).await.unwrap();
        assert!(page.len() == 50 && page.is_sorted_by(|one, next| one.id > next.id));
        newest = page.last().map(|job| job.id);
    }
    let now = env.clock.now();
    let batch = env
        .store
        .cancel_matching(env.tenant_id, &queued, StateName::Queued, 50, now)
        .await
        .unwrap();
    assert_eq!(batch.stopped.len(), 50);
    let told = rows_read_since(&pool, before, 150).await;
    assert!(told < 1_000, "{told} rows for 150 jobs");
}
