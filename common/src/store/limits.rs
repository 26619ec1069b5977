//! Limits that operators set, and keys that are paused until a time.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::row::{int, ms};
use super::{Error, Store};
use crate::ids::{AgentId, TenantId};
use crate::job::limit::{Limit, Pause, Subject};

/// A key of which nothing starts for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPause {
    /// The key of concurrency or rate.
    pub key: String,
    /// When it ends; none is until somebody resumes it.
    pub until: Option<DateTime<Utc>>,
    /// Why.
    pub reason: String,
    /// When it began.
    pub created_at: DateTime<Utc>,
}

/// What operators have set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Limits of tenants, queues and agents, and pauses of tenants and keys.
    pub limits: Vec<(Subject, Limit)>,
    /// The queues that are paused, by name.
    pub paused_queues: Vec<String>,
    /// The queues whose weight is not 1.
    pub queue_weights: Vec<(String, u32)>,
    /// The tenants whose weight is not 1.
    pub tenant_weights: Vec<(TenantId, u32)>,
}

impl KeyPause {
    /// As a limit.
    pub fn limit(&self) -> Limit {
        Limit {
            pause: Some(self.until.map_or(Pause::Open, Pause::Until)),
            ..Limit::default()
        }
    }
}

/// A limit of starts from the columns `run_limit` and `run_window_ms`.
pub(super) fn rate(row: &PgRow) -> Result<Option<(u32, Duration)>, Error> {
    let (limit, window) = (
        row.try_get::<Option<i32>, _>("run_limit")?,
        row.try_get::<Option<i64>, _>("run_window_ms")?,
    );
    Ok(limit.zip(window).map(|(limit, window)| {
        let window = Duration::from_millis(u64::try_from(window).unwrap_or(1));
        (u32::try_from(limit).unwrap_or(1), window)
    }))
}

pub(super) fn rate_limit(rate: Option<(u32, Duration)>) -> Option<i32> {
    rate.map(|(limit, _)| int(limit))
}

pub(super) fn rate_window_ms(rate: Option<(u32, Duration)>) -> Option<i64> {
    rate.map(|(_, window)| ms(window))
}

