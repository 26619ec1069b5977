//! Claims and ends update rows in place, and what is queued or runs is found all the same.

use common::ids::JobId;
use common::job::decision::Decision;
use common::job::spec::JobSpec;
use common::job::{Failure, FailureCode, Kind, NewJob, StateName};
use common::store::list::Filter;
use common::testing::TestEnv;
use sqlx::PgPool;

/// What a claim or an end sets in every row.
const CHANGING: [&str; 9] = [
    "state",
    "attempt",
    "worker_id",
    "started_at",
    "finished_at",
    "seq",
    "failures",
    "usage",
    "result",
];

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn no_index_of_jobs_names_what_a_claim_or_an_end_sets(pool: PgPool) {
    // Columns of keys, of expressions and of predicates alike.
    let named: Vec<(String, String)> = sqlx::query_as(
        "select i.indexrelid::regclass::text, a.attname::text from pg_index i
         join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refobjid = i.indrelid
         join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
         where i.indrelid = 'jobs'::regclass",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert!(
        named.contains(&("jobs_due_at".to_owned(), "due_at".to_owned())),
        "{named:?}"
    );
    let wrong: Vec<_> = named
        .iter()
        .filter(|(_, column)| CHANGING.contains(&column.as_str()))
        .collect();
    assert_eq!(wrong, Vec::<&(String, String)>::new());
}

/// The blocks of the rows of these jobs.
async fn blocks(pool: &PgPool) -> Vec<(JobId, i64)> {
    let sql = "select id, split_part(trim(both '()' from ctid::text), ',', 1)::bigint from jobs order by id";
    sqlx::query_as(sql).fetch_all(pool).await.unwrap()
}

/// Of 60 rows: those for which a page had no room left. All of them move where an index changes.
const MOVED_MAX: usize = 12;

fn moved(before: &[(JobId, i64)], after: &[(JobId, i64)]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(before, after)| before != after)
        .count()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn most_rows_stay_in_their_pages_when_they_are_claimed(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    for _ in 0..60 {
        env.enqueue(&env.noop()).await;
    }
    let before = blocks(&pool).await;
    let worker = env.worker();
    let claimed = worker.claim(60).await;
    assert_eq!(claimed.len(), 60);
    assert_eq!(env.misplaced().await, []);
    assert!(moved(&before, &blocks(&pool).await) <= MOVED_MAX);
    for claimed in &claimed {
        worker.succeed(claimed).await;
    }
    assert_eq!(env.misplaced().await, []);
    assert_eq!(env.store.forget_handouts(10).await.unwrap(), 1);
}

async fn found(env: &TestEnv, state: StateName) -> Vec<JobId> {
    let filter = Filter {
        state: Some(state),
        ..Filter::default()
    };
    let found = env.store.list(env.tenant_id, &filter, None, 100).await.unwrap();
    assert_eq!(
        env.store.count(env.tenant_id, &filter).await.unwrap(),
        u64::try_from(found.len()).unwrap()
    );
    found.iter().map(|job| job.id).collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn each_state_is_found_and_a_handout_is_kept_while_one_of_its_jobs_runs(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..4).map(|_| env.noop()).collect();
    let mut spec = JobSpec::new(Kind::Noop);
    spec.run_at = Some(env.clock.now() + chrono::TimeDelta::days(1));
    let later = env.job(spec, b"{}".to_vec());
    env.insert(&later).await;
    for job in &jobs {
        env.enqueue(job).await;
    }
    assert_eq!(found(&env, StateName::Queued).await.len(), 4);
    assert_eq!(found(&env, StateName::Scheduled).await, [later.id]);
    let worker = env.worker();
    let held = worker.claim(3).await;
    assert_eq!(found(&env, StateName::Running).await.len(), 3);
    assert_eq!(found(&env, StateName::Queued).await, [jobs[3].id]);
    worker.succeed(&held[0]).await;
    let failure = Failure::new(FailureCode::Internal, "it broke");
    worker.settle(&held[1], Decision::Fail(failure)).await;
    assert_eq!(found(&env, StateName::Failed).await, [held[1].job.id]);
    assert_eq!(found(&env, StateName::Succeeded).await, [held[0].job.id]);
    assert_eq!(env.store.forget_handouts(10).await.unwrap(), 0);
    worker.settle(&held[2], Decision::GiveBack).await;
    assert_eq!(env.misplaced().await, []);
    assert_eq!(found(&env, StateName::Queued).await.len(), 2);
    assert_eq!(env.store.forget_handouts(10).await.unwrap(), 1);
    env.store
        .cancel(env.tenant_id, jobs[3].id, env.clock.now())
        .await
        .unwrap();
    assert_eq!(env.misplaced().await, []);
    assert_eq!(found(&env, StateName::Cancelled).await, [jobs[3].id]);
}
