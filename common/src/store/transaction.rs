//! Transactions that end where they are left.
//!
//! They are not sqlx's own. sqlx 0.9 knows nothing of one whose beginning was given up before it was answered (issue 4393
//! there): whoever got such a connection next would write into that transaction, and lose it all when the connection is
//! closed.

use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use sqlx::{Error, Executor as _, PgConnection, Postgres};
use tokio::time::timeout;

use super::PING_TIMEOUT;

/// A transaction, which is rolled back unless it is committed.
#[derive(Debug)]
pub(super) struct Transaction(Option<PoolConnection<Postgres>>);

impl Transaction {
    /// Begins one with this statement. It is rolled back where this is given up before the statement is answered, too.
    pub(super) async fn begin(connection: PoolConnection<Postgres>, statement: &'static str) -> Result<Self, Error> {
        let mut transaction = Self(Some(connection));
        transaction.execute(statement).await?;
        Ok(transaction)
    }

    /// Commits it. Where this is given up nobody knows whether it is committed.
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        self.execute("commit").await?;
        self.0 = None;
        Ok(())
    }
}

/// Its connection is there until it has ended.
const OPEN: &str = "an open transaction has its connection";

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.0.as_deref().expect(OPEN)
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_deref_mut().expect(OPEN)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            #[expect(clippy::disallowed_methods, reason = "it is over within the time of a ping")]
            tokio::spawn(roll_back(connection));
        }
    }
}

/// Ends what was left open, after whatever of it was not answered yet, and gives the connection back. One that does not say so
/// in time is closed without a goodbye, which nobody may hear. Where a commit failed, or nothing was begun yet, Postgres logs a
/// warning that there is no transaction.
async fn roll_back(mut connection: PoolConnection<Postgres>) {
    let ended = timeout(PING_TIMEOUT, connection.execute("rollback")).await;
    if !matches!(ended, Ok(Ok(_))) {
        drop(connection.detach());
    }
}
