//! Whole attempts, as a worker makes them: a job out of the queue, its log, its orders, an executor.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::cancel::Canceller;
use common::ids::WorkerId;
use common::job::decision::{Decision, Outcome};
use common::job::event::{Event, EventBody};
use common::job::spec::{JobSpec, SlotClass, class_of};
use common::job::{FailureCode, Job, NewJob};
use common::lifecycle::Lifecycle;
use common::objects::{self, Objects};
use common::queue::{Dispatch, Mode, Want};
use common::store::claim::Claimed;
use common::testing::{TestEnv, TestWorker};
use common::workspace::Workspaces;
use futures_util::FutureExt;
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use worker::consumer::held::{Orders, Stop};
use worker::driver::SandboxDriver;
use worker::egress::Settings;
use worker::environment::{Environment, Environments};
use worker::events::{EventLog, LogTarget, Outlets};
use worker::executor::{Context, Ended, Machine, Means, execute};
use worker::model;
use worker::pool::{self, Asks, Pool};

use crate::docker::{driver, image, profile};

/// A machine with a pool of small sandboxes.
pub(crate) struct Bench {
    pub(crate) env: TestEnv,
    pub(crate) machine: Machine,
    /// Where artifacts and workspaces are.
    pub(crate) folder: Arc<tempfile::TempDir>,
    driver: Arc<dyn SandboxDriver>,
    worker: TestWorker,
    lifecycle: Lifecycle,
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) job: Job,
    pub(crate) worker: TestWorker,
    pub(crate) ended: Ended,
    pub(crate) said: Vec<EventBody>,
    unwritten: Vec<Event>,
}

