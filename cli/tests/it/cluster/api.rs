//! The cluster's HTTP API as a client that keeps asking meets it.

use std::time::{Duration, Instant};

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::SOON;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Clone)]
pub(crate) struct Api {
    client: reqwest::Client,
    pub(crate) address: String,
    pub(crate) key: &'static str,
}

impl Api {
    pub(crate) fn new(port: u16, key: &'static str) -> Self {
        let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
        Self {
            client,
            address: format!("http://127.0.0.1:{port}"),
            key,
        }
    }

    /// One request, asked once; an error when nobody answers.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> reqwest::Result<Response> {
        let url = format!("{}/api/v1{path}", self.address);
        let request = self.client.request(method, url).bearer_auth(self.key);
        match body {
            Some(body) => request.json(body).send().await,
            None => request.send().await,
        }
    }

    /// The answer to a GET; none while the API, or what it needs, is away.
    async fn try_get(&self, path: &str) -> Option<Value> {
        let answer = self.call(Method::GET, path, None).await.ok()?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            return None;
        }
        assert_eq!(answer.status(), StatusCode::OK, "GET {path}");
        answer.json().await.ok()
    }

    /// The answer to a GET, asked again while the API is away.
    pub(crate) async fn get(&self, path: &str) -> Value {
        self.until(SOON, path, |answer| Some(answer.clone())).await
    }

    /// Asks until `look` finds what it wants in the answer.
    pub(crate) async fn until<T>(&self, limit: Duration, path: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let answer = self.try_get(path).await;
            if let Some(found) = answer.as_ref().and_then(&look) {
                return found;
            }
            assert!(
                begun.elapsed() < limit,
                "not within {limit:?}: GET {path} still answers {answer:#?}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it accepts jobs.
    pub(crate) async fn ready(&self) {
        let begun = Instant::now();
        let url = format!("{}/readyz", self.address);
        while !self
            .client
            .get(&url)
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            assert!(begun.elapsed() < SOON, "the API does not become ready");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Submits a job that must be accepted; answers its id.
    pub(crate) async fn submit(&self, job: Value) -> String {
        let answer = self.call(Method::POST, "/jobs", Some(&job)).await.unwrap();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, StatusCode::ACCEPTED, "{body:#}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// Submits a job again and again until it is accepted, as the answers ask for; answers its id.
    pub(crate) async fn accepted_at_last(&self, job: Value) -> String {
        let begun = Instant::now();
        loop {
            let Ok(answer) = self.call(Method::POST, "/jobs", Some(&job)).await else {
                assert!(begun.elapsed() < 2 * SOON, "no answer");
                continue;
            };
            if answer.status() == StatusCode::ACCEPTED {
                return answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
            }
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(begun.elapsed() < 2 * SOON, "{answer:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Submits jobs that must all be accepted; answers their ids.
    pub(crate) async fn submit_all(&self, jobs: Vec<Value>) -> Vec<String> {
        let answer = self
            .call(Method::POST, "/jobs/batch", Some(&json!({"jobs": jobs})))
            .await
            .unwrap();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, StatusCode::ACCEPTED, "{body:#}");
        let id = |item: &Value| {
            item["job"]["id"]
                .as_str()
                .unwrap_or_else(|| panic!("refused: {item:#}"))
                .to_owned()
        };
        body["data"].as_array().unwrap().iter().map(id).collect()
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        self.get(&format!("/jobs/{id}")).await
    }

    /// Waits until the job is as `look` wants it.
    pub(crate) async fn job_until(&self, id: &str, limit: Duration, look: impl Fn(&Value) -> bool) -> Value {
        self.until(limit, &format!("/jobs/{id}"), |job| look(job).then(|| job.clone()))
            .await
    }

    /// Waits until the job has ended.
    pub(crate) async fn ended(&self, id: &str, limit: Duration) -> Value {
        self.job_until(id, limit, |job| !job["finished_at"].is_null()).await
    }

    /// Waits until the job has succeeded.
    pub(crate) async fn succeeded(&self, id: &str, limit: Duration) -> Value {
        let job = self.ended(id, limit).await;
        assert_eq!(job["state"], "succeeded", "{job:#}");
        job
    }

    /// Waits until the job runs and has printed `text` in its attempt of this number.
    pub(crate) async fn printed(&self, id: &str, attempt: u64, text: &str) -> Value {
        let printed = |page: &Value| {
            let events = page["data"].as_array().unwrap().iter();
            let mut stdout = events.filter(|event| event["type"] == "stdout" && event["attempt"] == attempt);
            stdout
                .any(|event| event["text"].as_str().unwrap().contains(text))
                .then_some(())
        };
        self.until(SOON, &format!("/jobs/{id}/events"), printed).await;
        self.job(id).await
    }

    /// Every event of a job, page by page.
    pub(crate) async fn events(&self, id: &str) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        loop {
            let after = events.last().map_or(0, |event| event["seq"].as_u64().unwrap());
            let page = self.get(&format!("/jobs/{id}/events?after={after}&limit=50")).await;
            events.extend(page["data"].as_array().unwrap().iter().cloned());
            if page["next_cursor"].is_null() {
                return events;
            }
        }
    }

    /// Every job that there is, without inputs and results.
    pub(crate) async fn jobs(&self) -> Vec<Value> {
        let mut jobs = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.get(&format!("/jobs?limit=200{cursor}")).await;
            jobs.extend(page["data"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return jobs,
            }
        }
    }

    /// The attempts of a job that have ended.
    pub(crate) async fn attempts(&self, id: &str) -> Vec<Value> {
        let list = self.get(&format!("/jobs/{id}/attempts")).await;
        list["data"].as_array().unwrap().clone()
    }
}
