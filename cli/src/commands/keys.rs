//! `hothouse keys`: API keys of tenants, for the administrator.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse keys`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the keys
    List,
    /// Make a key for a tenant; it is printed now and never again
    Create {
        #[arg(value_name = "TENANT_ID")]
        tenant_id: Uuid,
        /// What the key may do
        #[arg(long, value_enum, default_value_t = Role::Member)]
        role: Role,
        /// Name for people
        #[arg(long, default_value = "")]
        name: String,
    },
    /// End a key
    Revoke {
        #[arg(value_name = "KEY_ID")]
        id: Uuid,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// Everything of its tenant
    Member,
    /// Also tenants, keys and what operators need
    Admin,
}

/// Lists the keys, makes one or ends one.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    match args.action {
        None | Some(Action::List) => {
            let keys = client.list(&["keys"], &[], usize::MAX).await?;
            output::records(
                globals.json,
                &keys,
                ["id", "tenant_id", "name", "role", "prefix", "created_at", "revoked_at"],
            )?;
        }
        Some(Action::Create { tenant_id, role, name }) => {
            let role = match role {
                Role::Member => "member",
                Role::Admin => "admin",
            };
            let key: Value = client
                .post_once(&["keys"], &json!({"tenant_id": tenant_id, "role": role, "name": name}))
                .await?;
            // Alone on its line, so that a script can take it.
            match key.get("key").and_then(Value::as_str) {
                Some(secret) if !globals.json => output::line(secret)?,
                _ => output::json(&key)?,
            }
        }
        Some(Action::Revoke { id }) => client.delete(&["keys", &id.to_string()]).await?,
    }
    Ok(ExitCode::SUCCESS)
}
