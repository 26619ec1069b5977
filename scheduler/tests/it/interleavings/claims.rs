//! Claims, whose confirmation has three parts: anything may come between them.

use common::queue::{Beat, Mode, Want};
use common::testing::light;

use super::oracle::Broken;
use super::steps::{End, Step, end};
use super::world::{Handout, Held, Sent, World};

/// Handouts of a worker whose fate it does not know: two in each shard, as in `Consumer::run`.
const UNDER_WAY_MAX: usize = 4;

/// Takes a step of a claim.
pub(crate) async fn run(world: &mut World, step: &Step) -> Result<(), Broken> {
    match *step {
        Step::Take { worker, free } => take(world, worker, free).await,
        Step::Confirm { worker } => {
            send(world, worker);
            decide_all(world, worker).await?;
            answer(world, worker).await
        }
        Step::ConfirmUnanswered { worker } => {
            send(world, worker);
            decide_all(world, worker).await?;
            world.workers[worker].answers.clear();
            Ok(())
        }
        Step::Send { worker } => {
            send(world, worker);
            Ok(())
        }
        Step::Decide { which } if !world.sent.is_empty() => {
            let sent = world.sent.remove(which % world.sent.len());
            decide(world, sent).await
        }
        Step::Answer { worker } => answer(world, worker).await,
        _ => Ok(()),
    }
}

/// `Consumer::claim`.
async fn take(world: &mut World, worker: usize, free: u32) -> Result<(), Broken> {
    let (asked, id) = (world.now(), world.workers[worker].id());
    let under_way = world.sent.iter().filter(|sent| sent.worker.id == id).count();
    let actor = &mut world.workers[worker];
    if world.is_away || actor.under_way() + under_way >= UNDER_WAY_MAX {
        return Ok(());
    }
    if actor.held.is_empty() {
        // An idle worker beats for nothing, and is heard.
        actor.heard_at = asked;
    }
    let is_idle = actor.held.is_empty() && actor.under_way() + under_way == 0;
    let mode = if is_idle { Mode::Idle } else { Mode::Busy };
    for shard in world.env.queue.shards() {
        let want = |mode| Want { mode, ..light(free) };
        let Ok(handout) = world.env.queue.claim(shard, id, &want(mode)).await else {
            continue;
        };
        let mut claims = handout.claims;
        let is_free = is_idle && claims.is_empty() && world.workers[worker].handouts.is_empty();
        let comes_alone = handout.is_called_alone && is_free;
        if comes_alone && let Ok(alone) = world.env.queue.claim(shard, id, &want(Mode::Alone)).await {
            claims = alone.claims;
        }
        if !claims.is_empty() {
            world.workers[worker].handouts.push(Handout { shard, claims, asked });
            if comes_alone {
                break;
            }
        }
    }
    Ok(())
}

/// `Consumer::confirm`, until Postgres is asked.
fn send(world: &mut World, worker: usize) {
    let (now, ttl) = (world.now(), world.ttl());
    let actor = &mut world.workers[worker];
    let mut handouts = std::mem::take(&mut actor.handouts);
    // Whoever stood still for so long asks for nothing: the leases pass.
    handouts.retain(|handout| now - handout.asked < ttl);
    let worker = actor.actor.clone();
    let sent = handouts.into_iter().map(|handout| Sent {
        worker: worker.clone(),
        handout,
        at: now,
    });
    world.sent.extend(sent);
}

/// Postgres hears a question, however long that was on its way and whether the asker still lives.
async fn decide(world: &mut World, sent: Sent) -> Result<(), Broken> {
    let (id, Handout { claims, asked, .. }) = (sent.worker.id, &sent.handout);
    let claimed = world.env.store.claim(id, claims, sent.at).await.unwrap();
    // Its leases may have been dropped, and their places are others'.
    let is_late = world.now() - *asked >= world.ttl();
    for claimed in &claimed {
        world.oracle.claimed(claimed, id, is_late, sent.at)?;
    }
    // The dead hear nothing.
    if let Some(actor) = world.workers.iter_mut().find(|actor| actor.id() == id) {
        actor.answers.push((sent.handout, claimed));
    }
    Ok(())
}

async fn decide_all(world: &mut World, worker: usize) -> Result<(), Broken> {
    let id = world.workers[worker].id();
    let all = std::mem::take(&mut world.sent);
    let (own, others) = all.into_iter().partition(|sent| sent.worker.id == id);
    world.sent = others;
    for sent in own {
        decide(world, sent).await?;
    }
    Ok(())
}

/// `Consumer::confirm`, from when Postgres has answered.
async fn answer(world: &mut World, worker: usize) -> Result<(), Broken> {
    let now = world.now();
    for (handout, claimed) in std::mem::take(&mut world.workers[worker].answers) {
        let actor = world.workers[worker].actor.clone();
        let is_late = now - handout.asked >= World::run_on();
        let refused = handout.claims.iter().map(|claim| (claim.job_id, claim.attempt));
        let mut refused: Vec<_> = refused
            .filter(|(id, _)| !claimed.iter().any(|one| one.job.id == *id))
            .collect();
        for claimed in claimed {
            let is_own = !is_late || (!world.is_away && actor.beat(&claimed).await == Beat::Ok);
            let asked = if is_late { now } else { handout.asked };
            let held = Held {
                claimed,
                worker: actor.clone(),
                run_until: asked + World::run_on(),
            };
            if is_own {
                world.start(worker, held)?;
            } else {
                end(world, held, End::GiveBack, true).await?;
            }
        }
        let own = world.env.store.held(actor.id, &refused).await.unwrap();
        refused.retain(|(id, _)| !own.contains(id));
        let queue = &world.env.queue;
        if world.is_away {
            continue;
        }
        let dropped = if is_late {
            queue.drop_passed(handout.shard, actor.id, &refused).await
        } else {
            queue.drop_claims(handout.shard, actor.id, &refused).await
        };
        dropped.unwrap();
    }
    Ok(())
}
