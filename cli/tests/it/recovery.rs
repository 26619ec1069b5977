//! What must hold when a part goes away in the middle of work: real processes, real kills.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::{Api, Cluster, Follower, SOON, Sandboxes, Setup, assert_whole, eventually};

/// A job whose worker died runs elsewhere within this.
const TAKEOVER: Duration = Duration::from_secs(10);

/// Prints `begin`, one number each fifth of a second, and `end`. The token is in its command line, so that its process
/// can be found.
fn counting(fifths: u32, token: &str) -> Value {
    let code = format!("echo begin; for i in $(seq {fifths}); do echo $i; sleep 0.2; done; echo end");
    json!({"kind": "exec", "timeout": "60s", "input": {"command": ["bash", "-c", code, token]}})
}

/// What such a job prints.
fn counted(fifths: u32) -> String {
    let numbers: Vec<String> = (1..=fifths).map(|i| i.to_string()).collect();
    format!("begin\n{}\nend\n", numbers.join("\n"))
}

fn worker_id(job: &Value) -> String {
    job["worker_id"].as_str().unwrap().to_owned()
}

fn now() -> DateTime<Utc> {
    std::time::SystemTime::now().into()
}

/// Shows what a recovery took; the test runner keeps it with the test's output.
#[expect(clippy::print_stderr, reason = "measurements of a test")]
fn took(what: &str, since: Instant) {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_worker_was_killed_runs_elsewhere() {
    let mut cluster = Cluster::start(Setup::default()).await;
    let id = cluster.api.submit(counting(15, "killed")).await;
    let first = worker_id(&cluster.api.printed(&id, 1, "begin").await);
    let follower = Follower::start(&cluster.api, &id);
    cluster.api.printed(&id, 1, "2").await;
    let index = cluster.worker_of(&first);

    cluster.workers[index].kill();
    let killed = Instant::now();
    let job = cluster.api.job_until(&id, TAKEOVER, |job| job["attempt"] == 2).await;
    took("killed worker: running elsewhere", killed);

    assert_ne!(worker_id(&job), first);
    let job = cluster.api.succeeded(&id, SOON).await;
    assert_eq!(
        (&job["attempt"], &job["losses"], &job["failures"]),
        (&json!(2), &json!(1), &json!(0)),
        "{job:#}"
    );
    assert_eq!(job["result"]["stdout"], counted(15));
    let events = cluster.api.events(&id).await;
    assert_whole(&job, &events);
    assert!(
        events.iter().any(|event| event["type"] == "attempt_reset"),
        "{events:#?}"
    );
    assert!(
        !events.iter().any(|event| event["type"] == "resume_gap"),
        "Redis lived, so nothing is lost: {events:#?}"
    );
    assert_eq!(follower.finish(SOON).await, events);
    let attempts = cluster.api.attempts(&id).await;
    let outcomes: Vec<_> = attempts
        .iter()
        .map(|one| (one["attempt"].as_u64(), one["outcome"].as_str()))
        .collect();
    assert_eq!(outcomes, [(Some(1), Some("lost")), (Some(2), Some("succeeded"))]);
    assert_eq!(attempts[0]["worker_id"], first);
    eventually(SOON, "no container of the dead worker is left", || {
        Cluster::containers(&first, true).is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_redis_is_built_again_around_what_runs() {
    let cluster = Cluster::start(Setup {
        workers: 1,
        ..Setup::default()
    })
    .await;
    let running = cluster.api.submit_all(vec![counting(50, "wiped"); 4]).await;
    for id in &running {
        cluster.api.printed(id, 1, "begin").await;
    }
    let follower = Follower::start(&cluster.api, &running[0]);
    let queued = cluster.api.submit_all(vec![counting(1, "queued"); 6]).await;

    cluster.redis.flush();
    let wiped = Instant::now();
    let noop = cluster.api.submit(json!({"kind": "noop"})).await;
    cluster.open().await;
    took("wiped Redis: open again", wiped);
    cluster.api.succeeded(&noop, SOON).await;
    took("wiped Redis: what was submitted right after it has run", wiped);

    for id in running.iter().chain(&queued) {
        let job = cluster.api.succeeded(id, 2 * SOON).await;
        assert_eq!((&job["attempt"], &job["losses"]), (&json!(1), &json!(0)), "{job:#}");
        assert_whole(&job, &cluster.api.events(id).await);
    }
    assert_eq!(cluster.api.job(&running[0]).await["result"]["stdout"], counted(50));
    assert_eq!(follower.finish(SOON).await, cluster.api.events(&running[0]).await);
    assert_rows(&cluster, 11);
}

/// One row for each job, ended, and one attempt that ended it.
fn assert_rows(cluster: &Cluster, jobs: usize) {
    let ended = "count(*) filter (where state in ('succeeded', 'failed', 'cancelled'))";
    let rows = cluster.sql(&format!("select count(*), count(distinct id), {ended} from jobs"));
    assert_eq!(rows, [format!("{jobs}|{jobs}|{jobs}")]);
    let twice = "select job_id from attempts where outcome in ('succeeded', 'failed', 'cancelled')
        group by job_id having count(*) > 1";
    assert_eq!(cluster.sql(twice), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_with_redis_and_the_worker_is_announced() {
    let mut cluster = Cluster::start(Setup::default()).await;
    let id = cluster.api.submit(counting(15, "lost-together")).await;
    let follower = Follower::start(&cluster.api, &id);
    let first = worker_id(&cluster.api.printed(&id, 1, "3").await);
    let index = cluster.worker_of(&first);

    cluster.workers[index].kill();
    cluster.redis.flush();
    let lost = Instant::now();
    cluster.api.job_until(&id, SOON, |job| job["attempt"] == 2).await;
    took("worker and Redis lost together: running elsewhere", lost);

    let job = cluster.api.succeeded(&id, SOON).await;
    assert_eq!((&job["attempt"], &job["losses"]), (&json!(2), &json!(1)), "{job:#}");
    let events = cluster.api.events(&id).await;
    assert_whole(&job, &events);
    let gap = events.iter().position(|event| event["type"] == "resume_gap");
    let gap = gap.unwrap_or_else(|| panic!("no gap is announced: {events:#?}"));
    assert_eq!(events[gap + 1]["type"], "attempt_reset", "{events:#?}");
    // Who followed saw what was lost, then the announcement, and from there on the same as everybody.
    let seen = follower.finish(SOON).await;
    let seen_gap = seen.iter().position(|event| event["type"] == "resume_gap").unwrap();
    assert_eq!(seen[seen_gap..], events[gap..]);
    let lost = seen[..seen_gap].iter().map(|event| event["seq"].as_u64().unwrap());
    assert!(lost.max() <= events[gap]["to_seq"].as_u64(), "{events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_comes_back_empty_costs_no_attempt() {
    redis_goes_away(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_stands_still_costs_no_attempt() {
    redis_goes_away(true).await;
}

/// Redis is away for longer than a lease while one job runs and others are submitted.
async fn redis_goes_away(frozen: bool) {
    let mut cluster = Cluster::start(Setup::default()).await;
    let running = cluster.api.submit(counting(90, "redis-away")).await;
    cluster.api.printed(&running, 1, "begin").await;
    let follower = Follower::start(&cluster.api, &running);
    let short = cluster.api.submit(counting(20, "ends-while-redis-is-away")).await;
    cluster.api.printed(&short, 1, "begin").await;

    if frozen {
        cluster.redis.freeze();
    } else {
        cluster.redis.kill();
    }
    let away = Instant::now();
    let mut meanwhile = Vec::new();
    for _ in 0..5 {
        meanwhile.push(cluster.api.submit(json!({"kind": "noop"})).await);
    }
    took("Redis away: five submissions accepted", away);
    cluster.api.succeeded(&short, SOON).await;
    // Longer than a lease: who looks at Redis alone would take the job over.
    outage(away, Duration::from_secs(9)).await;
    if frozen {
        cluster.redis.thaw();
    } else {
        cluster.redis.restart().await;
    }
    let back = Instant::now();
    for id in &meanwhile {
        cluster.api.succeeded(id, SOON).await;
    }
    took("Redis back: what was submitted meanwhile has run", back);

    for (id, fifths) in [(&running, 90), (&short, 20)] {
        let job = cluster.api.succeeded(id, 2 * SOON).await;
        assert_eq!(
            (&job["attempt"], &job["losses"], &job["failures"]),
            (&json!(1), &json!(0), &json!(0)),
            "{job:#}"
        );
        assert_eq!(job["result"]["stdout"], counted(fifths));
        assert_whole(&job, &cluster.api.events(id).await);
    }
    assert_eq!(follower.finish(SOON).await, cluster.api.events(&running).await);
    assert_rows(&cluster, 7);
}

/// Lets an outage last: its length is what is tested.
async fn outage(since: Instant, length: Duration) {
    tokio::time::sleep(length.saturating_sub(since.elapsed())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_workers_job_is_dead_before_its_successor_starts() {
    let cluster = Cluster::start(Setup::default()).await;
    let id = cluster.api.submit(counting(30, "token-of-frozen")).await;
    let first = worker_id(&cluster.api.printed(&id, 1, "begin").await);
    let container = Cluster::container_with(&first, "token-of-frozen").unwrap();
    let index = cluster.worker_of(&first);

    cluster.workers[index].freeze();
    let frozen = Instant::now();
    let mut seen = now();
    let mut dead = None;
    let second = eventually(2 * TAKEOVER, "the job runs elsewhere", || {
        let asked = now();
        if Cluster::runs(&container, "token-of-frozen") {
            seen = asked;
        } else {
            dead.get_or_insert_with(|| took("frozen worker: its job is dead", frozen));
        }
        let started = cluster.sql(&format!(
            "select to_json(started_at) from jobs where id = '{id}' and attempt = 2"
        ));
        started
            .first()
            .map(|text| serde_json::from_str::<DateTime<Utc>>(text).unwrap())
    })
    .await;
    took("frozen worker: running elsewhere", frozen);
    assert!(
        seen < second,
        "the first attempt ran at {seen}, the second began at {second}"
    );

    cluster.workers[index].thaw();
    let refused = ["lease lost", "ended after its lease"];
    eventually(SOON, "the thawed worker hears that it has lost", || {
        let said = cluster.workers[index].said();
        refused.iter().any(|words| said.contains(words)).then_some(())
    })
    .await;
    let job = cluster.api.succeeded(&id, SOON).await;
    assert_eq!((&job["attempt"], &job["losses"]), (&json!(2), &json!(1)), "{job:#}");
    assert_ne!(worker_id(&job), first);
    assert_whole(&job, &cluster.api.events(&id).await);
    let outcomes = cluster.sql(&format!(
        "select attempt, outcome from attempts where job_id = '{id}' order by attempt"
    ));
    assert_eq!(outcomes, ["1|lost", "2|succeeded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_followed_by_another() {
    let setup = Setup {
        workers: 1,
        schedulers: 2,
        sandboxes: Sandboxes::None,
        ..Setup::default()
    };
    let mut cluster = Cluster::start(setup).await;
    let due = Duration::from_secs(2);
    let delayed = json!({"kind": "noop", "delay": "2s"});
    let ids = cluster.api.submit_all(vec![delayed; 20]).await;
    let submitted = Instant::now();
    let leads = |cluster: &Cluster| cluster.schedulers.iter().position(|one| one.said().contains("leading"));
    let leader = eventually(SOON, "one leads", || leads(&cluster)).await;

    cluster.schedulers[leader].kill();

    for id in &ids {
        let job = cluster.api.succeeded(id, due + SOON).await;
        assert_eq!(job["attempt"], 1, "{job:#}");
        assert_whole(&job, &cluster.api.events(id).await);
    }
    took("killed leader: jobs due after 2 s have run", submitted);
    assert_rows(&cluster, ids.len());
    cluster.schedulers[leader].start();
}

/// Submits from many clients at once, until each of them is not answered with 202 or has had enough; answers the ids of
/// what was accepted.
fn flood(api: &Api) -> JoinSet<Vec<String>> {
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let api = api.clone();
        clients.spawn(async move {
            let mut accepted = Vec::new();
            for _ in 0..1_000 {
                let Ok(answer) = api.call(Method::POST, "/jobs", Some(&json!({"kind": "noop"}))).await else {
                    break;
                };
                if answer.status() != StatusCode::ACCEPTED {
                    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                    break;
                }
                // Killed between the head of its answer and the end of it: nobody was told an id.
                let Ok(job) = answer.json::<Value>().await else { break };
                accepted.push(job["id"].as_str().unwrap().to_owned());
            }
            accepted
        });
    }
    clients
}

/// Waits until all of these, and whatever else there is, have succeeded.
async fn all_succeeded(cluster: &Cluster, accepted: &[String], limit: Duration) {
    let open = "select count(*) from jobs where state <> 'succeeded'";
    eventually(limit, "every row ends well", || {
        (cluster.sql(open) == ["0"]).then_some(())
    })
    .await;
    let rows: HashSet<String> = cluster.sql("select id from jobs").into_iter().collect();
    let lost: Vec<&String> = accepted.iter().filter(|id| !rows.contains(*id)).collect();
    assert!(lost.is_empty(), "accepted and not there: {lost:?}");
}

async fn flooded(cluster: &Cluster, jobs: usize) {
    eventually(SOON, "jobs are coming", || {
        let count: usize = cluster.sql("select count(*) from jobs")[0].parse().unwrap();
        (count > jobs).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_outlives_the_api() {
    let mut cluster = Cluster::start(Setup {
        workers: 1,
        ..Setup::default()
    })
    .await;
    let followed = cluster.api.submit(counting(30, "followed")).await;
    let follower = Follower::start(&cluster.api, &followed);
    cluster.api.printed(&followed, 1, "begin").await;
    let clients = flood(&cluster.api);
    flooded(&cluster, 100).await;

    cluster.server.kill();
    let accepted: Vec<String> = clients.join_all().await.into_iter().flatten().collect();
    assert!(accepted.len() > 50, "{}", accepted.len());
    cluster.server.start();
    let restarted = Instant::now();
    cluster.api.ready().await;
    took("killed API: ready again", restarted);

    cluster.api.succeeded(&followed, SOON).await;
    assert_eq!(follower.finish(SOON).await, cluster.api.events(&followed).await);
    // What was committed and not answered runs too.
    all_succeeded(&cluster, &accepted, SOON).await;
    took("killed API: everything has run", restarted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_worker_finishes_or_gives_back() {
    let settings = &[("HOTHOUSE_WORKER__DRAIN", "3s")];
    let mut cluster = Cluster::start(Setup {
        settings,
        ..Setup::default()
    })
    .await;
    assert!(cluster.workers[1].terminate(SOON).await.success());
    let short = cluster.api.submit(counting(8, "finishes")).await;
    let long = cluster.api.submit(counting(40, "given-back")).await;
    for id in [&short, &long] {
        cluster.api.printed(id, 1, "begin").await;
    }
    let follower = Follower::start(&cluster.api, &long);
    cluster.workers[1].start();

    let told = Instant::now();
    let status = cluster.workers[0].terminate(SOON).await;
    took("terminated worker: ended", told);
    assert!(status.success(), "{status}");

    let job = cluster.api.succeeded(&short, SOON).await;
    assert_eq!((&job["attempt"], &job["losses"]), (&json!(1), &json!(0)), "{job:#}");
    let job = cluster.api.succeeded(&long, SOON).await;
    let counts = [&job["attempt"], &job["losses"], &job["failures"]];
    assert_eq!(counts, [&json!(2), &json!(0), &json!(0)], "{job:#}");
    assert_eq!(job["result"]["stdout"], counted(40));
    let events = cluster.api.events(&long).await;
    assert_whole(&job, &events);
    assert!(
        events.iter().any(|event| event["type"] == "attempt_reset"),
        "what it had printed counts no more: {events:#?}"
    );
    assert_eq!(follower.finish(SOON).await, events);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_that_goes_away_costs_no_attempt() {
    let cluster = Cluster::start(Setup {
        workers: 1,
        ..Setup::default()
    })
    .await;
    let short = cluster.api.submit(counting(15, "ends-meanwhile")).await;
    let long = cluster.api.submit(counting(80, "runs-on")).await;
    for id in [&short, &long] {
        cluster.api.printed(id, 1, "begin").await;
    }

    cluster.postgres.cut();
    let away = Instant::now();
    let mut refused = 0;
    // Longer than a lease, and than the short job.
    while away.elapsed() < Duration::from_secs(8) {
        let answer = cluster
            .api
            .call(Method::POST, "/jobs", Some(&json!({"kind": "noop"})))
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["status"], 503, "{problem:#}");
        refused += 1;
    }
    assert_eq!(
        cluster.sql(&format!("select state from jobs where id = '{short}'")),
        ["running"]
    );
    cluster.postgres.mend();
    let back = Instant::now();

    let noop = cluster.api.accepted_at_last(json!({"kind": "noop"})).await;
    took(&format!("Postgres back: accepted again after {refused} refusals"), back);
    cluster.api.succeeded(&noop, SOON).await;
    took("Postgres back: a new job has run", back);
    for (id, fifths) in [(&short, 15), (&long, 80)] {
        let job = cluster.api.succeeded(id, SOON).await;
        assert_eq!(
            (&job["attempt"], &job["losses"], &job["failures"]),
            (&json!(1), &json!(0), &json!(0)),
            "{job:#}"
        );
        assert_eq!(job["result"]["stdout"], counted(fifths));
        assert_whole(&job, &cluster.api.events(id).await);
    }
    assert_rows(&cluster, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_nobody_hears_stops_and_its_job_runs_again() {
    let mut cluster = Cluster::start(Setup {
        workers: 1,
        ..Setup::default()
    })
    .await;
    let id = cluster.api.submit(counting(60, "token-of-unheard")).await;
    let first = worker_id(&cluster.api.printed(&id, 1, "begin").await);
    let container = Cluster::container_with(&first, "token-of-unheard").unwrap();

    cluster.redis.kill();
    cluster.postgres.cut();
    let away = Instant::now();
    let is_dead = || (!Cluster::runs(&container, "token-of-unheard")).then_some(());
    eventually(TAKEOVER, "the sandbox ends by itself", is_dead).await;
    took("Redis and Postgres away: the job is dead", away);
    outage(away, Duration::from_secs(9)).await;
    cluster.redis.restart().await;
    cluster.postgres.mend();
    let back = Instant::now();

    cluster.api.job_until(&id, SOON, |job| job["attempt"] == 2).await;
    took("Redis and Postgres back: running again", back);
    let job = cluster.api.succeeded(&id, SOON).await;
    assert_eq!(job["failures"], 0, "it did nothing wrong: {job:#}");
    assert_eq!(job["result"]["stdout"], counted(60));
    assert_whole(&job, &cluster.api.events(&id).await);
    assert_rows(&cluster, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_connections_that_die_without_a_word_are_given_up() {
    let cluster = Cluster::start(Setup {
        workers: 1,
        ..Setup::default()
    })
    .await;
    let running = cluster.api.submit(counting(20, "silence")).await;
    cluster.api.printed(&running, 1, "begin").await;

    // So that there are queries under way on every side.
    let clients = flood(&cluster.api);
    flooded(&cluster, 500).await;
    cluster.postgres.silence();
    let silent = Instant::now();
    let accepted: Vec<String> = clients.join_all().await.into_iter().flatten().collect();
    took("Postgres connections dead: everybody is answered", silent);

    let noop = cluster.api.accepted_at_last(json!({"kind": "noop"})).await;
    took("Postgres connections dead: a submission is accepted", silent);
    cluster.api.succeeded(&noop, 2 * SOON).await;
    took("Postgres connections dead: it has run", silent);
    let delayed = cluster.api.submit(json!({"kind": "noop", "delay": "1s"})).await;
    cluster.api.succeeded(&delayed, 2 * SOON).await;
    took("Postgres connections dead: the scheduler goes on", silent);
    all_succeeded(&cluster, &accepted, 2 * SOON).await;
    took("Postgres connections dead: everything has run", silent);
    let job = cluster.api.succeeded(&running, 2 * SOON).await;
    took("Postgres connections dead: the job that ran has ended", silent);
    assert_eq!((&job["attempt"], &job["losses"]), (&json!(1), &json!(0)), "{job:#}");
    assert_whole(&job, &cluster.api.events(&running).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_engine_that_is_away_is_waited_for() {
    let mut cluster = Cluster::start(Setup {
        workers: 1,
        ..Setup::default()
    })
    .await;
    let running = cluster.api.submit(counting(20, "loses-its-engine")).await;
    cluster.api.printed(&running, 1, "begin").await;

    cluster.docker.cut();
    // The running one hears it at once and is tried again later.
    let job = cluster.api.job_until(&running, SOON, |job| job["failures"] == 1).await;
    assert_eq!(job["error"]["code"], "sandbox_failed", "{job:#}");
    eventually(SOON, "the worker sees that nothing starts", || {
        cluster.workers[0]
            .said()
            .contains("sandboxes do not start")
            .then_some(())
    })
    .await;
    // From then on it leaves such jobs to others, and runs those that need no sandbox.
    let queued = cluster.api.submit(counting(1, "comes-without-engine")).await;
    for _ in 0..3 {
        let noop = cluster.api.submit(json!({"kind": "noop"})).await;
        cluster.api.succeeded(&noop, SOON).await;
    }
    assert_eq!(cluster.api.job(&queued).await["attempt"], 0);
    // A worker that starts without its engine waits for it too.
    cluster.workers[0].kill();
    cluster.workers[0].start();
    let late = cluster.api.submit(json!({"kind": "noop"})).await;
    cluster.api.succeeded(&late, SOON).await;
    cluster.docker.mend();
    let back = Instant::now();

    for (id, fifths) in [(&running, 20), (&queued, 1)] {
        let job = cluster.api.succeeded(id, 2 * SOON).await;
        assert_eq!(job["result"]["stdout"], counted(fifths));
        assert_whole(&job, &cluster.api.events(id).await);
    }
    assert_eq!(
        cluster.api.job(&queued).await["failures"],
        0,
        "it cost the one that waited nothing"
    );
    took("Docker back: the jobs have run", back);
    assert_rows(&cluster, 6);
}
