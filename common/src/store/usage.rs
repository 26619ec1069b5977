//! Usage: one row for each call of a model. Facts: inserted once, from any attempt that existed, never changed.

use chrono::{DateTime, Utc};

use super::row::{bigint, int};
use super::{Error, Store};
use crate::job::Job;
use crate::message::Usage;

/// What one call used.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "the number of a call is called call everywhere"
)]
pub struct Call {
    /// Number of the call in its attempt, from 0.
    pub call: u32,
    /// Who answered.
    pub provider: String,
    /// The model's name at the provider.
    pub model: String,
    /// Its tokens.
    pub usage: Usage,
    /// When it ended.
    pub at: DateTime<Utc>,
}

impl Store {
    /// Writes down a call. Repeating it does nothing.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn insert_usage(&self, job: &Job, call: &Call) -> Result<(), Error> {
        let cache_write = call
            .usage
            .cache_write_short_tokens
            .saturating_add(call.usage.cache_write_long_tokens);
        sqlx::query(
            "insert into usage (job_id, attempt, call, tenant_id, user_id, agent_id, conversation_id, provider, model,
                input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, estimated, at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) on conflict do nothing",
        )
        .bind(job.id)
        .bind(int(job.attempt))
        .bind(int(call.call))
        .bind(job.tenant_id)
        .bind(&job.user_id)
        .bind(job.agent_id)
        .bind(job.conversation_id)
        .bind(&call.provider)
        .bind(&call.model)
        .bind(bigint(call.usage.input_tokens))
        .bind(bigint(call.usage.output_tokens))
        .bind(bigint(call.usage.cached_input_tokens))
        .bind(bigint(cache_write))
        .bind(call.usage.estimated)
        .bind(call.at)
        .execute(self.pool())
        .await?;
        Ok(())
    }
}
