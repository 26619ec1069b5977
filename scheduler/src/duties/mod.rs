//! The periodic duties, and who runs them: every duty runs while this process leads, and stops when it does not.
//!
//! A duty is a type with [`Duty::tick`]; [`start`] lists them all. A tick that is under way when the lead is lost is
//! dropped: each is a reconciler, and the next leader's tick begins again. What one job alone is at fault for fails no tick
//! ([`apart`]).

mod apart;
mod artifacts;
mod fire;
mod forget;
mod orphans;
mod outcomes;
mod partitions;
mod pause;
mod promote;
mod reclaim;
mod redispatch;
mod retention;
mod steps;
mod stop;
mod sweep;
mod wakes;
mod workspaces;

use std::sync::Arc;

use common::clock::Clock;
use common::health::Health;
use common::objects::Objects;
use common::queue::Queue;
use common::service::{self, Duty};
use common::store::Store;
use common::store::leaders::Leadership;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use artifacts::Artifacts;
pub use promote::Promote;
pub use reclaim::Reclaim;
pub use redispatch::Redispatch;
pub use sweep::Sweep;
pub use workspaces::Workspaces;

use crate::config::Config;
use crate::record::Recorder;

/// What duties are made of.
#[derive(Clone, Debug)]
pub(crate) struct Deps {
    /// Postgres.
    pub(crate) store: Store,
    /// Redis.
    pub(crate) queue: Queue,
    /// Where artifacts and workspaces are.
    pub(crate) objects: Objects,
    /// All settings.
    pub(crate) config: Arc<Config>,
    /// Time.
    pub(crate) clock: Clock,
    /// Where ticks are written down.
    pub(crate) recorder: Arc<Recorder>,
    /// Who hears that they go on.
    pub(crate) health: Health,
}

/// Starts every duty. A new one needs a line here.
fn start(running: &mut Running<'_>) {
    let deps = running.deps.clone();
    let wakes = wakes::Wakes::default();
    running.duty(fire::Fire::new(&deps, running.leadership, &wakes));
    running.duty(outcomes::Outcomes::new(&deps, &wakes));
    let (store, queue) = (&deps.store, &deps.queue);
    running.duty(Promote::new(store.clone(), queue.clone()).woken_by(&wakes));
    running.duty(Redispatch::new(
        store.clone(),
        queue.clone(),
        deps.config.leases.dispatched_max,
    ));
    running.duty(Reclaim::new(store.clone(), queue.clone()));
    running.duty(Sweep::new(store.clone(), queue.clone()));
    running.duty(orphans::Orphans::new(&deps, &wakes));
    running.duty(partitions::Partitions::new(&deps));
    running.duty(retention::Retention::new(&deps));
    running.duty(forget::Forget::new(&deps));
    running.duty(Workspaces::new(
        deps.store.clone(),
        deps.objects.clone(),
        deps.config.retention.workspace_archives,
    ));
    running.duty(Artifacts::new(
        deps.store.clone(),
        deps.objects.clone(),
        deps.config.retention.jobs,
    ));
    running.tasks.spawn(wakes.run(deps.store.clone(), running.stop.clone()));
}

/// Runs the duties whenever this process leads, until `stop`.
pub(crate) async fn while_leading(
    deps: &Deps,
    mut leadership: watch::Receiver<Option<Leadership>>,
    stop: &CancellationToken,
) {
    loop {
        let elected = tokio::select! {
            () = stop.cancelled() => return,
            elected = leadership.wait_for(Option::is_some) => elected.ok().and_then(|elected| elected.clone()),
        };
        let Some(elected) = elected else { return };
        let token = stop.child_token();
        let mut running = Running {
            deps,
            leadership: &elected,
            stop: token.clone(),
            tasks: JoinSet::new(),
        };
        start(&mut running);
        let mut tasks = running.tasks;
        tokio::select! {
            // A stop ends the duties too, and is no reason to start them again.
            biased;
            () = stop.cancelled() => {}
            _changed = leadership.wait_for(|now| now.as_ref() != Some(&elected)) => {}
            // Ticks that panic are caught where they run, so this is a duty that cannot go on: start all of them again.
            ended = tasks.join_next() => tracing::error!(?ended, "a duty ended: starting all again"),
        }
        token.cancel();
        while tasks.join_next().await.is_some() {}
    }
}

/// The duties of one term of office.
struct Running<'a> {
    deps: &'a Deps,
    leadership: &'a Leadership,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Running<'_> {
    fn duty(&mut self, duty: impl Duty + 'static) {
        let recorder = Arc::clone(&self.deps.recorder);
        let (epoch, interval) = (self.leadership.epoch, duty.interval());
        // A tick that fails is no progress. The pulse goes with the duty: who does not lead owes no ticks.
        let pulse = self.deps.health.pulse(duty.name(), interval);
        let observe = move |name: &'static str, outcome: &Result<service::Report, String>| {
            if outcome.is_ok() {
                pulse.progress();
            }
            recorder.observe(name, interval, epoch, outcome);
        };
        self.tasks
            .spawn(service::run(duty, self.deps.clock.clone(), self.stop.clone(), observe));
    }
}
