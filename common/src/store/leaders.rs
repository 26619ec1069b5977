//! Electing the holder of a role: a lease with an epoch, timed by Postgres's clock alone.
//!
//! # Invariants
//! - One holder at a time by Postgres's clock: another takes over only when the lease has expired or was released, or
//!   when it ends later than any lease can, because the clock was set back.
//! - The epoch grows with each change of holder. A write that must be the leader's checks it in its own transaction,
//!   by [`confirm`], so a leader that was frozen and believes in itself changes nothing.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::row::{bigint, ms};
use super::{Error, Store};

/// How much later than its whole time from now a lease may end before it is taken for one of another clock.
const SET_BACK: Duration = Duration::from_secs(1);

/// The proof that somebody leads. Worth as much as its lease: [`confirm`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The role.
    pub name: String,
    /// Who holds it: made anew at each start of a process.
    pub holder: Uuid,
    /// The fence.
    pub epoch: u64,
}

impl Store {
    /// Takes the role when it is free, or extends the lease of the one who has it, for `ttl` from now. `None` when
    /// somebody else holds it.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn acquire_or_renew(&self, name: &str, holder: Uuid, ttl: Duration) -> Result<Option<Leadership>, Error> {
        let epoch: Option<i64> = sqlx::query_scalar(
            "insert into leaders (name, holder, epoch, expires_at)
             values ($1, $2, 1, clock_timestamp() + $4 * interval '1 microsecond' + $3 * interval '1 millisecond')
             on conflict (name) do update set holder = excluded.holder, expires_at = excluded.expires_at,
                epoch = leaders.epoch + case when leaders.holder = excluded.holder then 0 else 1 end
             where leaders.holder = excluded.holder
                or leaders.expires_at <= clock_timestamp() + $4 * interval '1 microsecond'
                or leaders.expires_at > excluded.expires_at + $5 * interval '1 millisecond'
             returning epoch",
        )
        .bind(name)
        .bind(holder)
        .bind(ms(ttl))
        .bind(self.clock_offset_us())
        .bind(ms(SET_BACK))
        .fetch_optional(self.pool())
        .await?;
        Ok(epoch.map(|epoch| Leadership {
            name: name.to_owned(),
            holder,
            epoch: u64::try_from(epoch).unwrap_or(0),
        }))
    }

    /// Gives the role up, so that another need not wait for the lease to expire.
    ///
    /// # Errors
    /// When Postgres is away; then it expires by itself.
    pub async fn release_leadership(&self, leadership: &Leadership) -> Result<(), Error> {
        sqlx::query(
            "update leaders set expires_at = clock_timestamp() + $4 * interval '1 microsecond'
             where name = $1 and holder = $2 and epoch = $3",
        )
        .bind(&leadership.name)
        .bind(leadership.holder)
        .bind(bigint(leadership.epoch))
        .bind(self.clock_offset_us())
        .execute(self.pool())
        .await?;
        Ok(())
    }
}

/// Holds the leader's row until the transaction ends, so that nobody takes over in its middle.
///
/// A leader frozen here would keep the row locked and its successor out: so Postgres ends the session of a transaction
/// that is idle for 2 s, which is below the time that a failover may take.
///
/// # Errors
/// [`Error::LeaseLost`] when another leads, or the lease has expired.
pub(super) async fn confirm(
    transaction: &mut PgConnection,
    leadership: &Leadership,
    clock_offset_us: i64,
) -> Result<(), Error> {
    let found = sqlx::query(
        "select set_config('idle_in_transaction_session_timeout', '2000', true) from leaders
         where name = $1 and holder = $2 and epoch = $3
            and expires_at > clock_timestamp() + $4 * interval '1 microsecond' for share",
    )
    .bind(&leadership.name)
    .bind(leadership.holder)
    .bind(bigint(leadership.epoch))
    .bind(clock_offset_us)
    .fetch_optional(transaction)
    .await?;
    found.map(|_row| ()).ok_or(Error::LeaseLost)
}
