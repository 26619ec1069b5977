//! What one job alone is at fault for ends no tick: it would end each tick after it too, and with it the work for all others.

use std::fmt::Display;

use common::{queue, store};

/// What came of one job, or conversation, of a tick. `None` where the fault is its own: that is told and counted, and the tick
/// goes on with the next.
///
/// # Errors
/// What may pass: a store is away.
pub(super) fn apart<T>(duty: &'static str, id: impl Display, outcome: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(error) if is_its_own(&error) => {
            tracing::error!(duty, %id, error = format!("{error:#}"), "passed over");
            ::metrics::counter!("hothouse_duty_passed_over_total", "duty" => duty).increment(1);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_its_own(error: &anyhow::Error) -> bool {
    let refused_by_postgres = error
        .downcast_ref::<store::Error>()
        .is_some_and(|error| error.class() != store::Class::Transient);
    let refused_by_redis = matches!(
        error.downcast_ref(),
        Some(queue::Error::Refused(_) | queue::Error::Reply(_))
    );
    refused_by_postgres || refused_by_redis
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn only_what_may_pass_ends_a_tick() {
        let data = store::Error::Data {
            constraint: None,
            message: "unsupported Unicode escape sequence".to_owned(),
        };
        for own in [anyhow!(data), anyhow!(queue::Error::Reply("event".to_owned()))] {
            assert_eq!(apart::<u64>("reclaim", "job", Err(own)).unwrap(), None);
        }
        let away = store::Error::from(sqlx::Error::PoolTimedOut);
        for passing in [anyhow!(away), anyhow!(queue::Error::Slow), anyhow!("unknown")] {
            assert!(apart::<u64>("reclaim", "job", Err(passing)).is_err());
        }
        assert_eq!(apart("reclaim", "job", Ok(1)).unwrap(), Some(1));
    }
}
