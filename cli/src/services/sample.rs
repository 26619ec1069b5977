//! The first job: through the HTTP API like any other, with its output shown as it comes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::progress::{Step, say};
use crate::client::{Client, Follower, Job};
use crate::globals::Globals;
use crate::output;

const READY_LIMIT: Duration = Duration::from_mins(1);
const JOB_LIMIT: Duration = Duration::from_mins(2);

/// Prints as it works, so that one sees the output arrive live.
const CODE: &str = "\
import platform, time
print('hello from a sandbox, with Python', platform.python_version())
for word in ('sealed', 'warm', 'durable'):
    time.sleep(0.15)
    print('  ', word, flush=True)
";

/// A client of the server that was just started.
///
/// # Errors
/// When the key has characters that no header may have.
pub(crate) fn client(listen: SocketAddr, key: &str) -> anyhow::Result<Client> {
    // An address that stands for all of them is not one to connect to.
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let server = format!("http://{}", SocketAddr::new(ip, listen.port()));
    let globals = Globals {
        server,
        key: Some(key.to_owned().into()),
        tenant: None,
        json: false,
    };
    Ok(Client::new(&globals)?)
}

/// Waits until the server says that it can do its work, and knows the key.
///
/// # Errors
/// When it does not within a minute; the sentence says what it answered last.
pub(crate) async fn wait_until_ready(client: &Client) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let error = match is_ready(client).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            bail!("the server is not ready after {} s: {error}", READY_LIMIT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn is_ready(client: &Client) -> anyhow::Result<()> {
    let answer = client.get_outside("/readyz").await?;
    if !answer.status().is_success() {
        bail!("/readyz answers {}", answer.status());
    }
    let _jobs: serde_json::Value = client.get(&["jobs"], &[("limit", "1".to_owned())]).await?;
    Ok(())
}

/// Runs one job and shows what it prints.
///
/// # Errors
/// When it does not succeed.
pub(crate) async fn run(client: &Client) -> anyhow::Result<()> {
    let step = Step::begin("sample job");
    let followed = async {
        let request = json!({ "kind": "exec", "input": { "language": "python", "code": CODE } });
        let job: Job = client.submit(&["jobs"], &request).await?;
        step.now(&format!("{} is queued", job.id));
        let mut events = Follower::new(client, job.id, None);
        let mut last = None;
        while let Some(event) = events.next().await? {
            match event.kind.as_str() {
                "started" => step.now("runs"),
                "stdout" | "stderr" => show(event.text("text")),
                _ => {}
            }
            last = Some(event);
        }
        let last = last.context("its log is empty")?;
        if last.kind == "succeeded" {
            return Ok(job.id);
        }
        let error = last.data.get("error").map(ToString::to_string).unwrap_or_default();
        bail!("the sample job {} ended as {}: {error}", job.id, last.kind)
    };
    match tokio::time::timeout(JOB_LIMIT, followed).await {
        Ok(id) => step.done(&format!("{} succeeded", id?)),
        Err(_elapsed) => bail!("the sample job has not ended after {} s", JOB_LIMIT.as_secs()),
    }
    Ok(())
}

fn show(text: &str) {
    for line in text.lines() {
        say(&format!("  | {}", output::clean(line)));
    }
}
