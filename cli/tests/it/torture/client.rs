//! Clients that submit, cancel and ask, all the while, and write down what they were told.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::history::{Answer, Submission, Told};
use super::rig::Rig;
use super::work::{Work, any};
use crate::cluster::KEY;

/// Clients at once.
pub(super) const CLIENTS: usize = 4;

/// Time between two programs, of all clients together: what small machines run while a third of them fails.
const PROGRAM_EVERY: Duration = Duration::from_millis(667);

/// How long an answer may take; then it is unknown.
const PATIENCE: Duration = Duration::from_secs(12);

/// How long a submission under a key is repeated after the storm.
const PERSISTENCE: Duration = Duration::from_mins(1);

/// What clients write down.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) submissions: Vec<Submission>,
    pub(super) told: Vec<Told>,
    pub(super) bad_answers: Vec<String>,
    /// Jobs by their submission, with their tenant.
    accepted: Vec<(usize, Uuid, usize)>,
}

/// Who submits.
#[derive(Debug, Clone)]
pub(super) struct Tenant {
    pub(super) id: String,
    pub(super) key: String,
}

/// What all clients share.
pub(super) struct Clients {
    pub(super) http: Client,
    pub(super) addresses: Vec<String>,
    pub(super) tenants: Vec<Tenant>,
    /// Begins every token.
    pub(super) prefix: String,
    pub(super) journal: Mutex<Journal>,
    /// Jobs that somebody should follow, and whose they are.
    pub(super) follow: mpsc::Sender<(Uuid, String)>,
    pub(super) stop: CancellationToken,
    begun: Instant,
    programs: AtomicU32,
    numbers: AtomicUsize,
}

impl Clients {
    /// Makes tenants and their keys.
    pub(super) async fn new(rig: &Rig, prefix: String, follow: mpsc::Sender<(Uuid, String)>) -> Self {
        let http = Client::builder().timeout(PATIENCE).build().unwrap();
        let addresses: Vec<String> = rig.apis.iter().map(|api| api.address.clone()).collect();
        let mut tenants = Vec::new();
        for (name, weight) in [("alder", 1), ("birch", 3), ("cedar", 1)] {
            let made = |path: &'static str, body: Value| {
                http.post(format!("{}/api/v1{path}", addresses[0]))
                    .bearer_auth(KEY)
                    .json(&body)
                    .send()
            };
            let tenant: Value = made("/tenants", json!({"name": name, "weight": weight}))
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            let id = tenant["id"].as_str().unwrap_or_else(|| panic!("{tenant:#}")).to_owned();
            let key: Value = made("/keys", json!({"tenant_id": id, "role": "member"}))
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            let key = key["key"].as_str().unwrap_or_else(|| panic!("{key:#}")).to_owned();
            tenants.push(Tenant { id, key });
        }
        Self {
            http,
            addresses,
            tenants,
            prefix,
            journal: Mutex::default(),
            follow,
            stop: CancellationToken::new(),
            begun: Instant::now(),
            programs: AtomicU32::new(0),
            numbers: AtomicUsize::new(0),
        }
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another program may be submitted now.
    fn may_run(&self) -> bool {
        let so_far = self.programs.load(Ordering::Relaxed);
        let is_due = self.begun.elapsed() >= PROGRAM_EVERY * so_far;
        if is_due {
            self.programs.fetch_add(1, Ordering::Relaxed);
        }
        is_due
    }

    /// One client, until the storm is over.
    pub(super) async fn run(self: Arc<Self>, seed: u64) {
        let mut client = One {
            rng: StdRng::seed_from_u64(seed),
            all: self,
        };
        while !client.all.stop.is_cancelled() {
            client.act().await;
            let pause = Duration::from_millis(client.rng.random_range(5..60));
            tokio::time::sleep(pause).await;
        }
    }
}

struct One {
    rng: StdRng,
    all: Arc<Clients>,
}

impl One {
    async fn act(&mut self) {
        match self.rng.random_range(0..100) {
            0..65 => self.submit(1).await,
            65..73 => {
                let jobs = self.rng.random_range(2..16);
                self.submit(jobs).await;
            }
            73..83 => self.cancel().await,
            _ => self.ask().await,
        }
    }

    /// A request to any API: its status and answer; none when there is no answer.
    async fn call(
        &mut self,
        tenant: usize,
        method: Method,
        path: &str,
        body: Option<(&Value, Option<&str>)>,
    ) -> Option<(StatusCode, Value)> {
        let api = self.rng.random_range(0..self.all.addresses.len());
        let url = format!("{}/api/v1{path}", self.all.addresses[api]);
        let mut request = self
            .all
            .http
            .request(method.clone(), url)
            .bearer_auth(&self.all.tenants[tenant].key);
        if let Some((body, key)) = body {
            request = request.json(body);
            if let Some(key) = key {
                request = request.header("Idempotency-Key", key);
            }
        }
        let answer = request.send().await.ok()?;
        let status = answer.status();
        let is_again = answer.headers().contains_key("retry-after");
        let text = answer.text().await.ok()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        let is_clear = match status.as_u16() {
            200..300 => true,
            503 | 429 => is_again && body["code"].is_string(),
            _ => false,
        };
        if !is_clear {
            self.all
                .journal()
                .bad_answers
                .push(format!("{method} {path}: {status} {text}"));
        }
        Some((status, body))
    }

