//! One turn, from its submission to the last piece that its follower gets.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Samples;
use crate::client::{Client, Follower};
use crate::output;

/// A turn about to be taken, in a conversation of its own.
pub(super) struct Turn<'c> {
    client: &'c Client,
    conversation: String,
}

/// What was measured of turns.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// From the call that submits to the request at the provider.
    pub(super) to_request: Samples,
    /// From the provider's piece to the event at its follower.
    pub(super) to_client: Samples,
    /// Pieces that came.
    pub(super) pieces: u32,
}

impl Taken {
    pub(super) fn append(&mut self, other: Self) {
        self.to_request.append(other.to_request);
        self.to_client.append(other.to_client);
        self.pieces += other.pieces;
    }
}

impl<'c> Turn<'c> {
    /// Makes the conversation.
    pub(super) async fn prepare(client: &'c Client, model: &str) -> anyhow::Result<Self> {
        let agent = json!({"harness": "chat", "models": [model]});
        let made: Value = client.submit(&["conversations"], &json!({ "agent": agent })).await?;
        Ok(Self {
            client,
            conversation: output::field(&made, "id"),
        })
    }

    /// Takes the turn and deletes the conversation.
    pub(super) async fn take(self, queue: &str) -> anyhow::Result<Taken> {
        let mut taken = Taken::default();
        let body = json!({"text": "go", "queue": queue, "max_attempts": 1});
        let submitted_us = now_us();
        let path = ["conversations", &self.conversation, "turns"];
        let answer: Value = self.client.submit(&path, &body).await?;
        let job: Uuid = output::field(&answer["job"], "id").parse().context("no job")?;
        let mut follower = Follower::new(self.client, job, None);
        let mut opened_us = None;
        let mut text = String::new();
        while let Some(event) = follower.next().await? {
            let now_us = now_us();
            // What was sent before the stream was open waited for it, not on its way.
            let opened_us = *opened_us.get_or_insert(now_us);
            match event.kind.as_str() {
                "message.delta" => {
                    text.push_str(event.text("text"));
                    let whole = text.rfind(' ').map_or(0, |at| at + 1);
                    let rest = text.split_off(whole);
                    for sent_us in text.split_whitespace().filter_map(|stamp| stamp.parse().ok()) {
                        taken.piece(submitted_us, opened_us, (sent_us, now_us));
                    }
                    text = rest;
                }
                "failed" | "cancelled" => bail!("a turn did not succeed: {}", Value::Object(event.data)),
                _ => {}
            }
        }
        self.client.delete(&["conversations", &self.conversation]).await?;
        Ok(taken)
    }
}

impl Taken {
    /// A piece of the answer: when the provider sent it, and when it was here.
    fn piece(&mut self, submitted_us: i64, opened_us: i64, (sent_us, now_us): (i64, i64)) {
        if self.pieces == 0 {
            self.to_request.add(between(submitted_us, sent_us));
        }
        if sent_us >= opened_us {
            self.to_client.add(between(sent_us, now_us));
        }
        self.pieces += 1;
    }
}

fn between(from_us: i64, to_us: i64) -> Duration {
    Duration::from_micros(u64::try_from(to_us - from_us).unwrap_or(0))
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the provider's stamps, on the same machine"
)]
fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}
