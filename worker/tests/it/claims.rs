//! The claim loop and what follows a claim, without sandboxes.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::cancel::Canceller;
use common::config::{Database, Leases, Secret};
use common::health::Health;
use common::ids::WorkerId;
use common::job::spec::SlotClass;
use common::job::{JobState, NewJob};
use common::objects::{self, Objects};
use common::store::Store;
use common::store::claim::Claim;
use common::testing::{TestEnv, eventually};
use common::workspace::Workspaces;
use sqlx::{ConnectOptions as _, PgPool};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use worker::attempt::{Attempts, Parts};
use worker::consumer::Consumer;
use worker::consumer::doubt::{Doubt, Unheard};
use worker::consumer::heartbeat::Heartbeat;
use worker::consumer::held::{Held, Stop};
use worker::consumer::solitude::Solitude;
use worker::executor::{Machine, Means};
use worker::model;
use worker::settle::Settler;

const SOON: Duration = Duration::from_secs(20);

/// A worker with light slots.
struct Rig {
    held: Held,
    doubt: Doubt,
    slots: Arc<Semaphore>,
    tracker: TaskTracker,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Rig {
    /// One whose Postgres is `store`.
    fn over(env: &TestEnv, store: &Store, leases: &Leases) -> Self {
        Self::with_slots(env, store, leases, 1)
    }

    fn with_slots(env: &TestEnv, store: &Store, leases: &Leases, slots: usize) -> Self {
        let (slots, doubt) = (Arc::new(Semaphore::new(slots)), Doubt::default());
        let folder = tempfile::tempdir().unwrap();
        let (worker_id, held, tracker) = (WorkerId::new(), Held::default(), TaskTracker::new());
        let (stop, health, queue) = (CancellationToken::new(), Health::new(SOON), env.queue.clone());
        let settler = Settler::spawn(
            worker_id,
            store.clone(),
            queue.clone(),
            CancellationToken::new(),
            health.pulse("settle", Duration::ZERO),
            &TaskTracker::new(),
        );
        let attempts = Attempts::new(Parts {
            worker_id,
            store: store.clone(),
            queue: queue.clone(),
            clock: env.clock.clock(),
            held: held.clone(),
            settler,
            machine: machine(env, store, &folder),
            run_on: leases.run_on,
            tracker: tracker.clone(),
        });
        let consumer = Consumer {
            worker_id,
            slot: SlotClass::Light,
            labels: Vec::new(),
            queues: Vec::new(),
            slots: Arc::clone(&slots),
            results: Arc::new(Semaphore::new(4)),
            queue,
            store: store.clone(),
            attempts,
            pool: None,
            solitude: Solitude::default(),
            doubt: doubt.clone(),
        };
        let heartbeat = Heartbeat {
            worker_id,
            queue: env.queue.clone(),
            store: store.clone(),
            held: held.clone(),
            leases: leases.clone(),
            clock: env.clock.clock(),
            pulse: health.pulse("heartbeat", leases.heartbeat),
        };
        tracker.spawn(heartbeat.run(stop.clone()));
        let shard = env.queue.shard_of(env.tenant_id);
        let running = consumer.run(shard, health.pulse("claim", Duration::ZERO), stop.clone());
        Self {
            held,
            doubt,
            slots,
            tracker,
            stop,
            running: TaskTracker::new().spawn(running),
            _folder: folder,
        }
    }

    /// Ends the loop, and waits for what it began.
    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn machine(env: &TestEnv, store: &Store, folder: &tempfile::TempDir) -> Machine {
    let url = format!("file://{}", folder.path().display());
    let objects = Objects::open(&objects::Settings { url }).unwrap();
    let models = model::Settings::default();
    Machine {
        workspaces: Workspaces::new(store.clone(), objects.clone()),
        store: store.clone(),
        queue: env.queue.clone(),
        canceller: Canceller::new(store.clone(), env.queue.clone()),
        pool: None,
        environments: Arc::new(BTreeMap::new()),
        objects,
        providers: Arc::new(models.providers().unwrap()),
        egress: Arc::new(Means::default()),
        room: worker::gateway::Room::default(),
        policy: model::Policy::shared(models.retry.clone(), env.queue.clone()),
        books: model::books::Books::open(&models, store.clone()).unwrap(),
        claude_code: worker::claude::Settings::default(),
    }
}

/// A Postgres that hangs up on everybody until it is told otherwise, or hears or says nothing for a while.
#[derive(Clone, Default)]
struct Away {
    is_back: Arc<AtomicBool>,
    is_deaf: Arc<watch::Sender<bool>>,
    is_mute: Arc<watch::Sender<bool>>,
    cuts: Arc<watch::Sender<u32>>,
    calls: Arc<AtomicUsize>,
}

impl Away {
    /// A store that reaches it, and the task that is it.
    async fn store(&self, pool: &PgPool) -> (Store, tokio::task::JoinHandle<()>) {
        let mut url = pool.connect_options().to_url_lossy();
        let real = (url.host_str().unwrap().to_owned(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let store = Store::open(&Database {
            url: Secret::from(url.to_string()),
            url_file: None,
            connections_max: 4,
            acquire_timeout: SOON,
            query_timeout: SOON,
        });
        let (this, connections) = (self.clone(), TaskTracker::new());
        let listening = TaskTracker::new().spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                this.calls.fetch_add(1, Ordering::SeqCst);
                if this.is_back.load(Ordering::SeqCst) {
                    let server = TcpStream::connect((real.0.as_str(), real.1)).await.unwrap();
                    let ((asked, answer), (answered, heard)) = (client.into_split(), server.into_split());
                    connections.spawn(carry(asked, heard, this.is_deaf.subscribe(), this.cuts.subscribe()));
                    connections.spawn(carry(answered, answer, this.is_mute.subscribe(), this.cuts.subscribe()));
                }
            }
        });
        (store.unwrap(), listening)
    }
}

/// Carries bytes while nobody keeps them, until somebody cuts it off; who hears the end of them is told of it.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut is_kept: watch::Receiver<bool>,
    mut cuts: watch::Receiver<u32>,
) {
    let carrying = async {
        let mut piece = vec![0; 8 << 10];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            drop(is_kept.wait_for(|is_kept| !is_kept).await);
            if to.write_all(&piece[..length]).await.is_err() {
                return;
            }
        }
    };
    // What was kept until then is not carried any more.
    tokio::select! {
        biased;
        _ = cuts.changed() => {}
        () = carrying => {}
    }
}

