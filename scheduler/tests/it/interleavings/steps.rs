//! What may happen, and how it is done: in the order in which the API, the worker and the scheduler do it.

use std::time::Duration;

use chrono::TimeDelta;
use common::job::decision::Decision;
use common::job::wait::Wait;
use common::queue::{Beat, Dispatch};
use common::service::Duty;
use common::testing::failure;
use proptest::prelude::*;

use super::claims;
use super::oracle::Broken;
use super::world::{Held, World};

/// One step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Submit {
        tenant: usize,
        key: bool,
        later: bool,
        told: bool,
    },
    Take {
        worker: usize,
        free: u32,
    },
    Confirm {
        worker: usize,
    },
    ConfirmUnanswered {
        worker: usize,
    },
    /// The three parts of a confirmation, for others to come between.
    Send {
        worker: usize,
    },
    Decide {
        which: usize,
    },
    Answer {
        worker: usize,
    },
    Beat {
        worker: usize,
    },
    End {
        worker: usize,
        which: usize,
        how: End,
        acked: bool,
    },
    StaleEnd {
        which: usize,
        how: End,
    },
    Die {
        worker: usize,
    },
    Cancel {
        which: usize,
        told: bool,
    },
    Redrive {
        which: usize,
    },
    Resume {
        which: usize,
        told: bool,
    },
    Tick {
        duty: Ticks,
    },
    Advance {
        ms: u64,
    },
    Wipe,
    Save,
    RollBack,
    Away,
    Back,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Succeed,
    Fail,
    Retry,
    GiveBack,
    Wait,
}

/// Whose tick.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ticks {
    Promote,
    Redispatch,
    Reclaim,
    Sweep,
}

pub(crate) fn strategy() -> impl Strategy<Value = Vec<Step>> {
    let worker = || 0..3_usize;
    let which = || 0..64_usize;
    let how = || {
        prop_oneof![
            3 => Just(End::Succeed),
            1 => Just(End::Fail),
            2 => Just(End::Retry),
            1 => Just(End::GiveBack),
            1 => Just(End::Wait),
        ]
    };
    let duty = prop_oneof![
        Just(Ticks::Promote),
        Just(Ticks::Redispatch),
        Just(Ticks::Reclaim),
        Just(Ticks::Sweep)
    ];
    let step = prop_oneof![
        6 => (0..3_usize, any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.8))
            .prop_map(|(tenant, key, later, told)| Step::Submit { tenant, key, later, told }),
        5 => (worker(), 1..4_u32).prop_map(|(worker, free)| Step::Take { worker, free }),
        6 => worker().prop_map(|worker| Step::Confirm { worker }),
        1 => worker().prop_map(|worker| Step::ConfirmUnanswered { worker }),
        2 => worker().prop_map(|worker| Step::Send { worker }),
        2 => which().prop_map(|which| Step::Decide { which }),
        2 => worker().prop_map(|worker| Step::Answer { worker }),
        5 => worker().prop_map(|worker| Step::Beat { worker }),
        5 => (worker(), which(), how(), prop::bool::weighted(0.8))
            .prop_map(|(worker, which, how, acked)| Step::End { worker, which, how, acked }),
        2 => (which(), how()).prop_map(|(which, how)| Step::StaleEnd { which, how }),
        1 => worker().prop_map(|worker| Step::Die { worker }),
        2 => (which(), any::<bool>()).prop_map(|(which, told)| Step::Cancel { which, told }),
        1 => which().prop_map(|which| Step::Redrive { which }),
        1 => (which(), any::<bool>()).prop_map(|(which, told)| Step::Resume { which, told }),
        8 => duty.prop_map(|duty| Step::Tick { duty }),
        5 => prop_oneof![Just(500), Just(2_000), Just(3_000), Just(6_000), Just(7_000)].prop_map(|ms| Step::Advance { ms }),
        1 => Just(Step::Wipe),
        1 => Just(Step::Save),
        1 => Just(Step::RollBack),
        1 => Just(Step::Away),
        2 => Just(Step::Back),
    ];
    prop::collection::vec(step, 1..80)
}

