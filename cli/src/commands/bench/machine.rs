//! The machine and the server that a measurement was made on: without them a number says nothing.

use std::path::PathBuf;
use std::{fs, thread};

use serde::Serialize;
use serde_json::{Value, json};

use crate::client::Client;
use crate::services::programs;

/// What the numbers depend on.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    cores: usize,
    processor: String,
    memory_mib: u64,
    kernel: String,
    /// What the server says about itself and its stores; null where it does not.
    server: Value,
    /// The profile that this command was built with; the server tells its own.
    client_profile: &'static str,
}

impl Machine {
    /// Looks at this machine and asks the server.
    pub(super) async fn look(client: &Client) -> Self {
        Self::here(versions(client).await)
    }

    /// Looks at this machine; what its server says is known.
    pub(super) fn here(server: Value) -> Self {
        Self {
            cores: thread::available_parallelism().map_or(0, usize::from),
            processor: value_of("/proc/cpuinfo", "model name"),
            memory_mib: memory_mib(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            server,
            client_profile: if cfg!(debug_assertions) { "debug" } else { "optimised" },
        }
    }

    /// The machine in one line, the server in another.
    pub(super) fn lines(&self) -> [(&'static str, String); 2] {
        let machine = format!(
            "{} cores ({}), {} MiB, Linux {}, client build {}",
            self.cores, self.processor, self.memory_mib, self.kernel, self.client_profile
        );
        let server = match &self.server {
            Value::Object(fields) => {
                let told = fields
                    .iter()
                    .map(|(name, value)| format!("{name} {}", value.as_str().unwrap_or("?")));
                told.collect::<Vec<_>>().join(", ")
            }
            _ => "does not tell its versions".to_owned(),
        };
        [("machine", machine), ("server", server)]
    }
}

/// The value of a `name : value` line of a file under /proc.
fn value_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

fn memory_mib() -> u64 {
    let kibibytes = value_of("/proc/meminfo", "MemTotal");
    let kibibytes = kibibytes.trim_end_matches("kB").trim().parse::<u64>();
    kibibytes.unwrap_or_default() / 1024
}

/// The versions that `/readyz` names; where it names none, those of the programs on this machine if the server is here.
async fn versions(client: &Client) -> Value {
    if let Ok(response) = client.get_outside("/readyz").await {
        let ready: Value = response.json().await.unwrap_or_default();
        if let Some(versions) = ready.get("versions") {
            return versions.clone();
        }
    }
    if !client.is_here() {
        return Value::Null;
    }
    let installed = |program: Option<PathBuf>| program.and_then(|program| programs::version(&program).ok());
    let postgres = programs::postgres()
        .into_iter()
        .next()
        .map(|(_, folder)| folder.join("postgres"));
    json!({
        "installed postgres": installed(postgres),
        "installed redis": installed(programs::find("redis-server")),
    })
}
