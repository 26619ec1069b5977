//! `hothouse tenants`: who shares this installation, for its administrator.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::args::{OrNone, Starts, given};
use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse tenants`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the tenants
    List,
    /// Make a tenant
    Create(Create),
    /// Change the weight and the limits of a tenant
    Set(Set),
    /// Hand out no more jobs of a tenant; those running go on
    Pause {
        #[arg(value_name = "TENANT")]
        id: Uuid,
    },
    /// Hand out jobs of a tenant again
    Resume {
        #[arg(value_name = "TENANT")]
        id: Uuid,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    name: String,
    /// Its share of the workers, against the weights of the others
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// Highest priority that it may give
    #[arg(long, value_name = "0-9", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority_max: Option<u8>,
    /// Most of its jobs that run at once
    #[arg(long, value_name = "N")]
    max_running: Option<u32>,
    /// Most requests a second
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
}

impl Create {
    fn to_body(&self) -> Value {
        let fields = given([
            ("name", Some(self.name.as_str().into())),
            ("weight", self.weight.map(Value::from)),
            ("priority_max", self.priority_max.map(Value::from)),
            ("max_running", self.max_running.map(Value::from)),
            ("rate", self.rate.map(Value::from)),
        ]);
        Value::Object(fields)
    }
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
struct Set {
    #[arg(value_name = "TENANT")]
    id: Uuid,
    /// Its share of the workers, against the weights of the others
    #[arg(long, value_name = "N", group = "change")]
    weight: Option<u32>,
    /// Highest priority that it may give
    #[arg(long, value_name = "0-9", value_parser = clap::value_parser!(u8).range(0..=9), group = "change")]
    priority_max: Option<u8>,
    /// Most of its jobs that run at once
    #[arg(long, value_name = "N|none", group = "change")]
    max_running: Option<OrNone<u32>>,
    /// Most of its jobs that start within a time, such as 10/1m
    #[arg(long, value_name = "N/TIME|none", group = "change")]
    run_rate: Option<OrNone<Starts>>,
    /// Most requests a second; `none` is the installation's
    #[arg(long, value_name = "N|none", group = "change")]
    rate: Option<OrNone<u32>>,
}

impl Set {
    fn into_body(self) -> Value {
        let fields = given([
            ("weight", self.weight.map(Value::from)),
            ("priority_max", self.priority_max.map(Value::from)),
            ("max_running", self.max_running.map(Value::from)),
            ("run_rate", self.run_rate.map(Value::from)),
            ("rate", self.rate.map(Value::from)),
        ]);
        Value::Object(fields)
    }
}

/// Lists the tenants, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    let tenant: Value = match args.action {
        None | Some(Action::List) => {
            let tenants = client.list(&["tenants"], &[], usize::MAX).await?;
            let fields = [
                "id",
                "name",
                "weight",
                "priority_max",
                "max_running",
                "run_rate",
                "rate",
                "paused_at",
                "created_at",
            ];
            output::records(globals.json, &tenants, fields)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Action::Create(create)) => client.post_once(&["tenants"], &create.to_body()).await?,
        Some(Action::Set(set)) => {
            let id = set.id.to_string();
            client.patch(&["tenants", &id], &set.into_body()).await?
        }
        Some(Action::Pause { id }) => switch(&client, id, "pause").await?,
        Some(Action::Resume { id }) => switch(&client, id, "resume").await?,
    };
    output::record(globals.json, &tenant)?;
    Ok(ExitCode::SUCCESS)
}

async fn switch(client: &Client, id: Uuid, verb: &str) -> Result<Value, crate::client::Error> {
    client
        .post_repeatable(&["tenants", &id.to_string(), verb], &json!({}))
        .await
}