impl Store {
    /// Every limit and weight that is set, every queue that is paused, and every key that is at `now`. One statement, for
    /// it is asked all the time.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn settings(&self, now: DateTime<Utc>) -> Result<Settings, Error> {
        self.within(async {
            let rows = sqlx::query(
                "select 't' as kind, id as tenant_id, null::uuid as agent_id, null as name, max_running, run_limit,
                    run_window_ms, paused_at is not null as is_paused, null::timestamptz as until, weight
                 from tenants
                 where max_running is not null or run_limit is not null or paused_at is not null or weight <> 1
                 union all
                 select 'q', null, null, name, max_running, run_limit, run_window_ms, paused_at is not null, null, weight
                 from queues
                 where max_running is not null or run_limit is not null or paused_at is not null or weight <> 1
                 union all
                 select 'a', tenant_id, id, null, max_running, null, null, false, null, 1
                 from agents where max_running is not null
                 union all
                 select 'k', tenant_id, null, key, null, null, null, true, until, 1
                 from key_pauses where until is null or until > $1",
            )
            .bind(now)
            .fetch_all(self.pool())
            .await?;
            let mut settings = Settings::default();
            for row in &rows {
                settings.read(row)?;
            }
            settings.paused_queues.sort_unstable();
            Ok(settings)
        })
        .await
    }

    /// Pauses a tenant's key, or moves the end of its pause.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn pause_key(&self, tenant_id: TenantId, pause: &KeyPause) -> Result<(), Error> {
        sqlx::query(
            "insert into key_pauses (tenant_id, key, until, reason, created_at) values ($1, $2, $3, $4, $5)
             on conflict (tenant_id, key) do update set until = excluded.until, reason = excluded.reason",
        )
        .bind(tenant_id)
        .bind(&pause.key)
        .bind(pause.until)
        .bind(&pause.reason)
        .bind(pause.created_at)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Ends the pause of a tenant's key. Answers whether it was paused.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn resume_key(&self, tenant_id: TenantId, key: &str) -> Result<bool, Error> {
        let deleted = sqlx::query("delete from key_pauses where tenant_id = $1 and key = $2")
            .bind(tenant_id)
            .bind(key)
            .execute(self.pool())
            .await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// The keys of a tenant that are paused at `now`, by name; at most 1,000.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn paused_keys(&self, tenant_id: TenantId, now: DateTime<Utc>) -> Result<Vec<KeyPause>, Error> {
        let rows = sqlx::query(
            "select key, until, reason, created_at from key_pauses
             where tenant_id = $1 and (until is null or until > $2) order by key limit 1000",
        )
        .bind(tenant_id)
        .bind(now)
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .map(|row| {
                Ok(KeyPause {
                    key: row.try_get("key")?,
                    until: row.try_get("until")?,
                    reason: row.try_get("reason")?,
                    created_at: row.try_get("created_at")?,
                })
            })
            .collect()
    }

    /// Forgets up to `limit` pauses that have ended.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn delete_key_pauses(&self, now: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
        let deleted = sqlx::query(
            "delete from key_pauses where (tenant_id, key) in
                (select tenant_id, key from key_pauses where until <= $1 limit $2)",
        )
        .bind(now)
        .bind(i64::from(limit))
        .execute(self.pool())
        .await?;
        Ok(deleted.rows_affected())
    }

    /// How many jobs of a tenant's agent may run at once: the outer `None` when there is no such agent, the inner one when
    /// there is no limit.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn agent_max_running(&self, tenant_id: TenantId, id: AgentId) -> Result<Option<Option<u32>>, Error> {
        let found: Option<Option<i32>> = sqlx::query_scalar(
            "select max_running from agents where tenant_id = $1 and id = $2 and deleted_at is null",
        )
        .bind(tenant_id)
        .bind(id)
        .fetch_optional(self.pool())
        .await?;
        Ok(found.map(|max_running| max_running.and_then(|max_running| max_running.try_into().ok())))
    }

    /// Sets how many jobs of a tenant's agent may run at once; answers false when there is no such agent.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn set_agent_max_running(
        &self,
        tenant_id: TenantId,
        id: AgentId,
        max_running: Option<u32>,
    ) -> Result<bool, Error> {
        let changed =
            sqlx::query("update agents set max_running = $3 where tenant_id = $1 and id = $2 and deleted_at is null")
                .bind(tenant_id)
                .bind(id)
                .bind(max_running.map(int))
                .execute(self.pool())
                .await?;
        Ok(changed.rows_affected() > 0)
    }
}

impl Settings {
    fn read(&mut self, row: &PgRow) -> Result<(), Error> {
        let (subject, mut limit) = limit(row)?;
        let weight = u32::try_from(row.try_get::<i32, _>("weight")?).unwrap_or(1);
        match &subject {
            Subject::Queue(name) => {
                // A queue is paused by another means than a limit.
                if limit.pause.take().is_some() {
                    self.paused_queues.push(name.clone());
                }
                if weight != 1 {
                    self.queue_weights.push((name.clone(), weight));
                }
            }
            Subject::Tenant(id) if weight != 1 => self.tenant_weights.push((*id, weight)),
            _ => {}
        }
        if limit != Limit::default() {
            self.limits.push((subject, limit));
        }
        Ok(())
    }
}

fn limit(row: &PgRow) -> Result<(Subject, Limit), Error> {
    let missing = || Error::Corrupt("a limit without its subject".to_owned());
    let tenant = || -> Result<TenantId, Error> { row.try_get::<Option<_>, _>("tenant_id")?.ok_or_else(missing) };
    let name = || -> Result<String, Error> { row.try_get::<Option<_>, _>("name")?.ok_or_else(missing) };
    let kind: &str = row.try_get("kind")?;
    let subject = match kind {
        "t" => Subject::Tenant(tenant()?),
        "q" => Subject::Queue(name()?),
        "a" => Subject::Agent(
            tenant()?,
            row.try_get::<Option<AgentId>, _>("agent_id")?.ok_or_else(missing)?,
        ),
        _ => Subject::Key(tenant()?, name()?),
    };
    let until: Option<DateTime<Utc>> = row.try_get("until")?;
    let limit = Limit {
        max_running: row
            .try_get::<Option<i32>, _>("max_running")?
            .and_then(|n| u32::try_from(n).ok()),
        rate: rate(row)?,
        pause: row
            .try_get::<bool, _>("is_paused")?
            .then(|| until.map_or(Pause::Open, Pause::Until)),
    };
    Ok((subject, limit))
}
