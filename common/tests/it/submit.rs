//! Accepting jobs: repetition, bad rows, times in the future, partitions.

use std::time::Duration;

use assert_matches::assert_matches;
use common::ids::{ApiKeyId, JobId, TenantId};
use common::job::spec::{JobSpec, Kind};
use common::job::{JobState, NewJob};
use common::store::idempotency::Idempotency;
use common::store::insert::{Accepted, Submission};
use common::store::{Class, Error};
use common::testing::{TestEnv, ids};
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

fn with_key(job: NewJob, key: &str, fingerprint: u8) -> Submission {
    let idempotency = Idempotency {
        key: key.to_owned(),
        fingerprint: [fingerprint; 32],
        refused: Vec::new(),
    };
    Submission {
        tenant_id: job.tenant_id,
        jobs: vec![job],
        idempotency: Some(idempotency),
    }
}

fn plain(job: &NewJob) -> Submission {
    Submission {
        tenant_id: job.tenant_id,
        jobs: vec![job.clone()],
        idempotency: None,
    }
}

async fn rows(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from jobs")
        .fetch_one(pool)
        .await
        .unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_repeated_key_is_answered_with_the_first_jobs(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let first = env.noop();
    let id = first.id;
    let mut results = env
        .store
        .insert(&[
            with_key(first, "k", 1),
            with_key(env.noop(), "k", 1),
            with_key(env.noop(), "k", 2),
        ])
        .await
        .into_iter()
        .map(Result::unwrap);
    assert_matches!(results.next(), Some(Accepted::Inserted));
    assert_matches!(results.next(), Some(Accepted::Repeated(ids)) if ids == [Some(id)]);
    assert_matches!(results.next(), Some(Accepted::KeyReused));
    // In a later batch too, and another tenant's key is another key.
    let theirs = NewJob {
        tenant_id: TenantId::new(),
        ..env.noop()
    };
    let mut results = env
        .store
        .insert(&[
            with_key(env.noop(), "k", 1),
            with_key(theirs, "k", 1),
            plain(&env.noop()),
        ])
        .await
        .into_iter()
        .map(Result::unwrap);
    assert_matches!(results.next(), Some(Accepted::Repeated(ids)) if ids == [Some(id)]);
    assert_matches!(results.next(), Some(Accepted::Inserted));
    assert_matches!(results.next(), Some(Accepted::Inserted));
    assert_eq!(rows(&pool).await, 3);
}

/// What a row must hold of its job, beside the input.
fn own(job: &NewJob) -> serde_json::Value {
    let NewJob { spec, class, .. } = job;
    let JobSpec { queue, labels, .. } = spec;
    json!({
        "tenant": job.tenant_id, "kind": spec.kind, "queue": queue, "class": class, "labels": labels,
        "priority": spec.priority, "tries": spec.max_attempts, "backoff": spec.backoff, "retry_on": spec.retry_on,
        "timeout_ms": spec.timeout.as_millis(), "user": spec.user_id, "metadata": spec.metadata, "key": job.api_key_id,
    })
}

/// What jobs have alike is sent once: one that differs in a single thing must not be taken for the others' like.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_of_a_batch_keep_what_they_do_not_have_alike(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let changes: [fn(&mut NewJob); 16] = [
        |_| (),
        |job| job.tenant_id = TenantId::new(),
        |job| job.spec.kind = Kind::Exec,
        |job| job.spec.queue = "other".to_owned(),
        |job| job.class = "sandbox+gpu".to_owned(),
        |job| job.spec.labels = vec!["gpu".to_owned(), "eu".to_owned()],
        |job| job.spec.priority = 9,
        |job| job.spec.max_attempts = 7,
        |job| job.spec.backoff.initial = Duration::from_millis(7),
        |job| job.spec.backoff.factor = 1.5,
        |job| job.spec.backoff.max = Duration::from_secs(7),
        |job| job.spec.retry_on = vec!["timeout".to_owned(), "out_of_memory".to_owned()],
        |job| job.spec.timeout = Duration::from_millis(7),
        |job| job.api_key_id = Some(ApiKeyId(Uuid::now_v7())),
        |job| drop(job.spec.metadata.insert("note".to_owned(), json!("mine"))),
        |job| job.spec.user_id = Some("somebody".to_owned()),
    ];
    for change in changes {
        let jobs: [NewJob; 3] = std::array::from_fn(|index| {
            let mut job = env.noop();
            job.input = format!("[{index}]").into_bytes();
            if index == 1 {
                change(&mut job);
            }
            job
        });
        let submissions: Vec<Submission> = jobs.iter().map(plain).collect();
        for accepted in env.store.insert(&submissions).await {
            assert_matches!(accepted, Ok(Accepted::Inserted));
        }
        for job in &jobs {
            let stored = env.store.job(job.tenant_id, job.id).await.unwrap().unwrap();
            let row = stored.job;
            let is = json!({
                "tenant": row.tenant_id, "kind": row.kind, "queue": row.queue, "class": row.class, "labels": row.labels,
                "priority": row.priority, "tries": row.max_attempts, "backoff": row.backoff, "retry_on": row.retry_on,
                "timeout_ms": row.timeout_ms, "user": row.user_id, "metadata": row.metadata, "key": row.api_key_id,
            });
            assert_eq!((is, stored.input.as_slice()), (own(job), job.input.as_slice()));
            let index: Option<(TenantId, String, String, i16)> =
                sqlx::query_as("select tenant_id, queue, class, priority from queued_jobs where id = $1")
                    .bind(job.id)
                    .fetch_optional(&pool)
                    .await
                    .unwrap();
            let priority = i16::from(job.spec.priority);
            assert_eq!(
                index,
                Some((job.tenant_id, job.spec.queue.clone(), job.class.clone(), priority))
            );
        }
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn twenty_at_once_with_one_key_make_one_row(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let submissions: Vec<Submission> = (0..20).map(|_| with_key(env.noop(), "race", 7)).collect();
    let calls = submissions
        .iter()
        .map(|submission| env.store.insert(std::slice::from_ref(submission)));
    let answers = futures_util::future::join_all(calls).await;
    let mut seen = std::collections::BTreeSet::new();
    let mut inserted = 0;
    for (submission, mut answer) in submissions.iter().zip(answers) {
        match answer.pop().unwrap().unwrap() {
            Accepted::Inserted | Accepted::Decided(_) => {
                inserted += 1;
                seen.insert(submission.jobs[0].id);
            }
            Accepted::Repeated(ids) => seen.extend(ids.into_iter().flatten()),
            Accepted::KeyReused => panic!("the same request"),
        }
    }
    assert_eq!((inserted, seen.len(), rows(&pool).await), (1, 1, 1));
}

/// Two batches that wait for each other's keys must not both be refused.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn batches_with_the_same_keys_in_another_order_do_not_block_each_other(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    for round in 0..20 {
        let keys: Vec<String> = (0..40).map(|key| format!("{round}-{key}")).collect();
        let there: Vec<Submission> = keys.iter().map(|key| with_key(env.noop(), key, 1)).collect();
        let back: Vec<Submission> = keys.iter().rev().map(|key| with_key(env.noop(), key, 1)).collect();
        let (one, other) = tokio::join!(env.store.insert(&there), env.store.insert(&back));
        let mut inserted = 0;
        for answer in one.into_iter().chain(other) {
            inserted += usize::from(matches!(answer.unwrap(), Accepted::Inserted));
        }
        assert_eq!(inserted, 40);
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_bad_row_never_fails_its_hundred_neighbours(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mut submissions: Vec<Submission> = (0..101).map(|_| plain(&env.noop())).collect();
    submissions[37].jobs[0].spec.user_id = Some("nul \0 byte".to_owned());
    submissions[64] = with_key(env.noop(), "good key", 1);
    let results = env.store.insert(&submissions).await;
    for (index, result) in results.iter().enumerate() {
        match result {
            Ok(outcome) => assert!(index != 37 && matches!(outcome, Accepted::Inserted)),
            Err(error) => assert_eq!((index, error.class()), (37, Class::Data), "{error}"),
        }
    }
    assert_eq!(rows(&pool).await, 100);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_of_one_submission_stand_or_fall_together(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mut bad = env.noop();
    bad.spec.metadata.insert("nul".to_owned(), "\0".into());
    let together = Submission {
        tenant_id: env.tenant_id,
        jobs: vec![env.noop(), bad],
        idempotency: None,
    };
    let results = env
        .store
        .insert(&[plain(&env.noop()), together, plain(&env.noop())])
        .await;
    assert_matches!(results.as_slice(), [Ok(_), Err(Error::Data { .. }), Ok(_)]);
    assert_eq!(rows(&pool).await, 2);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn input_may_hold_any_byte(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mut job = env.noop();
    job.input = b"{\"code\":\"a\\u0000b\"}".to_vec();
    env.insert(&job).await;
    assert_eq!(
        env.store.job(env.tenant_id, job.id).await.unwrap().unwrap().input,
        job.input
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_scheduled_job_is_promoted_when_its_time_has_come(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mut later = env.noop();
    later.spec.run_at = Some(env.clock.now() + chrono::TimeDelta::seconds(60));
    let mut past = env.noop();
    past.spec.run_at = Some(env.clock.now() - chrono::TimeDelta::seconds(60));
    env.insert(&later).await;
    env.insert(&past).await;
    assert_matches!(env.state(past.id).await, JobState::Queued { .. });
    assert_matches!(env.state(later.id).await, JobState::Scheduled { due_at } if Some(due_at) == later.spec.run_at);
    env.advance(Duration::from_secs(59));
    assert_eq!(env.promote().await, []);
    env.advance(Duration::from_secs(1));
    assert_eq!(env.promote().await, [later.id]);
    assert_eq!(env.promote().await, []);
    let worker = env.worker();
    assert_eq!(ids(&worker.claim(5).await), [later.id]);
    let events = env.events(env.tenant_id, later.id, 100).await;
    let names: Vec<_> = events.iter().map(|event| (event.seq, event.body.name())).collect();
    assert_eq!(names, [(1, "status"), (2, "queued"), (3, "started")]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn two_promoters_share_the_work(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    for _ in 0..50 {
        let mut job = env.noop();
        job.spec.run_at = Some(env.clock.now() + chrono::TimeDelta::seconds(1));
        env.insert(&job).await;
    }
    env.advance(Duration::from_secs(2));
    let now = env.clock.now();
    let (one, other) = tokio::join!(env.store.promote(now, 30), env.store.promote(now, 30));
    let rest = env.store.promote(now, 100).await;
    let all = [one, other, rest].map(|promoted| promoted.unwrap().jobs);
    let mut all: Vec<JobId> = all.iter().flatten().map(|job| job.id).collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!((count, all.len()), (50, 50));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn partitions_are_made_once_and_hold_their_days(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let today = env.clock.now().date_naive();
    let week = today + chrono::Days::new(7);
    // The migration made today and tomorrow.
    let (one, other) = tokio::join!(
        env.store.ensure_partitions(today, week),
        env.store.ensure_partitions(today, week)
    );
    assert_eq!(one.unwrap() + other.unwrap(), 6 * 3);
    assert_eq!(env.store.ensure_partitions(today, week).await.unwrap(), 0);
    env.insert(&env.noop()).await;
    assert_eq!(env.store.default_partition_rows().await.unwrap(), 0);
    let old = NewJob {
        id: JobId(Uuid::from_u128(7 << 80)),
        ..env.noop()
    };
    env.insert(&old).await;
    assert_eq!(env.store.default_partition_rows().await.unwrap(), 1);
    let at: String = sqlx::query_scalar("select tableoid::regclass::text from jobs where id <> $1")
        .bind(old.id)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(at, format!("jobs_{}", today.format("%Y%m%d")));
}

/// The statements that a job's life is made of name its id, and touch its own day only.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_list_of_ids_prunes_the_other_days(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let today = env.clock.now().date_naive();
    env.store
        .ensure_partitions(today, today + chrono::Days::new(7))
        .await
        .unwrap();
    let job = env.noop();
    env.insert(&job).await;
    let plan: Vec<String> = sqlx::query_scalar(
        "explain update jobs set state = 'running' from unnest($1::uuid[], $2::integer[]) as c(id, attempt)
         where jobs.id = c.id and jobs.id = any($1) and jobs.state = 'queued' and jobs.attempt = c.attempt - 1",
    )
    .bind(vec![job.id.uuid()])
    .bind(vec![1])
    .fetch_all(&pool)
    .await
    .unwrap();
    let plan = plan.join("\n");
    let partitions = plan.lines().filter(|line| line.contains("Update on jobs_")).count();
    assert_eq!(partitions, 1, "{plan}");
}
