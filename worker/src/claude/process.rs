//! One process of the command line: started, asked, let to rest and woken.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use common::ids::ConversationId;
use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use uuid::Uuid;

use super::recipe::{Recipe, Session};
use super::words;
use crate::gateway;
use crate::lines::Lines;
use crate::sandbox::{self, Channel, Exit, Input, Output, Rested, RunSpec, Running, Sandbox, Stdin, WORKSPACE};

/// How long it may take to start and to initialise itself, on a machine that does other things too.
const START_MAX: Duration = Duration::from_secs(30);

/// How long each part of a rehearsal may take.
const REHEARSAL_MAX: Duration = Duration::from_secs(10);

/// How long it may take to become somebody's.
const CLAIM_MAX: Duration = Duration::from_secs(5);

/// How long it and everything else in the sandbox may take to stand still.
const REST_MAX: Duration = Duration::from_secs(5);

/// A process.
#[derive(Debug)]
pub struct Process {
    running: Running,
    stdin: Stdin,
    lines: Lines,
    backlog: VecDeque<Said>,
    recipe: Recipe,
    session: String,
    token: String,
    whose: Option<Whose>,
}

/// What it said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// A line of its protocol.
    Line(Vec<u8>),
    /// A piece of its standard error.
    Complaint(Bytes),
}

/// Whom it serves; nobody else ever gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// What it was told to be.
    pub instructions: String,
}

/// Why a process is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sandbox did not start it, or is gone.
    #[error("Claude Code does not run in the sandbox")]
    Sandbox(#[from] sandbox::Error),
    /// It ended before it answered.
    #[error("Claude Code ended before it answered")]
    Ended,
    /// It did not answer in time.
    #[error("Claude Code did not answer within {}", humantime::format_duration(*after))]
    NoAnswer {
        /// How long it had.
        after: Duration,
    },
    /// It refuses what it was asked for.
    #[error("Claude Code refuses: {reason}")]
    Refused {
        /// In its own words.
        reason: String,
    },
}

impl Process {
    /// Starts one for a session, with the token that it reaches models with.
    ///
    /// # Errors
    /// When the sandbox does not start it.
    pub async fn start(
        sandbox: &Sandbox,
        recipe: &Recipe,
        session: &Session,
        (instructions, token): (&str, &str),
    ) -> Result<Self, sandbox::Error> {
        let mut env = recipe.env().to_vec();
        env.extend(gateway::variables(token));
        let spec = RunSpec {
            env,
            stdin: Input::Stream,
            // The attempt's time counts, not the process's, which may be older and live longer.
            timeout: None,
            keep_bytes: None,
            kill_bytes: None,
            ..RunSpec::new(recipe.argv(session, instructions))
        };
        let running = sandbox.run(spec).await?;
        Ok(Self {
            stdin: running.stdin(),
            running,
            lines: Lines::default(),
            backlog: VecDeque::new(),
            recipe: recipe.clone(),
            session: session.id().to_owned(),
            token: token.to_owned(),
            whose: None,
        })
    }

    /// Starts a spare, lets it initialise itself and rehearse, and lets it rest until somebody claims it.
    ///
    /// # Errors
    /// When it does not come so far.
    pub async fn spare(sandbox: &Sandbox, recipe: &Recipe) -> Result<Self, Error> {
        let session = Session::Spare(Uuid::new_v4().to_string());
        let mut process = Self::start(sandbox, recipe, &session, ("", &gateway::token())).await?;
        process
            .ask("initialize", &json!({"subtype": "initialize"}), START_MAX)
            .await?;
        process.rehearse(sandbox).await?;
        process.rest().await?;
        Ok(process)
    }

    /// Has it do for nobody what its first turn begins with. Code that has run once is quicker, by a fifth of the way to
    /// the first call of a model. Answers whether it did all of it: one that refuses, as another version may, is a spare all
    /// the same.
    ///
    /// # Errors
    /// When it is silent: it may still be about it then, and is no spare.
    pub async fn rehearse(&mut self, sandbox: &Sandbox) -> Result<bool, Error> {
        let rehearsed = async {
            let mut is_whole = true;
            for (id, what) in words::rehearsal() {
                match self.ask(id, &what, REHEARSAL_MAX).await {
                    Err(Error::Refused { reason }) => {
                        is_whole = false;
                        tracing::debug!(id, reason, "Claude Code does not rehearse");
                    }
                    answered => answered?,
                }
            }
            Ok(is_whole)
        };
        tokio::select! {
            rehearsed = rehearsed => rehearsed,
            never = gateway::rehearse(sandbox) => match never {},
        }
    }

