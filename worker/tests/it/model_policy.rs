//! What all calls share, on real services: pauses, circuits, limits, budgets, and the facts that are left.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::time::Duration;

use assert_matches::assert_matches;
use chrono::TimeDelta;
use common::agent::Budget;
use common::clock::Clock;
use common::job::Job;
use common::message::{Message, Usage};
use common::money::Usd;
use common::queue::{CallReport, Obstacle};
use common::store::budgets::{Amounts, Window, WindowBudget};
use common::store::subjects::Subject;
use common::testing::{TestEnv, eventually};
use futures_util::StreamExt;
use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::model::books::Books;
use worker::model::ledger::Size;
use worker::model::scripted::Scripted;
use worker::model::scripted::frame::Frame;
use worker::model::scripted::script::Script;
use worker::model::server::ServerSettings;
use worker::model::{Answer, Caller, Error, ModelName, ModelRequest, Policy, RetryPolicy, Settings, open};

use crate::model_server::{Canned, ModelServer};

const LIMITED: &str = r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}"#;
const OVERLOADED: &str = r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#;

/// Several workers before one server.
struct World {
    env: TestEnv,
    server: ModelServer,
    settings: Settings,
    job: Job,
}

impl World {
    async fn new(pool: PgPool, change: impl FnOnce(&mut ServerSettings)) -> Self {
        let priced = json!({"rules": [{"reply": [
            {"usage": {"input_tokens": 1000, "output_tokens": 100}}, {"text": "a dear answer"}]}]});
        let priced: Script = serde_json::from_value(priced).unwrap();
        let within = json!({"rules": [{"reply": [
            {"usage": {"input_tokens": 1000, "output_tokens": 16}}, {"text": "a short answer"}]}]});
        let within: Script = serde_json::from_value(within).unwrap();
        let scripts = Scripted::built_in().with("priced", priced).with("within", within);
        let server = ModelServer::start(scripts).await;
        let mut anthropic = server.settings();
        change(&mut anthropic);
        let settings = Settings {
            anthropic,
            openai: server.settings(),
            retry: RetryPolicy {
                retries_max: 0,
                retry_after_max: Duration::from_secs(3),
                ..RetryPolicy::default()
            },
            ..Settings::default()
        };
        let env = TestEnv::new(pool).await;
        let job = env.noop();
        env.insert(&job).await;
        let job = env.row(job.id).await;
        Self {
            env,
            server,
            settings,
            job,
        }
    }

    /// Another worker's caller, for an attempt with this budget.
    async fn caller(&self, budget: Budget) -> Caller {
        let books = Books::open(&self.settings, self.env.store.clone()).unwrap();
        Caller {
            providers: self.settings.providers().unwrap(),
            policy: Policy::shared(self.settings.retry.clone(), self.env.queue.clone()),
            ledger: books.ledger(&self.job, &budget, &Clock::system()).await.unwrap(),
        }
    }

    async fn spent(&self) -> common::store::usage::Totals {
        let mut all = self.env.store.usage_of_jobs(&[self.job.id]).await.unwrap();
        all.remove(&self.job.id).unwrap_or_default()
    }
}

/// Calls until somebody answers, and takes the whole answer.
async fn call(caller: &Caller, models: &[&str]) -> Result<Usage, Error> {
    call_with(caller, models, "hi").await
}

/// A call of a model that uses no more than it was given: a token for each byte that it reads, and as many as any call may
/// write. The others use what their script says, however little was held for them.
async fn call_within(caller: &Caller) -> Result<Usage, Error> {
    call_with(caller, &["anthropic/within"], &"x".repeat(1_000)).await
}

async fn call_with(caller: &Caller, models: &[&str], text: &str) -> Result<Usage, Error> {
    let models: Vec<ModelName> = models.iter().map(|name| name.parse().unwrap()).collect();
    let request = ModelRequest::of(vec![Message::user(text, chrono::DateTime::UNIX_EPOCH)], 500);
    let cancel = CancellationToken::new();
    let mut opened = open(caller, &models, &request, &mut |_| {}, &cancel).await?;
    let mut answer = Answer::new("any");
    while let Some(event) = opened.stream.next().await {
        answer.push(event?);
    }
    let usage = answer.finish().usage;
    opened.call.end(None, usage);
    Ok(usage)
}

