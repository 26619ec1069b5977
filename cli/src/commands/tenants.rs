//! `hothouse tenants`: who shares this installation, for its administrator.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Map, Value};

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
        let given = [
            ("weight", self.weight),
            ("priority_max", self.priority_max.map(u32::from)),
            ("max_running", self.max_running),
            ("rate", self.rate),
        ];
        let mut body: Map<String, Value> = given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
            .collect();
        body.insert("name".to_owned(), self.name.as_str().into());
        Value::Object(body)
    }
}

/// Lists the tenants, or makes one.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    match args.action {
        None | Some(Action::List) => {
            let tenants = client.list(&["tenants"], &[], usize::MAX).await?;
            let fields = [
                "id",
                "name",
                "weight",
                "priority_max",
                "max_running",
                "rate",
                "created_at",
            ];
            output::records(globals.json, &tenants, fields)?;
        }
        Some(Action::Create(create)) => {
            let tenant: Value = client.post_once(&["tenants"], &create.to_body()).await?;
            output::record(globals.json, &tenant)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
