//! Hearing that something is due soon, or to be done: Postgres tells it when the change is committed.
//!
//! Triggers tell of jobs and schedules whose time comes within 15 s, and of jobs that end and may leave children. A word that is lost with its connection costs the
//! listener's own pause between two looks, no more.

use sqlx::postgres::PgListener;

use super::{Error, Store};

/// The channel of the triggers' words.
const CHANNEL: &str = "hothouse_due";

/// What somebody should look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A job will be due soon.
    Jobs,
    /// A schedule will be due soon.
    Schedules,
    /// A job has ended that may have open children.
    Orphans,
    /// Words may have been lost.
    Everything,
}

/// A connection of its own on which the words arrive.
#[derive(Debug)]
pub struct Wakes(PgListener);

impl Store {
    /// Begins to listen. What was committed before is not told.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn wakes(&self) -> Result<Wakes, Error> {
        self.within(async {
            let mut listener = PgListener::connect_with(self.pool().untimed()).await?;
            listener.listen(CHANNEL).await?;
            Ok(Wakes(listener))
        })
        .await
    }
}

impl Wakes {
    /// Waits for the next word. Safe to drop while it waits.
    ///
    /// # Errors
    /// When the connection broke and there is no new one: listen anew.
    pub async fn next(&mut self) -> Result<Wake, Error> {
        Ok(match self.0.try_recv().await? {
            Some(word) if word.payload() == "jobs" => Wake::Jobs,
            Some(word) if word.payload() == "schedules" => Wake::Schedules,
            Some(word) if word.payload() == "orphans" => Wake::Orphans,
            _ => Wake::Everything,
        })
    }
}
