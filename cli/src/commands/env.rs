//! `hothouse env`: what sandboxes hold, and building it.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::Context as _;
use clap::Subcommand;
use tokio::process::Command;

use crate::client::Client;
use crate::globals::Globals;
use crate::services::sandboxes;
use crate::{exit, output};

/// Options of `hothouse env`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the environments that workers serve
    List,
    /// Build the image of an environment, unless it is there already; workers go over to it by themselves
    Build {
        #[arg(value_name = "NAME")]
        name: String,
        /// Folder of your own environments (NAME.toml)
        #[arg(long, value_name = "FOLDER")]
        environments: Option<PathBuf>,
        /// The Docker engine
        #[arg(long, env = "DOCKER_HOST", value_name = "URL")]
        docker_host: Option<String>,
        /// The init binary that becomes the image's last layer
        #[arg(long, env = "HOTHOUSE_INIT", value_name = "FILE")]
        init: Option<PathBuf>,
    },
}

/// Lists the environments, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    match args.action {
        None | Some(Action::List) => {
            let environments = Client::new(globals)?.whole_list(&["environments"]).await?;
            let fields = ["name", "description", "languages", "image", "workers", "rolling"];
            output::records(globals.json, &environments, fields)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Build {
            name,
            environments,
            docker_host,
            init,
        }) => {
            let root =
                sandboxes::repository().context("images are built by scripts/image.sh: run in Hothouse's folder")?;
            let init = sandboxes::find_init(init)?;
            let mut command = Command::new(root.join("scripts/image.sh"));
            command.arg(name).arg(init).stdin(Stdio::null());
            if let Some(folder) = environments {
                let folder = folder
                    .canonicalize()
                    .with_context(|| format!("cannot read {}", folder.display()))?;
                command.env("HOTHOUSE_ENVIRONMENTS", folder);
            }
            if let Some(host) = docker_host {
                command.env("DOCKER_HOST", host);
            }
            let status = command.status().await.context("cannot run scripts/image.sh")?;
            Ok(if status.success() {
                ExitCode::SUCCESS
            } else {
                exit::FAILED.into()
            })
        }
    }
}
