//! Crashes at any point: no call that is in the journal is ever made again.
//!
//! A turn of several steps with parallel tool calls is driven poll by poll and dropped at a random one, as a killed worker
//! drops it: before a request, halfway through an answer, while a commit is on its way and nobody will hear of it. Then the
//! next attempt goes on, until one ends. A provider and tools that count tell what was done how often.
//!
//! `HOTHOUSE_CRASH_POINTS` says how many crashes there are; a few hundred when it is not set.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use common::job::decision::Decision;
use common::job::spec::{JobSpec, Kind};
use common::job::{Job, NewJob};
use common::message::{Part, Role};
use common::store::claim::Claimed;
use common::testing::TestEnv;
use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::executor::native::{
    self, CallUsage, Limits, Stop, ToolCall, ToolOutcome, Tools, ToolsLost, Turn, TurnEnd, TurnSink,
};
use crate::model::policy::Account;
use crate::model::scripted::Scripted;
use crate::model::server::{Call, Reply};
use crate::model::wire::Wire;
use crate::model::{
    Caller, Error, ModelEvent, ModelProvider, ModelRequest, ModelStream, Providers, RetryPolicy, StopReason,
    ToolDefinition,
};

/// Steps with tools before the answer, and the calls of each.
const STEPS: u32 = 3;
const CALLS: u32 = 2;

/// How often each call was made, by (step, place); -1 is the model's.
type Counts = Mutex<BTreeMap<(u32, i64), u64>>;

#[derive(Debug, Default)]
struct World {
    made: Counts,
}

impl World {
    fn count(&self, step: u32, place: i64) {
        *self.made.lock().unwrap().entry((step, place)).or_default() += 1;
    }
}

/// A model that calls tools for some steps and then answers, and counts how often it is asked.
#[derive(Debug)]
struct Counting(Arc<World>, Scripted);

impl ModelProvider for Counting {
    fn stream<'a>(&'a self, _model: &'a str, request: &'a ModelRequest) -> BoxFuture<'a, Result<ModelStream, Error>> {
        let results = request.messages.iter().flat_map(|message| &message.parts);
        let results = results.filter(|part| matches!(part, Part::ToolResult { .. })).count();
        let step = u32::try_from(results).unwrap() / CALLS;
        self.0.count(step, -1);
        let mut events = vec![ModelEvent::TextDelta {
            text: format!("step {step}"),
        }];
        if step < STEPS {
            for place in 0..CALLS {
                let id = format!("c{step}-{place}");
                let input = json!({"step": step, "place": place}).to_string();
                events.extend([
                    ModelEvent::ToolCallStart {
                        index: place,
                        id,
                        name: "count".to_owned(),
                    },
                    ModelEvent::ToolCallDelta {
                        index: place,
                        json: input,
                    },
                    ModelEvent::ToolCallEnd { index: place },
                ]);
            }
        }
        events.push(ModelEvent::End {
            stop_reason: StopReason::EndTurn,
        });
        async move {
            tokio::task::yield_now().await;
            let paced = stream::iter(events).then(|event| async {
                tokio::task::yield_now().await;
                Ok(event)
            });
            Ok(paced.boxed())
        }
        .boxed()
    }

    fn forward(&self, call: Call) -> BoxFuture<'_, Result<Reply, Error>> {
        self.1.forward(call)
    }

    fn account(&self) -> &Account {
        self.1.account()
    }

    fn wire(&self) -> Option<Wire> {
        None
    }
}

impl Tools for World {
    fn definitions(&self) -> Vec<ToolDefinition> {
        vec![ToolDefinition {
            name: "count".to_owned(),
            description: String::new(),
            input_schema: json!({"type": "object"}),
        }]
    }

    fn call<'a>(
        &'a self,
        call: &'a ToolCall,
        _sink: &'a dyn TurnSink,
    ) -> BoxFuture<'a, Result<ToolOutcome, ToolsLost>> {
        async move {
            let number = |name: &str| u32::try_from(call.input[name].as_u64().unwrap()).unwrap();
            self.count(number("step"), number("place").into());
            for _ in 0..=number("place") {
                tokio::task::yield_now().await;
            }
            Ok(ToolOutcome::ok(format!("did {}", call.input)))
        }
        .boxed()
    }
}

/// Hears nothing.
struct Deaf;

impl TurnSink for Deaf {
    fn text_delta(&self, _: &str) {}
    fn reasoning_delta(&self, _: &str) {}
    fn tool_started(&self, _: &ToolCall) {}
    fn tool_output(&self, _: &str, _: &str) {}
    fn tool_finished(&self, _: &str, _: &ToolOutcome) {}
    fn usage(&self, _: &CallUsage) {}
    fn message(&self, _: &Message) {}
    fn status(&self, _: &str, _: Option<&str>) {}
}

fn kept(env: &TestEnv, claimed: &Claimed, worker_id: WorkerId) -> Kept {
    Kept {
        store: env.store.clone(),
        job: claimed.job.clone(),
        worker_id,
        clock: env.clock.clock(),
        events: Sink::new(env.clock.clock()),
    }
}

