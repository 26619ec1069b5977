//! How a job gets a sandbox.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::cold::ColdStart;
use super::shelf::{Heritage, KeptFor, Shelf};
use super::{Error, Inner, Slot, refill};
use crate::claude::Recipe;
use crate::driver::Profile;

/// A sandbox that said nothing for longer is asked whether it answers before a job gets it.
const PING_AFTER: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a job waits for a sandbox that is being reset for it, before it takes a fresh one.
const RESET_PATIENCE: Duration = Duration::from_millis(250);

/// See [`super::Pool::check_out`].
pub(super) async fn check_out(
    pool: &Arc<Inner>,
    environment: &str,
    (profile, recipe): (Option<&Profile>, Option<&Recipe>),
) -> Result<Slot, Error> {
    if pool.stop.is_cancelled() {
        return Err(Error::Stopped);
    }
    let shelf = pool.shelves.get(environment).ok_or_else(|| Error::NoSuchEnvironment {
        environment: environment.to_owned(),
    })?;
    if let Some(profile) = profile.filter(|profile| !fits(profile, &shelf.environment.profile)) {
        return sized(pool, shelf, profile).await;
    }
    let mut reason = None;
    while let Some((warm, leased)) = shelf.take(recipe, pool.pace.quiet_max) {
        let mut slot = Slot::new(pool, warm, leased, None);
        if is_healthy(pool, &slot).await && slot.suits(recipe).await {
            return Ok(slot);
        }
        reason = Some(ColdStart::Unhealthy);
        slot.retire();
    }
    let reason = reason.unwrap_or_else(|| shelf.why_empty());
    let mut slot = cold(pool, shelf, reason).await?;
    if slot.suits(recipe).await {
        return Ok(slot);
    }
    slot.retire();
    cold(pool, shelf, ColdStart::Unhealthy).await
}

/// See [`super::Pool::check_out_kept`].
pub(super) async fn kept(pool: &Arc<Inner>, environment: &str, owner: &KeptFor) -> Option<(Slot, u64)> {
    if pool.stop.is_cancelled() {
        return None;
    }
    let shelf = pool.shelves.get(environment)?;
    let deadline = Instant::now() + RESET_PATIENCE;
    loop {
        let (slot, version) = match shelf.inherit(owner) {
            Heritage::Kept(warm, leased, version) => (Slot::new(pool, *warm, leased, None), version),
            Heritage::Soon(heritage) => match timeout_at(deadline, heritage).await {
                Ok(Ok(slot)) => (slot, 0),
                // That one is gone; there may be another.
                Ok(Err(_gone)) => continue,
                Err(_elapsed) => return None,
            },
            Heritage::Nothing => return None,
        };
        if is_healthy(pool, &slot).await {
            return Some((slot, version));
        }
        slot.retire();
    }
}

/// Waits in line for the next sandbox that becomes warm.
async fn cold(pool: &Arc<Inner>, shelf: &Arc<Shelf>, reason: ColdStart) -> Result<Slot, Error> {
    count_cold_start(shelf, reason);
    if let Some(source) = shelf.refusal(&pool.pace) {
        return Err(Error::Failing { source });
    }
    let delivery = shelf.wait();
    let waited = tokio::select! {
        () = pool.stop.cancelled() => return Err(Error::Stopped),
        waited = timeout(pool.check_out_timeout, delivery) => waited,
    };
    match waited {
        Ok(Ok(Ok((warm, leased)))) => Ok(Slot::new(pool, warm, leased, Some(reason))),
        Ok(Ok(Err(source))) => Err(Error::Failing { source }),
        Ok(Err(_)) => Err(Error::Stopped),
        Err(_) => Err(exhausted(pool, shelf)),
    }
}

/// Starts a sandbox of another size, making room for it when there is none.
async fn sized(pool: &Arc<Inner>, shelf: &Arc<Shelf>, profile: &Profile) -> Result<Slot, Error> {
    count_cold_start(shelf, ColdStart::Profile);
    let deadline = Instant::now() + pool.check_out_timeout;
    let creating = loop {
        let mut changed = std::pin::pin!(shelf.changed.notified());
        // Heard from here on, so that no change between the look and the wait is missed.
        changed.as_mut().enable();
        if let Some(creating) = shelf.reserve() {
            break creating;
        }
        if let Some((warm, retiring)) = shelf.evict() {
            pool.destroy(warm.id, Some(warm.sandbox), retiring);
        }
        if timeout_at(deadline, changed).await.is_err() {
            return Err(exhausted(pool, shelf));
        }
    };
    let started = refill::start_for_job(pool, creating, profile.clone());
    match timeout_at(deadline, started).await {
        Ok(Ok(Ok((warm, leased)))) => Ok(Slot::new(pool, warm, leased, Some(ColdStart::Profile))),
        Ok(Ok(Err(error))) => Err(error),
        Ok(Err(_)) => Err(Error::Stopped),
        Err(_) => Err(exhausted(pool, shelf)),
    }
}

/// Whether a job that wants so much is content with a sandbox that has so much. Less is made of more by the limits of
/// the job's processes.
fn fits(wanted: &Profile, has: &Profile) -> bool {
    wanted.cpus <= has.cpus
        && wanted.memory_bytes <= has.memory_bytes
        && wanted.pids <= has.pids
        && wanted.nofile <= has.nofile
        && wanted.workspace_bytes <= has.workspace_bytes
        && wanted.tmp_bytes <= has.tmp_bytes
        && wanted.inodes <= has.inodes
}

/// Whether it still answers, and will; one that did so just now, as after [`super::Pool::rouse`], is not asked again.
async fn is_healthy(pool: &Inner, slot: &Slot) -> bool {
    let sandbox = slot.sandbox();
    let answers = async { sandbox.silent_for() < PING_AFTER || sandbox.ping(PING_TIMEOUT).await.is_ok() };
    // It may have died while the engine was asked.
    sandbox.is_alive() && answers.await && pool.suspicion.is_unfounded(&*pool.driver).await && sandbox.is_alive()
}

fn count_cold_start(shelf: &Shelf, reason: ColdStart) {
    shelf.note_cold_start(reason);
    let environment = shelf.environment.name.clone();
    metrics::counter!("hothouse_sandbox_cold_starts_total", "environment" => environment, "reason" => reason.as_str())
        .increment(1);
}

fn exhausted(pool: &Inner, shelf: &Shelf) -> Error {
    Error::Exhausted {
        environment: shelf.environment.name.clone(),
        waited: pool.check_out_timeout,
        last_error: shelf.look().2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_job_that_wants_more_of_something_does_not_fit() {
        let has = Profile::default();
        assert!(fits(&has, &has));
        assert!(fits(
            &Profile {
                memory_bytes: 1,
                cpus: 0.5,
                ..has.clone()
            },
            &has
        ));
        assert!(!fits(
            &Profile {
                pids: has.pids + 1,
                memory_bytes: 1,
                ..has.clone()
            },
            &has
        ));
        assert!(!fits(
            &Profile {
                cpus: 1.5,
                ..has.clone()
            },
            &has
        ));
    }
}
