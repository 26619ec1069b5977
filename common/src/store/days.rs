//! The partition in which some jobs are: a statement that names it is planned for one table, not for each day there is.
//!
//! A day's partition holds all of its rows or does not exist: while rows of a day lie in the default partition, none can be
//! made for it. It is dropped when all of its jobs have ended, and then nobody claims or settles any of them.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, NaiveDate};

use super::{Error, Store};
use crate::ids::JobId;

/// The days whose partitions are known to exist.
#[derive(Debug, Default)]
pub(super) struct Days(Mutex<HashSet<NaiveDate>>);

/// A table that holds all jobs of a statement.
#[derive(Debug)]
pub(super) enum Table {
    /// Their day's partition.
    Day(String),
    /// All partitions.
    Jobs,
}

impl Table {
    /// SQL: a condition that leaves out the days of none of these ids, where a statement does not name its partition.
    pub(super) fn prune(&self, ids: &str) -> String {
        match self {
            Self::Day(_) => String::new(),
            Self::Jobs => format!(" and jobs.id = any({ids})"),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Day(name) => name,
            Self::Jobs => "jobs",
        })
    }
}

impl Days {
    /// The table that holds all of these jobs.
    pub(super) async fn table(&self, store: &Store, ids: impl Iterator<Item = JobId>) -> Result<Table, Error> {
        let mut days = ids.map(day);
        let first = days.next().flatten();
        let Some(day) = first.filter(|_| days.all(|day| day == first)) else {
            return Ok(Table::Jobs);
        };
        let name = format!("jobs_{}", day.format("%Y%m%d"));
        if self.known().contains(&day) {
            return Ok(Table::Day(name));
        }
        let sql = "select to_regclass($1) is not null";
        let exists: bool = sqlx::query_scalar(sql).bind(&name).fetch_one(store.pool()).await?;
        if !exists {
            return Ok(Table::Jobs);
        }
        self.known().insert(day);
        Ok(Table::Day(name))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<NaiveDate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The UTC day of an id.
fn day(id: JobId) -> Option<NaiveDate> {
    Some(DateTime::from_timestamp_millis(id.ms())?.date_naive())
}