    /// Submits one job, or some together; under an idempotency key again and again until it is accepted.
    async fn submit(&mut self, jobs: usize) {
        let tenant = self.rng.random_range(0..self.all.tenants.len());
        let work: Vec<Work> = (0..jobs).map(|_| self.work(jobs == 1)).collect();
        let key = self.rng.random_bool(0.35).then(|| format!("key-{}", work[0].token));
        let bodies: Vec<&Value> = work.iter().map(|work| &work.body).collect();
        let (path, body) = if jobs == 1 {
            ("/jobs", bodies[0].clone())
        } else {
            ("/jobs/batch", json!({"jobs": bodies}))
        };
        let first = self.note(tenant, &work, key.is_some());
        let (mut accepted, again) = (0, 1 + usize::from(self.rng.random_bool(0.2)));
        let mut patience = None;
        loop {
            let answer = self
                .call(tenant, Method::POST, path, Some((&body, key.as_deref())))
                .await;
            if let Some((StatusCode::ACCEPTED, answer)) = answer {
                self.accepted(tenant, first, &answer, jobs);
                accepted += 1;
            }
            if self.all.stop.is_cancelled() {
                let since = *patience.get_or_insert_with(Instant::now);
                if since.elapsed() > PERSISTENCE {
                    return;
                }
            }
            if key.is_none() || accepted == again {
                return;
            }
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(10..300))).await;
        }
    }

    fn work(&mut self, may_be_program: bool) -> Work {
        let number = self.all.numbers.fetch_add(1, Ordering::Relaxed);
        let token = format!("{}{number}", self.all.prefix);
        let is_program = may_be_program && self.rng.random_bool(0.4) && self.all.may_run();
        any(&mut self.rng, token, is_program)
    }

    /// Writes down what is about to be asked for; answers the place of the first.
    fn note(&self, tenant: usize, work: &[Work], has_key: bool) -> usize {
        let mut journal = self.all.journal();
        let first = journal.submissions.len();
        journal.submissions.extend(work.iter().map(|work| Submission {
            token: work.token.clone(),
            tenant: self.all.tenants[tenant].id.clone(),
            answer: Answer::Unknown,
            has_key,
            expects: work.expects,
            is_sandboxed: work.is_program,
            limit: work.limit.clone(),
            cancel_asked: false,
        }));
        first
    }

    fn accepted(&mut self, tenant: usize, first: usize, answer: &Value, jobs: usize) {
        let items = match &answer["data"] {
            Value::Array(items) => items.iter().map(|item| &item["job"]).collect(),
            _ => vec![answer],
        };
        let ids: Vec<Option<Uuid>> = items.iter().map(|job| job["id"].as_str()?.parse().ok()).collect();
        let mut journal = self.all.journal();
        if ids.len() != jobs || ids.contains(&None) {
            journal
                .bad_answers
                .push(format!("202 without a job for each: {answer}"));
        }
        for (index, id) in ids.into_iter().flatten().enumerate() {
            let submission = &mut journal.submissions[first + index];
            match &mut submission.answer {
                Answer::Accepted(ids) => ids.push(id),
                Answer::Unknown => submission.answer = Answer::Accepted(vec![id]),
            }
            let is_program = submission.is_sandboxed;
            journal.accepted.push((first + index, id, tenant));
            if self.rng.random_bool(if is_program { 0.6 } else { 0.03 }) {
                // When too many are being followed already, this one is not.
                drop(self.all.follow.try_send((id, self.all.tenants[tenant].key.clone())));
            }
        }
    }

    /// One of the latest jobs.
    fn recent(&mut self) -> Option<(usize, Uuid, usize)> {
        let journal = self.all.journal();
        let newest = journal.accepted.len().checked_sub(1)?;
        let back = self.rng.random_range(0..60).min(newest);
        journal.accepted.get(newest - back).copied()
    }

    async fn cancel(&mut self) {
        let Some((index, id, tenant)) = self.recent() else {
            return;
        };
        // Before it is asked: a request whose answer is lost may have been heard.
        self.all.journal().submissions[index].cancel_asked = true;
        let path = format!("/jobs/{id}/cancel");
        let answer = self.call(tenant, Method::POST, &path, None).await;
        self.tell(id, answer);
    }

    async fn ask(&mut self) {
        let Some((_, id, tenant)) = self.recent() else { return };
        let wait = if self.rng.random_bool(0.2) { "?wait=2s" } else { "" };
        let answer = self.call(tenant, Method::GET, &format!("/jobs/{id}{wait}"), None).await;
        self.tell(id, answer);
    }

    fn tell(&self, job: Uuid, answer: Option<(StatusCode, Value)>) {
        let Some((status, body)) = answer else { return };
        if status.is_success()
            && let Some(state) = body["state"].as_str()
        {
            let state = state.to_owned();
            self.all.journal().told.push(Told { job, state });
        }
    }
}
