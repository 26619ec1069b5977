//! The fence: whoever lost an attempt writes nothing, and whoever holds it is never told otherwise.

use assert_matches::assert_matches;
use common::job::JobState;
use common::job::decision::Decision;
use common::queue::{Appended, Beat, Dispatch};
use common::store::events::Chunk;
use common::store::{Class, Error};
use common::testing::{TestEnv, failure, ids, light};
use sqlx::PgPool;
use tokio::task::JoinSet;

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn every_late_write_is_refused(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    let (dead, live) = (env.worker(), env.worker());
    let old = dead.one().await;
    env.advance(env.queue.lease_ttl());
    assert_eq!(env.reclaim().await.len(), 1);
    // Between the takeover and the next claim, and after it.
    for claim in [false, true] {
        if claim {
            assert_eq!(live.one().await.job.attempt, 2);
        }
        assert_eq!(dead.beat(&old).await, Beat::Lost);
        assert!(!dead.register(&old).await);
        assert_eq!(dead.append(&old, 1, &dead.said(&old, 1)).await, Appended::Lost);
        let chunk = Chunk::pack(job.id, &dead.said(&old, 1)).unwrap();
        let late = env.store.append_chunk(&chunk, 1, dead.id).await;
        assert_matches!(late, Err(Error::LeaseLost));
        for decision in [
            Decision::Succeed,
            Decision::Fail(failure()),
            Decision::Cancel,
            Decision::RetryAt(env.clock.now(), failure()),
            Decision::GiveBack,
            Decision::Wait(common::job::Wait::answer()),
        ] {
            assert!(!dead.settle(&old, decision).await);
        }
    }
    assert_matches!(env.state(job.id).await, JobState::Running { attempt: 2, worker_id, .. } if worker_id == live.id);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_log_is_not_written_beside_the_takeover_of_its_attempt(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    env.enqueue(&env.noop()).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    let job_id = claimed.job.id;
    let chunk = Chunk::pack(job_id, &worker.said(&claimed, 1)).unwrap();

    let mut takeover = pool.begin().await.unwrap();
    sqlx::query("select from jobs where id = $1 for update")
        .bind(job_id.uuid())
        .execute(&mut *takeover)
        .await
        .unwrap();
    let (store, worker_id) = (env.store.clone(), worker.id);
    let mut writes = JoinSet::new();
    let late = writes.spawn(async move { store.append_chunk(&chunk, 1, worker_id).await });
    // It waits for the takeover; one that does not has ended.
    let waits =
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')";
    while !late.is_finished() && !sqlx::query_scalar::<_, bool>(waits).fetch_one(&pool).await.unwrap() {}
    sqlx::query("update jobs set worker_id = $2 where id = $1")
        .bind(job_id.uuid())
        .bind(env.worker().id)
        .execute(&mut *takeover)
        .await
        .unwrap();
    takeover.commit().await.unwrap();
    assert_matches!(writes.join_next().await.unwrap().unwrap(), Err(Error::LeaseLost));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_same_attempt_number_of_another_worker_is_refused(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    env.enqueue(&env.noop()).await;
    let (holder, other) = (env.worker(), env.worker());
    let claimed = holder.one().await;
    assert!(!other.succeed(&claimed).await);
    assert!(!other.register(&claimed).await);
    let chunk = Chunk::pack(claimed.job.id, &other.said(&claimed, 1)).unwrap();
    let error = env.store.append_chunk(&chunk, 1, other.id).await.unwrap_err();
    assert_eq!(error.class(), Class::LeaseLost);
    assert_eq!(
        other.append(&claimed, 1, &other.said(&claimed, 1)).await,
        Appended::Unknown
    );
    assert_eq!(holder.beat(&claimed).await, Beat::Ok);
    assert!(holder.succeed(&claimed).await);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_settled_attempt_is_settled_once(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    env.enqueue(&env.noop()).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    assert!(!env.store.is_settled(claimed.job.id, 1, worker.id).await.unwrap());
    assert!(worker.succeed(&claimed).await);
    assert!(env.store.is_settled(claimed.job.id, 1, worker.id).await.unwrap());
    assert!(!worker.settle(&claimed, Decision::Fail(failure())).await);
    assert_matches!(env.state(claimed.job.id).await, JobState::Succeeded { .. });
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_batch_with_one_lost_attempt_settles_the_others(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    for _ in 0..3 {
        env.enqueue(&env.noop()).await;
    }
    let (worker, live) = (env.worker(), env.worker());
    let claimed = worker.claim(3).await;
    let lost = env.row(claimed[1].job.id).await;
    assert!(env.take_over(&lost, false).await.is_some());
    let settlements: Vec<_> = claimed
        .iter()
        .map(|claimed| worker.settlement(claimed, Decision::Succeed, &worker.said(claimed, 2)))
        .collect();
    let committed = env.store.settle(worker.id, &settlements).await.unwrap();
    let mut changed: Vec<_> = committed.changed.into_iter().map(|(id, _)| id).collect();
    changed.sort_unstable();
    let mut kept = vec![claimed[0].job.id, claimed[2].job.id];
    kept.sort_unstable();
    assert_eq!(changed, kept);
    // Its lease lives on until it passes; those of the settled attempts, which nobody ended, lead to rows that have ended.
    assert_eq!(ids(&live.claim(5).await), []);
    env.advance(env.queue.lease_ttl());
    assert!(env.reclaim().await.is_empty());
    assert_eq!(ids(&live.claim(5).await), [lost.id]);
    let events = env.events(env.tenant_id, lost.id, 100).await;
    assert!(events.iter().all(|event| event.body.name() != "stdout"), "{events:?}");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_heartbeat_extends_what_has_not_passed_and_nothing_else(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    env.enqueue(&env.noop()).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    let (ttl, shard) = (env.queue.lease_ttl(), env.queue.shard_of(env.tenant_id));
    for _ in 0..4 {
        env.advance(ttl / 2);
        assert_eq!(env.queue.expired(shard, 0, 10).await.unwrap(), []);
        assert_eq!(worker.beat(&claimed).await, Beat::Ok);
    }
    env.advance(ttl);
    assert_eq!(worker.beat(&claimed).await, Beat::Passed);
    assert_eq!(env.queue.expired(shard, 0, 10).await.unwrap().len(), 1);
    // Nobody has taken it: whoever lives confirms in Postgres and goes on.
    assert!(worker.register(&claimed).await);
    assert_eq!(env.queue.expired(shard, 0, 10).await.unwrap(), []);
    // Whoever found it passed a moment ago comes too late to drop it.
    let claim = [(claimed.job.id, claimed.job.attempt)];
    env.queue.drop_passed(shard, worker.id, &claim).await.unwrap();
    assert_eq!(worker.beat(&claimed).await, Beat::Ok);
    env.wipe_redis().await;
    assert_eq!(worker.beat(&claimed).await, Beat::Unknown);
    assert_eq!(
        worker.append(&claimed, 1, &worker.said(&claimed, 1)).await,
        Appended::Unknown
    );
    assert!(worker.register(&claimed).await);
    assert_eq!(worker.beat(&claimed).await, Beat::Ok);
    env.rebuild().await;
    assert_eq!(ids(&worker.claim(5).await), []);
    assert!(worker.succeed(&claimed).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// Redis may come back from a replica that is behind, or hear of a row that was read before its claim: what it knows is
/// then older than the attempt, and must not take it away.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_index_that_is_behind_does_not_take_an_attempt_away(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    let (holder, other) = (env.worker(), env.worker());
    let claimed = holder.one().await;
    env.wipe_redis().await;
    env.open().await;
    env.queue.dispatch(&[Dispatch::from_new(&job)]).await.unwrap();
    assert_eq!(holder.beat(&claimed).await, Beat::Unknown);
    // Another worker is offered the same attempt meanwhile.
    let claims = other.take(&light(1)).await.unwrap();
    assert_eq!(claims.len(), 1);
    assert_eq!(holder.beat(&claimed).await, Beat::Unknown);
    assert!(holder.register(&claimed).await);
    assert_eq!(holder.beat(&claimed).await, Beat::Ok);
    assert_eq!(ids(&other.confirm(&claims).await), []);
    // What the other dropped may have been the holder's entry: then it registers once more.
    if holder.beat(&claimed).await != Beat::Ok {
        assert!(holder.register(&claimed).await);
    }
    assert_eq!(holder.beat(&claimed).await, Beat::Ok);
    assert!(holder.succeed(&claimed).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// A lease that lives is in the way of the next attempt, whoever dispatches it: the sandbox may still run.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_next_attempt_waits_until_the_lease_before_has_passed(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    env.enqueue(&env.noop()).await;
    let (stale, live) = (env.worker(), env.worker());
    let old = stale.one().await;
    // Taken over on a word that was true once: its worker has registered since.
    let taken = env.store.reclaim(old.job.id, 1, &[], false, env.clock.now()).await;
    let taken = taken.unwrap().expect("nobody says that it lives");
    env.queue.dispatch(&[Dispatch::from_job(&taken)]).await.unwrap();
    assert_eq!(stale.beat(&old).await, Beat::Lost);
    assert!(!stale.register(&old).await);
    assert_eq!(ids(&live.claim(1).await), []);
    env.advance(env.queue.lease_ttl());
    assert!(env.reclaim().await.is_empty());
    let claimed = live.one().await;
    assert_eq!((claimed.job.id, claimed.job.attempt), (old.job.id, 2));
    assert!(live.succeed(&claimed).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// What Redis does not know is not taken over before its worker had a lease time to register.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_adopted_lease_is_registered_by_the_living_and_passes_for_the_dead(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    for _ in 0..2 {
        env.enqueue(&env.noop()).await;
    }
    let (dead, live) = (env.worker(), env.worker());
    let (lost, kept) = (dead.one().await, live.one().await);
    env.wipe_redis().await;
    env.open().await;
    let shard = env.queue.shard_of(env.tenant_id);
    let running = [lost.job.clone(), kept.job.clone()];
    assert_eq!(env.queue.adopt(shard, &running).await.unwrap(), 2);
    // It takes no word of the attempt and extends nothing until its worker has registered.
    assert_eq!(live.beat(&kept).await, Beat::Unknown);
    assert_eq!(live.append(&kept, 1, &live.said(&kept, 1)).await, Appended::Unknown);
    assert!(live.register(&kept).await);
    env.advance(env.queue.lease_ttl() / 2);
    assert_eq!(live.beat(&kept).await, Beat::Ok);
    assert_eq!(env.queue.adopt(shard, &running).await.unwrap(), 0);
    env.advance(env.queue.lease_ttl() / 2);
    let taken: Vec<_> = env.reclaim().await.into_iter().map(|job| job.id).collect();
    assert_eq!(taken, [lost.job.id]);
    assert!(live.succeed(&kept).await);
    let again = live.one().await;
    assert!(live.succeed(&again).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}
