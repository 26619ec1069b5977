//! Spares of Claude Code: what they did before anybody came, and those that are of no use, which are the real command line
//! behind a program that refuses in its name as long as it waits for somebody, and steps aside otherwise.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Stdio;
use std::time::Duration;

use assert_matches::assert_matches;
use common::agent::AgentDefinition;
use serde_json::json;
use sqlx::PgPool;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use uuid::Uuid;
use worker::claude::{Error, Process, Recipe, words};
use worker::environment::{CLAUDE_CODE, Environment};
use worker::sandbox::RunSpec;

use crate::attempts::Bench;
use crate::claude_code::{agent, how, of_server, scripted, status, with_spare};
use crate::docker::{eventually, test_variable};
use crate::model_server::ModelServer;
use crate::workspaces::{conversation, turn_of};

/// What waits refuses as `REFUSES` says: at once, when it is claimed, by its end, or without a word. One that is `late`
/// does not say that it took the claim, and steps aside then: the real one takes the turn.
const STAND_IN: &str = r#"#!/bin/sh
case " $* " in *" --await-claim "*) ;; *) PATH=${PATH#*:} exec claude "$@" ;; esac
answer() {
    read -r _
    echo "{\"type\":\"control_response\",\"response\":{\"subtype\":\"$1\",\"request_id\":\"$2\",\"error\":\"not today\"}}"
}
[ "$REFUSES" = initialize ] && answer error initialize && exec sleep 600
answer success initialize
answer error title
answer error context
case $REFUSES in
claim) answer error claim; exec sleep 600 ;;
end) read -r _; exit 3 ;;
late)
    read -r _
    for word; do shift; [ "$word" = --await-claim ] || set -- "$@" "$word"; done
    PATH=${PATH#*:}
    exec claude "$@"
    ;;
esac
exec sleep 600
"#;

/// An image with it in front of the real one; gone with the test.
struct Image(String);

impl Image {
    async fn build() -> Self {
        let real = test_variable("HOTHOUSE_TEST_CLAUDE_CODE_IMAGE")
            .unwrap_or_else(|| "hothouse/claude-code:current".to_owned());
        let this = Self(format!("hothouse/test-refusing:{}", Uuid::now_v7().simple()));
        let lines: Vec<String> = STAND_IN.lines().map(|line| format!("'{line}'")).collect();
        let file = format!(
            "FROM {real}\nUSER root\nRUN mkdir -p /opt/refusing && printf '%s\\n' {} > /opt/refusing/claude \
             && chmod 755 /opt/refusing/claude\n",
            lines.join(" ")
        );
        let mut docker = docker(&["build", "--quiet", "--network=none", "--tag", &this.0, "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        docker.stdin.take().unwrap().write_all(file.as_bytes()).await.unwrap();
        assert!(docker.wait().await.unwrap().success());
        this
    }

    fn refusing(&self, how: &str) -> impl Fn(&mut Environment) {
        let (image, how) = (self.0.clone(), how.to_owned());
        move |it| {
            with_spare(it);
            *it = it.clone().with_image(image.clone());
            CLAUDE_CODE.clone_into(&mut it.name);
            it.env.insert(
                "PATH".to_owned(),
                "/opt/refusing:/usr/local/bin:/usr/bin:/bin".to_owned(),
            );
            it.env.insert("REFUSES".to_owned(), how.clone());
        }
    }
}

fn docker(words: &[&str]) -> Command {
    let mut docker = Command::new("docker");
    docker
        .args(["-H", &test_variable("HOTHOUSE_TEST_DOCKER_HOST").unwrap()])
        .args(words)
        .stdout(Stdio::null());
    docker
}

impl Drop for Image {
    fn drop(&mut self) {
        drop(docker(&["rmi", "--force", &self.0]).as_std_mut().status());
    }
}

/// Whether a turn was taken by a process that was started for it, whatever waited.
async fn is_taken(bench: &Bench, pool: &PgPool, says: &str) {
    let agent = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        ..agent()
    };
    let talk = conversation(bench, pool).await;
    let done = turn_of(bench, talk, &agent, says, None).await;
    assert_eq!(how(&done), "started");
    assert!(done.result()["text"].as_str().unwrap().contains(says), "{done:#?}");
    done.settle().await;
}

/// Fails when what a rehearsal was about is anywhere that a turn could find it.
const LOOK: &str = "! grep -r -i -q -e 'a rehearsal' -e 'naming a coding session' /workspace /tmp";

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_spare_has_rehearsed_and_nothing_of_that_is_left(pool: PgPool) {
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool, of_server(&server), with_spare).await;
    let machines = bench.machine.pool.as_ref().unwrap();
    let slot = machines.check_out(CLAUDE_CODE, None).await.unwrap();
    let sandbox = slot.sandbox();
    let model = "anthropic/claude".parse().unwrap();
    let env = bench.machine.environments[CLAUDE_CODE].env.clone();
    let recipe = Recipe::new(&agent(), &model, env.into_iter().collect());
    let mut spare = Process::spare(sandbox, &recipe).await.unwrap();
    // It has done so once, and does it again to say how that went.
    spare.wake().await.unwrap();
    let is_whole = spare.rehearse(sandbox).await.unwrap();
    assert!(is_whole, "this version does not do what is asked of it");
    spare.rest().await.unwrap();
    let looked = sandbox.run(RunSpec::new(["/bin/sh", "-c", LOOK])).await.unwrap();
    assert!(looked.wait().await.unwrap().is_success());
    assert!(server.requests().is_empty(), "no provider hears of it");

    // And it is still anybody's.
    assert!(!spare.has_ended());
    let first = words::user(&json!("what did I say"), None);
    spare.claim("be brief", first).await.unwrap();
    assert!(
        server.requests().is_empty(),
        "nobody has opened a way out of this sandbox"
    );
    slot.retire();
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_spare_that_refuses_to_initialise_itself_is_none_and_turns_are_taken_without(pool: PgPool) {
    let image = Image::build().await;
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), image.refusing("initialize")).await;
    let machines = bench.machine.pool.as_ref().unwrap();
    let slot = machines.check_out(CLAUDE_CODE, None).await.unwrap();
    let model = "anthropic/claude".parse().unwrap();
    let env = [
        ("PATH", "/opt/refusing:/usr/local/bin:/usr/bin:/bin"),
        ("REFUSES", "initialize"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let recipe = Recipe::new(&agent(), &model, env);
    let refused = Process::spare(slot.sandbox(), &recipe).await;
    assert_matches!(refused, Err(Error::Refused { reason }) if reason == "not today");
    slot.retire();

    // The pool tries one for whoever comes next, and has none.
    for says in ["what did I say first", "what did I say second"] {
        is_taken(&bench, &pool, says).await;
        eventually("the sandbox of the refusing one to be replaced", async || {
            let status = status(&bench);
            (status.spares, status.creating, status.retiring) == (0, 0, 0) && status.warm > 0
        })
        .await;
    }
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_spare_that_does_not_become_somebodys_is_replaced_by_a_fresh_process(pool: PgPool) {
    let image = Image::build().await;
    let server = ModelServer::start(scripted()).await;
    for refuses in ["claim", "end", "silence"] {
        let bench = Bench::new(pool.clone(), of_server(&server), image.refusing(refuses)).await;
        is_taken(&bench, &pool, &format!("what did I say before {refuses}")).await;
        eventually("a process to wait", async || status(&bench).spares == 1).await;
        let begun = std::time::Instant::now();
        is_taken(&bench, &pool, &format!("what did I say to {refuses}")).await;
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "{refuses}: {:?}",
            begun.elapsed()
        );
        bench.end().await;
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_spare_that_is_late_to_say_so_but_has_called_its_model_keeps_the_turn(pool: PgPool) {
    let image = Image::build().await;
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), image.refusing("late")).await;
    is_taken(&bench, &pool, "what did I say before").await;
    eventually("a process to wait", async || status(&bench).spares == 1).await;
    let before = server.requests().len();

    let agent = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        ..agent()
    };
    let talk = conversation(&bench, &pool).await;
    let done = turn_of(&bench, talk, &agent, "what did I say to the late one", None).await;
    assert_eq!(how(&done), "waiting");
    assert!(
        done.result()["text"].as_str().unwrap().contains("to the late one"),
        "{done:#?}"
    );
    assert_eq!(server.requests().len() - before, 1, "one call, and no second process");
    assert_eq!(done.names().iter().filter(|name| **name == "usage").count(), 1);
    done.settle().await;
    bench.end().await;
}
