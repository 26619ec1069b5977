//! A transaction that a test keeps open, so that whoever needs what it has locked must wait.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

/// See the module. Dropping it ends the transaction without a trace.
pub(crate) struct Held {
    _psql: Child,
}

impl Held {
    pub(super) async fn begin(database: &str, statement: &str) -> Self {
        let mut psql = Command::new("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let said = format!("begin; {statement}; select 'held';\n");
        psql.stdin.as_mut().unwrap().write_all(said.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(psql.stdout.take().unwrap()).lines();
        while lines.next_line().await.unwrap().expect("Postgres takes the statement") != "held" {}
        Self { _psql: psql }
    }
}
