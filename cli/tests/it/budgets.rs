//! Budgets over real processes: whose ever budget a turn does not fit into, it fails with that word and its model is not
//! asked; and a thousand turns at once do not overrun one.

use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::cluster::{Api, Cluster, SOON, Sandboxes, Setup};
use crate::talking::{Model, Talk};

async fn start(model: &Model, workers: usize) -> Cluster {
    Cluster::start(Setup {
        workers,
        sandboxes: Sandboxes::None,
        settings: model.settings(&[("HOTHOUSE_WORKER__LIGHT_SLOTS", "200")]),
        ..Setup::default()
    })
    .await
}

async fn talk(api: &Api, budget: Option<u64>) -> Talk {
    let agent = json!({"harness": "chat", "models": ["ant/m"], "budget": {"max_output_tokens": budget}});
    Talk::begin(api, agent).await
}

/// Takes a turn of `ann`, which ends in one of these two ways; answers whether it was refused by a budget.
async fn is_refused(api: &Api, talk: &Talk) -> bool {
    let job = talk.turn("go", &json!({"user_id": "ann"})).await;
    let job = api.ended(&job, SOON).await;
    if job["state"] == "succeeded" {
        return false;
    }
    assert_eq!(
        (&job["state"], &job["error"]["code"], &job["attempt"]),
        (&json!("failed"), &json!("budget_exceeded"), &json!(1)),
        "{job:#}"
    );
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("0 output tokens"), "it says what is left: {message}");
    assert_eq!(
        (&job["usage"]["output_tokens"], &job["result"]["text"]),
        (&json!(0), &json!("")),
        "{job:#}"
    );
    talk.assert_idle().await;
    true
}

async fn set(api: &Api, path: &str, max_output_tokens: u64) {
    let body = json!({"max_cost_usd": null, "max_output_tokens": max_output_tokens, "window": "total"});
    let answer = api.call(Method::PUT, path, Some(&body)).await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, StatusCode::OK, "{path}: {text}");
}

/// Takes turns until one ends so: workers keep to what is set within five seconds.
async fn until_refused(api: &Api, talk: &Talk, wanted: bool) {
    let begun = Instant::now();
    while is_refused(api, talk).await != wanted {
        assert!(
            begun.elapsed() < SOON,
            "workers keep to what is set within five seconds"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_refused_by_the_budget_of_whomever_it_counts_for() {
    let script = json!({"rules": [{"reply": [{"usage": {"input_tokens": 10, "output_tokens": 100}}, {"text": "ok"}]}]});
    let model = Model::start(&[("m", script)]).await;
    let cluster = start(&model, 1).await;
    let api = &cluster.api;
    let tenants = api.get("/tenants").await;
    let tenant = tenants["data"][0]["id"].as_str().unwrap().to_owned();
    for kind in ["conversation", "agent", "user", "model", "tenant"] {
        let talk = talk(api, None).await;
        assert!(!is_refused(api, &talk).await, "{kind}");
        let path = match kind {
            "conversation" => format!("/budgets/conversation/{}", talk.id),
            "agent" => format!("/budgets/agent/{}", talk.agent),
            "user" => "/budgets/user/ann".to_owned(),
            "model" => "/budgets/model/ant%2Fm".to_owned(),
            _ => format!("/tenants/{tenant}/budget"),
        };
        // What was used before the budget was set counts too.
        set(api, &path, 100).await;
        until_refused(api, &talk, true).await;
        let asked = model.asked().len();
        for _ in 0..3 {
            assert!(is_refused(api, &talk).await, "{kind}");
        }
        assert_eq!(
            model.asked().len(),
            asked,
            "the model of a {kind} that has spent it is not asked"
        );
        let read = api.get(&path).await;
        assert!(read["spent_output_tokens"].as_u64() >= Some(100), "{kind}: {read:#}");
        if matches!(kind, "conversation" | "agent") {
            let other = self::talk(api, None).await;
            assert!(
                !is_refused(api, &other).await,
                "others have nothing to do with the {kind}'s"
            );
        }
        set(api, &path, 1_000_000).await;
        until_refused(api, &talk, false).await;
    }
    // The agent's own definition: each run or turn has it anew.
    let talk = talk(api, Some(8)).await;
    let asked = model.asked().len();
    let job = talk.turn("go", &json!({})).await;
    let job = api.ended(&job, SOON).await;
    assert_eq!(job["error"]["code"], "budget_exceeded", "{job:#}");
    assert_eq!(model.asked().len(), asked);
}

/// Tokens that the user has; all the answers together would take twice as many.
const BUDGET: u64 = 8_000;
const CALLS: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_turns_at_once_do_not_overrun_the_budget_of_their_user() {
    let text = "word ".repeat(13);
    let script = json!({"rules": [{"reply": [{"text": text}, {"wait": "20ms"}]}]});
    let model = Model::start(&[("m", script)]).await;
    let cluster = start(&model, 2).await;
    let api = &cluster.api;
    set(api, "/budgets/user/bob", BUDGET).await;
    let agent = json!({"harness": "chat", "models": ["ant/m"]});
    let run =
        json!({"kind": "agent_run", "user_id": "bob", "max_attempts": 1, "input": {"input": "go", "agent": agent}});
    let jobs = api.submit_all(vec![run; CALLS]).await;
    let mut counts = [0_usize; 2];
    for id in &jobs {
        let job = api.ended(id, 4 * SOON).await;
        let place = match (job["state"].as_str(), job["error"]["code"].as_str()) {
            (Some("succeeded"), _) => 0,
            (Some("failed"), Some("budget_exceeded")) => 1,
            _ => panic!("{job:#}"),
        };
        counts[place] += 1;
    }
    let read = api.get("/budgets/user/bob").await;
    let spent = read["spent_output_tokens"].as_u64().unwrap();
    let used = cluster.sql("select coalesce(sum(output_tokens), 0) from usage");
    assert_eq!(used, [spent.to_string()], "what is spent is what was used");
    assert!(spent <= BUDGET && spent > 0, "{spent} of {BUDGET}, {counts:?}");
    assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
    assert_eq!(
        cluster.sql("select count(*) from budget_holds"),
        ["0"],
        "nothing is held any more"
    );
}
