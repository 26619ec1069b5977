//! The workspace of a conversation from turn to turn, and from worker to worker.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use common::agent::{AgentDefinition, Harness};
use common::ids::ConversationId;
use common::job::FailureCode;
use common::job::decision::Outcome;
use common::job::spec::{JobSpec, Kind};
use common::message::Message;
use common::store::conversations::Conversation;
use common::store::take_turn::{NewTurn, TurnAccepted};
use common::testing::eventually;
use common::workspace::{Owner, archive_key};
use serde_json::json;
use sqlx::PgPool;
use worker::consumer::held::Stop;
use worker::environment::Environment;
use worker::model;

use crate::attempts::{Bench, Done};

fn agent(harness: Harness, command: Option<&str>) -> AgentDefinition {
    AgentDefinition {
        harness,
        models: vec!["scripted/demo".to_owned()],
        tools: vec!["bash".into()],
        command: command.map(|script| ["sh", "-c", script].map(str::to_owned).to_vec()),
        ..AgentDefinition::default()
    }
}

async fn bench(pool: &PgPool) -> (Bench, ConversationId) {
    let bench = Bench::new(pool.clone(), model::Settings::default(), |_| {}).await;
    let talk = conversation(&bench, pool).await;
    (bench, talk)
}

pub(crate) async fn conversation(bench: &Bench, pool: &PgPool) -> ConversationId {
    let env = &bench.env;
    sqlx::query("insert into tenants (id, name, created_at) values ($1, $2, now()) on conflict do nothing")
        .bind(env.tenant_id)
        .bind(env.tenant_id.to_string())
        .execute(pool)
        .await
        .unwrap();
    let now = env.clock.now();
    let new = Conversation {
        id: ConversationId::new(),
        tenant_id: env.tenant_id,
        agent_id: None,
        agent: Some(AgentDefinition::default()),
        title: String::new(),
        metadata: serde_json::Map::default(),
        user_id: None,
        active_job_id: None,
        branched_from: None,
        position: 0,
        created_at: now,
        updated_at: now,
    };
    env.store.insert_conversation(&new).await.unwrap();
    new.id
}

/// A turn in which an agent runs a script.
pub(crate) async fn turn_of(
    bench: &Bench,
    talk: ConversationId,
    agent: &AgentDefinition,
    text: &str,
    stop: Option<(&str, Stop)>,
) -> Done {
    let message = Message::user(text.to_owned(), bench.env.clock.now());
    let input = json!({"message_id": message.id, "agent": agent});
    let mut spec = JobSpec::new(Kind::ChatTurn);
    spec.timeout = Duration::from_mins(2);
    let mut job = bench.job(spec, &input);
    job.links.conversation_id = Some(talk);
    let turn = NewTurn {
        message,
        job,
        seen: 0,
        reject_if_busy: false,
        idempotency: None,
    };
    match bench.env.store.insert_turn(talk, turn).await.unwrap() {
        TurnAccepted::Inserted(job) => bench.run_inserted(&job, stop).await,
        other => unreachable!("{other:?}"),
    }
}

/// What a script prints, in a turn of its own that does well.
async fn sh(bench: &Bench, talk: ConversationId, script: &str) -> String {
    let agent = agent(Harness::Native, None);
    let done = turn_of(bench, talk, &agent, &format!("```bash\n{script}\n```"), None).await;
    let text = done.result()["text"].as_str().unwrap().to_owned();
    done.settle().await;
    text
}

async fn version(bench: &Bench, talk: ConversationId) -> u64 {
    let owner = Owner::Conversation(talk);
    let present = bench.env.store.workspace(bench.env.tenant_id, owner).await.unwrap();
    present.map_or(0, |present| present.version)
}