fn prices(world: &mut World, rows: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rows).unwrap();
    world.settings.prices = Some(file.path().to_owned());
    file
}

/// 1,000 tokens in and 100 out are 0.004 dollars.
const PRICE: &str = "[[price]]\nmodel = \"anthropic/priced\"\nfrom = \"2026-01-01\"\ninput = \"3\"\noutput = \"10\"\n";

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_workers_retry_after_is_every_workers_pause(pool: PgPool) {
    let world = World::new(pool, |_| {}).await;
    let (one, other) = (
        world.caller(Budget::default()).await,
        world.caller(Budget::default()).await,
    );
    world.server.then(Canned::whole(429, &[("retry-after", "60")], LIMITED));
    assert_matches!(call(&one, &["anthropic/demo"]).await, Err(Error::Refused(_)));
    let held = eventually(Duration::from_secs(5), "the pause is known", async || {
        let error = call(&other, &["anthropic/demo"]).await.err()?;
        matches!(
            error,
            Error::Held {
                by: Obstacle::Pause,
                ..
            }
        )
        .then_some(error)
    })
    .await;
    assert!(held.wait().unwrap() > Duration::from_secs(50), "{held}");
    let asked = world.server.requests().len();
    assert!(
        call(&other, &["anthropic/demo", "openai/demo"]).await.is_ok(),
        "another account answers"
    );
    assert_eq!(world.server.requests().len(), asked + 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_circuit_that_opened_is_open_for_all_and_for_that_model_alone(pool: PgPool) {
    let world = World::new(pool, |_| {}).await;
    let (one, other) = (
        world.caller(Budget::default()).await,
        world.caller(Budget::default()).await,
    );
    for _ in 0..5 {
        world.server.then(Canned::whole(529, &[], OVERLOADED));
        assert_matches!(call(&one, &["anthropic/demo"]).await, Err(Error::Refused(_)));
    }
    let model: ModelName = "anthropic/demo".parse().unwrap();
    let account = other.providers.of(&model).unwrap().account().clone();
    // Asking alone: a call that was answered meanwhile would speak for the provider.
    let held = eventually(Duration::from_secs(5), "the circuit is open", async || {
        other.policy.admit(&account, model.model(), 1).await.err()
    })
    .await;
    assert_matches!(
        held,
        Error::Held {
            by: Obstacle::Circuit,
            ..
        }
    );
    assert_matches!(call(&other, &["anthropic/demo"]).await, Err(Error::Held { .. }));
    assert!(call(&other, &["anthropic/priced"]).await.is_ok());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn no_more_calls_than_allowed_are_under_way_and_all_have_their_turn(pool: PgPool) {
    let world = World::new(pool, |settings| settings.calls_max = 2).await;
    let caller = world.caller(Budget::default()).await;
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let caller = caller.clone();
        calls.spawn(async move { call(&caller, &["anthropic/demo"]).await.map(|_| ()) });
    }
    for called in calls.join_all().await {
        called.unwrap();
    }
    assert_eq!(world.server.requests().len(), 8);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_thousand_calls_at_once_do_not_overrun_a_budget_and_every_fact_is_there(pool: PgPool) {
    let mut world = World::new(pool, |_| {}).await;
    let _prices = prices(&mut world, &PRICE.replace("priced", "within"));
    let budget = Budget {
        max_cost_usd: Some("0.5".to_owned()),
        max_output_tokens: None,
    };
    let caller = world.caller(budget.clone()).await;
    let mut calls = JoinSet::new();
    for _ in 0..1_000 {
        let caller = caller.clone();
        calls.spawn(async move { call_within(&caller).await });
    }
    let (mut answered, mut refused) = (0_u64, 0_u64);
    for called in calls.join_all().await {
        match called {
            Ok(_) => answered += 1,
            Err(Error::Budget { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    let spent = caller.ledger.end().await;
    let facts = world.spent().await;
    let limit: Usd = "0.5".parse().unwrap();
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");
    assert_eq!((facts.calls, facts.cost), (answered, spent.cost));
    assert!(facts.cost <= limit, "{}", facts.cost);
    assert_eq!(facts.input_tokens, world.server.reported().input_tokens);
    assert_eq!(facts.output_tokens, world.server.reported().output_tokens);

    // What is left is used up to the last call that fits, by another attempt too.
    world.job.attempt += 1;
    let later = world.caller(budget).await;
    let mut more = 0_u64;
    let error = loop {
        match call_within(&later).await {
            Ok(_) => more += 1,
            Err(error) => break error,
        }
    };
    later.ledger.end().await;
    assert_eq!(error.failure().code.as_str(), "budget_exceeded");
    assert!(error.to_string().contains("US dollars are left"), "{error}");
    let facts = world.spent().await;
    assert_eq!(facts.calls, answered + more);
    assert!(facts.cost <= limit, "{}", facts.cost);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_tenants_budget_holds_over_all_of_its_jobs(pool: PgPool) {
    let mut world = World::new(pool, |_| {}).await;
    let _prices = prices(&mut world, PRICE);
    let tenant = common::store::tenants::Tenant {
        id: world.job.tenant_id,
        name: "spender".to_owned(),
        weight: 1,
        priority_max: 9,
        max_running: None,
        rate: None,
        run_rate: None,
        paused_at: None,
        created_at: chrono::DateTime::UNIX_EPOCH,
    };
    world.env.store.insert_tenant(&tenant).await.unwrap();
    let budget = WindowBudget {
        amounts: Amounts {
            cost: None,
            output_tokens: Some(1_000),
        },
        window: Window::Month,
    };
    assert!(
        world
            .env
            .store
            .set_tenant_budget(tenant.id, Some(budget))
            .await
            .unwrap()
    );
    let (one, other) = (
        world.caller(Budget::default()).await,
        world.caller(Budget::default()).await,
    );
    let mut calls = JoinSet::new();
    for n in 0..100 {
        let caller = if n % 2 == 0 { one.clone() } else { other.clone() };
        calls.spawn(async move { call(&caller, &["anthropic/priced"]).await });
    }
    let answered = calls.join_all().await.into_iter().flatten().count();
    one.ledger.end().await;
    other.ledger.end().await;
    assert!(answered > 0);
    assert!(world.spent().await.output_tokens <= 1_000);
}

impl World {
    /// Sets what the user `ann` may have written in all, or nothing of that kind.
    async fn set(&self, output_tokens: Option<u64>) {
        let budget = output_tokens.map(|output_tokens| WindowBudget {
            amounts: Amounts {
                cost: None,
                output_tokens: Some(output_tokens),
            },
            window: Window::Total,
        });
        let ann = Subject::User("ann".to_owned());
        let tenant_id = self.job.tenant_id;
        self.env
            .store
            .set_subject_budget(tenant_id, &ann, budget)
            .await
            .unwrap();
    }

    /// One call of another attempt, whose worker has not heard of anything yet, to its end.
    async fn attempt(&mut self) -> Result<Usage, Error> {
        self.job.attempt += 1;
        let caller = self.caller(Budget::default()).await;
        let called = call(&caller, &["anthropic/priced"]).await;
        caller.ledger.end().await;
        called
    }
}

/// What the answers of this model have.
const TOKENS: u64 = 100;

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn calls_count_that_were_made_while_their_budget_was_not_set(pool: PgPool) {
    let mut world = World::new(pool, |_| {}).await;
    world.job.user_id = Some("ann".to_owned());
    world.set(Some(1_000_000)).await;
    world.attempt().await.unwrap();
    world.set(None).await;
    for _ in 0..4 {
        world.attempt().await.unwrap();
    }
    world.set(Some(5 * TOKENS)).await;
    assert_matches!(world.attempt().await, Err(Error::Budget { .. }));
    world.set(Some(6 * TOKENS)).await;
    world.attempt().await.unwrap();
    assert_matches!(world.attempt().await, Err(Error::Budget { .. }));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_call_counts_that_began_before_its_budget_was_set_and_its_attempt_keeps_to_that(pool: PgPool) {
    let mut world = World::new(pool, |_| {}).await;
    world.job.user_id = Some("ann".to_owned());
    let earlier = world.caller(Budget::default()).await;
    let request = ModelRequest::of(vec![Message::user("hi", chrono::DateTime::UNIX_EPOCH)], 500);
    let models: Vec<ModelName> = vec!["anthropic/priced".parse().unwrap()];
    let cancel = CancellationToken::new();
    let opened = open(&earlier, &models, &request, &mut |_| {}, &cancel).await.unwrap();
    world.set(Some(7 * TOKENS)).await;
    world.attempt().await.unwrap();
    let usage = Usage {
        output_tokens: 6 * TOKENS,
        ..Usage::default()
    };
    opened.call.end(None, usage);
    earlier.ledger.end().await;
    assert_matches!(world.attempt().await, Err(Error::Budget { .. }));
    // The attempt that began without a budget hears of it.
    eventually(Duration::from_secs(10), "a change is kept to", async || {
        let called = call(&earlier, &["anthropic/priced"]).await;
        matches!(called, Err(Error::Budget { .. })).then_some(())
    })
    .await;
}

/// How many holds there are.
async fn holds(pool: &PgPool) -> i64 {
    let count = sqlx::query_scalar("select count(*) from budget_holds");
    count.fetch_one(pool).await.unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_call_that_is_left_before_it_is_made_costs_nothing_and_holds_nothing(pool: PgPool) {
    let world = World::new(pool.clone(), |_| {}).await;
    let limited = Budget {
        max_cost_usd: None,
        max_output_tokens: Some(1_000),
    };
    let caller = world.caller(limited).await;
    let model: ModelName = "anthropic/priced".parse().unwrap();
    let size = Size {
        input_bytes: 4_000,
        output_tokens_max: 500,
        shrinks: true,
    };
    let entry = caller.ledger.open(&model, size).await.unwrap();
    assert_eq!(holds(&pool).await, 1);
    drop(entry);
    caller.ledger.end().await;
    assert_eq!(holds(&pool).await, 0);

    // Somebody else is at the budget meanwhile.
    let mut other = pool.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('budget:' || $1::text, 0))")
        .bind(world.job.id)
        .execute(&mut *other)
        .await
        .unwrap();
    let cancel = CancellationToken::new();
    let asked = async {
        let request = ModelRequest::of(vec![Message::user("hi", chrono::DateTime::UNIX_EPOCH)], 500);
        let opened = open(&caller, &[model], &request, &mut |_| {}, &cancel).await;
        opened.map(|_| ())
    };
    let left = async {
        eventually(Duration::from_secs(10), "the call waits for its budget", async || {
            let sql = "select count(*) from pg_locks where locktype = 'advisory' and not granted
                and database = (select oid from pg_database where datname = current_database())";
            let waits: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
            (waits > 0).then_some(())
        })
        .await;
        cancel.cancel();
    };
    let (asked, ()) = tokio::join!(asked, left);
    assert_matches!(asked, Err(Error::Cancelled));
    other.rollback().await.unwrap();
    caller.ledger.end().await;
    assert_eq!(world.spent().await.calls, 0);
    assert!(world.server.requests().is_empty());
    let nothing = async || (holds(&pool).await == 0).then_some(());
    eventually(Duration::from_secs(10), "nothing is held", nothing).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_call_that_its_budget_refuses_leaves_the_account_as_it_was(pool: PgPool) {
    let mut world = World::new(pool, |settings| settings.tokens_per_minute = 5).await;
    world.settings.retry.retry_after_max = Duration::ZERO;
    let caller = world.caller(Budget::default()).await;
    let spent = Budget {
        max_cost_usd: None,
        max_output_tokens: Some(0),
    };
    world.job.attempt += 1;
    let spent = world.caller(spent).await;
    let model: ModelName = "anthropic/demo".parse().unwrap();
    let account = caller.providers.of(&model).unwrap().account().clone();
    // Its minute is all of the account's, and is another's after it.
    assert_matches!(call(&spent, &["anthropic/demo"]).await, Err(Error::Budget { .. }));
    let is_free = async || caller.policy.admit(&account, model.model(), 5).await.ok();
    let pass = eventually(Duration::from_secs(5), "the tokens are there again", is_free).await;
    drop(pass);

    // The trial of a circuit, too.
    for _ in 0..5 {
        let report = CallReport {
            account: account.name.clone(),
            model: "demo".to_owned(),
            call: uuid::Uuid::now_v7(),
            is_good: Some(false),
            pause: None,
            more_tokens: 0,
            trial: None,
        };
        world.env.queue.report_call(&report).await.unwrap();
    }
    let closed = caller.policy.admit(&account, "demo", 1).await;
    assert_matches!(
        closed.map(drop),
        Err(Error::Held {
            by: Obstacle::Circuit,
            ..
        })
    );
    world.env.queue.set_clock_offset(TimeDelta::seconds(16));
    assert_matches!(call(&spent, &["anthropic/demo"]).await, Err(Error::Budget { .. }));
    let is_tried = async || call(&caller, &["anthropic/demo"]).await.ok();
    eventually(Duration::from_secs(5), "another call tries it", is_tried).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_call_whose_answer_never_came_is_a_fact_and_one_that_was_refused_is_none(pool: PgPool) {
    let world = World::new(pool.clone(), |settings| {
        settings.first_byte_timeout = Duration::from_millis(200);
    })
    .await;
    let limited = Budget {
        max_cost_usd: None,
        max_output_tokens: Some(100_000),
    };
    let caller = world.caller(limited).await;
    world.server.then(Canned::whole(529, &[], OVERLOADED));
    assert_matches!(call(&caller, &["anthropic/demo"]).await, Err(Error::Refused(_)));
    caller.ledger.end().await;
    assert_eq!(world.spent().await.calls, 0);
    for (frame, calls) in [(Frame::Stall, 1), (Frame::Cut, 2)] {
        world.server.then(Canned::stream(vec![frame]));
        let called = call(&caller, &["anthropic/demo"]).await;
        assert_matches!(called, Err(Error::Timeout { .. } | Error::Cut(_)));
        caller.ledger.end().await;
        let facts = world.spent().await;
        assert_eq!((facts.calls, facts.estimated_calls), (calls, calls));
        assert!(facts.input_tokens > 0 && facts.output_tokens == 0, "{facts:?}");
    }
    assert_eq!(holds(&pool).await, 0);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_budget_in_dollars_refuses_what_has_no_price_and_asks_the_next_model(pool: PgPool) {
    let mut world = World::new(pool, |_| {}).await;
    let _prices = prices(&mut world, PRICE);
    let caller = world
        .caller(Budget {
            max_cost_usd: Some("1".to_owned()),
            max_output_tokens: None,
        })
        .await;
    let error = call(&caller, &["openai/unknown"]).await.unwrap_err();
    assert_matches!(&error, Error::Unpriced { .. });
    assert!(call(&caller, &["openai/unknown", "anthropic/priced"]).await.is_ok());
    caller.ledger.end().await;
    let facts = world.spent().await;
    assert_eq!((facts.calls, facts.unpriced_calls), (1, 0));

    let free = world.caller(Budget::default()).await;
    call(&free, &["openai/demo"]).await.unwrap();
    free.ledger.end().await;
    let facts = world.spent().await;
    assert_eq!(
        (facts.calls, facts.unpriced_calls),
        (1, 0),
        "the same number of the same attempt is the same call"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_call_that_is_left_is_a_fact_with_an_estimate(pool: PgPool) {
    let world = World::new(pool, |_| {}).await;
    let caller = world.caller(Budget::default()).await;
    let request = ModelRequest::of(vec![Message::user("hi", chrono::DateTime::UNIX_EPOCH)], 500);
    let models: Vec<ModelName> = vec!["anthropic/demo".parse().unwrap()];
    let cancel = CancellationToken::new();
    let opened = open(&caller, &models, &request, &mut |_| {}, &cancel).await.unwrap();
    drop(opened);
    let caller = Arc::new(caller);
    caller.ledger.end().await;
    let facts = world.spent().await;
    assert_eq!((facts.calls, facts.estimated_calls), (1, 1));
    assert!(facts.input_tokens > 0);
}

#[tokio::test]
async fn redis_away_every_call_is_admitted() {
    let server = ModelServer::demo().await;
    let settings = Settings {
        anthropic: server.settings(),
        ..Settings::default()
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let redis = common::config::Redis {
        url: common::config::Secret::from(format!("redis://{closed}/")),
        ..common::testing::redis_section()
    };
    let queue = common::queue::Queue::open(&redis, &common::testing::leases()).unwrap();
    let alone = Caller::alone(settings.providers().unwrap(), RetryPolicy::default(), Clock::system()).unwrap();
    let caller = Caller {
        policy: Policy::shared(RetryPolicy::default(), queue),
        ..alone
    };
    for _ in 0..3 {
        assert!(call(&caller, &["anthropic/demo"]).await.is_ok());
    }
}
