//! Conversations: messages in order, and turns that answer them one at a time.

use common::ids::{ConversationId, JobId, TenantId};
use common::job::decision::Decision;
use common::job::spec::JobSpec;
use common::job::{Kind, StateName};
use common::message::{Message, Part, Role};
use common::testing::eventually;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Api, SOON, answer};

/// A conversation with an agent that only talks; its path.
async fn begun(api: &Api) -> String {
    let fields = json!({"agent": {"harness": "chat", "models": ["scripted/echo"]}, "title": "t", "metadata": {"a": 1}});
    let made = api.post("/conversations", fields).await.expect(201);
    assert_eq!(
        (&made["agent_id"], &made["agent"]["harness"]),
        (&Value::Null, &json!("chat"))
    );
    format!("/conversations/{}", made["id"].as_str().unwrap())
}

fn job_id(turn: &Value) -> JobId {
    turn["job"]["id"].as_str().unwrap().parse().unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_adds_a_message_and_a_job_together(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    let turn = api
        .post(
            &format!("{path}/turns"),
            json!({"text": "hi\u{0}", "priority": 7, "user_id": "u"}),
        )
        .await
        .expect(202);
    assert_eq!(
        (&turn["message"]["role"], &turn["message"]["parts"]),
        (&json!("user"), &json!([{"type": "text", "text": "hi\u{0}"}]))
    );
    assert_eq!(
        (&turn["job"]["kind"], &turn["job"]["priority"], &turn["job"]["state"]),
        (&json!("chat_turn"), &json!(7), &json!("queued"))
    );
    assert_eq!(
        path,
        format!("/conversations/{}", turn["job"]["conversation_id"].as_str().unwrap())
    );
    let messages = api.get(&format!("{path}/messages")).await.expect(200);
    assert_eq!(messages["data"], json!([turn["message"]]));
    let stored = api.get(&format!("/jobs/{}", job_id(&turn))).await.expect(200);
    assert_eq!(stored["input"]["message_id"], turn["message"]["id"]);
    assert_eq!(stored["input"]["agent"]["models"], json!(["scripted/echo"]));

    // The worker finds what it needs, and its answer is the next message.
    let worker = api.env.worker();
    let claimed = eventually(SOON, "the turn is dispatched", async || worker.claim(1).await.pop()).await;
    assert_eq!(claimed.job.id, job_id(&turn));
    let conversation: ConversationId = claimed.job.conversation_id.unwrap();
    let message_id = turn["message"]["id"].as_str().unwrap().parse().unwrap();
    let history = api.env.store.messages_until(conversation, message_id).await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(api.get(&path).await.expect(200)["active_job_id"], turn["job"]["id"]);
    let mut settlement = worker.settlement(&claimed, Decision::Succeed, &[]);
    let mut said = Message::new(Role::Assistant, vec![Part::text("hel\u{0}lo")], api.env.clock.now());
    said.job_id = Some(claimed.job.id);
    settlement.turn.as_mut().unwrap().messages = vec![said];
    assert!(worker.commit(&settlement).await);
    worker.ack(&claimed, &settlement).await;
    let messages = api.get(&format!("{path}/messages")).await.expect(200);
    let roles: Vec<&Value> = messages["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| &message["role"])
        .collect();
    assert_eq!(roles, ["user", "assistant"]);
    assert_eq!(api.get(&path).await.expect(200)["active_job_id"], Value::Null);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn turns_run_in_the_order_of_their_messages(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let replica = api.replica(&pool).await;
    let path = begun(&api).await;
    let turns = (0..12).map(|n| {
        let api = if n % 2 == 0 { &api } else { &replica };
        let path = format!("{path}/turns");
        async move { api.post(&path, json!({"text": format!("{n}")})).await.expect(202) }
    });
    let turns = futures_util::future::join_all(turns).await;
    let messages = api.get(&format!("{path}/messages?limit=5")).await.expect(200);
    let next = messages["next_cursor"].as_str().unwrap();
    let rest = api
        .get(&format!("{path}/messages?limit=50&cursor={next}"))
        .await
        .expect(200);
    let listed: Vec<&Value> = [&messages, &rest]
        .iter()
        .flat_map(|page| page["data"].as_array().unwrap())
        .map(|one| &one["id"])
        .collect();
    let mut by_job: Vec<(JobId, &Value)> = turns
        .iter()
        .map(|turn| (job_id(turn), &turn["message"]["id"]))
        .collect();
    by_job.sort_unstable_by_key(|(job, _)| *job);
    assert_eq!(listed, by_job.iter().map(|(_, message)| *message).collect::<Vec<_>>());

    let worker = api.env.worker();
    for (job, _) in &by_job {
        let claimed = eventually(SOON, "the next turn", async || {
            let mut claimed = worker.claim(5).await;
            assert!(claimed.len() <= 1, "one turn at a time");
            if claimed.is_empty() {
                // What was offered too early waits in Postgres alone.
                api.env.redispatch().await;
            }
            claimed.pop()
        })
        .await;
        assert_eq!(claimed.job.id, *job);
        assert!(worker.claim(5).await.is_empty());
        assert!(worker.succeed(&claimed).await);
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_busy_conversation_queues_refuses_or_interrupts(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    let turn = async |body: Value| api.post(&format!("{path}/turns"), body).await;
    let first = turn(json!({"text": "1"})).await.expect(202);
    let second = turn(json!({"text": "2", "if_busy": "queue"})).await.expect(202);
    let waits = api.get(&format!("/jobs/{}", job_id(&second))).await.expect(200);
    assert!(waits["waiting_for"].is_string(), "{waits}");
    turn(json!({"text": "3", "if_busy": "reject"}))
        .await
        .is_problem(409, "conflict");
    assert_eq!(
        api.get(&format!("{path}/messages")).await.expect(200)["data"]
            .as_array()
            .unwrap()
            .len(),
        2,
        "a refused turn adds nothing"
    );
    let third = turn(json!({"text": "4", "if_busy": "interrupt"})).await.expect(202);
    for old in [&first, &second] {
        assert_eq!(
            api.get(&format!("/jobs/{}", job_id(old))).await.expect(200)["state"],
            "cancelled"
        );
    }
    assert_eq!(
        api.get(&format!("/jobs/{}", job_id(&third))).await.expect(200)["state"],
        "queued"
    );
    let stopped = api.post(&format!("{path}/cancel"), json!({})).await.expect(202);
    assert_eq!(
        (&stopped["id"], &stopped["state"]),
        (&third["job"]["id"], &json!("cancelled"))
    );
    api.post(&format!("{path}/cancel"), json!({}))
        .await
        .is_problem(409, "conflict");
    turn(json!({"text": "5", "if_busy": "reject"})).await.expect(202);
    // A key of the caller's has no place: that is said so, wherever the other job is.
    let keyed = json!({"text": "6", "concurrency": {"key": "k", "strategy": "reject"}});
    turn(keyed.clone()).await.expect(202);
    turn(keyed).await.is_problem(409, "concurrency_limit");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_repeated_turn_is_the_first_one(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = begun(&api).await;
    let keyed = async |text: &str| {
        let request = api
            .request(Method::POST, &format!("{path}/turns"))
            .header("idempotency-key", "k");
        answer(request.json(&json!({"text": text, "if_busy": "reject"}))).await
    };
    let first = keyed("hi").await.expect(202);
    let again = keyed("hi").await.expect(202);
    assert_eq!(
        (&again["job"]["id"], &again["message"]),
        (&first["job"]["id"], &first["message"])
    );
    keyed("ho").await.is_problem(422, "idempotency_key_reused");
    assert_eq!(
        api.get(&format!("{path}/messages")).await.expect(200)["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_that_interrupts_stops_whatever_came_before_it(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let path = begun(&api).await;
    let id: ConversationId = path.strip_prefix("/conversations/").unwrap().parse().unwrap();
    let tenant_id = sqlx::query_scalar("select tenant_id from conversations where id = $1");
    let tenant_id: TenantId = tenant_id.bind(id).fetch_one(&pool).await.unwrap();
    let [between, left] = [(), ()].map(|()| {
        let mut job = api.env.job(JobSpec::new(Kind::ChatTurn), b"{}".to_vec());
        (job.tenant_id, job.links.conversation_id) = (tenant_id, Some(id));
        job
    });
    let interrupt = async || {
        let request = api
            .request(Method::POST, &format!("{path}/turns"))
            .header("idempotency-key", "k");
        answer(request.json(&json!({"text": "stop", "if_busy": "interrupt"})))
            .await
            .expect(202)
    };

    // Somebody else's turn is committed while this one waits for the conversation.
    let mut lock = pool.begin().await.unwrap();
    let locked = sqlx::query("select 1 from conversations where id = $1 for update");
    locked.bind(id).execute(&mut *lock).await.unwrap();
    let beside = async {
        eventually(SOON, "the turn waits for the conversation", async || {
            let waits = "select exists (select from pg_stat_activity where datname = current_database()
                and wait_event_type = 'Lock')";
            let waits: bool = sqlx::query_scalar(waits).fetch_one(&pool).await.unwrap();
            waits.then_some(())
        })
        .await;
        api.env.insert(&between).await;
        lock.rollback().await.unwrap();
    };
    let (taken, ()) = tokio::join!(interrupt(), beside);
    assert_eq!(api.env.row(between.id).await.state.name(), StateName::Cancelled);

    // What the first request did not come to, its repetition does.
    api.env.insert(&left).await;
    assert_eq!(job_id(&interrupt().await), job_id(&taken));
    assert_eq!(api.env.row(left.id).await.state.name(), StateName::Cancelled);
    assert_eq!(api.env.row(job_id(&taken)).await.state.name(), StateName::Queued);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_faulty_turn_or_conversation_is_refused_with_its_fields(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = format!("{}/turns", begun(&api).await);
    let text = |value: Value| json!({"text": "x", "parts": value});
    let cases = [
        (json!({}), "/text"),
        (json!({"text": ""}), "/text"),
        (json!({"text": 1}), "/text"),
        (text(json!([])), "/parts"),
        (json!({"parts": []}), "/parts"),
        (
            json!({"parts": [{"type": "text", "text": "a"}, {"type": "status", "text": "b"}]}),
            "/parts/1/type",
        ),
        (
            json!({"parts": [{"type": "text", "text": "a", "surprise": 1}]}),
            "/parts/0",
        ),
        (json!({"parts": [{"type": "text"}]}), "/parts/0"),
        (json!({"text": "a", "if_busy": "panic"}), "/if_busy"),
        (json!({"text": "a", "priority": 10}), "/priority"),
        (json!({"text": "a", "surprise": 1}), "/surprise"),
    ];
    for (body, pointer) in cases {
        let shown = body.to_string();
        let answer = api.post(&path, body).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), [pointer], "{shown}: {}", answer.body);
    }
    let cases = [
        (json!({}), "/agent_id"),
        (json!({"agent": {"models": []}}), "/agent/models"),
        (json!({"agent": {"models": ["a/b"]}, "title": "\u{0}"}), "/title"),
        (
            json!({"agent": {"models": ["a/b"]}, "metadata": {"k": "\u{0}"}}),
            "/metadata/k",
        ),
        (json!({"agent": {"models": ["a/b"]}, "surprise": 1}), "/surprise"),
    ];
    for (body, pointer) in cases {
        let answer = api.post("/conversations", body).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), [pointer], "{}", answer.body);
    }
    api.post("/conversations", json!({"agent_id": "garbage"}))
        .await
        .is_problem(404, "not_found");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_conversation_is_changed_found_and_deleted(pool: PgPool) {
    let api = Api::start(pool).await;
    let (path, other) = (begun(&api).await, begun(&api).await);
    let changed = api.patch(&path, json!({"title": "Holiday"})).await.expect(200);
    assert_eq!(
        (&changed["title"], &changed["metadata"]),
        (&json!("Holiday"), &json!({"a": 1}))
    );
    let turn = api
        .post(&format!("{other}/turns"), json!({"text": "about Lisbon"}))
        .await
        .expect(202);
    let found = async |query: &str| -> Vec<String> {
        let page = api.get(&format!("/conversations{query}")).await.expect(200);
        page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| format!("/conversations/{}", one["id"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(found("?q=holi").await, std::slice::from_ref(&path));
    assert_eq!(found("?q=LISBON").await, std::slice::from_ref(&other));
    assert_eq!(found("").await, [other.clone(), path.clone()]);
    assert_eq!(api.delete(&other).await.status, 204);
    api.get(&other).await.is_problem(404, "not_found");
    api.post(&format!("{other}/turns"), json!({"text": "x"}))
        .await
        .is_problem(404, "not_found");
    assert_eq!(
        api.get(&format!("/jobs/{}", job_id(&turn))).await.expect(200)["state"],
        "cancelled"
    );
    assert_eq!(found("").await, [path]);
}
