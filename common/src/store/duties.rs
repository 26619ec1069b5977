//! What the periodic duties last did, for `GET /api/v1/duties`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;

use super::row::{bigint, ms};
use super::{Error, Store};

/// What a duty did since it was last written down.
#[derive(Clone, Debug)]
pub struct DutyReport {
    /// Its name.
    pub name: &'static str,
    /// The leader's epoch.
    pub epoch: u64,
    /// Its pause between two ticks.
    pub interval: Duration,
    /// When its last tick ended.
    pub last_at: DateTime<Utc>,
    /// When its last good tick ended, if there was one.
    pub last_ok_at: Option<DateTime<Utc>>,
    /// Things that its last tick changed.
    pub changed: u64,
    /// Ticks.
    pub ticks: u64,
    /// Ticks that failed.
    pub failures: u64,
    /// Things that all of them changed.
    pub changed_total: u64,
    /// Why the last tick failed.
    pub error: Option<String>,
}

/// A duty as anyone may see it.
#[derive(Clone, Debug, Serialize)]
pub struct DutyStatus {
    /// Its name.
    pub name: String,
    /// Epoch of the leader that ran it last.
    pub epoch: u64,
    /// Pause between two ticks, ms.
    pub interval_ms: u64,
    /// When its last tick ended.
    pub last_at: DateTime<Utc>,
    /// When its last good tick ended.
    pub last_ok_at: Option<DateTime<Utc>>,
    /// Things that its last tick changed.
    pub changed: u64,
    /// Ticks since ever.
    pub ticks: u64,
    /// Ticks that failed since ever.
    pub failures: u64,
    /// Things changed since ever.
    pub changed_total: u64,
    /// Why its last tick failed.
    pub error: Option<String>,
}

impl Store {
    /// Adds up what some duties did.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn report_duties(&self, reports: &[DutyReport]) -> Result<(), Error> {
        let each =
            |value: fn(&DutyReport) -> u64| reports.iter().map(|report| bigint(value(report))).collect::<Vec<_>>();
        sqlx::query(
            "insert into duties
                (name, epoch, interval_ms, last_at, last_ok_at, changed, ticks, failures, changed_total, error)
             select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::timestamptz[],
                $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::text[])
             on conflict (name) do update set epoch = excluded.epoch, interval_ms = excluded.interval_ms,
                last_at = excluded.last_at, last_ok_at = coalesce(excluded.last_ok_at, duties.last_ok_at),
                changed = excluded.changed, ticks = duties.ticks + excluded.ticks,
                failures = duties.failures + excluded.failures,
                changed_total = duties.changed_total + excluded.changed_total, error = excluded.error",
        )
        .bind(reports.iter().map(|report| report.name).collect::<Vec<_>>())
        .bind(each(|report| report.epoch))
        .bind(reports.iter().map(|report| ms(report.interval)).collect::<Vec<_>>())
        .bind(reports.iter().map(|report| report.last_at).collect::<Vec<_>>())
        .bind(reports.iter().map(|report| report.last_ok_at).collect::<Vec<_>>())
        .bind(each(|report| report.changed))
        .bind(each(|report| report.ticks))
        .bind(each(|report| report.failures))
        .bind(each(|report| report.changed_total))
        .bind(reports.iter().map(|report| report.error.as_deref()).collect::<Vec<_>>())
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Every duty that ever ran, by name.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn duties(&self) -> Result<Vec<DutyStatus>, Error> {
        let rows = sqlx::query("select * from duties order by name")
            .fetch_all(self.pool())
            .await?;
        let number = |row: &sqlx::postgres::PgRow, column: &str| -> Result<u64, Error> {
            Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
        };
        rows.iter()
            .map(|row| {
                Ok(DutyStatus {
                    name: row.try_get("name")?,
                    epoch: number(row, "epoch")?,
                    interval_ms: number(row, "interval_ms")?,
                    last_at: row.try_get("last_at")?,
                    last_ok_at: row.try_get("last_ok_at")?,
                    changed: number(row, "changed")?,
                    ticks: number(row, "ticks")?,
                    failures: number(row, "failures")?,
                    changed_total: number(row, "changed_total")?,
                    error: row.try_get("error")?,
                })
            })
            .collect()
    }
}
