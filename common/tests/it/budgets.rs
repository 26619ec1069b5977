//! Budgets and the facts that they are reckoned from.

use chrono::{DateTime, Duration, Utc};
use common::ids::{AgentId, ConversationId};
use common::job::Job;
use common::message::Usage;
use common::money::Usd;
use common::store::Store;
use common::store::budgets::{Amounts, Budgets, Hold, SubjectBudget, Window, WindowBudget};
use common::store::subjects::Subject;
use common::store::usage::{By, Call};
use common::testing::TestEnv;
use sqlx::PgPool;
use tokio::task::JoinSet;
use uuid::Uuid;

fn usd(text: &str) -> Usd {
    text.parse().unwrap()
}

fn dollars(text: &str) -> Amounts {
    Amounts {
        cost: Some(usd(text)),
        output_tokens: None,
    }
}

fn of_job(amounts: Amounts) -> Budgets {
    Budgets {
        job: amounts,
        subjects: Vec::new(),
    }
}

fn of(subject: Subject, amounts: Amounts) -> SubjectBudget {
    let window = Window::Month;
    SubjectBudget {
        subject,
        budget: WindowBudget { amounts, window },
    }
}

fn of_tenant(amounts: Amounts) -> Budgets {
    Budgets {
        job: Amounts::default(),
        subjects: vec![of(Subject::Tenant, amounts)],
    }
}

/// Holds so much, if it is left.
async fn hold(store: &Store, job: &Job, budgets: &Budgets, cost: &str, now: DateTime<Utc>) -> Result<Hold, Amounts> {
    let cost = usd(cost);
    let wanted = Hold {
        id: Uuid::now_v7(),
        cost,
        output_tokens: 10,
    };
    let fit = |left: Amounts| {
        let fits = left.cost.is_none_or(|left| left >= cost) && left.output_tokens.is_none_or(|left| left >= 10);
        fits.then_some(wanted)
    };
    store.hold_budget(job, budgets, now, fit).await.unwrap()
}

fn used(call: u32, cost: &str, hold: Option<&Hold>, at: DateTime<Utc>) -> Call {
    Call {
        call,
        provider: "anthropic".to_owned(),
        model: "claude-x".to_owned(),
        usage: Usage {
            input_tokens: 100,
            cached_input_tokens: 40,
            cache_write_short_tokens: 20,
            cache_write_long_tokens: 10,
            output_tokens: 7,
            reasoning_tokens: 3,
            estimated: false,
        },
        cost: Some(usd(cost)),
        price: Some("{}".to_owned()),
        at,
        hold: hold.map(|hold| hold.id),
    }
}