/// One attempt with a model, dropped after so many polls.
async fn attempt(kept: &Kept, world: &Arc<World>, model: &str, polls: usize) -> Option<TurnEnd> {
    let counting = Arc::new(Counting(Arc::clone(world), Scripted::built_in()));
    let providers = Providers::new([("count".to_owned(), counting as _)]);
    let caller = Caller::alone(providers, RetryPolicy::default(), kept.clock.clone()).unwrap();
    let cancel = CancellationToken::new();
    let work = async {
        let resume = kept.resume(false).await.unwrap();
        let turn = Turn {
            system: String::new(),
            history: vec![Message::user("go", kept.clock.now())],
            models: vec![model.parse().unwrap()],
            job_id: Some(kept.job.id),
            temperature: None,
            limits: Limits::default(),
            asks: HashMap::new(),
            attachments: BTreeMap::new(),
            resume,
        };
        let context = native::Context {
            caller: &caller,
            clock: &kept.clock,
            sink: &Deaf,
            journal: kept,
            cancel: &cancel,
        };
        native::run(turn, context, &**world).await
    };
    let (mut work, mut left) = (pin!(work), polls);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// What is in the journal, with how often.
async fn journaled(pool: &PgPool, job: &Job) -> BTreeMap<(u32, i64), i64> {
    let rows: Vec<(i32, i32, i64)> =
        sqlx::query_as("select step, place, count(*) from journal where job_id = $1 group by step, place")
            .bind(job.id)
            .fetch_all(pool)
            .await
            .unwrap();
    let key = |(step, place, count): (i32, i32, i64)| ((u32::try_from(step).unwrap(), place.into()), count);
    rows.into_iter().map(key).collect()
}

/// Takes a turn with crashes until it ends; answers how many there were, and how many calls were made again.
async fn crash(env: &TestEnv, pool: &PgPool, random: &mut StdRng) -> (u64, u64) {
    let world = Arc::new(World::default());
    let job: NewJob = env.job(JobSpec::new(Kind::AgentRun), b"{}".to_vec());
    env.enqueue(&job).await;
    let (mut crashes, mut reported) = (0, 0);
    loop {
        let worker = env.worker();
        let claimed = worker.one().await;
        let before = journaled(pool, &claimed.job).await;
        let made = world.made.lock().unwrap().clone();
        let kept = kept(env, &claimed, worker.id);
        let lost = env
            .store
            .unfinished_calls(job.id, claimed.job.attempt.saturating_sub(1), claimed.job.attempt)
            .await
            .unwrap();
        reported += lost.model + lost.tool;
        let ended = attempt(&kept, &world, "count/x", random.random_range(1..60)).await;
        let after = world.made.lock().unwrap().clone();
        for (key, count) in &before {
            assert_eq!((*count, after.get(key)), (1, made.get(key)), "{key:?} was made again");
        }
        let Some(end) = ended else {
            crashes += 1;
            assert!(worker.settle(&claimed, Decision::GiveBack).await);
            env.redispatch().await;
            continue;
        };
        assert!(matches!(end.stop, Stop::Answered(_)), "{end:?}");
        let shape: Vec<(Role, usize)> = end
            .messages
            .iter()
            .map(|message| (message.role, message.parts.len()))
            .collect();
        let said = shape.iter().filter(|(role, _)| *role == Role::Assistant).count();
        assert_eq!((said, end.text.as_str()), (4, "step 3"));
        assert!(worker.succeed(&claimed).await);
        let all = journaled(pool, &claimed.job).await;
        assert_eq!(all.len() as u64, u64::from(STEPS * (CALLS + 1) + 1));
        assert!(all.values().all(|count| *count == 1), "{all:?}");
        // Nobody keeps books here, so what is metered is what attempts found in the journal.
        let (answers, metered): (i64, i64) = sqlx::query_as(
            "select (select count(*) from journal where job_id = $1 and place < 0 and attempt < $2),
                (select count(*) from usage where job_id = $1 and attempt < $2 and model = 'x' and estimated)",
        )
        .bind(job.id)
        .bind(i32::try_from(claimed.job.attempt).unwrap())
        .fetch_one(pool)
        .await
        .unwrap();
        assert_eq!(answers, metered, "what a journaled answer used is written down");
        let again = after.values().map(|count| count - 1).sum();
        // A crash may come before the beginning of a call was written: then nobody can know.
        assert!(reported <= again, "{reported} {again}");
        return (crashes, again);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_call_that_failed_is_not_one_whose_end_nobody_knows(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job: NewJob = env.job(JobSpec::new(Kind::AgentRun), b"{}".to_vec());
    env.enqueue(&job).await;
    let worker = env.worker();
    let kept = kept(&env, &worker.one().await, worker.id);
    let unfinished = async || env.store.unfinished_calls(job.id, 1, 2).await.unwrap();
    let key = CallKey {
        step: 1,
        place: None,
        parent: Some(1),
    };
    kept.begin(key).await;
    assert_eq!(unfinished().await.model, 1);
    let end = attempt(&kept, &Arc::default(), "nobody/x", usize::MAX).await.unwrap();
    assert!(
        matches!(end.stop, Stop::Model(Error::UnknownProvider { .. })),
        "{end:?}"
    );
    assert_eq!(
        unfinished().await.model,
        1,
        "the first step's failed, the second's did not"
    );
}

#[expect(clippy::print_stdout, reason = "how much was made again is what one runs it for")]
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn no_call_in_the_journal_is_made_again_wherever_a_worker_dies(pool: PgPool) {
    let wanted = std::env::vars().find(|(name, _)| name == "HOTHOUSE_CRASH_POINTS");
    let wanted: u64 = wanted.map_or(300, |(_, count)| count.parse().unwrap());
    let env = TestEnv::new(pool.clone()).await;
    let mut random = StdRng::seed_from_u64(wanted);
    let (mut crashes, mut again) = (0, 0);
    while crashes < wanted {
        let (crashed, repeated) = crash(&env, &pool, &mut random).await;
        crashes += crashed;
        again += repeated;
    }
    assert!(
        again > 0 && again < crashes * u64::from(CALLS + 1),
        "{again} of {crashes}"
    );
    println!("{crashes} crashes, {again} calls made again");
}
