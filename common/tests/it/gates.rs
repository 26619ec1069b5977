//! Limits of tenants, queues, agents and keys: places, starts within a window, and pauses.

use std::time::Duration;

use chrono::TimeDelta;
use common::ids::{AgentId, JobId, TenantId};
use common::job::decision::Decision;
use common::job::limit::{Limit, Pause, Subject};
use common::job::spec::SlotClass;
use common::job::{NewJob, Rate};
use common::queue::{Dispatch, Handout, Place, Shut, Want};
use common::testing::{TestEnv, TestWorker, failure, ids, light};
use sqlx::PgPool;

const MINUTE: Duration = Duration::from_mins(1);

fn running(max: u32) -> Limit {
    Limit {
        max_running: Some(max),
        ..Limit::default()
    }
}

fn starts(limit: u32, window: Duration) -> Limit {
    Limit {
        rate: Some((limit, window)),
        ..Limit::default()
    }
}

fn rated(env: &TestEnv, key: &str, limit: u32, window: Duration) -> NewJob {
    let mut job = env.noop();
    job.spec.rate = Some(Rate {
        key: key.to_owned(),
        limit,
        window,
    });
    job
}

fn of(tenant_id: TenantId, env: &TestEnv) -> NewJob {
    NewJob {
        tenant_id,
        ..env.noop()
    }
}

async fn dispatch(env: &TestEnv, jobs: &[NewJob]) {
    let jobs: Vec<Dispatch> = jobs.iter().map(Dispatch::from_new).collect();
    env.queue.dispatch(&jobs).await.unwrap();
}

async fn handout(env: &TestEnv, worker: &TestWorker, free: u32) -> Handout {
    let shard = env.queue.shard_of(env.tenant_id);
    env.queue.claim(shard, worker.id, &light(free)).await.unwrap()
}

async fn shut_by(env: &TestEnv, job: &NewJob) -> Option<Shut> {
    match env.queue.why(job.tenant_id, job.id).await.unwrap()?.place {
        Place::Shut { by, .. } => Some(by),
        _ => None,
    }
}

