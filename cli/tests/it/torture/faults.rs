//! Doing what the plan says, and undoing it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::plan::{Fault, Planned, name_of};
use super::rig::Rig;
use super::{now, say};
use crate::cluster::{Proxy, SOON};

/// What was done.
#[derive(Debug, Default, Clone)]
pub(super) struct Record {
    /// When the storm began.
    pub(super) began_at: Option<DateTime<Utc>>,
    /// When Redis lost what it held.
    pub(super) wipes: Vec<DateTime<Utc>>,
    /// Processes that were killed, and when.
    pub(super) kills: Vec<(usize, DateTime<Utc>)>,
    pub(super) count: usize,
}

/// Raises the storm; ends when every fault is over.
pub(super) async fn storm(rig: &Arc<Rig>, planned: Vec<Planned>) -> Record {
    let record = Record {
        began_at: Some(now()),
        ..Record::default()
    };
    let (begun, record) = (Instant::now(), Arc::new(Mutex::new(record)));
    let mut under_way = JoinSet::new();
    for one in planned {
        sleep_until(begun + one.at).await;
        say(&format!(
            "{:>6.1} s  {} ({:.1} s)",
            one.at.as_secs_f64(),
            one.fault,
            one.lasts.as_secs_f64()
        ));
        let (rig, record) = (Arc::clone(rig), Arc::clone(&record));
        under_way.spawn(async move { inflict(&rig, one, &record).await });
        while let Some(ended) = under_way.try_join_next() {
            ended.unwrap();
        }
    }
    while let Some(ended) = under_way.join_next().await {
        ended.unwrap();
    }
    record.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn inflict(rig: &Rig, planned: Planned, record: &Mutex<Record>) {
    let note = |change: &dyn Fn(&mut Record)| change(&mut record.lock().unwrap_or_else(PoisonError::into_inner));
    note(&|record| record.count += 1);
    let lasts = planned.lasts;
    match planned.fault {
        Fault::Kill(number) => {
            let mut process = rig.processes[number].lock().await;
            note(&|record| record.kills.push((number, now())));
            process.kill();
            sleep(lasts).await;
            process.start();
        }
        Fault::Terminate(number) => {
            let mut process = rig.processes[number].lock().await;
            let status = process.terminate(2 * SOON).await;
            // One that cannot say goodbye, for what it needs is away, says so with its code.
            say(&format!("          {} ended: {status}", name_of(number)));
            sleep(lasts).await;
            process.start();
        }
        Fault::Freeze(number) => {
            let process = rig.processes[number].lock().await;
            process.freeze();
            sleep(lasts).await;
            process.thaw();
        }
        Fault::FlushRedis => {
            rig.redis.lock().await.flush();
            note(&|record| record.wipes.push(now()));
        }
        Fault::RestartRedis => {
            let mut redis = rig.redis.lock().await;
            note(&|record| record.wipes.push(now()));
            redis.kill();
            sleep(lasts).await;
            redis.restart().await;
        }
        Fault::RollBackRedis => {
            let mut redis = rig.redis.lock().await;
            redis.save();
            sleep(lasts).await;
            note(&|record| record.wipes.push(now()));
            redis.kill();
            redis.restart().await;
            redis.forget_saved();
        }
        Fault::FreezeRedis => {
            let redis = rig.redis.lock().await;
            redis.freeze();
            sleep(lasts).await;
            redis.thaw();
        }
        Fault::RestartPostgres { is_immediate } => {
            let mut postgres = rig.postgres.lock().await;
            postgres.stop(is_immediate).await;
            sleep(lasts).await;
            postgres.restart().await;
        }
        wires => on_wires(rig, wires, lasts).await,
    }
}

async fn on_wires(rig: &Rig, fault: Fault, lasts: Duration) {
    let all = |need| -> Vec<&Proxy> { (0..rig.processes.len()).map(|number| rig.wire(number, need)).collect() };
    let wires = match fault {
        Fault::CutAll(need) => all(need),
        Fault::Cut(number, need)
        | Fault::Hold(number, need)
        | Fault::Slow(number, need, _)
        | Fault::Silence(number, need) => vec![rig.wire(number, need)],
        _ => Vec::new(),
    };
    for wire in &wires {
        match fault {
            Fault::Hold(..) => wire.hold(),
            Fault::Slow(_, _, delay) => wire.delay(delay),
            Fault::Silence(..) => wire.silence(),
            _ => wire.cut(),
        }
    }
    sleep(lasts).await;
    for wire in &wires {
        wire.mend();
    }
}
