//! What schedules do beyond being due: overlap, limits, failures, templates, turns, backfills.

use std::time::Duration;

use assert_matches::assert_matches;
use chrono::{DateTime, TimeDelta, Utc};
use common::agent::AgentDefinition;
use common::ids::{ConversationId, JobId};
use common::job::decision::Decision;
use common::job::spec::JobSpec;
use common::job::{Failure, FailureCode, Kind};
use common::queue::Dispatch;
use common::schedule::{Form, Overlap, Schedule};
use common::store::conversations::Conversation;
use common::store::fire::{Backfilled, Fired, Limits};
use common::store::leaders::Leadership;
use common::testing::TestWorker;
use serde_json::json;
use serde_json::value::to_raw_value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::fixture::{Fixture, limits};

/// Fires what is due so many hours from now, and dispatches it.
async fn fire_in(fixture: &Fixture, leader: &Leadership, hours: i64) -> Fired {
    fixture.env.store.set_clock_offset(TimeDelta::hours(hours));
    let limits = Limits {
        grace: Duration::from_hours(2),
        ..limits()
    };
    let fired = fixture.env.store.fire_due(leader, limits).await.unwrap();
    let dispatches: Vec<Dispatch> = fired.jobs.iter().map(Dispatch::from_new).collect();
    fixture.env.queue.dispatch(&dispatches).await.unwrap();
    fired
}

/// Ends the only job that can be claimed.
async fn end(worker: &TestWorker, decision: Decision, result: Option<&str>) -> JobId {
    let claimed = worker.one().await;
    let mut settlement = worker.settlement(&claimed, decision, &[]);
    settlement.result = result.map(|json| json.as_bytes().to_vec());
    assert!(worker.commit(&settlement).await);
    worker.ack(&claimed, &settlement).await;
    claimed.job.id
}

fn failed() -> Decision {
    Decision::Fail(Failure::new(FailureCode::NonzeroExit, "exit code 1"))
}

