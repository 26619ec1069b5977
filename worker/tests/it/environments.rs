//! Environments: the manual's example, built and run; and an image that is replaced while jobs run.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::Duration;

use common::job::spec::{JobSpec, Kind};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::Command;
use uuid::Uuid;
use worker::environment;
use worker::model;

use crate::attempts::Bench;
use crate::docker::{eventually, image, profile, test_variable};

const MANUAL: &str = include_str!("../../../docs/environments.md");

/// The example of the manual that begins like this.
fn example(begin: &str) -> &'static str {
    let blocks = MANUAL.split("```toml\n").filter_map(|rest| rest.split("```").next());
    blocks.into_iter().find(|block| block.starts_with(begin)).unwrap()
}

/// What the command says of the tests' engine.
pub(crate) async fn docker(args: &[&str]) -> String {
    let host = test_variable("HOTHOUSE_TEST_DOCKER_HOST").unwrap();
    let output = Command::new("docker")
        .args(["--host", &host])
        .args(args)
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

async fn run(bench: &Bench, input: &Value) -> String {
    let mut spec = JobSpec::new(Kind::Exec);
    spec.timeout = Duration::from_mins(1);
    let done = bench.run(&bench.job(spec, input)).await;
    done.result()["stdout"].as_str().unwrap().trim().to_owned()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_manual_s_example_adds_a_language(pool: PgPool) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("lua.toml"), example("name = \"lua\"")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/image.sh");
    let built = Command::new(script)
        .arg("lua")
        .arg(test_variable("HOTHOUSE_TEST_INIT").unwrap())
        .env("DOCKER_HOST", test_variable("HOTHOUSE_TEST_DOCKER_HOST").unwrap())
        .env("HOTHOUSE_ENVIRONMENTS", folder.path())
        .output()
        .await
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let lua = environment::load(Some(folder.path())).unwrap().remove("lua").unwrap();
    let bench = Bench::new(pool, model::Settings::default(), |environment| {
        environment.clone_from(&lua);
        environment.profile = profile();
    })
    .await;
    let printed = run(
        &bench,
        &json!({"environment": "lua", "language": "lua", "code": "print(6 * 7, _VERSION)"}),
    )
    .await;
    assert!(printed.starts_with("42\tLua"), "{printed}");
    bench.end().await;
}

#[test]
fn the_manual_s_rules_for_the_network_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("name = \"mine\"\n{}", example("egress = "));
    std::fs::write(folder.path().join("mine.toml"), text).unwrap();
    let mine = environment::load(Some(folder.path())).unwrap().remove("mine").unwrap();
    assert_eq!(mine.egress, ["*.example.org", "docs.example.com:443"]);
    assert_eq!(mine.install.allow, ["packages.example.org"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_newer_image_is_gone_over_to_and_no_job_is_dropped(pool: PgPool) {
    let name = format!("hothouse/rolling-{}:current", Uuid::now_v7().simple());
    docker(&["tag", &image(), &name]).await;
    let bench = Bench::new(pool, model::Settings::default(), |environment| {
        *environment = environment.clone().with_image(name.clone());
    })
    .await;
    let sandboxes = bench.machine.pool.clone().unwrap();
    sandboxes.roll_over().await;
    let before = sandboxes.status()[0].image_id.clone().unwrap();
    let is_warm = async || sandboxes.status()[0].warm == 1;
    eventually("one to be warm", is_warm).await;

    let job = async { run(&bench, &json!({"command": ["sh", "-c", "sleep 2; echo still here"]})).await };
    let replace = async {
        eventually("the job to begin", async || sandboxes.status()[0].leased == 1).await;
        eventually("one to be warm beside it", is_warm).await;
        let container = docker(&["create", &image()]).await;
        docker(&["commit", "--change", "LABEL newer=yes", &container, &name]).await;
        docker(&["rm", &container]).await;
        sandboxes.roll_over().await;
        assert_eq!((sandboxes.status()[0].warm, sandboxes.status()[0].leased), (0, 1));
    };
    let (printed, ()) = tokio::join!(job, replace);
    assert_eq!(printed, "still here");
    assert_ne!(sandboxes.status()[0].image_id.as_ref(), Some(&before));
    assert_eq!(
        run(&bench, &json!({"command": ["echo", "of the newer"]})).await,
        "of the newer"
    );
    bench.end().await;
    docker(&["rmi", "--force", &name]).await;
}
