//! Everything there is in a run: tenants in two shards, three workers, the duties, and what each holds.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use common::config::{Leases, Redis, Secret};
use common::ids::{JobId, TenantId, WorkerId};
use common::job::{Concurrency, Job, JobState, Strategy};
use common::queue::{Dispatch, Queue, Shard};
use common::store::claim::{Claim, Claimed};
use common::store::workers::Worker;
use common::testing::{Saved, TestEnv, TestWorker, leases, redis_section};
use scheduler::duties::{Promote, Reclaim, Redispatch, Sweep};
use sqlx::PgPool;

use super::index::Index;
use super::oracle::{Broken, Oracle, ensure};
use super::steps::{End, Step, Ticks, run};

/// Places of a tenant's key.
const LIMIT: u32 = 2;

/// Length of a full backlog: small, so that it is reached.
const DISPATCHED_MAX: u32 = 3;

/// Rounds of everybody's steps within which all jobs end.
const ROUNDS: usize = 80;

/// An attempt that a worker holds, or believes to hold.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) claimed: Claimed,
    pub(crate) worker: TestWorker,
    /// Its sandbox may run until then.
    pub(crate) run_until: DateTime<Utc>,
}

/// What Redis handed out at once.
#[derive(Clone, Debug)]
pub(crate) struct Handout {
    pub(crate) shard: Shard,
    pub(crate) claims: Vec<Claim>,
    pub(crate) asked: DateTime<Utc>,
}

/// A handout on its way to Postgres.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) worker: TestWorker,
    pub(crate) handout: Handout,
    pub(crate) at: DateTime<Utc>,
}

/// A worker process.
#[expect(clippy::struct_field_names, reason = "what acts is called so everywhere")]
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) actor: TestWorker,
    /// Postgres has not been asked.
    pub(crate) handouts: Vec<Handout>,
    /// Postgres has answered, and nobody has read it.
    pub(crate) answers: Vec<(Handout, Vec<Claimed>)>,
    pub(crate) held: Vec<Held>,
    pub(crate) heard_at: DateTime<Utc>,
}

impl Actor {
    pub(crate) fn id(&self) -> WorkerId {
        self.actor.id
    }

    /// Handouts that are not on their way to Postgres, and whose fate the worker does not know.
    pub(crate) fn under_way(&self) -> usize {
        self.handouts.len() + self.answers.len()
    }
}

/// The duties that this is about.
#[derive(Debug)]
pub(crate) struct Duties {
    pub(crate) promote: Promote,
    pub(crate) redispatch: Redispatch,
    pub(crate) reclaim: Reclaim,
    pub(crate) sweep: Sweep,
}

impl Duties {
    fn new(env: &TestEnv, queue: &Queue) -> Self {
        let (store, queue) = (|| env.store.clone(), || queue.clone());
        Self {
            promote: Promote::new(store(), queue()),
            redispatch: Redispatch::new(store(), queue(), DISPATCHED_MAX),
            reclaim: Reclaim::new(store(), queue()),
            sweep: Sweep::new(store(), queue()),
        }
    }
}

/// One run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) env: TestEnv,
    pub(crate) tenants: Vec<TenantId>,
    pub(crate) workers: Vec<Actor>,
    /// Also of those that have died.
    pub(crate) sent: Vec<Sent>,
    /// Attempts whose workers were told that they are not theirs, or that settled in vain.
    pub(crate) lost: Vec<Held>,
    pub(crate) oracle: Oracle,
    pub(crate) duties: Duties,
    /// The same with a Redis that answers nobody.
    pub(crate) duties_alone: Duties,
    pub(crate) is_away: bool,
    /// What Redis held once.
    pub(crate) saved: Option<Saved>,
    /// Whether Redis holds that again: nothing is claimed from it, and it is forgotten by the next redispatch.
    pub(crate) is_behind: bool,
}

