//! Options that every command takes: where the server is, who is calling, and how to print.

use secrecy::SecretString;

/// Options that go before or after any command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// Address of the Hothouse API
    #[arg(
        long,
        global = true,
        env = "HOTHOUSE_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    pub(crate) server: String,

    /// API key; without it `.hothouse/admin.key` is looked for, from this folder upwards
    #[arg(
        long,
        global = true,
        env = "HOTHOUSE_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) key: Option<SecretString>,

    /// Act for this tenant (admin keys only)
    #[arg(long, global = true, env = "HOTHOUSE_TENANT", value_name = "ID")]
    pub(crate) tenant: Option<String>,

    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,
}
