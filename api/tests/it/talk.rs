//! What people do with conversations: go on from an earlier message, say a word in between, take it along, forget it.

use std::time::Duration;

use common::ids::{ConversationId, MessageId};
use common::job::approval::{ApprovalState, NewApproval};
use common::job::decision::Decision;
use common::job::{Failure, FailureCode, StateName, Wait};
use common::message::{Message, Part, Role};
use common::store::claim::Claimed;
use common::testing::{TestWorker, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Api, SOON, answer};

/// A conversation with an agent that only talks; its path.
async fn begun(api: &Api) -> String {
    begun_with(api, "").await
}

/// The same with an agent that is described so.
async fn begun_with(api: &Api, description: &str) -> String {
    let agent = json!({"harness": "chat", "models": ["scripted/echo"], "description": description});
    let made = api.post("/conversations", json!({ "agent": agent })).await.expect(201);
    format!("/conversations/{}", made["id"].as_str().unwrap())
}

async fn claim(worker: &TestWorker) -> Claimed {
    eventually(SOON, "the turn is dispatched", async || worker.claim(1).await.pop()).await
}

/// Ends a turn with these answers.
async fn end(api: &Api, worker: &TestWorker, claimed: &Claimed, decision: Decision, parts: Vec<(Role, Part)>) {
    let input: Value = serde_json::from_slice(&claimed.input).unwrap();
    let mut settlement = worker.settlement(claimed, decision, &[]);
    let turn = settlement.turn.as_mut().unwrap();
    turn.answers = Some(input["message_id"].as_str().unwrap().parse().unwrap());
    let said = parts.into_iter().map(|(role, part)| Message {
        job_id: Some(claimed.job.id),
        ..Message::new(role, vec![part], api.env.clock.now())
    });
    turn.messages = said.collect();
    assert!(worker.commit(&settlement).await);
    worker.ack(claimed, &settlement).await;
}

/// Takes a turn whose answer is `reply`.
async fn talk(api: &Api, path: &str, text: &str, reply: &str) -> Value {
    let turn = api
        .post(&format!("{path}/turns"), json!({"text": text}))
        .await
        .expect(202);
    let worker = api.env.worker();
    let claimed = claim(&worker).await;
    end(
        api,
        &worker,
        &claimed,
        Decision::Succeed,
        vec![(Role::Assistant, Part::text(reply))],
    )
    .await;
    turn
}

