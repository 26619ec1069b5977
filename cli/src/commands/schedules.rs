//! `hothouse schedules`: what is fired by the clock.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::agents;
use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Schedules of one import.
const IMPORT_CHUNK: usize = 500;

/// Options of `hothouse schedules`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the schedules
    List,
    /// Show a schedule
    Show {
        #[arg(value_name = "SCHEDULE")]
        schedule: String,
    },
    /// Save a schedule that runs an agent, takes a turn of a conversation, or submits a job
    Create(Box<New>),
    /// Show when an expression is due, without saving anything
    Preview {
        /// Such as `30 2 * * *`, `@daily`, `every 90s` or `at 2026-12-01T09:00`
        #[arg(value_name = "EXPRESSION")]
        cron: String,
        /// Zone whose wall the expression means
        #[arg(long, default_value = "UTC")]
        timezone: String,
        /// How many due times
        #[arg(long, default_value_t = 5)]
        count: usize,
    },
    /// Fire nothing until it is resumed
    Pause {
        #[arg(value_name = "SCHEDULE")]
        schedule: String,
        /// Why, for people
        #[arg(long)]
        reason: Option<String>,
    },
    /// Go on at the next due time
    Resume {
        #[arg(value_name = "SCHEDULE")]
        schedule: String,
    },
    /// Fire now, whatever the clock says
    Fire {
        #[arg(value_name = "SCHEDULE")]
        schedule: String,
    },
    /// Show what became of the due times, the latest first
    Fires {
        #[arg(value_name = "SCHEDULE")]
        schedule: String,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Make up for the due times of a range that made no job
    Backfill {
        #[arg(value_name = "SCHEDULE")]
        schedule: String,
        /// First moment, such as 2026-11-01T00:00:00Z
        #[arg(long, value_name = "TIME")]
        from: DateTime<Utc>,
        /// End, which does not belong to the range
        #[arg(long, value_name = "TIME")]
        to: DateTime<Utc>,
        /// Side by side, and not one after another
        #[arg(long)]
        allow_overlap: bool,
        /// Only count
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete a schedule; its jobs stay
    Delete {
        #[arg(value_name = "SCHEDULE")]
        schedule: String,
    },
    /// Print all schedules as JSON, for `import`
    Export,
    /// Save the schedules of an export; `-` reads the standard input
    Import {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Only check
        #[arg(long)]
        dry_run: bool,
    },
}

/// A schedule to save.
#[derive(Debug, clap::Args)]
struct New {
    /// When: `30 2 * * *`, `@daily`, `every 90s` or `at 2026-12-01T09:00`
    #[arg(value_name = "EXPRESSION", required_unless_present = "file")]
    cron: Option<String>,
    /// Agent to run, by its name or id
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["conversation", "job"])]
    agent: Option<String>,
    /// Conversation to take a turn in
    #[arg(long, value_name = "ID", conflicts_with = "job")]
    conversation: Option<Uuid>,
    /// What the agent is asked; may hold templates such as `{{ fire_at }}`
    #[arg(long, value_name = "TEXT")]
    input: Option<String>,
    /// Job to submit, as JSON
    #[arg(long, value_name = "JSON")]
    job: Option<String>,
    /// Name for people
    #[arg(long)]
    name: Option<String>,
    /// Zone whose wall the expression means
    #[arg(long)]
    timezone: Option<String>,
    /// While the last job runs: skip, queue, `queue_all`, `cancel_running` or allow
    #[arg(long)]
    overlap: Option<String>,
    /// How old a due time may be and still be fired after a downtime, such as 1h
    #[arg(long, value_name = "TIME")]
    catch_up: Option<String>,
    /// Which of those: none, last or all
    #[arg(long)]
    misfire: Option<String>,
    /// Longest time by which fires are put off
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,
    /// Over after so many jobs
    #[arg(long, value_name = "N")]
    max_fires: Option<u64>,
    /// Paused after so many failed jobs in a row
    #[arg(long, value_name = "N")]
    pause_after_failures: Option<u32>,
    /// JSON file with the whole schedule, or with what the options leave out; `-` reads the standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Lists the schedules, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    match args.action.unwrap_or(Action::List) {
        Action::List => return list(&client, globals).await,
        Action::Show { schedule } => {
            let id = find(&client, &schedule).await?;
            output::record(globals.json, &client.get::<Value>(&["schedules", &id], &[]).await?)?;
        }
        Action::Create(new) => {
            let body = new.body(&client).await?;
            let schedule: Value = client.post_once(&["schedules"], &body).await?;
            output::record(globals.json, &schedule)?;
        }
        Action::Preview { cron, timezone, count } => preview(&client, globals, &cron, &timezone, count).await?,
        Action::Pause { schedule, reason } => {
            act(&client, globals, &schedule, "pause", &json!({ "reason": reason })).await?;
        }
        Action::Resume { schedule } => act(&client, globals, &schedule, "resume", &json!({})).await?,
        Action::Fire { schedule } => {
            let id = find(&client, &schedule).await?;
            let job: Value = client.post_once(&["schedules", &id, "fire"], &json!({})).await?;
            output::record(globals.json, &job)?;
        }
        Action::Fires { schedule, limit } => {
            let id = find(&client, &schedule).await?;
            let fires = client.list(&["schedules", &id, "fires"], &[], limit).await?;
            let fields = [
                "fire_at",
                "fired_at",
                "outcome",
                "job_id",
                "job_state",
                "job_error",
                "reason",
            ];
            output::records(globals.json, &fires, fields)?;
        }
        Action::Backfill {
            schedule,
            from,
            to,
            allow_overlap,
            dry_run,
        } => {
            let id = find(&client, &schedule).await?;
            let overlap = if allow_overlap { "allow" } else { "queue_all" };
            let body = json!({"from": from, "to": to, "overlap": overlap, "dry_run": dry_run});
            // A due time makes one job, so a call that is repeated makes none twice.
            let done: Value = client.post_repeatable(&["schedules", &id, "backfill"], &body).await?;
            output::record(globals.json, &done)?;
        }
        Action::Delete { schedule } => {
            let id = find(&client, &schedule).await?;
            client.delete(&["schedules", &id]).await?;
        }
        Action::Export => output::json(&export(&client).await?)?,
        Action::Import { file, dry_run } => import(&client, globals, &read_json(&file)?, dry_run).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, globals: &Globals) -> anyhow::Result<ExitCode> {
    let mut schedules = client.list(&["schedules"], &[], usize::MAX).await?;
    for schedule in &mut schedules {
        let next = schedule.pointer("/next_fires/0").cloned().unwrap_or_default();
        if let Some(fields) = schedule.as_object_mut() {
            fields.insert("next_fire".to_owned(), next);
        }
    }
    let fields = [
        "id",
        "name",
        "cron",
        "timezone",
        "enabled",
        "next_fire",
        "paused_reason",
    ];
    output::records(globals.json, &schedules, fields)?;
    Ok(ExitCode::SUCCESS)
}

