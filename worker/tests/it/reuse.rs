//! Sandboxes that serve more than one job of a user, and nobody else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use common::ids::{ApiKeyId, TenantId};
use common::job::NewJob;
use common::job::spec::{JobSpec, Kind};
use common::testing::eventually;
use serde_json::json;
use sqlx::PgPool;
use worker::environment::{Environment, Reuse};
use worker::model;

use crate::attempts::Bench;

/// What tells one sandbox from another: when its init was started, and the namespace that it is in.
const WHICH: &str = "readlink /proc/self/ns/pid; cut -d' ' -f22 /proc/1/stat";

fn reuse(environment: &mut Environment) {
    environment.reuse = Reuse::User;
    environment.warm.max = 6;
}

async fn bench(pool: PgPool) -> Bench {
    Bench::new(pool, model::Settings::default(), reuse).await
}

fn job(bench: &Bench, script: &str, user: Option<&str>) -> NewJob {
    let mut spec = JobSpec::new(Kind::Exec);
    spec.timeout = Duration::from_secs(20);
    spec.user_id = user.map(str::to_owned);
    NewJob {
        api_key_id: Some(ApiKeyId(uuid::Uuid::from_u128(1))),
        ..bench.job(spec, &json!({"command": ["sh", "-c", script]}))
    }
}

/// What a job of a user prints, once nothing of the jobs before is under way in the pool.
async fn run(bench: &Bench, job: &NewJob) -> String {
    let pool = bench.machine.pool.as_ref().unwrap();
    eventually(Duration::from_secs(30), "the pool is quiet", || async {
        let status = pool.status().remove(0);
        (status.leased + status.creating + status.retiring == 0 && status.warm >= 1).then_some(())
    })
    .await;
    let done = bench.run(job).await;
    done.any_result()["stdout"].as_str().unwrap().to_owned()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_of_one_user_share_a_sandbox_in_which_nothing_is_left(pool: PgPool) {
    jobs_of_one_user_share(bench(pool).await).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn so_they_do_on_bubblewrap(pool: PgPool) {
    jobs_of_one_user_share(Bench::bubblewrap(pool, reuse).await).await;
}

async fn jobs_of_one_user_share(bench: Bench) {
    let leave = "mkdir -p .hidden/deep /tmp/d; echo secret | tee .hidden/deep/x /tmp/d/x /dev/shm/x >/dev/null; chmod 0 .hidden; \
                 (setsid sleep 300 </dev/null >/dev/null 2>&1 &)";
    let first = run(&bench, &job(&bench, &format!("{leave}; {WHICH}"), Some("ann"))).await;
    let look =
        format!("{WHICH}; find /workspace /tmp /dev/shm -mindepth 1; pgrep sleep; cat /proc/sysvipc/shm | tail -n +2");
    assert_eq!(
        run(&bench, &job(&bench, &look, Some("ann"))).await,
        first,
        "the same sandbox, and nothing in it"
    );
    assert_ne!(
        run(&bench, &job(&bench, WHICH, Some("bob"))).await,
        first,
        "another user"
    );
    let nobody = run(&bench, &job(&bench, WHICH, None)).await;
    assert_ne!(nobody, first, "the key's own jobs");
    assert_eq!(run(&bench, &job(&bench, WHICH, None)).await, nobody);
    let mut stranger = job(&bench, WHICH, Some("ann"));
    stranger.tenant_id = TenantId::new();
    assert_ne!(
        run(&bench, &stranger).await,
        first,
        "a user of that name of another tenant"
    );
    assert_eq!(run(&bench, &job(&bench, WHICH, Some("ann"))).await, first);
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_sandbox_that_cannot_be_made_clean_is_thrown_away(pool: PgPool) {
    let bench = bench(pool).await;
    let python = |code: &str| format!("python3 -c {code:?} >/dev/null; {WHICH}");
    let segment = python("import ctypes; assert ctypes.CDLL(None).shmget(7, 4096, 0o1666) >= 0");
    let waiting = python(
        "import socket; s = socket.create_server(('127.0.0.1', 5000)); c = socket.create_connection(('127.0.0.1', 5000)); \
         a, _ = s.accept(); c.close(); a.close()",
    );
    for dirty in [segment, waiting] {
        let first = run(&bench, &job(&bench, &dirty, Some("ann"))).await;
        assert!(first.contains("pid:"), "{first}");
        assert_ne!(run(&bench, &job(&bench, WHICH, Some("ann"))).await, first, "{dirty}");
    }
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn by_default_every_job_has_a_sandbox_of_its_own(pool: PgPool) {
    let bench = Bench::new(pool, model::Settings::default(), |_| {}).await;
    let first = run(&bench, &job(&bench, WHICH, Some("ann"))).await;
    assert_ne!(run(&bench, &job(&bench, WHICH, Some("ann"))).await, first);
    assert_eq!(bench.machine.pool.as_ref().unwrap().status()[0].kept, 0);
    bench.end().await;
}
