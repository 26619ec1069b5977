//! `hothouse chat`: talk to an agent, turn by turn.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use uuid::Uuid;

use super::{agents, logs};
use crate::client::{Client, Event, Job};
use crate::globals::Globals;
use crate::interrupt::Interrupts;
use crate::watch::{End, OnInterrupt, Seen, Watch};
use crate::{exit, output};

/// Options of `hothouse chat`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("with").required(true).args(["agent", "conversation"])))]
pub(crate) struct Args {
    /// What to say; without it, each line of the standard input is a turn
    #[arg(value_name = "TEXT")]
    text: Option<String>,

    /// Begin a conversation with this agent: its id or its name
    #[arg(short, long)]
    agent: Option<String>,

    /// Go on with this conversation
    #[arg(short, long, value_name = "ID")]
    conversation: Option<Uuid>,
}

/// Takes the turns, one after the other.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    let conversation = match (args.conversation, &args.agent) {
        (Some(id), _) => id.to_string(),
        (None, agent) => begin(&client, agent.as_deref().unwrap_or_default()).await?,
    };
    if let Some(text) = args.text {
        return turn(&client, &conversation, &text, globals.json).await;
    }
    let is_terminal = io::stdin().is_terminal();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut code = ExitCode::SUCCESS;
    loop {
        if is_terminal {
            output::error_text("> ");
        }
        let Some(line) = lines.next_line().await? else {
            return Ok(code);
        };
        if !line.trim().is_empty() {
            code = turn(&client, &conversation, &line, globals.json).await?;
        }
    }
}

async fn begin(client: &Client, agent: &str) -> anyhow::Result<String> {
    let agent_id = agents::find(client, agent).await?;
    let conversation: Value = client
        .post_once(&["conversations"], &json!({"agent_id": agent_id}))
        .await?;
    let id = output::field(&conversation, "id");
    output::note(format_args!("conversation {id}; go on later with --conversation {id}"));
    Ok(id)
}

async fn turn(client: &Client, conversation: &str, text: &str, is_json: bool) -> anyhow::Result<ExitCode> {
    let path = ["conversations", conversation, "turns"];
    let answer: Value = client.submit(&path, &json!({"text": text})).await?;
    let job = answer.get("job").context("the server's answer names no job")?;
    watch(client, job, is_json).await
}

/// Shows what a turn or an agent run says and does, until it ends; Ctrl-C cancels it.
pub(super) async fn watch(client: &Client, job: &Value, is_json: bool) -> anyhow::Result<ExitCode> {
    let job: Job = serde_json::from_value(job.clone())?;
    let watch = Watch {
        client,
        job_id: job.id,
        after: None,
        on_interrupt: OnInterrupt::Cancel,
    };
    let mut show = Show::default();
    let mut interrupts = Interrupts::new()?;
    let show = |seen: Seen<'_>| match seen {
        Seen::Event(event) if is_json => output::json(&event.to_json()),
        Seen::Event(event) => show.event(event),
        Seen::WaitsFor(reason) => {
            output::note(format_args!("waiting: {reason}"));
            Ok(())
        }
    };
    if watch.run(&mut interrupts, show).await? == End::Left {
        return Ok(exit::CANCELLED.into());
    }
    let job: Job = client.get(&["jobs", &job.id.to_string()], &[]).await?;
    Ok(exit::of(&job).into())
}

/// Shows an answer as it is written, and the tool calls as remarks.
#[derive(Debug, Default)]
struct Show {
    /// Has the message under way been shown piece by piece?
    has_deltas: bool,
}

impl Show {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event.kind.as_str() {
            "message.delta" => {
                self.has_deltas = true;
                output::text(event.text("text"))?;
            }
            "message" => {
                let was_shown = std::mem::take(&mut self.has_deltas);
                let said = if was_shown {
                    String::new()
                } else {
                    said(event.data.get("message"))
                };
                if was_shown || !said.is_empty() {
                    output::line(said)?;
                }
            }
            "tool.started" => {
                let input = event.data.get("input").unwrap_or(&Value::Null);
                output::error_text(&output::clean(&format!("[{}] {input}", event.text("name"))));
                output::error_text("\n");
            }
            "tool.output" => output::error_text(event.text("text")),
            "approval.requested" => {
                let id = event.text("approval_id");
                output::note(format_args!(
                    "it asks whether {} may run: `hothouse approvals approve {id}`, or `deny`",
                    event.text("name")
                ));
            }
            "failed" => output::note(logs::failure(event)),
            "cancelled" => output::note("cancelled"),
            _ => {}
        }
        Ok(())
    }
}

/// The text parts of a message.
fn said(message: Option<&Value>) -> String {
    let parts = message
        .and_then(|message| message.get("parts"))
        .and_then(Value::as_array);
    let texts = parts
        .into_iter()
        .flatten()
        .filter(|part| output::field(part, "type") == "text");
    texts
        .map(|part| output::field(part, "text"))
        .collect::<Vec<_>>()
        .join("\n\n")
}