async fn act(client: &Client, globals: &Globals, schedule: &str, verb: &str, body: &Value) -> anyhow::Result<()> {
    let id = find(client, schedule).await?;
    let schedule: Value = client.post_repeatable(&["schedules", &id, verb], body).await?;
    output::record(globals.json, &schedule)?;
    Ok(())
}

async fn preview(client: &Client, globals: &Globals, cron: &str, zone: &str, count: usize) -> anyhow::Result<()> {
    let body = json!({"cron": cron, "timezone": zone, "count": count});
    let preview: Value = client.post_repeatable(&["schedules", "preview"], &body).await?;
    if globals.json {
        output::json(&preview)?;
        return Ok(());
    }
    let moments = |field: &str| {
        preview
            .get(field)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    for (utc, local) in moments("next_fires").iter().zip(moments("local")) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        output::line(format_args!("{}  {}", text(&local), text(utc)))?;
    }
    Ok(())
}

/// The id of a schedule that is named by its id or its name.
async fn find(client: &Client, schedule: &str) -> anyhow::Result<String> {
    if schedule.parse::<Uuid>().is_ok() {
        return Ok(schedule.to_owned());
    }
    let schedules = client.list(&["schedules"], &[], usize::MAX).await?;
    let mut named = schedules.iter().filter(|row| output::field(row, "name") == schedule);
    match (named.next(), named.next()) {
        (Some(row), None) => Ok(output::field(row, "id")),
        (Some(_), Some(_)) => bail!("several schedules are named `{schedule}`: give the id, see `hothouse schedules`"),
        (None, _) => bail!("no schedule is named `{schedule}`: see `hothouse schedules`"),
    }
}

