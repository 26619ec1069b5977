//! `hothouse budgets`: what calls of models may spend for an agent, a conversation, a user or a model.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::agents;
use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse budgets`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List what is set
    List,
    /// Set a budget: US dollars, tokens that models write, or both
    Set(Set),
    /// Remove a budget
    Remove(Whose),
}

#[derive(Debug, clap::Args)]
struct Set {
    #[command(flatten)]
    whose: Whose,
    /// Most US dollars within the window, such as 25.50
    #[arg(long, value_name = "USD", required_unless_present = "output_tokens")]
    cost: Option<String>,
    /// Most tokens that models write within the window
    #[arg(long, value_name = "N")]
    output_tokens: Option<u64>,
    /// Days and months are those of UTC
    #[arg(long, value_enum, default_value = "month")]
    window: Window,
}

#[derive(Debug, clap::Args)]
struct Whose {
    #[arg(value_enum)]
    kind: Kind,
    /// An agent's id or name, a conversation's id, a user as jobs name it, or `provider/model`
    id: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Agent,
    Conversation,
    User,
    Model,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Window {
    Day,
    Month,
    Total,
}

impl Whose {
    /// The kind and id as the server names them.
    async fn found(self, client: &Client) -> anyhow::Result<(&'static str, String)> {
        Ok(match self.kind {
            Kind::Agent => ("agent", agents::find(client, &self.id).await?.to_string()),
            Kind::Conversation => ("conversation", self.id),
            Kind::User => ("user", self.id),
            Kind::Model => ("model", self.id),
        })
    }
}

/// Lists what is set, sets one, or removes one.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    match args.action {
        None | Some(Action::List) => {
            let budgets = client.whole_list(&["budgets"]).await?;
            let fields = [
                "kind",
                "id",
                "window",
                "max_cost_usd",
                "spent_cost_usd",
                "max_output_tokens",
                "spent_output_tokens",
            ];
            output::records(globals.json, &budgets, fields)?;
        }
        Some(Action::Set(set)) => {
            let window = match set.window {
                Window::Day => "day",
                Window::Month => "month",
                Window::Total => "total",
            };
            let body = json!({"max_cost_usd": set.cost, "max_output_tokens": set.output_tokens, "window": window});
            let (kind, id) = set.whose.found(&client).await?;
            let budget: Value = client.put(&["budgets", kind, &id], &body).await?;
            output::record(globals.json, &budget)?;
        }
        Some(Action::Remove(whose)) => {
            let (kind, id) = whose.found(&client).await?;
            client.delete(&["budgets", kind, &id]).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