impl Bench {
    /// One with this image's `default` environment, changed, and these providers.
    pub(crate) async fn new(pool: PgPool, models: model::Settings, change: impl FnOnce(&mut Environment)) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self::over(TestEnv::new(pool).await, (folder, driver()), &models, change)
    }

    /// The same over the bubblewrap driver.
    pub(crate) async fn bubblewrap(pool: PgPool, change: impl FnOnce(&mut Environment)) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let driver = Arc::new(crate::sandbox_bubblewrap::driver_in(&folder.path().join("state")));
        let models = model::Settings::default();
        Self::over(TestEnv::new(pool).await, (folder, driver), &models, change)
    }

    /// Another machine over the same stores.
    pub(crate) fn beside(&self, models: &model::Settings, change: impl FnOnce(&mut Environment)) -> Self {
        let shared = (Arc::clone(&self.folder), Arc::clone(&self.driver));
        Self::over(self.env.clone(), shared, models, change)
    }

    fn over(
        env: TestEnv,
        (folder, driver): (Arc<tempfile::TempDir>, Arc<dyn SandboxDriver>),
        models: &model::Settings,
        change: impl FnOnce(&mut Environment),
    ) -> Self {
        let lifecycle = Lifecycle::new();
        let mut environment = Environment::built_in().with_image(image());
        environment.profile = profile();
        environment.warm.size = 1;
        environment.warm.max = 2;
        change(&mut environment);
        let environments = Environments::from([(environment.name.clone(), Arc::new(environment))]);
        let asks = Asks {
            is_alive: Arc::new(|_| async { true }.boxed()),
            ..Asks::of(&env.store, &env.clock.clock())
        };
        let settings = pool::Settings::new(Uuid::now_v7());
        let pool = Pool::start(Arc::clone(&driver), &environments, settings, asks, &lifecycle);
        let url = format!("file://{}", folder.path().display());
        let objects = Objects::open(&objects::Settings { url }).unwrap();
        let machine = Machine {
            workspaces: Workspaces::new(env.store.clone(), objects.clone()),
            store: env.store.clone(),
            queue: env.queue.clone(),
            canceller: Canceller::new(env.store.clone(), env.queue.clone()),
            pool: Some(pool),
            environments: Arc::new(environments),
            objects,
            providers: Arc::new(models.providers().unwrap()),
            egress: Arc::new(Means {
                settings: Settings::default(),
                certificates: bytes::Bytes::new(),
            }),
            policy: model::Policy::shared(models.retry.clone(), env.queue.clone()),
            books: model::books::Books::open(models, env.store.clone()).unwrap(),
            room: worker::gateway::Room::default(),
            claude_code: worker::claude::Settings::default(),
        };
        Self {
            worker: env.worker(),
            env,
            machine,
            folder,
            driver,
            lifecycle,
        }
    }

    /// A job that starts in a sandbox.
    pub(crate) fn job(&self, spec: JobSpec, input: &Value) -> NewJob {
        NewJob {
            class: class_of(SlotClass::Sandbox, &spec.labels),
            ..self.env.job(spec, input.to_string().into_bytes())
        }
    }

    /// Runs a job as its worker would.
    pub(crate) async fn run(&self, job: &NewJob) -> Done {
        self.run_until(job, None).await
    }

    /// Runs a job and, once it has said an event of this name, orders it to stop.
    pub(crate) async fn run_until(&self, job: &NewJob, stop: Option<(&str, Stop)>) -> Done {
        self.env.insert(job).await;
        self.run_inserted(job, stop).await
    }

    /// The same with a job that is in Postgres already.
    pub(crate) async fn run_inserted(&self, job: &NewJob, stop: Option<(&str, Stop)>) -> Done {
        self.env.queue.dispatch(&[Dispatch::from_new(job)]).await.unwrap();
        self.run_next(stop).await
    }

    fn outlets(&self, worker_id: WorkerId) -> Outlets {
        let (store, queue) = (self.env.store.clone(), self.env.queue.clone());
        Outlets::spawn(worker_id, store, queue, &TaskTracker::new())
    }

    /// Runs the next attempt that the queue hands out.
    pub(crate) async fn run_next(&self, stop: Option<(&str, Stop)>) -> Done {
        let worker = self.worker.clone();
        let want = Want {
            slot: SlotClass::Sandbox,
            free: 1,
            labels: Vec::new(),
            queues: Vec::new(),
            mode: Mode::Busy,
        };
        // What another machine keeps a sandbox for is offered there first.
        let claim = || async { worker.claim_as(&want).await.pop() };
        let claimed = common::testing::eventually(Duration::from_secs(5), "a job to claim", claim).await;
        let (job, clock) = (claimed.job, self.env.clock.clock());
        let target = LogTarget {
            tenant_id: job.tenant_id,
            job_id: job.id,
            attempt: job.attempt,
            worker_id: worker.id,
            outlets: self.outlets(worker.id),
            clock: clock.clone(),
        };
        let started = Event {
            seq: job.seq,
            at: self.env.clock.now(),
            attempt: job.attempt,
            body: EventBody::Started { worker: worker.id },
        };
        let log = EventLog::begin(target, started, &TaskTracker::new());
        let run_until = Instant::now() + Duration::from_mins(5);
        let (orders, heard) = watch::channel(Orders { run_until, stop: None });
        let context = Context {
            job: job.clone(),
            input: claimed.input,
            worker_id: worker.id,
            events: log.sink().clone(),
            orders: heard,
            clock,
            machine: self.machine.clone(),
        };
        let steer = async {
            if let Some((name, stop)) = stop {
                common::testing::eventually(Duration::from_secs(30), name, || async {
                    let events = self.env.events(job.tenant_id, job.id, 1000).await;
                    let is_it = |event: &Event| event.attempt == job.attempt && event.body.name() == name;
                    events.iter().any(is_it).then_some(())
                })
                .await;
                orders.send_modify(|orders| orders.stop = Some(stop));
            }
        };
        let (ended, ()) = tokio::join!(Box::pin(execute(context)), steer);
        // Of a long attempt a part is in the stores already.
        let stored = self.env.events(job.tenant_id, job.id, 1000).await;
        let unwritten = log.end().await.events;
        let all = stored.into_iter().chain(unwritten.iter().cloned());
        let said: BTreeMap<u64, EventBody> = all
            .filter(|event| event.attempt == job.attempt)
            .map(|event| (event.seq, event.body))
            .collect();
        let said = said.into_values().collect();
        Done {
            job,
            worker,
            ended,
            said,
            unwritten,
        }
    }

    /// The same machine, on which Claude Code may be silent for so long.
    pub(crate) fn with_silence(mut self, silence: Duration) -> Self {
        self.machine.claude_code = worker::claude::Settings {
            silence,
            tool_silence: silence,
        };
        self
    }

    pub(crate) async fn end(self) {
        self.machine.shutdown().await;
        assert!(!self.lifecycle.has_failed());
    }
}

impl Done {
    /// Ends the attempt in the stores too, well, so that the next turn of its conversation may begin.
    pub(crate) async fn settle(&self) {
        self.settle_as(Decision::Succeed).await;
    }

    /// Ends the attempt in the stores in this way.
    pub(crate) async fn settle_as(&self, decision: Decision) {
        let claimed = Claimed {
            job: self.job.clone(),
            input: Vec::new(),
        };
        let mut settlement = self.worker.settlement(&claimed, decision, &self.unwritten);
        settlement.approvals.clone_from(&self.ended.approvals);
        if let Some(turn) = &mut settlement.turn {
            turn.messages.clone_from(&self.ended.messages);
            turn.answers = self.ended.answers;
        }
        assert!(self.worker.commit(&settlement).await);
        self.worker.ack(&claimed, &settlement).await;
    }

    /// The result; the attempt did well.
    pub(crate) fn result(&self) -> Value {
        assert!(matches!(self.ended.outcome, Outcome::Succeeded), "{self:#?}");
        self.any_result()
    }

    /// The result, however it ended.
    pub(crate) fn any_result(&self) -> Value {
        serde_json::from_slice(self.ended.result.as_deref().unwrap()).unwrap()
    }

    /// How it failed.
    pub(crate) fn failure(&self) -> (FailureCode, &str) {
        match &self.ended.outcome {
            Outcome::Failed { failure, .. } => (failure.code, &failure.message),
            other => panic!("{other:?} {:?}", self.said),
        }
    }

    /// The names of what it said.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.said.iter().map(EventBody::name).collect()
    }
}