/// Takes a step.
pub(crate) async fn run(world: &mut World, step: &Step) -> Result<(), Broken> {
    match *step {
        Step::Submit {
            tenant,
            key,
            later,
            told,
        } => world.submit(tenant, key, later, told, None).await,
        Step::Take { .. }
        | Step::Confirm { .. }
        | Step::ConfirmUnanswered { .. }
        | Step::Send { .. }
        | Step::Decide { .. }
        | Step::Answer { .. } => claims::run(world, step).await,
        Step::Beat { worker } => beat(world, worker).await,
        Step::End {
            worker,
            which,
            how,
            acked,
        } => {
            let held = &mut world.workers[worker].held;
            if held.is_empty() {
                return Ok(());
            }
            let held = held.remove(which % held.len());
            end(world, held, how, acked).await
        }
        Step::StaleEnd { which, how } => {
            if world.lost.is_empty() {
                return Ok(());
            }
            let lost = world.lost[which % world.lost.len()].clone();
            end(world, lost, how, false).await
        }
        Step::Die { worker } => {
            world.die(worker).await;
            Ok(())
        }
        Step::Cancel { which, told } => cancel(world, which, told).await,
        Step::Redrive { which } => redrive(world, which).await,
        Step::Resume { which, told } => resume(world, which, told).await,
        Step::Tick { duty } => tick(world, duty).await,
        Step::Advance { ms } => {
            world.env.advance(Duration::from_millis(ms));
            Ok(())
        }
        Step::Wipe => {
            world.env.wipe_redis().await;
            Ok(())
        }
        Step::Save => {
            world.saved = Some(world.env.save_redis().await);
            Ok(())
        }
        Step::RollBack => {
            if let Some(saved) = world.saved.clone() {
                world.env.roll_back_redis(&saved).await;
                world.is_behind = true;
            }
            Ok(())
        }
        Step::Away | Step::Back => {
            world.is_away = matches!(step, Step::Away);
            Ok(())
        }
    }
}

/// `Heartbeat::beat_shard`.
async fn beat(world: &mut World, worker: usize) -> Result<(), Broken> {
    let (asked, actor) = (world.now(), world.workers[worker].actor.clone());
    let heard_at = world.workers[worker].heard_at;
    let alive = asked - heard_at < world.ttl();
    let mut all_heard = true;
    for held in std::mem::take(&mut world.workers[worker].held) {
        let beat = if world.is_away {
            None
        } else {
            Some(actor.beat(&held.claimed).await)
        };
        let is_own = match beat {
            Some(Beat::Ok) => true,
            Some(Beat::Lost) => false,
            Some(Beat::Passed | Beat::Unknown) if !alive => false,
            None if !alive => {
                all_heard = false;
                world.workers[worker].held.push(held);
                continue;
            }
            Some(Beat::Passed | Beat::Unknown) | None => {
                let fence = (held.claimed.job.id, held.claimed.job.attempt);
                world
                    .env
                    .store
                    .worker_alive_until(actor.id, asked + world.ttl())
                    .await
                    .unwrap();
                let is_own = !world.env.store.held(actor.id, &[fence]).await.unwrap().is_empty();
                if is_own && beat.is_some() {
                    actor.register(&held.claimed).await;
                }
                is_own
            }
        };
        let gave_up = !is_own && !alive && beat != Some(Beat::Lost);
        if is_own {
            let run_until = held.run_until.max(asked + World::run_on());
            world.start(worker, Held { run_until, ..held })?;
        } else {
            if !gave_up {
                world.oracle.is_lost(&held.claimed, actor.id)?;
            }
            world.lost.push(held);
        }
    }
    if all_heard {
        world.workers[worker].heard_at = asked;
    }
    Ok(())
}