async fn texts(api: &Api, path: &str) -> Vec<String> {
    let messages = api.get(&format!("{path}/messages?limit=200")).await.expect(200);
    let text = |message: &Value| message["parts"][0]["text"].as_str().unwrap_or("?").to_owned();
    messages["data"].as_array().unwrap().iter().map(text).collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_branch_goes_on_from_any_message_and_loses_nothing(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    talk(&api, &path, "one", "first").await;
    let second = talk(&api, &path, "two", "second").await;
    talk(&api, &path, "three", "third").await;
    let messages = api.get(&format!("{path}/messages")).await.expect(200);
    let id = |at: usize| messages["data"][at]["id"].as_str().unwrap().to_owned();

    let branch = api
        .post(
            &format!("{path}/branch"),
            json!({"message_id": id(1), "title": "aside"}),
        )
        .await
        .expect(201);
    let branched = format!("/conversations/{}", branch["id"].as_str().unwrap());
    assert_eq!(
        (&branch["title"], &branch["branched_from"]["message_id"]),
        (&json!("aside"), &json!(id(1)))
    );
    assert_eq!(texts(&api, &branched).await, ["one", "first"]);
    talk(&api, &branched, "else", "other").await;
    assert_eq!(texts(&api, &branched).await, ["one", "first", "else", "other"]);

    // Another question instead of the second, and another answer to it: each in a branch, answered at once.
    let edited = api
        .post(
            &format!("{path}/messages/{}/edit", id(2)),
            json!({"text": "zwei", "priority": 7}),
        )
        .await
        .expect(202);
    assert_eq!(
        (&edited["job"]["priority"], &edited["message"]["parts"][0]["text"]),
        (&json!(7), &json!("zwei"))
    );
    let of_edit = format!("/conversations/{}", edited["conversation"]["id"].as_str().unwrap());
    assert_eq!(texts(&api, &of_edit).await, ["one", "first", "zwei"]);
    for at in [2, 3] {
        let again = api.request(Method::POST, &format!("{path}/messages/{}/regenerate", id(at)));
        let again = answer(again).await.expect(202);
        let of_answer = format!("/conversations/{}", again["conversation"]["id"].as_str().unwrap());
        assert_eq!(texts(&api, &of_answer).await, ["one", "first", "two"]);
        let conversation: ConversationId = again["conversation"]["id"].as_str().unwrap().parse().unwrap();
        let asked: MessageId = again["message"]["id"].as_str().unwrap().parse().unwrap();
        let history = api.env.store.messages_until(conversation, asked).await.unwrap();
        assert_eq!(
            history.iter().map(Message::text).collect::<Vec<_>>(),
            ["one", "first", "two"]
        );
    }
    assert_eq!(
        texts(&api, &path).await,
        ["one", "first", "two", "second", "three", "third"]
    );
    assert_eq!(second["message"]["id"], json!(id(2)));

    let edit = async |at: &str, body: Value| api.post(&format!("{path}/messages/{at}/edit"), body).await;
    edit(&id(3), json!({"text": "x"})).await.is_problem(409, "conflict");
    edit(&id(2), json!({})).await.is_problem(422, "invalid_request");
    edit("garbage", json!({"text": "x"})).await.is_problem(404, "not_found");
    let unknown = json!({"message_id": MessageId::new()});
    api.post(&format!("{path}/branch"), unknown)
        .await
        .is_problem(422, "invalid_request");
    api.post(&format!("{path}/branch"), json!({}))
        .await
        .is_problem(422, "invalid_request");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_edit_with_a_key_is_made_once(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let path = begun(&api).await;
    let turn = talk(&api, &path, "one", "first").await;
    let edit = async || {
        let at = format!("{path}/messages/{}/edit", turn["message"]["id"].as_str().unwrap());
        let request = api.request(Method::POST, &at).header("idempotency-key", "k");
        answer(request.json(&json!({"text": "eins"}))).await.expect(202)
    };
    let (first, again) = (edit().await, edit().await);
    assert_eq!(first["job"]["id"], again["job"]["id"]);
    assert_eq!(first["conversation"]["id"], again["conversation"]["id"]);
    let all = api.get("/conversations").await.expect(200);
    assert_eq!(all["data"].as_array().unwrap().len(), 2);

    // Nor does one that is refused leave a branch behind, not even a deleted one.
    let at = format!("{path}/messages/{}/edit", turn["message"]["id"].as_str().unwrap());
    api.post(&at, json!({"text": "uno", "priority": 10}))
        .await
        .is_problem(422, "invalid_request");
    let exclusive = json!({"text": "uno", "concurrency": {"key": "k", "strategy": "reject"}});
    api.post(&at, exclusive.clone()).await.expect(202);
    api.post(&at, exclusive).await.is_problem(409, "concurrency_limit");
    let made: i64 = sqlx::query_scalar("select count(*) from conversations")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(made, 3);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_message_that_waits_comes_after_the_answer_before_it(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    for text in ["one", "two"] {
        api.post(&format!("{path}/turns"), json!({"text": text}))
            .await
            .expect(202);
    }
    let worker = api.env.worker();
    for reply in ["first", "second"] {
        let claimed = eventually(SOON, "the next turn", async || {
            api.env.redispatch().await;
            worker.claim(1).await.pop()
        })
        .await;
        end(
            &api,
            &worker,
            &claimed,
            Decision::Succeed,
            vec![(Role::Assistant, Part::text(reply))],
        )
        .await;
    }
    let exported = api.get(&format!("{path}/export")).await.expect(200);
    let said: Vec<&str> = exported["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["parts"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(said, ["one", "first", "two", "second"]);
    assert_eq!(
        exported["conversation"]["title"], "one",
        "a title is made of the first message"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_conversation_is_found_by_what_was_said_and_by_nothing_else(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    talk(&api, &path, "where is \"Lisbon\"?\u{0}", "in\nPortugal").await;
    let found = async |query: &str| {
        let page = api.get(&format!("/conversations?q={query}")).await.expect(200);
        page["data"].as_array().unwrap().len()
    };
    assert_eq!(found("%22lisbon%22").await, 1, "a quote is a quote");
    assert_eq!(found("in%0Aportugal").await, 1);
    assert_eq!(found("type").await, 0, "the names of fields were not said");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_export_reads_well_and_names_its_format(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    talk(&api, &path, "hi", "hello").await;
    let request = api.request(Method::GET, &format!("{path}/export?format=markdown"));
    let text = request.send().await.unwrap();
    assert_eq!(text.headers()["content-type"], "text/markdown; charset=utf-8");
    assert!(
        text.headers()["content-disposition"]
            .to_str()
            .unwrap()
            .ends_with(".md\"")
    );
    let text = text.text().await.unwrap();
    assert!(
        text.starts_with("# hi\n\n## User\n") && text.contains("## Assistant\n") && text.contains("hello"),
        "{text}"
    );
    api.get(&format!("{path}/export?format=pdf"))
        .await
        .is_problem(422, "invalid_request");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_word_to_a_turn_under_way_is_heard_once_or_kept(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    let turn = api
        .post(&format!("{path}/turns"), json!({"text": "go"}))
        .await
        .expect(202);
    let steering = format!("/jobs/{}/messages", turn["job"]["id"].as_str().unwrap());
    let worker = api.env.worker();
    let claimed = claim(&worker).await;
    let said = api.post(&steering, json!({"text": "left"})).await.expect(202);
    let fence = (claimed.job.attempt, worker.id);
    let take = async |fence, step| api.env.store.take_messages(claimed.job.id, fence, step).await.unwrap();
    assert!(
        take((fence.0 + 1, worker.id), 1).await.is_empty(),
        "another attempt takes nothing"
    );
    let taken = take(fence, 1).await;
    assert_eq!(json!(taken[0].id), said["message"]["id"]);
    assert!(take(fence, 2).await.is_empty());
    let heard = api.env.store.heard_messages(claimed.job.id).await.unwrap();
    assert_eq!((heard.len(), heard[0].step, heard[0].attempt), (1, 1, 1));

    // What comes too late is said in the conversation, for the next turn; so is what was heard and is not in what the attempt
    // leaves, as when one that heard it was lost.
    api.post(&steering, json!({"text": "late\u{0}"})).await.expect(202);
    end(
        &api,
        &worker,
        &claimed,
        Decision::Succeed,
        vec![(Role::Assistant, Part::text("gone"))],
    )
    .await;
    assert_eq!(texts(&api, &path).await, ["go", "gone", "left", "late\u{0}"]);
    api.post(&steering, json!({"text": "later"}))
        .await
        .is_problem(409, "conflict");
    api.post(&steering, json!({})).await.is_problem(422, "invalid_request");
    // A program that reads its prompt once cannot be told more.
    let command = json!({"agent": {"harness": "command", "command": ["cat"]}});
    let made = api.post("/conversations", command).await.expect(201);
    let turns = format!("/conversations/{}/turns", made["id"].as_str().unwrap());
    let turn = api.post(&turns, json!({"text": "go"})).await.expect(202);
    let to_command = format!("/jobs/{}/messages", turn["job"]["id"].as_str().unwrap());
    let refused = api.post(&to_command, json!({"text": "x"})).await;
    refused.is_problem(409, "conflict");
    let noop = api.post("/jobs", json!({"kind": "noop"})).await.expect(202);
    let to_noop = format!("/jobs/{}/messages", noop["id"].as_str().unwrap());
    api.post(&to_noop, json!({"text": "x"}))
        .await
        .is_problem(409, "conflict");
}

/// Postgres reads no JSON in which there is a NUL.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_to_which_somebody_spoke_is_stopped_whatever_its_agent_holds(pool: PgPool) {
    let api = Api::start(pool).await;
    let spoken_to = async || {
        let path = begun_with(&api, "a\u{0}").await;
        let turn = json!({"text": "go", "retry_on": ["!worker_lost"]});
        let turn = api.post(&format!("{path}/turns"), turn).await.expect(202);
        let job = format!("/jobs/{}", turn["job"]["id"].as_str().unwrap());
        let said = api.post(&format!("{job}/messages"), json!({"text": "left"})).await;
        said.expect(202);
        (path, job)
    };
    let (path, job) = spoken_to().await;
    let cancelled = api.post(&format!("{job}/cancel"), json!({})).await.expect(202);
    assert_eq!(cancelled["state"], "cancelled");
    assert_eq!(texts(&api, &path).await, ["go", "left"]);

    let (path, _) = spoken_to().await;
    let many = api.post("/jobs/cancel", json!({"kind": "chat_turn"})).await.expect(200);
    assert_eq!(many["matched"], 1);
    assert_eq!(texts(&api, &path).await, ["go", "left"]);

    let (path, job) = spoken_to().await;
    assert_eq!(api.delete(&path).await.status, 204);
    assert_eq!(api.get(&job).await.expect(200)["state"], "cancelled");

    let (path, job) = spoken_to().await;
    claim(&api.env.worker()).await;
    api.env.advance(api.env.queue.lease_ttl());
    api.env.reclaim().await;
    assert_eq!(api.get(&job).await.expect(200)["error"]["code"], "worker_lost");
    assert_eq!(texts(&api, &path).await, ["go", "left"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_deleted_conversation_is_forgotten_when_its_last_turn_has_stopped(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let path = begun(&api).await;
    talk(&api, &path, "secret one", "secret answer").await;
    let turn = api
        .post(&format!("{path}/turns"), json!({"text": "secret two"}))
        .await
        .expect(202);
    let worker = api.env.worker();
    let claimed = claim(&worker).await;
    assert_eq!(api.delete(&path).await.status, 204);
    api.get(&path).await.is_problem(404, "not_found");
    let store = &api.env.store;
    assert!(
        store.unforgotten_conversations(10).await.unwrap().is_empty(),
        "a turn still reads it"
    );
    // The worker obeys, with what it had of an answer.
    end(
        &api,
        &worker,
        &claimed,
        Decision::Cancel,
        vec![(Role::Assistant, Part::text("secret half"))],
    )
    .await;
    let [id] = store.unforgotten_conversations(10).await.unwrap()[..] else {
        unreachable!("it is to be forgotten")
    };
    assert!(store.forget_conversation(id, api.env.clock.now()).await.unwrap());
    assert!(!store.forget_conversation(id, api.env.clock.now()).await.unwrap());
    let left: String = sqlx::query_scalar(
        "select concat((select string_agg(m::text, ' ') from messages m), (select string_agg(c::text, ' ') from conversations c),
            (select string_agg(convert_from(j.input, 'UTF8'), ' ') from jobs j))",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(!left.contains("secret"), "{left}");
    let job = api
        .get(&format!("/jobs/{}", turn["job"]["id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(job["state"], "cancelled");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_forgotten_turn_leaves_no_words_in_its_attempts_and_its_log(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    let turn = json!({"text": "secret", "user_id": "secret user", "max_attempts": 1});
    let turn = api.post(&format!("{path}/turns"), turn).await.expect(202);
    let worker = api.env.worker();
    let claimed = claim(&worker).await;
    let said = worker.said(&claimed, 2);
    assert_eq!(
        worker.append(&claimed, said[0].seq - 1, &said).await,
        common::queue::Appended::Ok
    );
    let failure = Failure::new(FailureCode::NonzeroExit, "secret words of the program");
    let settlement = worker.settlement(&claimed, Decision::Fail(failure), &said);
    assert!(worker.commit(&settlement).await);
    worker.ack(&claimed, &settlement).await;
    let job = format!("/jobs/{}", turn["job"]["id"].as_str().unwrap());
    let shown = async || {
        let (job, attempts, events) = (job.clone(), format!("{job}/attempts"), format!("{job}/events"));
        let mut shown = String::new();
        for path in [job, attempts, events] {
            shown += &api.get(&path).await.expect(200).to_string();
        }
        shown
    };
    let before = shown().await;
    for word in ["secret user", "secret words", "line 2"] {
        assert!(before.contains(word), "{word}: {before}");
    }
    assert_eq!(api.delete(&path).await.status, 204);
    let after = shown().await;
    assert!(!after.contains("secret") && !after.contains("line"), "{after}");
    assert!(after.contains("nonzero_exit"), "{after}");
}

/// A turn that waits for two answers, each for so many seconds.
async fn asking(api: &Api, path: &str, patience: [u64; 2]) -> (Claimed, Vec<NewApproval>) {
    api.post(&format!("{path}/turns"), json!({"text": "go"}))
        .await
        .expect(202);
    let worker = api.env.worker();
    let claimed = claim(&worker).await;
    let now = api.env.clock.now();
    let question = |place: u32, seconds: u64| NewApproval {
        id: common::ids::ApprovalId::new(),
        call: (0, place, 1),
        tool_call_id: format!("c{place}"),
        tool: "bash".to_owned(),
        input: json!({"command": "rm -rf /\u{0}"}),
        created_at: now,
        deadline: now + Duration::from_secs(seconds),
    };
    let asked = vec![question(0, patience[0]), question(1, patience[1])];
    wait_until(&worker, &claimed, &asked[0], &asked).await;
    (claimed, asked)
}

/// Ends an attempt that waits until the deadline of a question, and asks these.
async fn wait_until(worker: &TestWorker, claimed: &Claimed, until: &NewApproval, asked: &[NewApproval]) {
    let wait = Decision::Wait(Wait::answer().until(until.deadline));
    let mut settlement = worker.settlement(claimed, wait, &[]);
    settlement.approvals = asked.to_vec();
    assert!(worker.commit(&settlement).await);
    worker.ack(claimed, &settlement).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_goes_on_when_its_last_question_is_answered(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    let (claimed, asked) = asking(&api, &path, [60, 60]).await;
    let open = api.get("/approvals?state=open").await.expect(200);
    assert_eq!(open["data"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&open["data"][0]["name"], &open["data"][0]["job_id"]),
        (&json!("bash"), &json!(claimed.job.id))
    );
    let at = |place: usize| format!("/approvals/{}", asked[place].id);
    api.post(&at(0), json!({})).await.is_problem(422, "invalid_request");
    let answered = api.post(&at(0), json!({"approve": true})).await.expect(200);
    assert_eq!(answered["state"], "approved");
    assert_eq!(api.env.row(claimed.job.id).await.state.name(), StateName::Waiting);
    api.post(&at(0), json!({"approve": true})).await.expect(200);
    api.post(&at(0), json!({"approve": false}))
        .await
        .is_problem(409, "conflict");
    api.post(&at(1), json!({"approve": false, "comment": "no"}))
        .await
        .expect(200);
    let worker = api.env.worker();
    let again = claim(&worker).await;
    assert_eq!((again.job.id, again.job.attempt), (claimed.job.id, 2));
    let events = api.env.events(again.job.tenant_id, again.job.id, 100).await;
    let names: Vec<&str> = events.iter().map(|event| event.body.name()).collect();
    let expected = [
        "queued",
        "started",
        "waiting",
        "approval.answered",
        "approval.answered",
        "queued",
    ];
    assert_eq!(names[..6], expected, "{names:?}");
    let (all, closed) = api
        .env
        .store
        .close_approvals(again.job.id, (2, worker.id), api.env.clock.now())
        .await
        .unwrap();
    assert_eq!((all.len(), closed.len(), all[1].comment.as_deref()), (2, 0, Some("no")));
    assert_eq!(api.get("/approvals?state=open").await.expect(200)["data"], json!([]));
    // Another tenant sees none of it.
    api.post(
        &format!("/approvals/{}", common::ids::ApprovalId::new()),
        json!({"approve": true}),
    )
    .await
    .is_problem(404, "not_found");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn nobody_answers_for_ever_and_nobody_answers_a_job_that_has_ended(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    let (claimed, asked) = asking(&api, &path, [60, 60]).await;
    api.env.advance(Duration::from_secs(61));
    assert_eq!(
        api.get(&format!("/approvals/{}", asked[0].id)).await.expect(200)["state"],
        "expired"
    );
    api.post(&format!("/approvals/{}", asked[0].id), json!({"approve": true}))
        .await
        .is_problem(409, "conflict");
    assert_eq!(api.env.promote().await, [claimed.job.id]);
    let worker = api.env.worker();
    let again = claim(&worker).await;
    let fence = (again.job.attempt, worker.id);
    let (_, closed) = api
        .env
        .store
        .close_approvals(again.job.id, fence, api.env.clock.now())
        .await
        .unwrap();
    assert_eq!(closed.len(), 2);
    assert!(worker.succeed(&again).await);

    let (claimed, asked) = asking(&api, &path, [60, 60]).await;
    api.post(&format!("/jobs/{}/cancel", claimed.job.id), json!({}))
        .await
        .expect(202);
    api.post(&format!("/approvals/{}", asked[0].id), json!({"approve": true}))
        .await
        .is_problem(409, "conflict");
    assert_eq!(
        api.get("/approvals?state=withdrawn").await.expect(200)["data"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_question_stays_open_while_its_job_comes_back_for_another(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    let (claimed, asked) = asking(&api, &path, [1, 60]).await;
    let at = |place: usize| format!("/approvals/{}", asked[place].id);
    let states = async || {
        let states = [api.get(&at(0)).await.expect(200), api.get(&at(1)).await.expect(200)];
        states.map(|approval| approval["state"].as_str().unwrap().to_owned())
    };
    api.env.advance(Duration::from_secs(2));
    assert_eq!(api.env.promote().await, [claimed.job.id]);
    assert_eq!(states().await, ["expired", "open"]);
    assert_eq!(
        api.get("/approvals?state=open").await.expect(200)["data"][0]["id"],
        json!(asked[1].id)
    );

    // An attempt looks: nothing is written beside it, and nothing is lost.
    let worker = api.env.worker();
    let looking = claim(&worker).await;
    let early = api.post(&at(1), json!({"approve": true})).await;
    early.is_problem(409, "conflict");
    assert_eq!(early.headers["retry-after"], "1");
    assert_eq!(states().await, ["expired", "open"]);
    wait_until(&worker, &looking, &asked[1], &[]).await;

    // It comes back once more, and is answered in the queue: its next attempt finds that, and the log has it once.
    api.env.advance(Duration::from_secs(50));
    let resumed = api
        .env
        .store
        .resume(claimed.job.tenant_id, claimed.job.id, api.env.clock.now())
        .await;
    assert_eq!(resumed.unwrap().unwrap().state.name(), StateName::Queued);
    let answered = api.post(&at(1), json!({"approve": true})).await.expect(200);
    assert_eq!(answered["state"], "approved");
    api.post(&at(1), json!({"approve": true})).await.expect(200);
    api.env.redispatch().await;
    let again = claim(&worker).await;
    assert_eq!((again.job.id, again.job.attempt), (claimed.job.id, 3));
    let fence = (again.job.attempt, worker.id);
    let (all, closed) = api
        .env
        .store
        .close_approvals(again.job.id, fence, api.env.clock.now())
        .await
        .unwrap();
    assert_eq!(
        (closed.as_slice(), all[1].state),
        (&[asked[0].id][..], ApprovalState::Approved)
    );
    let events = api.env.events(again.job.tenant_id, again.job.id, 100).await;
    let names: Vec<&str> = events.iter().map(|event| event.body.name()).collect();
    assert_eq!(
        names[names.len() - 3..],
        ["queued", "approval.answered", "started"],
        "{names:?}"
    );

    // What nobody had answered when the job ended was its no more, also when its time is over.
    assert!(worker.succeed(&again).await);
    let (claimed, asked) = asking(&api, &path, [1, 60]).await;
    api.env.advance(Duration::from_secs(2));
    let cancel = format!("/jobs/{}/cancel", claimed.job.id);
    api.post(&cancel, json!({})).await.expect(202);
    api.env.advance(Duration::from_mins(2));
    for (question, state) in asked.iter().zip(["expired", "withdrawn"]) {
        let approval = api.get(&format!("/approvals/{}", question.id)).await.expect(200);
        assert_eq!(approval["state"], state);
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_conversation_becomes_an_agent_and_its_versions_are_compared(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    talk(&api, &path, "answer in rhymes", "of course").await;
    let draft = api
        .post(&format!("{path}/agent"), json!({"dry_run": true}))
        .await
        .expect(200);
    assert!(
        draft["instructions"].as_str().unwrap().contains("- answer in rhymes"),
        "{draft}"
    );
    assert_eq!(
        (&draft["harness"], &draft["name"]),
        (&json!("chat"), &json!("answer in rhymes"))
    );
    assert_eq!(api.get("/agents").await.expect(200)["data"], json!([]));
    let agent = api
        .post(&format!("{path}/agent"), json!({"name": "poet"}))
        .await
        .expect(201);
    let at = format!("/agents/{}", agent["id"].as_str().unwrap());
    api.patch(&at, json!({"instructions": "Rhyme.", "max_steps": 3}))
        .await
        .expect(200);
    let diff = api.get(&format!("{at}/versions/1/diff/2")).await.expect(200);
    let fields: Vec<&Value> = diff["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| &change["field"])
        .collect();
    assert_eq!(fields, ["instructions", "max_steps"]);
    assert_eq!(
        diff["changes"][0]["lines"].as_array().unwrap().last().unwrap(),
        "+Rhyme."
    );
    api.get(&format!("{at}/versions/1/diff/9"))
        .await
        .is_problem(404, "not_found");
    api.get(&format!("{at}/versions/x/diff/1"))
        .await
        .is_problem(404, "not_found");
    // A tool that asks is written as it was given, and an odd one is named.
    let tools = json!(["bash", {"name": "python", "policy": "ask", "deadline": "2h"}]);
    let saved = json!({"name": "careful", "models": ["scripted/demo"], "tools": tools});
    assert_eq!(api.post("/agents", saved).await.expect(201)["tools"], tools);
    let odd = json!({"name": "odd", "models": ["scripted/demo"], "tools": [{"name": "telnet", "policy": "ask", "deadline": "0s"}]});
    let refused = api.post("/agents", odd).await;
    refused.is_problem(422, "invalid_request");
    assert_eq!(refused.places(), ["/tools/0/deadline", "/tools/0"]);
}