async fn saved(fixture: &Fixture, schedule: &Schedule) -> Schedule {
    let found = fixture
        .env
        .store
        .schedule(schedule.tenant_id, schedule.id)
        .await
        .unwrap();
    found.unwrap().0
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn queue_lets_one_job_run_and_one_wait(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let (leader, worker) = (fixture.elect().await, fixture.env.worker());
    let schedule = fixture.due(Overlap::Queue).await;
    for hours in 0..4 {
        fire_in(&fixture, &leader, hours).await;
    }
    let fires = fixture.fires(schedule.id).await;
    let outcomes: Vec<&str> = fires.iter().map(|fire| fire.outcome.as_str()).collect();
    assert_eq!(outcomes, ["fired", "fired", "skipped", "skipped"]);
    assert_eq!(
        fires[2].reason.as_deref(),
        Some("one job waits already for the end of another")
    );
    let running = worker.claim(5).await;
    assert_eq!(running.len(), 1, "they run one after another");
    assert!(worker.succeed(&running[0]).await);
    assert_eq!(fire_in(&fixture, &leader, 4).await.jobs.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_schedule_is_over_after_so_many_jobs_or_its_one_time(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let leader = fixture.elect().await;
    let mut twice = fixture.schedule("0 * * * *", Overlap::Allow);
    twice.timing.max_fires = Some(2);
    fixture.save(&twice).await;
    let due = (fixture.env.clock.now() + TimeDelta::hours(2)).to_rfc3339();
    let once = fixture.schedule(&format!("at {due}"), Overlap::Allow);
    fixture.save(&once).await;
    for hours in 1..5 {
        fire_in(&fixture, &leader, hours).await;
    }
    assert_eq!(fixture.jobs(twice.id).await.len(), 2);
    assert_eq!(fixture.jobs(once.id).await.len(), 1);
    let (twice, once) = (saved(&fixture, &twice).await, saved(&fixture, &once).await);
    assert_eq!((twice.fired, twice.next_fire_at, twice.enabled), (2, None, true));
    assert_eq!((once.fired, once.next_fire_at), (1, None));
    let idle = fixture.env.store.fire_due(&leader, limits()).await.unwrap();
    assert_eq!(idle.next_in, None, "nothing is ever due again");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_that_fail_in_a_row_pause_their_schedule_and_are_remembered(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let (leader, worker) = (fixture.elect().await, fixture.env.worker());
    let mut schedule = fixture.schedule("0 * * * *", Overlap::Skip);
    schedule.pause_after_failures = Some(2);
    fixture.save(&schedule).await;
    for (hours, decision) in [(1, failed()), (2, Decision::Succeed), (3, failed()), (4, failed())] {
        assert_eq!(fire_in(&fixture, &leader, hours).await.jobs.len(), 1);
        end(&worker, decision, None).await;
    }
    let fifth = fire_in(&fixture, &leader, 5).await;
    assert_eq!((fifth.jobs.len(), fifth.paused), (0, 1));
    let paused = saved(&fixture, &schedule).await;
    assert_eq!((paused.enabled, paused.failures_in_row, paused.version), (false, 2, 2));
    assert_eq!(
        paused.paused_reason.as_deref(),
        Some("2 jobs in a row failed, the last with nonzero_exit")
    );
    let fires = fixture.env.store.fires(schedule.id, None, 10).await.unwrap();
    let states: Vec<_> = fires.iter().rev().map(|fire| fire.job_state.clone().unwrap()).collect();
    assert_eq!(states, ["failed", "succeeded", "failed", "failed"]);
    assert_eq!(fires[0].job_error.as_deref(), Some("nonzero_exit"));
    // Whoever resumes it forgives.
    let mut resumed = paused.clone();
    resumed.enabled = true;
    assert!(fixture.env.store.update_schedule(&resumed, 2, true).await.unwrap());
    assert_eq!(saved(&fixture, &schedule).await.failures_in_row, 0);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_became_of_a_job_is_noted_once_and_outlives_it(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let (leader, worker, store) = (fixture.elect().await, fixture.env.worker(), &fixture.env.store);
    let schedule = fixture.due(Overlap::Skip).await;
    fire_in(&fixture, &leader, 0).await;
    let begin = (common::ids::ScheduleId(Uuid::nil()), JobId(Uuid::nil()));
    assert_eq!(
        store.note_outcomes(begin, 10).await.unwrap().ended,
        0,
        "it has not ended"
    );
    let live = store.fires(schedule.id, None, 1).await.unwrap();
    assert_eq!(live[0].job_state.as_deref(), Some("queued"));
    end(&worker, failed(), None).await;
    let (one, two) = tokio::join!(store.note_outcomes(begin, 10), store.note_outcomes(begin, 10));
    assert_eq!(one.unwrap().ended + two.unwrap().ended, 1);
    assert_eq!(saved(&fixture, &schedule).await.failures_in_row, 1);
    sqlx::query("delete from jobs").execute(&fixture.pool).await.unwrap();
    let kept = store.fires(schedule.id, None, 1).await.unwrap();
    assert_eq!(kept[0].job_state.as_deref(), Some("failed"));
    assert!(kept[0].job_ended_at.is_some());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_template_gets_the_last_result(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let (leader, worker) = (fixture.elect().await, fixture.env.worker());
    let mut schedule = fixture.schedule("0 * * * *", Overlap::Skip);
    schedule.target.input = to_raw_value(&json!({"seen": "{{ last_result.n }}", "at": "{{ fire_at }}"})).unwrap();
    fixture.save(&schedule).await;
    let input = |fired: &Fired| serde_json::from_slice::<serde_json::Value>(&fired.jobs[0].input).unwrap();
    let first = fire_in(&fixture, &leader, 1).await;
    assert_eq!(input(&first)["seen"], "");
    end(&worker, Decision::Succeed, Some(r#"{"n":"seven"}"#)).await;
    let second = fire_in(&fixture, &leader, 2).await;
    assert_eq!(input(&second)["seen"], "seven");
    let due: DateTime<Utc> = input(&second)["at"].as_str().unwrap().parse().unwrap();
    assert_eq!(due, fixture.fires(schedule.id).await[1].fire_at);
    let long = format!("{{\"n\":\"{}\"}}", "x".repeat(70_000));
    end(&worker, Decision::Succeed, Some(&long)).await;
    fire_in(&fixture, &leader, 3).await;
    let kept: Vec<u8> = sqlx::query_scalar("select last_result from schedules")
        .fetch_one(&fixture.pool)
        .await
        .unwrap();
    assert!(
        String::from_utf8(kept)
            .unwrap()
            .starts_with("{\"omitted\":\"the result has 70")
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_is_taken_in_a_conversation(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let (leader, store) = (fixture.elect().await, &fixture.env.store);
    let now = fixture.env.clock.now();
    let talk = Conversation {
        id: ConversationId::new(),
        tenant_id: fixture.env.tenant_id,
        agent_id: None,
        agent: Some(AgentDefinition::default()),
        title: String::new(),
        metadata: serde_json::Map::new(),
        user_id: None,
        active_job_id: None,
        branched_from: None,
        position: 0,
        created_at: now,
        updated_at: now,
    };
    store.insert_conversation(&talk).await.unwrap();
    let mut schedules = Vec::new();
    for _ in 0..2 {
        let mut schedule = fixture.schedule("0 * * * *", Overlap::Allow);
        schedule.target.form = Form::Turn;
        schedule.target.conversation_id = Some(talk.id);
        schedule.target.spec = JobSpec::new(Kind::ChatTurn);
        let parts = json!({"parts": [{"type": "text", "text": "It is {{ fire_at }}"}]});
        schedule.target.input = to_raw_value(&parts).unwrap();
        fixture.save(&schedule).await;
        schedules.push(schedule);
    }
    let fired = fire_in(&fixture, &leader, 1).await;
    assert_eq!(fired.jobs.len(), 2);
    let mut ids: Vec<JobId> = fired.jobs.iter().map(|job| job.id).collect();
    assert!(ids.is_sorted(), "turns run in the order of their messages");
    let messages = store.messages(talk.id, 0, 10).await.unwrap();
    let positions: Vec<u64> = messages.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, [1, 2]);
    assert!(
        json!(messages[0].1.parts)[0]["text"]
            .as_str()
            .unwrap()
            .starts_with("It is 20")
    );
    let input: serde_json::Value = serde_json::from_slice(&fired.jobs[1].input).unwrap();
    assert_eq!(input["message_id"], json!(messages[1].1.id));
    let worker = fixture.env.worker();
    let claimed = worker.claim(5).await;
    assert_eq!(claimed.len(), 1, "one turn at a time");
    assert_eq!(claimed[0].job.id, ids.remove(0));

    // While somebody holds the conversation its schedules wait, and nobody else does.
    let mut held = fixture.pool.begin().await.unwrap();
    sqlx::query("select from conversations for update")
        .execute(&mut *held)
        .await
        .unwrap();
    fixture.due(Overlap::Allow).await;
    let others = fire_in(&fixture, &leader, 2).await.jobs;
    assert!(!others.is_empty() && others.iter().all(|job| job.links.conversation_id.is_none()));
    held.rollback().await.unwrap();
    assert_eq!(fire_in(&fixture, &leader, 2).await.jobs.len(), 2);

    store.delete_conversation(talk.tenant_id, talk.id, now).await.unwrap();
    fire_in(&fixture, &leader, 3).await;
    let paused = saved(&fixture, &schedules[0]).await;
    assert_eq!(paused.paused_reason.as_deref(), Some("its conversation is deleted"));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_backfill_makes_up_for_what_made_no_job_and_for_nothing_else(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let (leader, store) = (fixture.elect().await, &fixture.env.store);
    let mut schedule = fixture.schedule("0 * * * *", Overlap::Skip);
    let now = fixture.env.clock.now();
    schedule.next_fire_at = schedule.timing.cron.next_after(now - TimeDelta::hours(5));
    fixture.save(&schedule).await;
    store.fire_due(&leader, limits()).await.unwrap();
    let times: Vec<_> = std::iter::successors(schedule.next_fire_at, |at| schedule.timing.cron.next_after(*at))
        .take_while(|at| *at < now)
        .collect();
    let decided = fixture.jobs(schedule.id).await.len();
    let before = saved(&fixture, &schedule).await;
    let backfilled = |overlap| store.backfill(schedule.tenant_id, schedule.id, &times, overlap);
    let jobs = assert_matches!(backfilled(Overlap::QueueAll).await.unwrap(), Backfilled::Fired(jobs, _) => jobs);
    assert_eq!(jobs.len() + decided, times.len());
    assert!(
        jobs.iter()
            .all(|job| job.spec.concurrency.as_ref().is_some_and(|one| one.limit == 1))
    );
    assert!(jobs.is_sorted_by_key(|job| job.id));
    let again = assert_matches!(backfilled(Overlap::Allow).await.unwrap(), Backfilled::Fired(jobs, _) => jobs);
    assert_eq!(again.len(), 0, "each due time makes one job");
    let fires = store.fires(schedule.id, None, 10).await.unwrap();
    assert_eq!(fires.iter().filter(|fire| fire.backfill).count(), jobs.len());
    assert!(fires.iter().all(|fire| fire.job_id.is_some()));
    assert!(fires.iter().any(|fire| {
        fire.reason
            .as_deref()
            .is_some_and(|reason| reason.starts_with("too late"))
    }));
    let after = saved(&fixture, &schedule).await;
    assert_eq!((after.next_fire_at, after.fired), (before.next_fire_at, before.fired));
    assert_eq!(after.last_job_id, jobs.last().map(|job| job.id));
}