impl World {
    pub(crate) async fn new(pool: PgPool) -> Self {
        let leases = Leases {
            dispatched_max: DISPATCHED_MAX,
            ..leases()
        };
        let redis = Redis {
            shards: 2,
            ..redis_section()
        };
        let nobody = Redis {
            url: Secret::from("redis://127.0.0.1:1/".to_owned()),
            response_timeout: Duration::from_millis(200),
            ..redis.clone()
        };
        let alone = Queue::open(&nobody, &leases).unwrap();
        let env = TestEnv::with(pool, &leases, redis).await;
        let tenants = two_in_one_shard(&env.queue);
        let mut world = Self {
            tenants,
            workers: Vec::new(),
            sent: Vec::new(),
            lost: Vec::new(),
            oracle: Oracle::default(),
            duties: Duties::new(&env, &env.queue),
            duties_alone: Duties::new(&env, &alone),
            is_away: false,
            saved: None,
            is_behind: false,
            env,
        };
        for _ in 0..3 {
            let actor = world.join().await;
            world.workers.push(actor);
        }
        world
    }

    async fn join(&self) -> Actor {
        let actor = self.env.worker();
        let row = Worker {
            id: actor.id,
            name: "test".to_owned(),
            version: "0".to_owned(),
            slots: BTreeMap::new(),
            labels: Vec::new(),
            queues: Vec::new(),
            driver: "none".to_owned(),
            started_at: self.now(),
        };
        self.env.store.register_worker(&row).await.unwrap();
        Actor {
            actor,
            handouts: Vec::new(),
            answers: Vec::new(),
            held: Vec::new(),
            heard_at: self.now(),
        }
    }

    /// A worker dies, and another starts in its place.
    pub(crate) async fn die(&mut self, worker: usize) {
        self.workers[worker] = self.join().await;
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.env.clock.now()
    }

    pub(crate) fn ttl(&self) -> TimeDelta {
        TimeDelta::from_std(self.env.queue.lease_ttl()).unwrap()
    }

    pub(crate) fn run_on() -> TimeDelta {
        TimeDelta::from_std(leases().run_on).unwrap()
    }

    pub(crate) async fn submit(
        &mut self,
        tenant: usize,
        key: bool,
        later: bool,
        told: bool,
        redrive_of: Option<JobId>,
    ) -> Result<(), Broken> {
        let mut job = self.env.noop();
        job.tenant_id = self.tenants[tenant];
        job.links.redrive_of = redrive_of;
        job.spec.run_at = later.then(|| self.now() + TimeDelta::seconds(3));
        job.spec.concurrency = key.then(|| Concurrency {
            key: "key".to_owned(),
            limit: LIMIT,
            strategy: Strategy::Queue,
        });
        self.env.insert(&job).await;
        let state = match job.spec.run_at {
            Some(due_at) => JobState::Scheduled { due_at },
            None => JobState::Queued { queued_at: self.now() },
        };
        self.oracle.accepted(job.id, job.tenant_id, state, key);
        if told && !later && !self.is_away {
            self.env.queue.dispatch(&[Dispatch::from_new(&job)]).await.unwrap();
        }
        Ok(())
    }

    /// An attempt may run until `held.run_until`: nobody else's sandbox of the job may run now.
    pub(crate) fn start(&mut self, worker: usize, held: Held) -> Result<(), Broken> {
        let (id, now) = (held.claimed.job.id, self.now());
        let others = self.workers.iter().flat_map(|actor| &actor.held);
        let beside = others
            .filter(|other| other.claimed.job.id == id && other.run_until > now)
            .count();
        ensure(beside == 0 || held.run_until <= now, || {
            format!("two sandboxes of {id} run")
        })?;
        ensure(held.run_until <= now || self.oracle.is_last(&held.claimed), || {
            format!("a sandbox of {id} begins after the next attempt has")
        })?;
        if held.run_until > now {
            self.oracle.runs(id);
        }
        self.workers[worker].held.push(held);
        Ok(())
    }

    /// Until when a sandbox of each held job may run.
    pub(crate) fn permissions(&self) -> BTreeMap<JobId, DateTime<Utc>> {
        let mut permissions = BTreeMap::<JobId, DateTime<Utc>>::new();
        for held in self.workers.iter().flat_map(|actor| &actor.held) {
            let until = permissions.entry(held.claimed.job.id).or_insert(held.run_until);
            *until = held.run_until.max(*until);
        }
        permissions
    }

