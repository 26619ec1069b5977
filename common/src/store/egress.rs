//! Egress: one row for each connection that a sandbox wanted. Facts, accepted from any attempt that existed; a row is
//! completed once, when its connection has ended.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::row::{bigint, int};
use super::{Error, Store};
use crate::ids::JobId;
use crate::job::Job;

/// What became of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The attempt whose sandbox it was.
    pub attempt: u32,
    /// Its number in the attempt, from 1.
    pub seq: u32,
    /// When it came.
    pub at: DateTime<Utc>,
    /// The method of its request, when one could be read.
    pub method: Option<String>,
    /// The host that it asked for.
    pub host: Option<String>,
    /// The port that it asked for.
    pub port: Option<u16>,
    /// The address that was dialled.
    pub address: Option<String>,
    /// Whether it was allowed.
    pub is_allowed: bool,
    /// Code of why it was refused, or cut.
    pub reason: Option<String>,
    /// Bytes of the sandbox that were passed on.
    pub sent_bytes: u64,
    /// Bytes of the host that were passed on.
    pub received_bytes: u64,
    /// How long it lasted, when it has ended.
    pub duration: Option<Duration>,
}

/// A place in a job's decisions: attempt and number of the last one that was read.
pub type Place = (u32, u32);

impl Store {
    /// Writes decisions down, each once; repeating one that is complete does nothing. No two are of the same connection.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn insert_egress(&self, job: &Job, decisions: &[Decision]) -> Result<(), Error> {
        let all = |value: fn(&Decision) -> Option<String>| decisions.iter().map(value).collect::<Vec<_>>();
        let numbers = |value: fn(&Decision) -> i64| decisions.iter().map(value).collect::<Vec<_>>();
        sqlx::query(
            "insert into egress_decisions (job_id, tenant_id, attempt, seq, at, method, host, port, address, allowed,
                reason, sent_bytes, received_bytes, duration_ms)
             select $1, $2, * from unnest($3::int[], $4::int[], $5::timestamptz[], $6::text[], $7::text[], $8::int[],
                $9::text[], $10::bool[], $11::text[], $12::bigint[], $13::bigint[], $14::bigint[])
             on conflict (job_id, attempt, seq) do update set method = excluded.method, host = excluded.host,
                port = excluded.port, address = excluded.address, allowed = excluded.allowed, reason = excluded.reason,
                sent_bytes = excluded.sent_bytes, received_bytes = excluded.received_bytes,
                duration_ms = excluded.duration_ms
             where egress_decisions.duration_ms is null",
        )
        .bind(job.id)
        .bind(job.tenant_id)
        .bind(decisions.iter().map(|it| int(it.attempt)).collect::<Vec<_>>())
        .bind(decisions.iter().map(|it| int(it.seq)).collect::<Vec<_>>())
        .bind(decisions.iter().map(|it| it.at).collect::<Vec<_>>())
        .bind(all(|it| it.method.clone()))
        .bind(all(|it| it.host.clone()))
        .bind(decisions.iter().map(|it| it.port.map(i32::from)).collect::<Vec<_>>())
        .bind(all(|it| it.address.clone()))
        .bind(decisions.iter().map(|it| it.is_allowed).collect::<Vec<_>>())
        .bind(all(|it| it.reason.clone()))
        .bind(numbers(|it| bigint(it.sent_bytes)))
        .bind(numbers(|it| bigint(it.received_bytes)))
        .bind(
            decisions
                .iter()
                .map(|it| it.duration.map(super::row::ms))
                .collect::<Vec<_>>(),
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Up to `limit` decisions of a job after a place, in order.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn egress(&self, job_id: JobId, after: Place, limit: u32) -> Result<Vec<Decision>, Error> {
        let rows = sqlx::query(
            "select attempt, seq, at, method, host, port, address, allowed, reason, sent_bytes, received_bytes,
                duration_ms
             from egress_decisions where job_id = $1 and (attempt, seq) > ($2, $3) order by attempt, seq limit $4",
        )
        .bind(job_id)
        .bind(int(after.0))
        .bind(int(after.1))
        .bind(i64::from(limit))
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(decision).collect()
    }
}

fn decision(row: &PgRow) -> Result<Decision, Error> {
    let number = |column| Ok::<_, Error>(u32::try_from(row.try_get::<i32, _>(column)?).unwrap_or(0));
    let bytes = |column| Ok::<_, Error>(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0));
    let duration: Option<i64> = row.try_get("duration_ms")?;
    let port: Option<i32> = row.try_get("port")?;
    Ok(Decision {
        attempt: number("attempt")?,
        seq: number("seq")?,
        at: row.try_get("at")?,
        method: row.try_get("method")?,
        host: row.try_get("host")?,
        port: port.and_then(|port| u16::try_from(port).ok()),
        address: row.try_get("address")?,
        is_allowed: row.try_get("allowed")?,
        reason: row.try_get("reason")?,
        sent_bytes: bytes("sent_bytes")?,
        received_bytes: bytes("received_bytes")?,
        duration: duration
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis),
    })
}
