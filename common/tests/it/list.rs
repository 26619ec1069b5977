//! Lists of jobs: what they read to find a few among many.

use common::job::NewJob;
use common::store::list::Filter;
use common::testing::TestEnv;
use sqlx::PgPool;

use crate::crowd::{crowd, rows_read, rows_read_since};

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_page_of_a_queue_or_a_user_reads_its_own_jobs_alone(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mine = |job: NewJob| {
        let mut job = job;
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