    /// Makes a spare somebody's, and says to it what its owner says first. That does not wait for its answer: it takes one
    /// after the other.
    ///
    /// # Errors
    /// When it refuses or is not able to: it is of no use then. One that does not answer in time may have taken the claim all
    /// the same, have begun its turn and called its model; only the gateway knows.
    pub async fn claim(&mut self, instructions: &str, first: String) -> Result<(), Error> {
        self.wake().await?;
        let mut claim = json!({"subtype": "claim_session", "cwd": WORKSPACE, "permission_mode": "bypassPermissions"});
        if !instructions.is_empty() {
            claim["append_system_prompt"] = instructions.into();
        }
        let said = words::request("claim", &claim) + &first;
        self.ask_as("claim", said, CLAIM_MAX).await
    }

    /// How it was started.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The id of its session.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// What it reaches models with, as long as a gateway accepts that.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whom it serves; nobody yet, when it is a spare.
    pub fn whose(&self) -> Option<&Whose> {
        self.whose.as_ref()
    }

    /// From now on it serves the same conversation alone.
    pub fn belongs_to(&mut self, whose: Whose) {
        self.whose = Some(whose);
    }

    /// Whether it has ended while nobody looked.
    pub fn has_ended(&mut self) -> bool {
        match self.next().now_or_never() {
            Some(None) => true,
            Some(Some(said)) => {
                self.backlog.push_front(said);
                false
            }
            None => false,
        }
    }

    /// Says a line to it.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub async fn say(&self, line: String) -> Result<(), sandbox::Error> {
        self.stdin.write(line).await
    }

    /// What it says next; none when it has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Said> {
        loop {
            if let Some(said) = self.backlog.pop_front() {
                return Some(said);
            }
            let backlog = &mut self.backlog;
            match self.running.next().await? {
                Output::Stdout(bytes) => self
                    .lines
                    .push(&bytes, |line| backlog.push_back(Said::Line(line.to_vec()))),
                Output::Stderr(bytes) => backlog.push_back(Said::Complaint(bytes)),
                Output::Cut {
                    channel: Channel::Stdout,
                    ..
                } => self.lines.cut(),
                Output::Cut { .. } => {}
            }
        }
    }

    /// Stops it where it is, and everything else in its sandbox for good.
    ///
    /// # Errors
    /// When it ended, or does not stand still.
    pub async fn rest(&mut self) -> Result<Rested, Error> {
        let rested = self.running.rest(REST_MAX).await?;
        if rested.is_alive { Ok(rested) } else { Err(Error::Ended) }
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub async fn wake(&self) -> Result<(), sandbox::Error> {
        self.running.wake().await
    }

    /// Tells it that nothing more is said, reads what it still says for a while, and kills it.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub async fn end(mut self, patience: Duration, mut hear: impl FnMut(Said)) -> Result<Exit, sandbox::Error> {
        self.stdin.close().await?;
        let rest = async {
            while let Some(said) = self.next().await {
                hear(said);
            }
        };
        if timeout(patience, rest).await.is_err() {
            self.running.kill().await?;
        }
        self.running.wait().await
    }

    /// Asks for something and waits for the answer; what it says besides is kept.
    async fn ask(&mut self, id: &str, what: &Value, limit: Duration) -> Result<(), Error> {
        self.ask_as(id, words::request(id, what), limit).await
    }

    /// The same in words of which the first line is the request.
    async fn ask_as(&mut self, id: &str, words: String, limit: Duration) -> Result<(), Error> {
        let mut before = VecDeque::new();
        let answered = async {
            self.say(words).await?;
            loop {
                let said = self.next().await.ok_or(Error::Ended)?;
                match &said {
                    Said::Line(line) => match answer_to(id, line) {
                        Some(answer) => return answer,
                        None => before.push_back(said),
                    },
                    Said::Complaint(_) => before.push_back(said),
                }
            }
        };
        let answered = timeout(limit, answered).await;
        before.append(&mut self.backlog);
        self.backlog = before;
        answered.unwrap_or(Err(Error::NoAnswer { after: limit }))
    }
}

/// Whether a line is the answer to a request, and what it says.
fn answer_to(id: &str, line: &[u8]) -> Option<Result<(), Error>> {
    let line: Value = serde_json::from_slice(line).ok()?;
    let response = &line["response"];
    if line["type"] != "control_response" || response["request_id"] != id {
        return None;
    }
    if response["subtype"] == "success" {
        return Some(Ok(()));
    }
    let reason = response["error"].as_str().unwrap_or("it does not say why");
    Some(Err(Error::Refused {
        reason: reason.chars().take(300).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;

    use super::*;

    #[test]
    fn only_its_own_answer_counts() {
        let line = |subtype: &str, id: &str| {
            json!({"type": "control_response", "response": {"subtype": subtype, "request_id": id, "error": "no"}})
                .to_string()
        };
        assert_matches!(answer_to("a", line("success", "a").as_bytes()), Some(Ok(())));
        assert_matches!(answer_to("a", line("success", "b").as_bytes()), None);
        assert_matches!(answer_to("a", b"{\"type\":\"system\"}"), None);
        assert_matches!(answer_to("a", b"no json"), None);
        assert_matches!(answer_to("a", line("error", "a").as_bytes()), Some(Err(Error::Refused { reason })) if reason == "no");
    }
}