/// Waits until Postgres has the claim, which somebody else's lock keeps from its row.
async fn the_claim_is_heard(pool: &PgPool) {
    eventually(SOON, "Postgres has heard the claim", || async {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(pool).await.unwrap();
        (waiting == 1).then_some(())
    })
    .await;
}

async fn leases_of(env: &TestEnv) -> usize {
    let contents = env.contents().await;
    let leases = contents.iter().find(|(key, _)| key.ends_with(":leases"));
    leases.map_or(0, |(_, jobs)| jobs.len())
}

/// Each claim would use up a start of its job's limits, and keep its places.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn nothing_is_claimed_while_postgres_is_away(pool: PgPool) {
    let (env, away) = (TestEnv::new(pool.clone()).await, Away::default());
    let jobs: Vec<NewJob> = (0..10).map(|_| env.noop()).collect();
    for job in &jobs {
        env.enqueue(job).await;
    }
    let (store, listening) = away.store(&pool).await;
    let rig = Rig::over(&env, &store, &common::testing::leases());
    eventually(SOON, "it was asked many times", || async {
        (away.calls.load(Ordering::SeqCst) >= 12).then_some(())
    })
    .await;
    assert_eq!(leases_of(&env).await, 1, "one claim showed that it is away");
    away.is_back.store(true, Ordering::SeqCst);
    eventually(SOON, "the others are done", || async {
        matches!(env.state(jobs[9].id).await, JobState::Succeeded { .. }).then_some(())
    })
    .await;
    rig.end().await;
    listening.abort();
}

