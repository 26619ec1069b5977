//! Agents: definitions, versions and single runs.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Answer, Api, answer};

async fn saved(api: &Api, fields: Value) -> Value {
    api.post("/agents", fields).await.expect(201)
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_agent_has_a_version_for_each_change(pool: PgPool) {
    let api = Api::start(pool).await;
    let made = saved(
        &api,
        json!({"name": "a", "instructions": "one\u{0}", "models": ["scripted/echo"], "metadata": {"x": 1}}),
    )
    .await;
    let path = format!("/agents/{}", made["id"].as_str().unwrap());
    assert_eq!(
        (&made["version"], &made["harness"], &made["max_steps"], &made["timeout"]),
        (&json!(1), &json!("native"), &json!(50), &json!("10m"))
    );
    let changed = api
        .patch(&path, json!({"instructions": "two", "max_steps": 5, "metadata": null}))
        .await
        .expect(200);
    assert_eq!(
        (&changed["version"], &changed["name"], &changed["metadata"]),
        (&json!(2), &json!("a"), &json!({}))
    );
    let mut read = api.get(&path).await.expect(200);
    let totals = read.as_object_mut().unwrap().remove("totals").unwrap();
    assert_eq!(
        (read, &totals["runs"], &totals["cost_usd"]),
        (changed, &json!(0), &json!("0"))
    );

    let first = api.get(&format!("{path}/versions/1")).await.expect(200);
    assert_eq!(
        (&first["instructions"], &first["version"]),
        (&json!("one\u{0}"), &json!(1))
    );
    let back = api
        .post(&format!("{path}/rollback"), json!({"version": 1}))
        .await
        .expect(200);
    assert_eq!(
        (&back["version"], &back["instructions"], &back["max_steps"]),
        (&json!(3), &json!("one\u{0}"), &json!(50))
    );
    let page = api.get(&format!("{path}/versions?limit=2")).await.expect(200);
    let rest = api
        .get(&format!(
            "{path}/versions?limit=2&cursor={}",
            page["next_cursor"].as_str().unwrap()
        ))
        .await
        .expect(200);
    let numbers: Vec<&Value> = [&page, &rest]
        .iter()
        .flat_map(|page| page["data"].as_array().unwrap())
        .map(|one| &one["version"])
        .collect();
    assert_eq!(numbers, [3, 2, 1]);

    let unknown = api.post(&format!("{path}/rollback"), json!({"version": 9})).await;
    unknown.is_problem(422, "invalid_request");
    api.post(&format!("{path}/rollback"), json!({}))
        .await
        .is_problem(422, "invalid_request");
    for version in ["9", "0", "x", "-1", "99999999999"] {
        api.get(&format!("{path}/versions/{version}"))
            .await
            .is_problem(404, "not_found");
    }
    assert_eq!(api.delete(&path).await.status, 204);
    api.get(&path).await.is_problem(404, "not_found");
    api.delete(&path).await.is_problem(404, "not_found");
    assert_eq!(api.get("/agents").await.expect(200)["data"], json!([]));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_faulty_definition_is_refused_with_its_fields(pool: PgPool) {
    let api = Api::start(pool).await;
    let path = format!(
        "/agents/{}",
        saved(&api, json!({"name": "a", "models": ["a/b"]})).await["id"]
            .as_str()
            .unwrap()
    );
    let cases = [
        (json!({"name": ""}), "/name"),
        (json!({"name": "a\u{0}"}), "/name"),
        (json!({"models": ["plain"]}), "/models/0"),
        (json!({"harness": "magic"}), "/harness"),
        (json!({"tools": ["browser"]}), "/tools/0"),
        (json!({"timeout": "never"}), "/timeout"),
        (json!({"timeout": "0s"}), "/timeout"),
        (json!({"provider_features": [null]}), "/provider_features/0"),
        (json!({"egress": {"deny": []}}), "/egress/deny"),
        (json!({"surprise": 1}), "/surprise"),
        (json!({"metadata": {"a": "\u{0}"}}), "/metadata/a"),
        (json!([]), ""),
    ];
    for (change, pointer) in cases {
        let answer = api.patch(&path, change).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), [pointer], "{}", answer.body);
    }
    assert_eq!(api.get(&path).await.expect(200)["version"], 1);
    let none = api.post("/agents", json!({})).await;
    assert_eq!(none.places(), ["/name", "/models"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn null_puts_the_default_of_every_field_back(pool: PgPool) {
    let api = Api::start(pool).await;
    let plain = json!({"name": "a", "models": ["a/b"]});
    let path = format!("/agents/{}", saved(&api, plain).await["id"].as_str().unwrap());
    let definition = common::agent::AgentDefinition::default();
    let fields = serde_json::to_value(definition).unwrap();
    let names = fields.as_object().unwrap().keys().cloned();
    let names: Vec<String> = names
        .filter(|name| !["name", "models"].contains(&name.as_str()))
        .collect();
    assert!(names.contains(&"provider_features".to_owned()), "{names:?}");
    for name in names {
        let changed = api.patch(&path, json!({ &name: null })).await.expect(200);
        assert_eq!(changed[&name], fields[&name], "{name}");
    }
    let unknown = api.patch(&path, json!({"surprise": null})).await;
    assert_eq!(unknown.places(), ["/surprise"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_run_carries_the_definition_of_its_moment(pool: PgPool) {
    let api = Api::start(pool).await;
    let agent = saved(
        &api,
        json!({"name": "a", "instructions": "one", "models": ["scripted/echo"], "timeout": "5m"}),
    )
    .await;
    let (id, path) = (
        agent["id"].as_str().unwrap(),
        format!("/agents/{}", agent["id"].as_str().unwrap()),
    );
    let body =
        json!({"input": "hi\u{0}", "files": [{"path": "a.txt", "content": "x"}], "priority": 8, "queue": "runs"});
    let job = api.post(&format!("{path}/runs"), body).await.expect(202);
    assert_eq!(
        (&job["kind"], &job["agent_id"], &job["agent_version"]),
        (&json!("agent_run"), &json!(id), &json!(1))
    );
    assert_eq!(
        (&job["priority"], &job["queue"], &job["timeout"]),
        (&json!(8), &json!("runs"), &json!("5m"))
    );
    api.patch(&path, json!({"instructions": "two"})).await.expect(200);
    let shown = api
        .get(&format!("/jobs/{}", job["id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(
        (&shown["input"]["input"], &shown["input"]["agent"]["instructions"]),
        (&json!("hi\u{0}"), &json!("one"))
    );
    assert_eq!(shown["input"]["files"][0]["path"], "a.txt");
    let row = api.env.row(job["id"].as_str().unwrap().parse().unwrap()).await;
    assert_eq!((row.class.as_str(), row.timeout_ms), ("light", 300_000));

    let submitted = json!({"kind": "agent_run", "input": {"agent_id": id, "input": "hi"}});
    assert_eq!(api.post("/jobs", submitted).await.expect(202)["agent_version"], 2);
    let inline =
        json!({"kind": "agent_run", "input": {"agent": {"harness": "command", "command": ["cat"]}, "input": "hi"}});
    let inline = api.post("/jobs", inline).await.expect(202);
    assert_eq!(inline["agent_id"], Value::Null);
    assert_eq!(
        api.env.row(inline["id"].as_str().unwrap().parse().unwrap()).await.class,
        "sandbox"
    );
    let listed = api.get(&format!("/jobs?agent_id={id}")).await.expect(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_run_is_refused_clearly_and_repeated_safely(pool: PgPool) {
    let api = Api::start(pool).await;
    let agent = saved(&api, json!({"name": "a", "models": ["scripted/echo"]})).await;
    let path = format!("/agents/{}", agent["id"].as_str().unwrap());
    let cases = [
        (json!({}), "/input"),
        (json!({"input": 1}), "/input"),
        (json!({"input": "a", "kind": "noop"}), "/kind"),
        (json!({"input": "a", "priority": 10}), "/priority"),
        (json!({"input": "a", "timeout": "2h"}), "/timeout"),
        (
            json!({"input": "a", "files": [{"path": "/x", "content": ""}]}),
            "/files/0/path",
        ),
    ];
    for (body, pointer) in cases {
        let answer = api.post(&format!("{path}/runs"), body).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), [pointer], "{}", answer.body);
    }
    let keyed = async || {
        let request = api
            .request(Method::POST, &format!("{path}/runs"))
            .header("idempotency-key", "k");
        answer(request.json(&json!({"input": "a"}))).await.expect(202)["id"].clone()
    };
    assert_eq!(keyed().await, keyed().await);
    api.patch(&path, json!({"status": "archived"})).await.expect(200);
    api.post(&format!("{path}/runs"), json!({"input": "a"}))
        .await
        .is_problem(409, "conflict");
    api.post("/conversations", json!({"agent_id": agent["id"]}))
        .await
        .is_problem(409, "conflict");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_repeated_request_is_answered_as_the_first_one_whatever_has_changed(pool: PgPool) {
    let api = Api::start(pool).await;
    let agent = saved(
        &api,
        json!({"name": "a", "harness": "chat", "models": ["scripted/echo"]}),
    )
    .await;
    let path = format!("/agents/{}", agent["id"].as_str().unwrap());
    let talk = api
        .post("/conversations", json!({"agent_id": agent["id"]}))
        .await
        .expect(201);
    let turns = format!("/conversations/{}/turns", talk["id"].as_str().unwrap());
    let run = json!({"kind": "agent_run", "input": {"agent_id": agent["id"], "input": "a"}});
    let noop = json!({"kind": "noop"});
    let requests = [
        (format!("{path}/runs"), json!({"input": "a"})),
        ("/jobs".to_owned(), run.clone()),
        (turns, json!({"text": "a"})),
        ("/jobs/batch".to_owned(), json!({"jobs": [run, noop]})),
        ("/jobs/batch".to_owned(), json!({"jobs": [run]})),
    ];
    let all = async |keys: &str| {
        let mut answers = Vec::new();
        for (index, (path, body)) in requests.iter().enumerate() {
            let request = api.request(Method::POST, path);
            answers.push(answer(request.header("idempotency-key", format!("{keys}{index}")).json(body)).await);
        }
        answers
    };
    let ids = |answers: Vec<Answer>| -> Vec<Value> {
        let of = |body: Value| match body.pointer("/data") {
            Some(data) => data
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["job"]["id"].clone())
                .collect(),
            None if body["job"].is_object() => vec![body["job"]["id"].clone()],
            None => vec![body["id"].clone()],
        };
        answers.into_iter().flat_map(|answer| of(answer.expect(202))).collect()
    };
    let first = ids(all("first").await);
    assert!(first.len() == 6 && first.iter().all(Value::is_string), "{first:?}");
    api.patch(&path, json!({"status": "archived"})).await.expect(200);
    assert_eq!(ids(all("first").await), first);

    let refused = all("second").await;
    for answer in &refused[..3] {
        answer.is_problem(409, "conflict");
    }
    let batch = ids(refused.into_iter().skip(3).take(1).collect());
    assert!(batch[0].is_null() && batch[1].is_string(), "{batch:?}");
    // What was refused then has no job, though now it would.
    api.patch(&path, json!({"status": "active"})).await.expect(200);
    let request = api
        .request(Method::POST, "/jobs/batch")
        .header("idempotency-key", "second3");
    let again = answer(request.json(&requests[3].1)).await.expect(202);
    assert_eq!(again["data"][0]["error"]["code"], "conflict");
    assert_eq!(again["data"][1]["job"]["id"], batch[1]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn runs_in_the_agents_workspace_go_one_at_a_time(pool: PgPool) {
    let api = Api::start(pool).await;
    let agent = api
        .post(
            "/agents",
            json!({"name": "a", "harness": "chat", "models": ["scripted/demo"]}),
        )
        .await
        .expect(201);
    let runs = format!("/agents/{}/runs", agent["id"].as_str().unwrap());
    let run = json!({"input": "x", "workspace": "agent"});
    for _ in 0..2 {
        api.post(&runs, run.clone()).await.expect(202);
    }
    api.post(&runs, json!({"input": "x"})).await.expect(202);
    let claimed = api.env.worker().claim(10).await;
    assert_eq!(claimed.len(), 2, "one of those with the workspace, and the one without");
    let refused = api
        .post(
            &runs,
            json!({"input": "x", "workspace": "agent", "concurrency": {"key": "k"}}),
        )
        .await;
    refused.is_problem(422, "invalid_request");
    assert_eq!(refused.places(), ["/concurrency"]);
    api.post(&runs, json!({"input": "x", "workspace": "mine"}))
        .await
        .is_problem(422, "invalid_request");
    let inline = json!({"kind": "agent_run", "input": {"input": "x", "workspace": "agent",
        "agent": {"harness": "chat", "models": ["scripted/demo"]}}});
    let refused = api.post("/jobs", inline).await;
    assert_eq!(refused.places(), ["/input/workspace"]);
}
