//! Lists: filters, and cursors that stay stable while rows are added.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::Api;

fn ids(page: &Value) -> Vec<String> {
    page["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["id"].as_str().unwrap().to_owned())
        .collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_cursor_is_stable_while_jobs_are_added(pool: PgPool) {
    let api = Api::start(pool).await;
    let mut expected = Vec::new();
    for _ in 0..7 {
        expected.insert(0, api.submit(json!({"kind": "noop"})).await);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/jobs?limit=3{cursor}")).await.expect(200);
        assert!(ids(&page).len() <= 3);
        seen.extend(ids(&page));
        api.submit(json!({"kind": "noop"})).await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, expected);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_last_page_says_so_when_it_is_full(pool: PgPool) {
    let api = Api::start(pool).await;
    api.submit(json!({"kind": "noop"})).await;
    api.submit(json!({"kind": "noop"})).await;
    assert_eq!(api.get("/jobs?limit=2").await.expect(200)["next_cursor"], Value::Null);
    assert!(api.get("/jobs?limit=1").await.expect(200)["next_cursor"].is_string());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn filters_choose_and_combine(pool: PgPool) {
    let api = Api::start(pool).await;
    let red = api
        .submit(json!({"kind": "noop", "queue": "a", "metadata": {"colour": "red", "n": 1}}))
        .await;
    let blue = api
        .submit(json!({"kind": "noop", "queue": "b", "metadata": {"colour": "blue"}, "user_id": "ann"}))
        .await;
    let exec = api
        .submit(json!({"kind": "exec", "queue": "a", "input": {"command": ["true"]}}))
        .await;
    api.post(&format!("/jobs/{blue}/cancel"), json!({})).await.expect(202);
    let cases: [(&str, Vec<&str>); 12] = [
        ("", vec![&exec, &blue, &red]),
        ("?state=cancelled", vec![&blue]),
        ("?kind=exec", vec![&exec]),
        ("?queue=a", vec![&exec, &red]),
        ("?queue=a&kind=noop", vec![&red]),
        ("?metadata.colour=red", vec![&red]),
        ("?metadata.n=1", vec![&red]),
        ("?metadata.colour=red&metadata.n=2", vec![]),
        ("?q=BLU", vec![&blue]),
        ("?q=%25", vec![]),
        ("?user_id=ann", vec![&blue]),
        ("?agent_id=01a1fc32-6400-72c3-8633-dc013012e596", vec![]),
    ];
    for (query, expected) in cases {
        let page = api.get(&format!("/jobs{query}")).await.expect(200);
        assert_eq!(ids(&page), expected, "{query}");
        for job in page["data"].as_array().unwrap() {
            assert!(
                job.get("input").is_none() && job["result"].is_null(),
                "lists leave out input and result"
            );
        }
    }
}
