//! A leader that sleeps until the next time that it knows.

use std::time::Duration;

use chrono::TimeDelta;
use common::job::spec::JobSpec;
use common::job::{Kind, StateName};
use common::schedule::Overlap;
use common::testing::eventually;
use sqlx::PgPool;

use crate::fixture::Fixture;

const PATIENCE: Duration = Duration::from_secs(20);

/// A fraction of the pause of a duty that was not told anything.
const LATE_MAX: TimeDelta = TimeDelta::milliseconds(2_500);

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_is_due_before_its_next_look_wakes_it(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let env = &fixture.env;
    let part = fixture.start();
    eventually(PATIENCE, "it has looked", || async {
        let duties = env.store.duties().await.unwrap();
        let looked = |name: &str| duties.iter().any(|duty| duty.name == name && duty.ticks > 0);
        (looked("promote") && looked("fire")).then_some(())
    })
    .await;

    let mut spec = JobSpec::new(Kind::Noop);
    let run_at = env.clock.now() + TimeDelta::milliseconds(300);
    spec.run_at = Some(run_at);
    let job = env.job(spec, b"{}".to_vec());
    env.insert(&job).await;
    let queued = eventually(PATIENCE, "it is queued", || async {
        let row = env.row(job.id).await;
        (row.state.name() == StateName::Queued).then_some(row.queued_at)
    })
    .await;
    assert!(queued.unwrap() - run_at < LATE_MAX, "{queued:?} {run_at}");

    let schedule = fixture.schedule("* * * * * *", Overlap::Allow);
    let first = schedule.next_fire_at.unwrap();
    fixture.save(&schedule).await;
    let job = eventually(PATIENCE, "a fire", || async {
        fixture.jobs(schedule.id).await.first().copied()
    })
    .await;
    let created = env.row(job).await.created_at;
    assert!(created - first < LATE_MAX, "{created} {first}");
    part.stop().await;
}