/// With a Postgres that hears nothing yet, and leases that pass within the patience of a test.
async fn deaf(pool: &PgPool, heartbeat: Duration) -> (TestEnv, Leases, Away) {
    let leases = Leases {
        ttl: Duration::from_secs(3),
        heartbeat,
        run_on: Duration::from_millis(2_500),
        ..common::testing::leases()
    };
    let (env, away) = (TestEnv::with_leases(pool.clone(), &leases).await, Away::default());
    away.is_back.store(true, Ordering::SeqCst);
    away.is_deaf.send_replace(true);
    (env, leases, away)
}

async fn a_lease_has_passed(env: &TestEnv) {
    let shard = env.queue.shard_of(env.tenant_id);
    eventually(SOON, "a lease has passed", || async {
        let passed = env.queue.expired(shard, 0, 1).await.unwrap();
        (!passed.is_empty()).then_some(())
    })
    .await;
}

/// The first handout is on its way until its lease was dropped, and the worker gets the job once more: Postgres confirms one
/// of the two, and what it refuses is the same lease.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn of_two_handouts_of_a_job_the_refused_one_drops_nothing(pool: PgPool) {
    // No heartbeat: it would put right what a drop had spoiled.
    let (env, leases, away) = deaf(&pool, Duration::from_hours(1)).await;
    let mut long = env.keyed("key", 1);
    long.input = br#"{"duration":"1h"}"#.to_vec();
    env.enqueue(&long).await;
    let (store, listening) = away.store(&pool).await;
    let rig = Rig::with_slots(&env, &store, &leases, 2);
    a_lease_has_passed(&env).await;
    assert!(env.reclaim().await.is_empty());
    eventually(SOON, "it is handed out again", || async {
        (leases_of(&env).await == 1 && rig.slots.available_permits() == 0).then_some(())
    })
    .await;
    away.is_deaf.send_replace(false);
    eventually(SOON, "one runs and the other is refused", || async {
        (rig.held.len() == 1 && rig.slots.available_permits() == 1).then_some(())
    })
    .await;
    assert_eq!(leases_of(&env).await, 1);
    env.enqueue(&env.keyed("key", 1)).await;
    assert!(env.worker().claim(1).await.is_empty(), "its place is taken");
    rig.stop.cancel();
    rig.held.stop(long.id, Stop::Drain);
    rig.end().await;
    listening.abort();
}

