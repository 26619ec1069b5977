//! Readiness measures progress: processes that live and do nothing say so, and are seen by others.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, SOON, Sandboxes, Setup};

/// What a worker or scheduler answers; `None` when it does not.
async fn ready(address: &str) -> Option<(u16, Value)> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let answer = client.get(format!("http://{address}/readyz")).send().await.ok()?;
    Some((answer.status().as_u16(), answer.json().await.ok()?))
}

/// Waits for an answer of this status in which these parts stall.
pub(crate) async fn says(address: &str, status: u16, stalled: &[&str]) {
    let is_it = |answer: &(u16, Value)| {
        let parts = answer.1["parts"].as_array().unwrap();
        let stalls = |name: &&str| parts.iter().any(|part| part["name"] == **name && part["ok"] == false);
        answer.0 == status && stalled.iter().all(stalls)
    };
    let asked = async {
        loop {
            if ready(address).await.as_ref().is_some_and(is_it) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let said = tokio::time::timeout(SOON, asked).await;
    assert!(
        said.is_ok(),
        "{address}: not {status} {stalled:?}: {:?}",
        ready(address).await
    );
}

async fn worker_is(cluster: &Cluster, state: &str) -> Value {
    cluster
        .api
        .until(SOON, "/workers", |page| {
            let worker = &page["data"][0];
            (worker["state"] == state).then(|| worker.clone())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_makes_no_progress_is_not_ready_and_is_shown_so() {
    let cluster = Cluster::start(Setup {
        workers: 1,
        schedulers: 2,
        sandboxes: Sandboxes::None,
        settings: &[("HOTHOUSE_HEALTH__STALL_MAX", "4s")],
        ..Setup::default()
    })
    .await;
    let worker = cluster.workers[0].setting("HOTHOUSE_WORKER__HEALTH_ADDRESS");
    let schedulers = cluster
        .schedulers
        .iter()
        .map(|one| one.setting("HOTHOUSE_SCHEDULER__HEALTH_ADDRESS"));
    let schedulers: Vec<&str> = schedulers.collect();
    for address in [&schedulers[..], &[worker]].concat() {
        says(address, 200, &[]).await;
    }
    worker_is(&cluster, "live").await;

    // Its connections are there, and nothing goes through.
    cluster.redis.freeze();
    says(worker, 503, &["claim light s0"]).await;
    let stalled = worker_is(&cluster, "stalled").await;
    assert_eq!(stalled["stalled"][0], "claim light s0", "{stalled:#}");
    // One of them leads, and so owes its duties; the other owes nothing of Redis.
    let leads = async {
        for address in schedulers.iter().cycle() {
            let says = ready(address).await.map(|(status, _)| status);
            if says == Some(503) {
                return *address;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unreachable!("a cycle has no end")
    };
    let leader = tokio::time::timeout(SOON, leads).await.unwrap();
    says(leader, 503, &["reclaim"]).await;
    let other = schedulers.iter().find(|address| **address != leader).unwrap();
    says(other, 200, &[]).await;

    cluster.redis.thaw();
    for address in [&schedulers[..], &[worker]].concat() {
        says(address, 200, &[]).await;
    }
    worker_is(&cluster, "live").await;

    cluster.workers[0].freeze();
    worker_is(&cluster, "silent").await;
    cluster.workers[0].thaw();
    worker_is(&cluster, "live").await;

    cluster.postgres.cut();
    says(worker, 503, &["presence"]).await;
    says(leader, 503, &["election"]).await;
    cluster.postgres.mend();
    says(worker, 200, &[]).await;
}