    pub(crate) async fn rows(&self) -> Vec<Job> {
        self.env.store.jobs(&self.oracle.ids()).await.unwrap()
    }

    /// That rows are as expected, and that the index agrees with itself.
    pub(crate) async fn check(&self) -> Result<(), Broken> {
        self.oracle.check(&self.rows().await, LIMIT as usize)?;
        let misplaced = self.env.misplaced().await;
        ensure(misplaced.is_empty(), || {
            format!("not found where they should be: {misplaced:?}")
        })?;
        if self.is_behind {
            return Ok(());
        }
        let is_late = |job: &str| self.oracle.is_late(job);
        Index::read(&self.env).await.check(LIMIT as usize, is_late)
    }

    /// Nothing more goes wrong: every job ends, and nothing is left of any.
    pub(crate) async fn end(&mut self) -> Result<(), Broken> {
        self.is_away = false;
        for round in 0.. {
            for duty in [Ticks::Reclaim, Ticks::Redispatch, Ticks::Promote, Ticks::Sweep] {
                run(self, &Step::Tick { duty }).await?;
            }
            for (tenant_id, id) in self.oracle.waiting() {
                let resumed = self.env.store.resume(tenant_id, id, self.now()).await.unwrap();
                self.oracle.resumed(id, resumed.as_ref(), self.now())?;
                let job = resumed.ok_or("it waits")?;
                self.env.queue.dispatch(&[Dispatch::from_job(&job)]).await.unwrap();
            }
            while !self.sent.is_empty() {
                run(self, &Step::Decide { which: 0 }).await?;
            }
            for worker in 0..self.workers.len() {
                run(self, &Step::Answer { worker }).await?;
                run(self, &Step::Beat { worker }).await?;
                while !self.workers[worker].held.is_empty() {
                    let how = End::Succeed;
                    run(
                        self,
                        &Step::End {
                            worker,
                            which: 0,
                            how,
                            acked: true,
                        },
                    )
                    .await?;
                }
                run(self, &Step::Take { worker, free: 4 }).await?;
                run(self, &Step::Confirm { worker }).await?;
                self.check().await?;
            }
            if self.oracle.are_all_over() && self.env.leftovers().await.iter().all(|key| key.contains(":cancel:")) {
                break;
            }
            if round > ROUNDS {
                let index = Index::read(&self.env).await;
                return Err(format!(
                    "not over: {:?}, left {:?}, {index:#?}",
                    self.oracle,
                    self.env.leftovers().await
                ));
            }
            self.env.advance(Duration::from_secs(1));
            self.env.forget_calls().await;
        }
        self.history().await
    }

    /// Every attempt has ended once, and every log is one increasing sequence with one end.
    async fn history(&self) -> Result<(), Broken> {
        for row in self.rows().await {
            let attempts = self.env.store.attempts(row.id).await.unwrap();
            let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.attempt).collect();
            ensure(numbers == (1..=row.attempt).collect::<Vec<_>>(), || {
                format!("{} ended {numbers:?}", row.id)
            })?;
            let events = self.env.events(row.tenant_id, row.id, 1_000).await;
            let ends = events.iter().filter(|event| event.body.is_terminal()).count();
            let is_last = events.last().is_some_and(|event| event.body.is_terminal());
            ensure(ends == 1 && is_last, || {
                format!("the log of {} ends {ends} times: {events:#?}", row.id)
            })?;
        }
        Ok(())
    }
}

/// Three tenants in two shards.
fn two_in_one_shard(queue: &Queue) -> Vec<TenantId> {
    let shards: Vec<Shard> = queue.shards().collect();
    let of = |shard: Shard| {
        std::iter::repeat_with(TenantId::new)
            .find(|id| queue.shard_of(*id) == shard)
            .unwrap()
    };
    vec![of(shards[0]), of(shards[1]), of(shards[0])]
}