/// The lease has passed and was dropped, and another job has the place.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_that_postgres_confirms_after_its_lease_takes_nobodys_place(pool: PgPool) {
    let (env, leases, away) = deaf(&pool, Duration::from_secs(1)).await;
    let (late, mut other) = (env.keyed("key", 1), env.keyed("key", 1));
    other.spec.priority = 9;
    env.enqueue(&late).await;
    let (store, listening) = away.store(&pool).await;
    let rig = Rig::over(&env, &store, &leases);
    a_lease_has_passed(&env).await;
    env.enqueue(&other).await;
    assert!(env.reclaim().await.is_empty());
    let elsewhere = env.worker();
    let claimed = elsewhere.one().await;
    assert_eq!(claimed.job.id, other.id);
    away.is_deaf.send_replace(false);
    eventually(SOON, "it is given back", || async {
        let row = env.row(late.id).await;
        assert!(
            !matches!(row.state, JobState::Succeeded { .. }),
            "two at once of one place"
        );
        (row.attempt == 1 && matches!(row.state, JobState::Queued { .. })).then_some(())
    })
    .await;
    assert!(elsewhere.succeed(&claimed).await);
    eventually(SOON, "it has run", || async {
        matches!(env.state(late.id).await, JobState::Succeeded { .. }).then_some(())
    })
    .await;
    let row = env.row(late.id).await;
    assert_eq!((row.attempt, row.failures, row.losses), (2, 0, 0));
    rig.end().await;
    listening.abort();
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// Postgres confirmed the claim, and its worker reads that when the attempt was taken over and the next one has ended.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_whose_job_has_ended_meanwhile_does_not_begin(pool: PgPool) {
    let (env, leases, away) = deaf(&pool, Duration::from_secs(1)).await;
    away.is_deaf.send_replace(false);
    let mut long = env.noop();
    long.input = br#"{"duration":"1h"}"#.to_vec();
    env.enqueue(&long).await;
    let (store, listening) = away.store(&pool).await;
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("select from jobs for update")
        .execute(&mut *lock)
        .await
        .unwrap();
    let rig = Rig::over(&env, &store, &leases);
    the_claim_is_heard(&pool).await;
    away.is_mute.send_replace(true);
    lock.rollback().await.unwrap();
    a_lease_has_passed(&env).await;
    assert_eq!(env.reclaim().await.len(), 1);
    let elsewhere = env.worker();
    assert!(elsewhere.succeed(&elsewhere.one().await).await);
    away.is_mute.send_replace(false);
    eventually(SOON, "its slot is free again", || async {
        (rig.slots.available_permits() == 1).then_some(())
    })
    .await;
    rig.end().await;
    listening.abort();
    assert_eq!(env.row(long.id).await.attempt, 2);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// Postgres took it for a worker that never hears of it.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_whose_answer_is_lost_costs_its_job_nothing(pool: PgPool) {
    let (env, leases, away) = deaf(&pool, Duration::from_secs(1)).await;
    away.is_deaf.send_replace(false);
    let job = env.noop();
    env.enqueue(&job).await;
    let (store, listening) = away.store(&pool).await;
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("select from jobs for update")
        .execute(&mut *lock)
        .await
        .unwrap();
    let rig = Rig::over(&env, &store, &leases);
    the_claim_is_heard(&pool).await;
    away.is_mute.send_replace(true);
    lock.rollback().await.unwrap();
    eventually(SOON, "it is taken", || async {
        (env.row(job.id).await.attempt == 1).then_some(())
    })
    .await;
    away.cuts.send_modify(|cuts| *cuts += 1);
    away.is_mute.send_replace(false);
    // No reclaim comes by: it is its worker that gives it back.
    eventually(SOON, "it has run", || async {
        matches!(env.state(job.id).await, JobState::Succeeded { .. }).then_some(())
    })
    .await;
    let row = env.row(job.id).await;
    assert_eq!((row.attempt, row.failures, row.losses), (2, 0, 0));
    rig.end().await;
    listening.abort();
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// The same attempt was claimed twice: of the first claim nobody heard, and by the second it runs.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_runs_by_another_claim_is_not_given_back(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mut long = env.noop();
    long.input = br#"{"duration":"1h"}"#.to_vec();
    env.enqueue(&long).await;
    let rig = Rig::with_slots(&env, &env.store, &common::testing::leases(), 2);
    eventually(SOON, "it runs", || async { (rig.held.len() == 1).then_some(()) }).await;
    let claim = Claim {
        job_id: long.id,
        attempt: 1,
        is_turn: false,
    };
    let at = env.clock.now() - chrono::TimeDelta::seconds(60);
    rig.doubt.begin([Unheard { claim, at }]);
    // Two that run after it: the loop looks at what is in doubt before it claims anything else.
    for _ in 0..2 {
        let other = env.noop();
        env.enqueue(&other).await;
        eventually(SOON, "another has run", || async {
            matches!(env.state(other.id).await, JobState::Succeeded { .. }).then_some(())
        })
        .await;
    }
    assert!(matches!(env.state(long.id).await, JobState::Running { attempt: 1, .. }));
    rig.stop.cancel();
    rig.held.stop(long.id, Stop::Drain);
    rig.end().await;
}

/// Somebody asked to cancel it, which nobody told its worker.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_is_cancelled_when_it_is_given_back_is_not_queued(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = NewJob {
        input: br#"{"duration":"1h"}"#.to_vec(),
        ..env.noop()
    };
    env.enqueue(&job).await;
    let rig = Rig::over(&env, &env.store, &common::testing::leases());
    eventually(SOON, "it runs", || async { (rig.held.len() == 1).then_some(()) }).await;
    env.store.cancel(env.tenant_id, job.id, env.clock.now()).await.unwrap();
    rig.stop.cancel();
    rig.held.stop(job.id, Stop::Drain);
    rig.end().await;
    assert!(matches!(env.state(job.id).await, JobState::Cancelled { .. }));
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}
