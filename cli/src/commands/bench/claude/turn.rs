//! One turn of Claude Code, from its submission to its end.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::DateTime;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{Client, Follower};
use crate::output;

/// A conversation.
pub(super) struct Talk<'c> {
    client: &'c Client,
    id: String,
}

/// What was measured of a turn.
#[derive(Debug)]
pub(super) struct Taken {
    /// How its process came to be.
    pub(super) how: String,
    /// From the claim to the model's answer to the first request.
    pub(super) since_claim: Duration,
    /// From the call that submitted it.
    pub(super) since_call: Duration,
}

impl<'c> Talk<'c> {
    /// Makes it.
    pub(super) async fn begin(client: &'c Client, model: &str) -> anyhow::Result<Self> {
        let agent = json!({"harness": "claude_code", "models": [model], "instructions": "Be brief."});
        let made: Value = client.submit(&["conversations"], &json!({ "agent": agent })).await?;
        Ok(Self {
            client,
            id: output::field(&made, "id"),
        })
    }

    /// Takes a turn.
    pub(super) async fn turn(&self, queue: &str) -> anyhow::Result<Taken> {
        let body = json!({"text": "go", "queue": queue, "max_attempts": 1});
        let called_us = now_us();
        let answer: Value = self.client.submit(&["conversations", &self.id, "turns"], &body).await?;
        let job: Uuid = output::field(&answer["job"], "id").parse().context("no job")?;
        let mut follower = Follower::new(self.client, job, None);
        let (mut claimed_us, mut sent_us, mut how) = (None, None, None);
        while let Some(event) = follower.next().await? {
            match event.kind.as_str() {
                "started" => {
                    claimed_us = DateTime::parse_from_rfc3339(event.text("at"))
                        .ok()
                        .map(|at| at.timestamp_micros());
                }
                "status" if event.text("phase") == "running" => how = Some(event.text("detail").to_owned()),
                "message.delta" if sent_us.is_none() => sent_us = event.text("text").trim().parse::<i64>().ok(),
                "failed" | "cancelled" => bail!("a turn did not succeed: {}", Value::Object(event.data)),
                _ => {}
            }
        }
        let sent_us = sent_us.context("the answer carries no moment")?;
        let claimed_us = claimed_us.context("the turn has not started")?;
        let since = |from_us: i64| Duration::from_micros(u64::try_from(sent_us - from_us).unwrap_or(0));
        Ok(Taken {
            how: how.context("the turn does not say how its process came to be")?,
            since_claim: since(claimed_us),
            since_call: since(called_us),
        })
    }

    /// Deletes it.
    pub(super) async fn end(&self) -> anyhow::Result<()> {
        Ok(self.client.delete(&["conversations", &self.id]).await?)
    }
}

/// Microseconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with the provider's stamps, on the same machine"
)]
pub(super) fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}