async fn job(env: &TestEnv) -> Job {
    let job = env.noop();
    env.insert(&job).await;
    env.row(job.id).await
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_thousand_calls_at_once_never_hold_more_than_there_is(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (job, now) = (job(&env).await, env.clock.now());
    for budgets in [of_job(dollars("1")), of_tenant(dollars("1"))] {
        let mut asking = JoinSet::new();
        for _ in 0..1_000 {
            let (store, job, budgets) = (env.store.clone(), job.clone(), budgets.clone());
            asking.spawn(async move { hold(&store, &job, &budgets, "0.03", now).await });
        }
        let held: Vec<Hold> = asking.join_all().await.into_iter().flatten().collect();
        assert_eq!(held.len(), 33);
        for hold in held {
            env.store.release_budget(hold.id).await.unwrap();
        }
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_was_used_takes_the_place_of_what_was_held(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (job, now) = (job(&env).await, env.clock.now());
    for (number, budgets) in [of_job(dollars("1")), of_tenant(dollars("1.2"))]
        .into_iter()
        .enumerate()
    {
        let number = u32::try_from(number).unwrap();
        let first = hold(&env.store, &job, &budgets, "0.9", now).await.unwrap();
        let left = hold(&env.store, &job, &budgets, "0.9", now).await.unwrap_err();
        assert_eq!(left.cost, Some(usd("0.1")));
        let call = used(number, "0.2", Some(&first), now);
        env.store.insert_usage(&job, &call).await.unwrap();
        env.store.insert_usage(&job, &call).await.unwrap();
        let left = hold(&env.store, &job, &budgets, "2", now).await.unwrap_err();
        assert_eq!(left.cost, Some(usd("0.8")), "a repeated fact is one fact");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_window_counts_what_was_spent_before_the_budget_was_set_and_not_what_was_before_it(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (job, now) = (job(&env).await, env.clock.now());
    env.store.insert_usage(&job, &used(0, "0.25", None, now)).await.unwrap();
    env.store
        .insert_usage(&job, &used(1, "5", None, now - Duration::days(40)))
        .await
        .unwrap();
    let left = hold(&env.store, &job, &of_tenant(dollars("1")), "2", now)
        .await
        .unwrap_err();
    assert_eq!(left.cost, Some(usd("0.75")));
    let next_month = now + Duration::days(32);
    let left = hold(&env.store, &job, &of_tenant(dollars("1")), "2", next_month).await;
    assert_eq!(left.unwrap_err().cost, Some(usd("1")));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_is_used_is_charged_whether_or_not_there_is_a_budget_at_that_moment(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (mut job, now) = (job(&env).await, env.clock.now());
    job.user_id = Some("ann".to_owned());
    job.agent_id = Some(AgentId::new());
    job.conversation_id = Some(ConversationId::new());
    let subjects = [
        Subject::Tenant,
        Subject::Agent(job.agent_id.unwrap()),
        Subject::Conversation(job.conversation_id.unwrap()),
        Subject::User("ann".to_owned()),
        Subject::Model("anthropic/claude-x".to_owned()),
    ];
    for (subject, number) in subjects.into_iter().zip(0_u32..) {
        let one = Budgets {
            job: Amounts::default(),
            subjects: vec![of(subject.clone(), dollars("100"))],
        };
        // Somebody looks while it is set; then it is removed, or the next call began before it was set.
        let before = hold(&env.store, &job, &one, "1000", now).await.unwrap_err();
        env.store
            .insert_usage(&job, &used(number, "2", None, now))
            .await
            .unwrap();
        let after = hold(&env.store, &job, &one, "1000", now).await.unwrap_err();
        let spent = (before.cost, after.cost);
        let expected = |calls: u32| Some(usd(&(100 - 2 * calls).to_string()));
        assert_eq!(spent, (expected(number), expected(number + 1)), "{subject}");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_budget_that_was_of_a_day_counts_its_whole_month(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mut job = job(&env).await;
    job.user_id = Some("ann".to_owned());
    let mine = |window| Budgets {
        job: Amounts::default(),
        subjects: vec![SubjectBudget {
            subject: Subject::User("ann".to_owned()),
            budget: WindowBudget {
                amounts: dollars("10"),
                window,
            },
        }],
    };
    let first: DateTime<Utc> = "2026-12-01T12:00:00Z".parse().unwrap();
    let (of_day, of_month, of_all) = (mine(Window::Day), mine(Window::Month), mine(Window::Total));
    for (number, days, left) in [
        (0, 0, ["9", "9", "9"]),
        (1, 1, ["9", "8", "8"]),
        (2, 40, ["9", "9", "7"]),
    ] {
        let now = first + Duration::days(days);
        // The day is looked at first: on the first of a month its window begins with the month's.
        hold(&env.store, &job, &of_day, "100", now).await.unwrap_err();
        env.store
            .insert_usage(&job, &used(number, "1", None, now))
            .await
            .unwrap();
        for (budgets, left) in [&of_day, &of_month, &of_all].into_iter().zip(left) {
            let is = hold(&env.store, &job, budgets, "100", now).await.unwrap_err();
            assert_eq!(is.cost, Some(usd(left)), "{budgets:?} after {days} days");
        }
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_window_that_begins_amid_calls_counts_each_of_them_once(pool: PgPool) {
    const CALLS: u32 = 300;
    let env = TestEnv::new(pool).await;
    let (job, now) = (job(&env).await, env.clock.now());
    let mut budgets = of_tenant(dollars("1000"));
    budgets.subjects[0].budget.window = Window::Total;
    let old = used(CALLS, "100", None, now - Duration::days(400));
    env.store.insert_usage(&job, &old).await.unwrap();
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        let (store, job, budgets) = (env.store.clone(), job.clone(), budgets.clone());
        calls.spawn(async move {
            store.insert_usage(&job, &used(number, "1", None, now)).await.unwrap();
            if number % 100 == 50 {
                hold(&store, &job, &budgets, "5000", now).await.unwrap_err();
            }
        });
    }
    calls.join_all().await;
    let left = hold(&env.store, &job, &budgets, "5000", now).await.unwrap_err();
    assert_eq!(left.cost, Some(usd("600")));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_hold_ends_by_its_time_and_one_of_an_earlier_attempt_counts_no_more(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (mut job, now) = (job(&env).await, env.clock.now());
    let budgets = of_job(dollars("1"));
    job.attempt = 1;
    hold(&env.store, &job, &budgets, "1", now).await.unwrap();
    assert!(hold(&env.store, &job, &budgets, "1", now).await.is_err());
    job.attempt = 2;
    hold(&env.store, &job, &budgets, "1", now).await.unwrap();
    assert!(hold(&env.store, &job, &budgets, "1", now).await.is_err());
    let later = now + Duration::hours(2);
    hold(&env.store, &job, &budgets, "1", later).await.unwrap();
    assert_eq!(env.store.delete_budget_holds(later, 100).await.unwrap(), 2);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_smallest_of_all_budgets_decides_and_each_counts_its_own_calls(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (mut mine, now) = (job(&env).await, env.clock.now());
    mine.user_id = Some("u".to_owned());
    mine.agent_id = Some(AgentId::new());
    mine.conversation_id = Some(ConversationId::new());
    let agent = Subject::Agent(mine.agent_id.unwrap());
    let subjects = [
        (Subject::Tenant, "9"),
        (agent.clone(), "3"),
        (Subject::Conversation(mine.conversation_id.unwrap()), "2"),
        (Subject::User("u".to_owned()), "4"),
        (Subject::Model("anthropic/claude-x".to_owned()), "5"),
    ];
    for (subject, amount) in &subjects[1..] {
        let budget = of(subject.clone(), dollars(amount)).budget;
        env.store
            .set_subject_budget(mine.tenant_id, subject, Some(budget))
            .await
            .unwrap();
    }
    let mut budgets = Budgets {
        job: Amounts::default(),
        subjects: env.store.subject_budgets_of(&mine).await.unwrap(),
    };
    assert_eq!(budgets.subjects.len(), 4);
    budgets.subjects.push(of(Subject::Tenant, dollars(subjects[0].1)));

    // What was used before anybody looked counts too, and what is held while it is under way.
    env.store.insert_usage(&mine, &used(0, "0.5", None, now)).await.unwrap();
    let held = hold(&env.store, &mine, &budgets, "1", now).await.unwrap();
    let left = hold(&env.store, &mine, &budgets, "1", now).await.unwrap_err();
    assert_eq!(left.cost, Some(usd("0.5")), "of the conversation");
    let call = used(1, "0.25", Some(&held), now);
    env.store.insert_usage(&mine, &call).await.unwrap();
    let left = hold(&env.store, &mine, &budgets, "10", now).await.unwrap_err();
    assert_eq!(left.cost, Some(usd("1.25")));

    // A job of the same agent elsewhere finds what is left of the agent's.
    let mut other = job(&env).await;
    other.agent_id = mine.agent_id;
    let budgets = Budgets {
        subjects: env.store.subject_budgets_of(&other).await.unwrap(),
        ..Budgets::default()
    };
    let left = hold(&env.store, &other, &budgets.for_model("openai/y"), "10", now).await;
    assert_eq!(
        left.unwrap_err().cost,
        Some(usd("2.25")),
        "of the agent, and no model's"
    );
    let spent = env
        .store
        .spent(
            mine.tenant_id,
            &[
                (agent.clone(), Window::Month.began_on(now)),
                (Subject::User("nobody".to_owned()), Window::Total.began_on(now)),
                (agent.clone(), Window::Total.began_on(now)),
            ],
        )
        .await;
    let of_agent = (usd("0.75"), 14);
    assert_eq!(spent.unwrap(), [of_agent, (usd("0"), 0), of_agent]);
    assert!(
        env.store
            .set_subject_budget(mine.tenant_id, &agent, None)
            .await
            .unwrap()
    );
    assert!(
        !env.store
            .set_subject_budget(mine.tenant_id, &agent, None)
            .await
            .unwrap()
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn usage_adds_up_by_everything_that_is_asked(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (job, now) = (job(&env).await, env.clock.now());
    let unpriced = Call {
        cost: None,
        price: None,
        model: "nobody-knows".to_owned(),
        ..used(1, "0", None, now)
    };
    env.store.insert_usage(&job, &used(0, "0.5", None, now)).await.unwrap();
    env.store.insert_usage(&job, &unpriced).await.unwrap();
    let times = (now - Duration::hours(1), now + Duration::hours(1));
    let by = |by| env.store.usage_by(Some(job.tenant_id), times, by);
    let models = by(By::Model).await.unwrap();
    let keys: Vec<_> = models.iter().filter_map(|(key, _)| key.as_deref()).collect();
    assert_eq!(keys, ["anthropic/claude-x", "anthropic/nobody-knows"]);
    for one in [By::Tenant, By::User, By::Agent, By::Day] {
        let groups = by(one).await.unwrap();
        assert_eq!(groups.len(), 1, "{one:?}");
        let total = &groups[0].1;
        assert_eq!((total.calls, total.unpriced_calls, total.estimated_calls), (2, 1, 0));
        assert_eq!(
            (total.input_tokens, total.cached_input_tokens, total.cache_write_tokens),
            (200, 80, 60)
        );
        assert_eq!(
            (total.output_tokens, total.reasoning_tokens, total.cost),
            (14, 6, usd("0.5"))
        );
    }
    assert_eq!(env.store.usage_by(None, (now, now), By::Day).await.unwrap(), []);
    let of_jobs = env.store.usage_of_jobs(&[job.id]).await.unwrap();
    assert_eq!(of_jobs[&job.id].calls, 2);
}