fn kept(bench: &Bench) -> u32 {
    bench.machine.pool.as_ref().unwrap().status()[0].kept
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn files_go_with_the_conversation_and_the_sandbox_stays_while_they_are_the_same(pool: PgPool) {
    let (here, talk) = bench(&pool).await;
    Box::pin(files_go_with_the_conversation(here, talk)).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn so_they_do_on_bubblewrap(pool: PgPool) {
    let here = Bench::bubblewrap(pool.clone(), |_| {}).await;
    let talk = conversation(&here, &pool).await;
    Box::pin(files_go_with_the_conversation(here, talk)).await;
}

async fn files_go_with_the_conversation(here: Bench, talk: ConversationId) {
    let script = "mkdir -p d/e; printf hello > d/x; ln -s x d/l; chmod 700 d/e; echo '#!/bin/sh' > run; chmod +x run; touch /tmp/mark";
    sh(&here, talk, script).await;
    assert_eq!((version(&here, talk).await, kept(&here)), (1, 1));
    let look = "cat d/l; stat -c '%n %a' d/e run; ls /tmp; ps -e --no-headers | wc -l";
    let text = sh(&here, talk, look).await;
    assert!(
        text.contains("hello") && text.contains("d/e 700") && text.contains("run 755"),
        "{text}"
    );
    assert!(text.contains("mark"), "the sandbox was kept: {text}");
    assert_eq!(version(&here, talk).await, 1, "nothing changed, so nothing was saved");

    let there = here.beside(&model::Settings::default(), |_| {});
    let text = sh(&there, talk, look).await;
    assert!(
        text.contains("hello") && text.contains("d/e 700") && text.contains("run 755"),
        "{text}"
    );
    assert!(!text.contains("mark"), "another worker has another sandbox: {text}");
    assert_eq!(
        version(&here, talk).await,
        1,
        "a restored workspace is the same archive"
    );
    sh(&there, talk, "echo there > d/x").await;
    assert_eq!(version(&here, talk).await, 2);
    let text = sh(&here, talk, "cat d/x; ls /tmp").await;
    assert!(
        text.contains("there") && !text.contains("mark"),
        "a stale sandbox is not used: {text}"
    );
    there.end().await;
    here.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn programs_work_on_the_same_files_and_processes_end_with_the_turn(pool: PgPool) {
    let (bench, talk) = bench(&pool).await;
    let command = agent(
        Harness::Command,
        Some(
            "pgrep -xc sleep; echo one >> log; cat log; (setsid sleep 300 &); until pgrep -x sleep > /dev/null; do :; done",
        ),
    );
    let done = turn_of(&bench, talk, &command, "go", None).await;
    assert_eq!(done.result()["text"], "0\none\n");
    done.settle().await;
    let done = turn_of(&bench, talk, &command, "go", None).await;
    assert_eq!(
        done.result()["text"],
        "0\none\none\n",
        "the sleeper of the turn before is gone"
    );
    done.settle().await;
    assert_eq!(version(&bench, talk).await, 2);
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_that_is_cancelled_keeps_its_files_and_one_that_is_lost_does_not(pool: PgPool) {
    let (bench, talk) = bench(&pool).await;
    let agent = agent(Harness::Native, None);
    let script = "```bash\necho $$ > cancelled; echo ready; sleep 300\n```";
    let done = turn_of(&bench, talk, &agent, script, Some(("tool.output", Stop::Cancel))).await;
    assert!(matches!(done.ended.outcome, Outcome::Cancelled), "{done:?}");
    done.settle().await;
    assert_eq!(version(&bench, talk).await, 1);
    let script = "```bash\necho $$ > lost; echo ready; sleep 300\n```";
    let done = turn_of(&bench, talk, &agent, script, Some(("tool.output", Stop::Lost))).await;
    done.settle().await;
    assert_eq!((version(&bench, talk).await, kept(&bench)), (1, 0));
    let text = sh(&bench, talk, "ls").await;
    assert!(text.contains("cancelled") && !text.contains("lost"), "{text}");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_full_workspace_is_saved_whole_and_one_that_is_too_large_is_disk_full(pool: PgPool) {
    let (bench, talk) = bench(&pool).await;
    let text = sh(
        &bench,
        talk,
        "echo small > small; head -c 100000000 /dev/urandom > full; md5sum full",
    )
    .await;
    assert!(text.contains("No space left"), "{text}");
    let sum = |text: &str| text.split_whitespace().find(|word| word.len() == 32).map(str::to_owned);
    let there = bench.beside(&model::Settings::default(), |_| {});
    let again = sh(&there, talk, "md5sum full; rm full").await;
    assert_eq!(sum(&again), sum(&text));
    assert_eq!(version(&bench, talk).await, 2);
    // Of no bytes on the disk, and too many in an archive.
    let agent = agent(Harness::Native, None);
    let done = turn_of(
        &there,
        talk,
        &agent,
        "run: truncate -s 1G sparse; echo more > small",
        None,
    )
    .await;
    assert_eq!(done.failure().0, FailureCode::DiskFull, "{:?}", done.said);
    done.settle().await;
    let text = sh(&there, talk, "cat small; ls").await;
    assert!(
        text.contains("small") && !text.contains("more") && !text.contains("sparse"),
        "{text}"
    );
    let tight = bench.beside(&model::Settings::default(), |environment: &mut Environment| {
        environment.profile.workspace_bytes = 1 << 20;
    });
    sh(&bench, talk, "head -c 2000000 /dev/urandom > large").await;
    let done = turn_of(&tight, talk, &agent, "run: ls", None).await;
    assert_eq!(done.failure().0, FailureCode::DiskFull, "{:?}", done.said);
    done.settle().await;
    tight.end().await;
    there.end().await;
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_workspace_that_cannot_be_restored_is_a_clear_failure(pool: PgPool) {
    let (bench, talk) = bench(&pool).await;
    sh(&bench, talk, "echo kept > kept").await;
    let owner = Owner::Conversation(talk);
    let present = bench
        .env
        .store
        .workspace(bench.env.tenant_id, owner)
        .await
        .unwrap()
        .unwrap();
    let path = bench.folder.path().join(archive_key(present.archive_id));
    let archive = std::fs::read(&path).unwrap();
    let agent = agent(Harness::Native, None);
    let there = bench.beside(&model::Settings::default(), |_| {});
    let half = archive[..archive.len() / 2].to_vec();
    for content in [None, Some(b"garbage".to_vec()), Some(half)] {
        match content {
            None => std::fs::remove_file(&path).unwrap(),
            Some(content) => std::fs::write(&path, content).unwrap(),
        }
        let done = turn_of(&there, talk, &agent, "run: ls", None).await;
        let (code, message) = done.failure();
        assert_eq!(code, FailureCode::WorkspaceFailed);
        assert!(message.contains("could not be restored"), "{message}");
        done.settle().await;
    }
    std::fs::write(&path, archive).unwrap();
    assert!(sh(&there, talk, "cat kept").await.contains("kept"));
    assert_eq!(version(&bench, talk).await, 1);
    there.end().await;
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_sandbox_of_a_deleted_conversation_ends_and_no_other(pool: PgPool) {
    let bench = Bench::new(pool.clone(), model::Settings::default(), |it| it.warm.max = 4).await;
    let (deleted, stays) = (conversation(&bench, &pool).await, conversation(&bench, &pool).await);
    sh(&bench, deleted, "echo secret > secret").await;
    sh(&bench, stays, "touch /tmp/mark").await;
    let machines = bench.machine.pool.as_ref().unwrap();
    machines.retire_ownerless().await;
    assert_eq!(kept(&bench), 2);

    let (store, now) = (&bench.env.store, bench.env.clock.now());
    assert!(
        store
            .delete_conversation(bench.env.tenant_id, deleted, now)
            .await
            .unwrap()
    );
    machines.retire_ownerless().await;
    assert_eq!(kept(&bench), 1);
    let text = sh(&bench, stays, "ls /tmp").await;
    assert!(text.contains("mark"), "the other one was kept: {text}");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn kept_sandboxes_make_room_the_least_recently_used_first(pool: PgPool) {
    let (bench, first) = bench(&pool).await;
    let second = conversation(&bench, &pool).await;
    let status = || bench.machine.pool.as_ref().unwrap().status().remove(0);
    // One warm, two in all.
    sh(&bench, first, "touch /tmp/first").await;
    sh(&bench, second, "touch x /tmp/second").await;
    eventually(Duration::from_secs(20), "the floor is filled", || async {
        let status = status();
        (status.warm == 1 && status.kept == 1).then_some(())
    })
    .await;
    let text = sh(&bench, second, "ls /tmp").await;
    assert!(text.contains("second"), "the last one was kept: {text}");
    let text = sh(&bench, first, "ls /tmp").await;
    assert!(!text.contains("first"), "the first had to go: {text}");
    bench.end().await;
}