/// All schedules in one document.
async fn export(client: &Client) -> anyhow::Result<Value> {
    let (mut schedules, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut query = vec![("limit", Client::PAGE_ROWS.to_string())];
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page: Value = client.get(&["schedules", "export"], &query).await?;
        let rows = page.get("schedules").and_then(Value::as_array);
        schedules.extend(rows.context("the server's export has no schedules")?.iter().cloned());
        cursor = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
        if cursor.is_none() {
            return Ok(json!({"version": 1, "schedules": schedules}));
        }
    }
}

/// Checks every part of a document before it saves the first.
async fn import(client: &Client, globals: &Globals, document: &Value, dry_run: bool) -> anyhow::Result<()> {
    let schedules = document.get("schedules").and_then(Value::as_array);
    let schedules = schedules.context("the document has no `schedules`")?;
    ensure!(!schedules.is_empty(), "the document has no schedule");
    let version = document.get("version").cloned().unwrap_or_else(|| json!(1));
    let steps: &[bool] = if dry_run { &[true] } else { &[true, false] };
    let mut done = Map::new();
    for dry_run in steps {
        let (mut created, mut updated) = (0, 0);
        for chunk in schedules.chunks(IMPORT_CHUNK) {
            let body = json!({"version": version, "schedules": chunk, "dry_run": dry_run});
            let answer: Value = client.post_once(&["schedules", "import"], &body).await?;
            let count = |field: &str| answer.get(field).and_then(Value::as_u64).unwrap_or(0);
            created += count("created");
            updated += count("updated");
        }
        done = Map::from_iter([
            ("created".to_owned(), json!(created)),
            ("updated".to_owned(), json!(updated)),
            ("dry_run".to_owned(), json!(dry_run)),
        ]);
    }
    output::record(globals.json, &Value::Object(done))?;
    Ok(())
}

impl New {
    async fn body(&self, client: &Client) -> anyhow::Result<Value> {
        let mut body = match &self.file {
            None => Map::new(),
            Some(file) => match read_json(file)? {
                Value::Object(fields) => fields,
                _ => bail!("{} is no JSON object", file.display()),
            },
        };
        let agent = match &self.agent {
            Some(agent) => Some(agents::find(client, agent).await?),
            None => None,
        };
        let job = self.job.as_deref().map(serde_json::from_str::<Value>).transpose();
        let given = [
            ("cron", self.cron.as_ref().map(|text| json!(text))),
            ("agent_id", agent.map(|id| json!(id))),
            ("conversation_id", self.conversation.map(|id| json!(id))),
            ("input", self.input.as_ref().map(|text| json!(text))),
            ("job", job.context("--job is not JSON")?),
            ("name", self.name.as_ref().map(|text| json!(text))),
            ("timezone", self.timezone.as_ref().map(|text| json!(text))),
            ("overlap", self.overlap.as_ref().map(|text| json!(text))),
            ("catch_up", self.catch_up.as_ref().map(|text| json!(text))),
            ("misfire", self.misfire.as_ref().map(|text| json!(text))),
            ("jitter", self.jitter.as_ref().map(|text| json!(text))),
            ("max_fires", self.max_fires.map(|count| json!(count))),
            (
                "pause_after_failures",
                self.pause_after_failures.map(|count| json!(count)),
            ),
        ];
        for (name, value) in given {
            body.extend(value.map(|value| (name.to_owned(), value)));
        }
        Ok(Value::Object(body))
    }
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(path)
    };
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}
