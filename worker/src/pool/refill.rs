//! Refill: one loop that keeps every shelf at what [`super::plan`] says.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use uuid::Uuid;

use super::held::{Creating, Leased};
use super::shelf::{Shelf, Warm};
use super::{Error, Inner, proof, reaper, rollover, spares};
use crate::driver::{Profile, Spec};
use crate::sandbox::Sandbox;

/// How often dead and old sandboxes are looked for when nothing else happens.
const LOOK: Duration = Duration::from_secs(1);

/// How long the end of the pool waits for starts that are under way.
const STARTS_END: Duration = Duration::from_secs(5);

/// Runs until the pool stops; then it retires everything, and ends when all that is done.
pub(super) async fn run(pool: Arc<Inner>) {
    let mut starts = JoinSet::new();
    loop {
        let look_again = tick(&pool, &mut starts).min(Instant::now() + LOOK);
        tokio::select! {
            () = pool.stop.cancelled() => break,
            () = pool.wake.notified() => {}
            Some(ended) = starts.join_next(), if !starts.is_empty() => {
                if let Err(e) = ended {
                    tracing::error!(error = %e, "a start of a sandbox ended badly");
                }
            }
            () = sleep_until(look_again) => {}
        }
    }
    // A start that is cut short may make the engine create a container after everybody has stopped looking.
    let ended = async { while starts.join_next().await.is_some() {} };
    if timeout(STARTS_END, ended).await.is_err() {
        tracing::warn!("sandboxes were still starting; the next worker's reaper takes them");
        starts.shutdown().await;
    }
    for shelf in pool.shelves.values() {
        retire(&pool, shelf, true);
    }
    pool.tasks.close();
    pool.tasks.wait().await;
    // What nobody knows of, such as a start that was cut short; its labels tell whose it is.
    reaper::destroy_own(&pool).await;
    pool.ended.cancel();
}

/// Retires and starts what is due. Returns when to look again at the latest.
fn tick(pool: &Arc<Inner>, starts: &mut JoinSet<()>) -> Instant {
    let mut next = Instant::now() + LOOK;
    for shelf in pool.shelves.values() {
        retire(pool, shelf, false);
        let (creating, look_again) = shelf.plan_starts(&pool.pace);
        for creating in creating {
            starts.spawn(start_one(Arc::clone(pool), creating));
        }
        let (spare, look_at_spares) = shelf.plan_spare();
        if let Some((planned, warm, creating)) = spare {
            starts.spawn(spares::prepare(Arc::clone(pool), planned, warm, creating));
        }
        next = look_at_spares.map_or(next, |at| next.min(at));
        next = look_again.map_or(next, |at| next.min(at));
        show(shelf);
    }
    next
}

fn show(shelf: &Shelf) {
    let (counts, ..) = shelf.look();
    let environment = shelf.environment.name.clone();
    metrics::gauge!("hothouse_sandbox_aim", "environment" => environment).set(shelf.aim());
    for (state, count) in [
        ("creating", counts.creating),
        ("warm", counts.warm),
        ("leased", counts.leased),
        ("kept", counts.kept),
        ("retiring", counts.retiring),
        ("waiting", counts.waiting),
    ] {
        let environment = shelf.environment.name.clone();
        metrics::gauge!("hothouse_sandbox_slots", "environment" => environment, "state" => state).set(count);
    }
}

/// Retires what is due; everything at the end.
pub(super) fn retire(pool: &Arc<Inner>, shelf: &Arc<Shelf>, everything: bool) {
    for (warm, retiring) in shelf.sweep(everything) {
        pool.destroy(warm.id, Some(warm.sandbox), retiring);
    }
}

async fn start_one(pool: Arc<Inner>, creating: Creating) {
    let profile = creating.shelf().environment.profile.clone();
    match start(&pool, creating, profile).await {
        Ok((creating, warm)) => pool.deliver(creating, warm),
        Err((shelf, error)) => {
            if !shelf.is_failing() {
                let error = error.with_causes();
                tracing::warn!(environment = shelf.environment.name, error, "sandboxes do not start");
            }
            shelf.failed(error, pool.clock.now());
        }
    }
}

/// Starts a sandbox of a size of its own for one job. A task of its own: a job that goes away in the middle must not
/// cut the start short and leave something behind.
pub(super) fn start_for_job(
    pool: &Arc<Inner>,
    creating: Creating,
    profile: Profile,
) -> oneshot::Receiver<Result<(Warm, Leased), Error>> {
    let (sender, receiver) = oneshot::channel();
    let inner = Arc::clone(pool);
    pool.tasks.spawn(async move {
        let result = match start(&inner, creating, profile).await {
            Ok((creating, warm)) => Ok((warm, creating.lease())),
            Err((_, error)) => Err(error),
        };
        if let Err(Ok((warm, leased))) = sender.send(result) {
            inner.destroy(warm.id, Some(warm.sandbox), leased.retire());
        }
    });
    receiver
}

type Started = Result<(Creating, Warm), (Arc<Shelf>, Error)>;

/// Starts one as soon as not too many others are starting, and waits until it answers.
async fn start(pool: &Arc<Inner>, creating: Creating, profile: Profile) -> Started {
    let shelf = Arc::clone(creating.shelf());
    let starting = pool.starts.enter().await;
    let mut spec = Spec {
        id: Uuid::now_v7(),
        worker_id: pool.worker_id,
        environment: shelf.environment.name.clone(),
        image: shelf.environment.image(),
        image_id: None,
        profile,
    };
    pool.know(spec.id);
    let result = timeout(pool.start_timeout, start_and_connect(pool, &shelf, &mut spec)).await;
    let result = result.unwrap_or(Err(Error::SlowStart {
        waited: pool.start_timeout,
    }));
    record_start(&spec, starting.elapsed(), result.is_ok());
    match result {
        Ok(sandbox) => {
            shelf.note_start(starting.elapsed());
            pool.shelves.values().for_each(|shelf| shelf.machine_is_well());
            starting.succeeded();
            let warm = Warm {
                id: spec.id,
                sandbox,
                image_id: spec.image_id,
                since: Instant::now(),
                resident: None,
            };
            Ok((creating, warm))
        }
        Err(error) => {
            // It may be there all the same, half started.
            pool.destroy(spec.id, None, creating.retire());
            Err((shelf, error))
        }
    }
}

/// What was proven of an image is true of that image alone: what the name stands for now is what is started.
async fn start_and_connect(pool: &Arc<Inner>, shelf: &Arc<Shelf>, spec: &mut Spec) -> Result<Sandbox, Error> {
    let image = rollover::look(pool, shelf).await.map_err(Error::Start)?;
    spec.image_id.clone_from(&image.id);
    proof::prove(pool, &image, spec).await?;
    let pipe = pool.driver.start(spec).await.map_err(Error::Start)?;
    Sandbox::connect(pipe, &pool.sandbox).await.map_err(Error::Connect)
}

fn record_start(spec: &Spec, took: Duration, is_ok: bool) {
    let outcome = if is_ok { "ok" } else { "error" };
    let environment = spec.environment.clone();
    metrics::counter!("hothouse_sandbox_starts_total", "environment" => environment.clone(), "outcome" => outcome)
        .increment(1);
    if is_ok {
        metrics::histogram!("hothouse_sandbox_start_seconds", "environment" => environment).record(took.as_secs_f64());
    }
}
