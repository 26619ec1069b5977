//! `exec` jobs through whole attempts in real sandboxes: what becomes of files that there is no room for, going in or out.

use std::time::Duration;

use common::job::event::EventBody;
use common::job::spec::{JobSpec, Kind};
use common::job::{FailureCode, NewJob};
use common::objects::Objects;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::attempts::Bench;

async fn bench(pool: PgPool) -> Bench {
    Bench::bubblewrap(pool, |_| {}).await
}

fn job(bench: &Bench, input: &Value) -> NewJob {
    let mut spec = JobSpec::new(Kind::Exec);
    spec.timeout = Duration::from_secs(30);
    bench.job(spec, input)
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_asks_for_artifacts_does_not_begin_where_none_can_be_kept(pool: PgPool) {
    let mut bench = bench(pool).await;
    bench.machine.objects = Objects::none();
    let input = json!({"command": ["echo", "begun"], "artifacts": ["out/*"]});
    let done = bench.run(&job(&bench, &input)).await;
    let told = "this worker cannot keep artifacts: no object store is configured (objects.url)";
    assert_eq!(done.failure(), (FailureCode::InvalidInput, told));
    assert_eq!(done.names(), ["started"]);
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_program_whose_artifacts_are_not_stored_has_its_result_all_the_same(pool: PgPool) {
    let bench = bench(pool).await;
    // Where a folder should be, the store finds a file.
    std::fs::write(bench.folder.path().join("artifacts"), "").unwrap();
    for (code, failure) in [(0, FailureCode::Internal), (3, FailureCode::NonzeroExit)] {
        let script = format!("echo made; echo x > a.txt; exit {code}");
        let input = json!({"command": ["sh", "-c", script], "artifacts": ["*.txt"]});
        let done = bench.run(&job(&bench, &input)).await;
        assert_eq!(done.failure().0, failure);
        let result = done.any_result();
        assert_eq!(
            (&result["exit_code"], &result["stdout"], &result["artifacts"]),
            (&json!(code), &json!("made\n"), &json!([]))
        );
        assert!(done.ended.usage.sandbox_ms > 0);
        let is_said =
            |body: &EventBody| matches!(body, EventBody::Status { phase, .. } if phase == "artifacts_not_kept");
        assert!(done.said.iter().any(is_said), "{:?}", done.said);
    }
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn files_that_do_not_fit_into_the_sandbox_are_a_full_disk(pool: PgPool) {
    let bench = bench(pool).await;
    let files = json!([{"path": "large", "content": "x".repeat(20 << 20)}]);
    let input = json!({"command": ["echo", "begun"], "files": files});
    let done = bench.run(&job(&bench, &input)).await;
    let (code, message) = done.failure();
    assert_eq!(code, FailureCode::DiskFull, "{message}");
    assert!(message.contains("No space left"), "{message}");
    bench.end().await;
}