/// Enqueues `count` jobs, and works them off while never more than `max` run.
async fn runs_at_most(env: &TestEnv, jobs: &[NewJob], max: usize) {
    for job in jobs {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let (mut held, mut done) = (worker.claim(50).await, 0);
    while !held.is_empty() {
        assert_eq!(held.len(), max.min(jobs.len() - done), "after {done}");
        assert!(worker.succeed(&held.remove(0)).await);
        done += 1;
        held.extend(worker.claim(50).await);
    }
    assert_eq!(done, jobs.len());
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_tenant_runs_no_more_than_its_limit_in_all_its_queues(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    env.queue
        .tell_limit(&Subject::Tenant(env.tenant_id), &running(3))
        .await
        .unwrap();
    let jobs: Vec<NewJob> = (0..12)
        .map(|n| {
            let mut job = env.noop();
            job.spec.queue = ["one", "two"][n % 2].to_owned();
            job
        })
        .collect();
    runs_at_most(&env, &jobs, 3).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_queue_runs_no_more_than_its_limit_for_all_tenants(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let queue = Subject::Queue("default".to_owned());
    env.queue.tell_limit(&queue, &running(2)).await.unwrap();
    let jobs: Vec<NewJob> = (0..8).map(|_| of(TenantId::new(), &env)).collect();
    runs_at_most(&env, &jobs, 2).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_agent_runs_no_more_than_its_limit_and_holds_up_no_other(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (limited, free) = (AgentId::new(), AgentId::new());
    let agent = Subject::Agent(env.tenant_id, limited);
    env.queue.tell_limit(&agent, &running(1)).await.unwrap();
    let of_agent = |id| {
        let mut job = env.noop();
        job.links.agent = Some((id, 1));
        job
    };
    let jobs = [of_agent(limited), of_agent(limited), of_agent(limited), of_agent(free)];
    for job in &jobs {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let claimed = worker.claim(10).await;
    assert_eq!(ids(&claimed), [jobs[0].id, jobs[3].id]);
    assert_eq!(shut_by(&env, &jobs[1]).await, Some(Shut::Agent(limited)));
    assert!(worker.succeed(&claimed[0]).await);
    assert_eq!(ids(&worker.claim(10).await), [jobs[1].id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_limit_that_comes_late_counts_what_runs_and_one_that_goes_lets_all_through(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..6).map(|_| env.noop()).collect();
    for job in &jobs {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let mut held = worker.claim(3).await;
    let tenant = Subject::Tenant(env.tenant_id);
    env.queue.tell_limit(&tenant, &running(2)).await.unwrap();
    assert_eq!(ids(&worker.claim(3).await), []);
    assert!(worker.succeed(&held.remove(0)).await);
    assert_eq!(ids(&worker.claim(3).await), []);
    assert_eq!(shut_by(&env, &jobs[3]).await, Some(Shut::Tenant));
    assert!(worker.succeed(&held.remove(0)).await);
    assert_eq!(ids(&worker.claim(3).await), [jobs[3].id]);
    env.queue.tell_limit(&tenant, &Limit::default()).await.unwrap();
    assert_eq!(ids(&worker.claim(3).await), [jobs[4].id, jobs[5].id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_retries_runs_nothing_and_holds_no_place_of_its_tenant(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    env.queue
        .tell_limit(&Subject::Tenant(env.tenant_id), &running(1))
        .await
        .unwrap();
    let (first, second) = (env.noop(), env.noop());
    env.enqueue(&first).await;
    env.enqueue(&second).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    let due = env.clock.now() + TimeDelta::seconds(10);
    assert!(worker.settle(&claimed, Decision::RetryAt(due, failure())).await);
    let claimed = worker.claim(5).await;
    assert_eq!(ids(&claimed), [second.id]);
    env.advance(Duration::from_secs(10));
    env.promote().await;
    assert_eq!(ids(&worker.claim(5).await), []);
    // One that was given back, or whose worker died, takes the place again that it had.
    assert!(worker.succeed(&claimed[0]).await);
    worker.one().await;
    env.advance(env.queue.lease_ttl());
    assert_eq!(env.reclaim().await.len(), 1);
    assert_eq!(ids(&worker.claim(5).await), [first.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn limits_of_tenants_and_queues_are_right_again_after_a_wipe(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let limits = [
        (Subject::Tenant(env.tenant_id), running(2)),
        (Subject::Queue("default".to_owned()), running(3)),
    ];
    let sync = async || {
        let mut known = std::collections::BTreeMap::new();
        for shard in env.queue.shards() {
            known.insert(shard, env.queue.limits(shard).await.unwrap());
        }
        env.queue.sync_limits(&known, &limits).await.unwrap()
    };
    assert_eq!(sync().await, 2);
    assert_eq!(sync().await, 0);
    let jobs: Vec<NewJob> = (0..4).map(|_| env.noop()).collect();
    for job in &jobs {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let held = worker.claim(5).await;
    assert_eq!(held.len(), 2);
    env.wipe_redis().await;
    env.begin().await;
    // Whether the settings come before or after the workers does not matter.
    assert!(worker.register(&held[0]).await);
    assert_eq!(sync().await, 2);
    assert!(worker.register(&held[1]).await);
    env.rebuild().await;
    assert_eq!(ids(&worker.claim(5).await), []);
    assert!(worker.succeed(&held[0]).await);
    assert_eq!(worker.claim(5).await.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_rate_is_never_exceeded_in_any_window_and_every_start_is_used(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..20).map(|_| rated(&env, "model", 3, MINUTE)).collect();
    dispatch(&env, &jobs).await;
    let (worker, mut begun, mut at) = (env.worker(), Vec::new(), Duration::ZERO);
    while begun.len() < jobs.len() {
        for _ in 0..handout(&env, &worker, 2).await.claims.len() {
            begun.push(at);
        }
        let step = Duration::from_secs(7);
        env.advance(step);
        at += step;
        assert!(at < MINUTE * 10, "{begun:?}");
    }
    for (first, fourth) in begun.iter().zip(&begun[3..]) {
        assert!(*fourth >= *first + MINUTE, "{begun:?}");
        assert!(*fourth <= *first + MINUTE + Duration::from_secs(7), "{begun:?}");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_with_a_short_window_takes_nothing_from_what_others_of_its_key_remember(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let second = Duration::from_secs(1);
    let long: Vec<NewJob> = (0..3).map(|_| rated(&env, "model", 3, MINUTE)).collect();
    let short = rated(&env, "model", 1, second);
    let worker = env.worker();
    dispatch(&env, &long[..2]).await;
    assert_eq!(handout(&env, &worker, 5).await.claims.len(), 2);
    env.advance(second * 2);
    dispatch(&env, std::slice::from_ref(&short)).await;
    assert_eq!(handout(&env, &worker, 5).await.claims.len(), 1);
    env.advance(second * 2);
    dispatch(&env, &long[2..]).await;
    assert_eq!(
        handout(&env, &worker, 5).await.claims,
        [],
        "three have begun within the minute"
    );
    env.advance(second * 56);
    assert_eq!(handout(&env, &worker, 5).await.claims.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_worker_hears_when_the_window_opens(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let window = Duration::from_millis(400);
    let jobs: Vec<NewJob> = (0..2).map(|_| rated(&env, "model", 1, window)).collect();
    dispatch(&env, &jobs).await;
    let (worker, begun) = (env.worker(), std::time::Instant::now());
    assert_eq!(handout(&env, &worker, 1).await.claims.len(), 1);
    // Somebody else sees that the second must wait, and so hears how long.
    let opens_in = handout(&env, &worker, 1).await.opens_in.expect("a window opens");
    assert!(opens_in <= window);
    let mut waker = env.queue.waker(env.queue.shard_of(env.tenant_id), SlotClass::Light);
    waker.wait(MINUTE).await.unwrap();
    while handout(&env, &worker, 1).await.claims.is_empty() {
        let left = handout(&env, &worker, 1).await.opens_in;
        waker.wait(left.unwrap_or(MINUTE)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    assert!(begun.elapsed() >= window);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_idle_worker_is_woken_to_hear_of_a_window(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mut waker = env.queue.waker(env.queue.shard_of(env.tenant_id), SlotClass::Light);
    waker.wait(MINUTE).await.unwrap();
    dispatch(&env, &[rated(&env, "k", 1, MINUTE), rated(&env, "k", 1, MINUTE)]).await;
    assert!(waker.wait(MINUTE).await.unwrap());
    let worker = env.worker();
    handout(&env, &worker, 2).await;
    assert!(
        waker.wait(Duration::from_secs(5)).await.unwrap(),
        "nobody would come when it opens"
    );
}

/// Its own limit ends a wait, and what comes between two waits is heard by the next.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wake_between_two_waits_is_heard(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mut waker = env.queue.waker(env.queue.shard_of(env.tenant_id), SlotClass::Light);
    waker.wait(MINUTE).await.unwrap();
    for _ in 0..3 {
        assert!(!waker.wait(Duration::from_millis(1)).await.unwrap());
        dispatch(&env, &[env.noop()]).await;
        assert!(waker.wait(MINUTE).await.unwrap());
    }
    assert!(!waker.wait(Duration::from_millis(1)).await.unwrap());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn rates_of_a_tenant_and_a_queue_hold_their_jobs_and_nobody_elses(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let other = TenantId::new();
    env.queue
        .tell_limit(&Subject::Tenant(env.tenant_id), &starts(2, MINUTE))
        .await
        .unwrap();
    let jobs: Vec<NewJob> = (0..4).map(|_| env.noop()).chain([of(other, &env)]).collect();
    dispatch(&env, &jobs).await;
    let worker = env.worker();
    assert_eq!(handout(&env, &worker, 10).await.claims.len(), 3);
    assert_eq!(shut_by(&env, &jobs[2]).await, Some(Shut::Tenant));
    env.advance(Duration::from_millis(59_500));
    assert_eq!(handout(&env, &worker, 10).await.claims, []);
    env.advance(Duration::from_millis(500));
    assert_eq!(handout(&env, &worker, 10).await.claims.len(), 2);
    let queue = Subject::Queue("default".to_owned());
    env.queue.tell_limit(&queue, &starts(1, MINUTE)).await.unwrap();
    dispatch(&env, &[of(TenantId::new(), &env), of(TenantId::new(), &env)]).await;
    assert_eq!(handout(&env, &worker, 10).await.claims.len(), 1);
    assert_eq!(handout(&env, &worker, 10).await.claims, []);
    env.advance(MINUTE);
    assert_eq!(handout(&env, &worker, 10).await.claims.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_paused_key_starts_nothing_until_its_time_or_until_it_is_resumed(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let key = Subject::Key(env.tenant_id, "model".to_owned());
    let until = |pause| Limit {
        pause: Some(pause),
        ..Limit::default()
    };
    let mut jobs: Vec<NewJob> = (0..3).map(|_| env.keyed("model", 5)).collect();
    jobs.push(rated(&env, "model", 100, MINUTE));
    let free = env.noop();
    env.queue
        .tell_limit(&key, &until(Pause::Until(env.clock.now() + TimeDelta::seconds(30))))
        .await
        .unwrap();
    dispatch(&env, &jobs).await;
    dispatch(&env, std::slice::from_ref(&free)).await;
    let worker = env.worker();
    let claims = handout(&env, &worker, 10).await.claims;
    assert_eq!(claims.iter().map(|claim| claim.job_id).collect::<Vec<_>>(), [free.id]);
    assert_eq!(shut_by(&env, &jobs[0]).await, Some(Shut::Concurrency));
    assert_eq!(shut_by(&env, &jobs[3]).await, Some(Shut::Rate));
    let opens_in = handout(&env, &worker, 10).await.opens_in.unwrap();
    assert!((29_000..=30_000).contains(&opens_in.as_millis()), "{opens_in:?}");
    env.advance(Duration::from_secs(31));
    assert_eq!(handout(&env, &worker, 10).await.claims.len(), 4);
    // Without an end: until somebody ends it, and then at once.
    env.queue.tell_limit(&key, &until(Pause::Open)).await.unwrap();
    let more: Vec<NewJob> = (0..2).map(|_| env.keyed("model", 50)).collect();
    dispatch(&env, &more).await;
    env.advance(MINUTE * 60 * 24);
    let handout_ = handout(&env, &worker, 10).await;
    assert_eq!((handout_.claims.len(), handout_.opens_in), (0, None));
    let mut waker = env.queue.waker(env.queue.shard_of(env.tenant_id), SlotClass::Light);
    waker.wait(MINUTE).await.unwrap();
    env.queue.tell_limit(&key, &Limit::default()).await.unwrap();
    assert!(waker.wait(Duration::from_secs(5)).await.unwrap());
    assert_eq!(handout(&env, &worker, 10).await.claims.len(), 2);
}

/// However long the line behind a key is, what stands behind it in the same backlog is found without anybody's poll.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn waiters_of_a_key_hold_up_nobody_behind_them(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..3_000).map(|_| env.keyed("one", 1)).collect();
    dispatch(&env, &jobs).await;
    let last = env.noop();
    dispatch(&env, std::slice::from_ref(&last)).await;
    let worker = env.worker();
    let mut waker = env.queue.waker(env.queue.shard_of(env.tenant_id), SlotClass::Light);
    waker.wait(MINUTE).await.unwrap();
    assert_eq!(handout(&env, &worker, 1).await.claims[0].job_id, jobs[0].id);
    for _ in 0..200 {
        let claims = handout(&env, &worker, 1).await.claims;
        if claims.iter().any(|claim| claim.job_id == last.id) {
            return;
        }
        let woken = waker.wait(Duration::from_millis(900)).await.unwrap();
        assert!(woken, "nobody is woken to look on");
    }
    panic!("the job behind them is not found");
}

/// A place that is free wakes who waits for it: a limit costs a round trip and not a poll.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_limit_adds_milliseconds(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    env.queue
        .tell_limit(&Subject::Tenant(env.tenant_id), &running(1))
        .await
        .unwrap();
    let jobs: Vec<NewJob> = (0..40)
        .map(|n| env.keyed("key", if n % 2 == 0 { 1 } else { 2 }))
        .collect();
    dispatch(&env, &jobs).await;
    let (worker, shard) = (env.worker(), env.queue.shard_of(env.tenant_id));
    let mut waker = env.queue.waker(shard, SlotClass::Light);
    waker.wait(MINUTE).await.unwrap();
    let mut held = handout(&env, &worker, 1).await.claims;
    let begun = std::time::Instant::now();
    for _ in 1..jobs.len() {
        let (woken, ()) = tokio::join!(waker.wait(Duration::from_secs(10)), async {
            let acked = common::queue::Acked {
                job_id: held[0].job_id,
                attempt: held[0].attempt,
                seq: 1,
                keeps: common::queue::Keeps::Nothing,
            };
            env.queue.ack(shard, &[acked]).await.unwrap();
        });
        assert!(woken.unwrap());
        held = handout(&env, &worker, 1).await.claims;
        assert_eq!(held.len(), 1);
    }
    // A poll of a second would take 39 of them.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// What so many claims hand out, in their order. The clock stands still.
async fn soon(env: &TestEnv, worker: &TestWorker, times: u32) -> Vec<JobId> {
    let mut begun = Vec::new();
    for _ in 0..times {
        let claims = handout(env, worker, 10).await.claims;
        begun.extend(claims.iter().map(|claim| claim.job_id));
    }
    begun
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_of_one_key_with_different_limits_wait_for_no_more_than_their_own(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (narrow, worker) = (env.keyed("key", 1), env.worker());
    env.enqueue(&narrow).await;
    let held = worker.one().await;
    let wide: Vec<NewJob> = (0..5).map(|_| env.keyed("key", 5)).collect();
    for job in &wide {
        env.enqueue(job).await;
    }
    assert_eq!(worker.claim(10).await.len(), 4);
    assert_eq!(shut_by(&env, &wide[4]).await, Some(Shut::Concurrency));
    // Four of five places are taken now: more than the one that ends would leave to another of its own kind.
    assert!(worker.succeed(&held).await);
    assert_eq!(ids(&worker.claim(10).await), [wide[4].id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_with_one_place_that_is_first_in_line_keeps_back_none_with_more(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let pause = Pause::Until(env.clock.now() + TimeDelta::seconds(3));
    let paused = Limit {
        pause: Some(pause),
        ..Limit::default()
    };
    let key = Subject::Key(env.tenant_id, "key".to_owned());
    env.queue.tell_limit(&key, &paused).await.unwrap();
    let jobs = [1, 5, 5, 5].map(|limit| env.keyed("key", limit));
    dispatch(&env, &jobs).await;
    let worker = env.worker();
    assert_eq!(soon(&env, &worker, 1).await, []);
    // Less than the time after which a gate is looked at in any case.
    env.advance(Duration::from_secs(4));
    assert_eq!(soon(&env, &worker, 4).await, jobs.map(|job| job.id));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_with_a_long_window_puts_off_none_before_it(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let windows = [MINUTE, MINUTE, MINUTE * 60];
    let jobs = windows.map(|window| rated(&env, "key", 1, window));
    dispatch(&env, &jobs).await;
    let worker = env.worker();
    assert_eq!(soon(&env, &worker, 2).await, [jobs[0].id]);
    let opens_in = handout(&env, &worker, 10).await.opens_in.unwrap();
    assert!(opens_in <= MINUTE, "{opens_in:?}");
    env.advance(Duration::from_secs(61));
    assert_eq!(soon(&env, &worker, 2).await, [jobs[1].id]);
    // An hour after the last start, and not after its own place in the line.
    env.advance(MINUTE * 59);
    assert_eq!(soon(&env, &worker, 2).await, []);
    env.advance(MINUTE);
    assert_eq!(soon(&env, &worker, 2).await, [jobs[2].id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_line_behind_many_that_nobody_serves_moves(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let of_queue = |queue: &str| {
        let mut job = env.keyed("key", 1);
        queue.clone_into(&mut job.spec.queue);
        job
    };
    let serving = |queue: &str| Want {
        queues: vec![queue.to_owned()],
        ..light(50)
    };
    let (worker, gone) = (env.worker(), env.worker());
    env.enqueue(&of_queue("live")).await;
    let held = worker.claim_as(&serving("live")).await;
    let dead: Vec<NewJob> = (0..300).map(|_| of_queue("dead")).collect();
    dispatch(&env, &dead).await;
    let last = of_queue("live");
    env.enqueue(&last).await;
    for _ in 0..3 {
        assert_eq!(gone.take(&serving("dead")).await.unwrap(), []);
    }
    assert_eq!(shut_by(&env, &dead[299]).await, Some(Shut::Concurrency));
    env.forget_servers().await;
    assert_eq!(ids(&worker.claim_as(&serving("live")).await), []);
    assert_eq!(shut_by(&env, &last).await, Some(Shut::Concurrency));

    assert!(worker.succeed(&held[0]).await);
    let mut begun = Vec::new();
    for _ in 0..5 {
        begun.extend(ids(&worker.claim_as(&serving("live")).await));
    }
    assert_eq!(begun, [last.id]);
}

/// A tenant at its limit stands at the end of its ring: no turn comes to it that would forget lanes which are empty.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn lanes_that_were_cancelled_leave_nothing_in_a_view(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let tenant = Subject::Tenant(env.tenant_id);
    env.queue.tell_limit(&tenant, &running(1)).await.unwrap();
    let (first, second, worker) = (env.noop(), env.noop(), env.worker());
    env.enqueue(&first).await;
    let held = worker.one().await;
    env.enqueue(&second).await;
    assert_eq!(ids(&worker.claim(1).await), []);
    for number in 0..600 {
        let mut job = env.noop();
        job.spec.queue = format!("junk{number:03}");
        dispatch(&env, std::slice::from_ref(&job)).await;
        assert_eq!(handout(&env, &worker, 1).await.claims, []);
        env.queue.cancel(env.tenant_id, job.id, 1, true).await.unwrap();
    }
    let contents = env.contents().await;
    let lanes: Vec<usize> = contents
        .iter()
        .filter(|(key, _)| key.contains(":of:"))
        .map(|(_, lanes)| lanes.len())
        .collect();
    assert!(!lanes.is_empty() && lanes.iter().all(|many| *many <= 256), "{lanes:?}");
    // What waits is none of them.
    assert!(worker.succeed(&held).await);
    assert_eq!(soon(&env, &worker, 5).await, [second.id]);
}