/// `Attempts::settle` and the settler, whether the attempt is still its worker's or not.
pub(super) async fn end(world: &mut World, held: Held, how: End, acked: bool) -> Result<(), Broken> {
    let now = world.now();
    let decision = match how {
        End::Succeed => Decision::Succeed,
        End::Fail => Decision::Fail(failure()),
        End::Retry => Decision::RetryAt(now + TimeDelta::seconds(2), failure()),
        End::GiveBack => Decision::GiveBack,
        End::Wait => Decision::Wait(Wait::answer()),
    };
    let settlement = held.worker.settlement(&held.claimed, decision.clone(), &[]);
    let committed = held.worker.commit(&settlement).await;
    let state = world
        .oracle
        .settled(&held.claimed, held.worker.id, &decision, committed, now)?;
    if committed && acked && !world.is_away {
        let shard = world.env.queue.shard_of(held.claimed.job.tenant_id);
        let acked = common::queue::Acked {
            job_id: settlement.job_id,
            attempt: settlement.attempt,
            seq: settlement.seq,
            keeps: common::queue::Keeps::of(state),
        };
        world.env.queue.ack(shard, &[acked]).await.unwrap();
    }
    if !committed {
        world.lost.push(held);
    }
    Ok(())
}

/// DELETE of a job.
async fn cancel(world: &mut World, which: usize, told: bool) -> Result<(), Broken> {
    let Some((tenant_id, id)) = world.oracle.pick(which, |_| true) else {
        return Ok(());
    };
    let job = world
        .env
        .store
        .cancel(tenant_id, id, world.now())
        .await
        .unwrap()
        .unwrap();
    world.oracle.cancelled(&job, world.now())?;
    if told && !world.is_away {
        let ended = job.state.is_terminal();
        world.env.queue.cancel(tenant_id, id, job.seq, ended).await.unwrap();
    }
    Ok(())
}

async fn redrive(world: &mut World, which: usize) -> Result<(), Broken> {
    let Some((tenant_id, id)) = world.oracle.pick(which, common::job::JobState::is_terminal) else {
        return Ok(());
    };
    let tenant = world.tenants.iter().position(|tenant| *tenant == tenant_id).unwrap();
    world.submit(tenant, true, false, true, Some(id)).await
}

async fn resume(world: &mut World, which: usize, told: bool) -> Result<(), Broken> {
    let Some((tenant_id, id)) = world.oracle.pick(which, |_| true) else {
        return Ok(());
    };
    let resumed = world.env.store.resume(tenant_id, id, world.now()).await.unwrap();
    world.oracle.resumed(id, resumed.as_ref(), world.now())?;
    if let Some(job) = resumed.filter(|_| told && !world.is_away) {
        world.env.queue.dispatch(&[Dispatch::from_job(&job)]).await.unwrap();
    }
    Ok(())
}

/// The real duties; while Redis is away they have one that answers nobody.
async fn tick(world: &mut World, duty: Ticks) -> Result<(), Broken> {
    let now = world.now();
    let duties = if world.is_away {
        &world.duties_alone
    } else {
        &world.duties
    };
    let ticked = match duty {
        Ticks::Promote => duties.promote.tick(now).await,
        Ticks::Redispatch => duties.redispatch.tick(now).await,
        Ticks::Reclaim => duties.reclaim.tick(now).await,
        Ticks::Sweep => duties.sweep.tick(now).await,
    };
    if let (Err(error), false) = (ticked, world.is_away) {
        return Err(format!("a tick of {duty:?} failed: {error:#}"));
    }
    if matches!(duty, Ticks::Redispatch) && !world.is_away {
        world.is_behind = false;
    }
    let rows = world.rows().await;
    match duty {
        Ticks::Promote => world.oracle.promoted(&rows, now),
        Ticks::Reclaim => world.oracle.reclaimed(&rows, &world.permissions(), now),
        Ticks::Redispatch | Ticks::Sweep => Ok(()),
    }
}
