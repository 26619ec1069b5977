//! How long a workspace takes to be saved and restored, as its turns tell: part of `hothouse bench sandbox`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use super::latency::Samples;
use super::report::Report;
use crate::client::{Client, Follower, Job};

/// Saves and restores `mib` MiB of random bytes `times` times.
pub(super) async fn run(client: &Client, (mib, times): (u64, u64), report: &mut Report) -> anyhow::Result<()> {
    let (mut saved, mut restored) = (Samples::default(), Samples::default());
    let agent = json!({"harness": "native", "models": ["scripted/demo"], "tools": ["bash"]});
    for _ in 0..times {
        let conversation: Value = client.submit(&["conversations"], &json!({"agent": agent})).await?;
        let id = conversation["id"].as_str().context("a conversation without an id")?;
        let script = format!(
            "run: head -c {} /dev/urandom | split -b 1M - part-; touch mark",
            mib << 20
        );
        saved.add(turn(client, id, &script, "workspace_saved").await?);
        // Another version than that of the sandbox which was kept.
        client.delete(&["conversations", id, "files", "mark"]).await?;
        restored.add(turn(client, id, "run: ls", "workspace_restored").await?);
        client.delete(&["conversations", id]).await?;
    }
    let (save, restore) = match mib {
        1 => ("save 1 MiB", "restore 1 MiB"),
        _ => ("save workspace", "restore workspace"),
    };
    report.remark("workspace", format!("{mib} MiB of random bytes in files of 1 MiB"));
    report.latencies(save, saved);
    report.latencies(restore, restored);
    Ok(())
}

/// Takes a turn; answers how long this phase of it took, as its worker says.
async fn turn(client: &Client, id: &str, text: &str, phase: &str) -> anyhow::Result<Duration> {
    #[derive(serde::Deserialize)]
    struct Accepted {
        job: Job,
    }
    let accepted: Accepted = client
        .submit(&["conversations", id, "turns"], &json!({"text": text}))
        .await?;
    let job_id: Uuid = accepted.job.id;
    let mut follower = Follower::new(client, job_id, None);
    let mut taken = None;
    while let Some(event) = follower.next().await? {
        match event.kind.as_str() {
            "status" if event.text("phase") == phase => taken = milliseconds(event.text("detail")),
            "failed" | "cancelled" => bail!("a turn did not succeed: {}", Value::Object(event.data)),
            _ => {}
        }
    }
    taken.with_context(|| format!("the turn did not say {phase}: is objects.url set?"))
}

/// The time at the end of a detail, such as `…, 12 ms`.
fn milliseconds(detail: &str) -> Option<Duration> {
    let number = detail.strip_suffix(" ms")?.rsplit(' ').next()?;
    number.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_from_the_end() {
        assert_eq!(
            milliseconds("version 3: 9 bytes in 2 entries, 12 ms"),
            Some(Duration::from_millis(12))
        );
        assert_eq!(milliseconds("nothing"), None);
    }
}
