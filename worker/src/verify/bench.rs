//! Where attempts are made: sandboxes of one environment, fresh ones.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Probe, Verdict, probe};
use crate::driver::{self, Pipe, SandboxDriver, Spec};
use crate::environment::Environment;
use crate::sandbox::{self, Exit, Output, RunSpec, Sandbox};

/// How long a sandbox may take to answer after what was done to it.
const ANSWER: Duration = Duration::from_secs(10);

/// Why an attempt could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No sandbox starts.
    #[error("no sandbox starts: {0}")]
    Start(#[source] driver::Error),
    /// The sandbox does not do what it must.
    #[error("the sandbox failed: {0}")]
    Sandbox(#[from] sandbox::Error),
    /// What the attempt needs cannot be had.
    #[error("{0}")]
    Setup(String),
}

/// One environment of one driver.
#[derive(Debug)]
pub struct Bench {
    driver: Arc<dyn SandboxDriver>,
    environment: Arc<Environment>,
    worker_id: Uuid,
    settings: sandbox::Settings,
}

/// What came of a program.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) exit: Exit,
    pub(super) stdout: String,
}

impl Bench {
    /// Sandboxes of `environment`, connected as `settings` say.
    pub fn new(driver: Arc<dyn SandboxDriver>, environment: Arc<Environment>, settings: sandbox::Settings) -> Self {
        Self {
            driver,
            environment,
            worker_id: Uuid::now_v7(),
            settings,
        }
    }

    /// The name of the environment.
    pub fn environment(&self) -> &str {
        &self.environment.name
    }

    /// The name of the driver.
    pub(super) fn driver(&self) -> &'static str {
        self.driver.name()
    }

    /// How many processors a sandbox may use.
    pub(super) fn cpus(&self) -> f64 {
        self.environment.profile.cpus
    }

    fn spec(&self) -> Spec {
        Spec {
            id: Uuid::now_v7(),
            worker_id: self.worker_id,
            environment: self.environment.name.clone(),
            image: self.environment.image(),
            image_id: None,
            profile: self.environment.profile.clone(),
        }
    }

    /// A fresh sandbox; it is gone when it is dropped.
    pub(super) async fn sandbox(&self) -> Result<Sandbox, Error> {
        let pipe = self.pipe().await?;
        Ok(Sandbox::connect(pipe, &self.settings).await?)
    }

    /// The bare pipe of a fresh sandbox.
    pub(super) async fn pipe(&self) -> Result<Pipe, Error> {
        self.driver.start(&self.spec()).await.map_err(Error::Start)
    }

    /// A program in a fresh sandbox, which must answer as before after it.
    pub(super) async fn probe(&self, probe: &Probe) -> Result<Verdict, Error> {
        let sandbox = self.sandbox().await?;
        let verdict = match probe::run(&sandbox, &[probe]).await {
            Ok(mut verdicts) => verdicts.pop().unwrap_or_else(|| Verdict::Unclear(String::new())),
            Err(error) => return Ok(Verdict::Broken(format!("it ended the sandbox: {error}"))),
        };
        Ok(match still_serves(&sandbox).await {
            Ok(()) => verdict,
            Err(why) => Verdict::Broken(why),
        })
    }

    /// Destroys what is left of this bench: sandboxes end with their pipes, this waits for their remains.
    ///
    /// # Errors
    /// When the driver cannot say or remove what there is.
    pub async fn clear(&self) -> Result<(), driver::Error> {
        for found in self.driver.list().await? {
            if found.worker_id == self.worker_id {
                self.driver.destroy(found.id).await?;
            }
        }
        Ok(())
    }
}

/// Whether the sandbox answers and runs a program; why not.
pub(super) async fn still_serves(sandbox: &Sandbox) -> Result<(), String> {
    sandbox
        .ping(ANSWER)
        .await
        .map_err(|e| format!("init does not answer any more: {e}"))?;
    let done = shell(sandbox, "echo fine", ANSWER).await;
    match done {
        Ok(done) if done.stdout == "fine\n" => Ok(()),
        Ok(done) => Err(format!("programs do not run any more: {done:?}")),
        Err(error) => Err(format!("programs do not start any more: {error}")),
    }
}

/// Runs a script to its end.
pub(super) async fn shell(sandbox: &Sandbox, script: &str, timeout: Duration) -> Result<Done, Error> {
    run(sandbox, &["sh", "-c", script], timeout).await
}

/// Runs some Python to its end.
pub(super) async fn python(sandbox: &Sandbox, code: &str, timeout: Duration) -> Result<Done, Error> {
    run(sandbox, &["python3", "-c", code], timeout).await
}

async fn run(sandbox: &Sandbox, argv: &[&str], timeout: Duration) -> Result<Done, Error> {
    let path = ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned());
    let spec = RunSpec {
        env: vec![path],
        timeout: Some(timeout),
        grace: Duration::from_millis(200),
        ..RunSpec::new(argv.iter().copied())
    };
    let mut running = sandbox.run(spec).await?;
    let mut stdout = Vec::new();
    while let Some(output) = running.next().await {
        if let Output::Stdout(data) = output {
            stdout.extend_from_slice(&data);
        }
    }
    Ok(Done {
        exit: running.wait().await?,
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
    })
}
