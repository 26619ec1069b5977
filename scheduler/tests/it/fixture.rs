//! Schedules to fire, and what became of them.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use common::cron::Cron;
use common::ids::{JobId, ScheduleId};
use common::job::Kind;
use common::job::spec::JobSpec;
use common::schedule::{Form, Overlap, Schedule, Target, Timing};
use common::store::fire::Limits;
use common::store::leaders::Leadership;
use common::testing::TestEnv;
use sqlx::{PgPool, Row};
use uuid::Uuid;

/// A database with a tenant, and what the tests ask it.
pub(crate) struct Fixture {
    pub(crate) env: TestEnv,
    pub(crate) pool: PgPool,
}

/// A due time and its job.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) fire_at: DateTime<Utc>,
    pub(crate) outcome: String,
    pub(crate) reason: Option<String>,
    pub(crate) job_id: Option<JobId>,
}

impl Fixture {
    pub(crate) async fn new(pool: PgPool) -> Self {
        let env = TestEnv::new(pool.clone()).await;
        sqlx::query("insert into tenants (id, name, created_at) values ($1, 'test', now())")
            .bind(env.tenant_id)
            .execute(&pool)
            .await
            .unwrap();
        Self { env, pool }
    }

    /// A schedule of noop jobs that is due at its next time from now on.
    pub(crate) fn schedule(&self, cron: &str, overlap: Overlap) -> Schedule {
        let now = self.env.clock.now();
        let cron = Cron::parse(cron, "UTC").unwrap();
        let next_fire_at = cron.next_after(now);
        Schedule {
            id: ScheduleId::new(),
            tenant_id: self.env.tenant_id,
            name: "test".to_owned(),
            timing: Timing::new(cron),
            target: Target {
                form: Form::Job,
                agent_id: None,
                conversation_id: None,
                spec: JobSpec::new(Kind::Noop),
                input: serde_json::value::to_raw_value(&serde_json::json!({})).unwrap(),
            },
            overlap,
            enabled: true,
            paused_reason: None,
            next_fire_at,
            last_fire_at: None,
            last_job_id: None,
            prior_job_id: None,
            fired: 0,
            pause_after_failures: None,
            failures_in_row: 0,
            version: 1,
            created_at: now,
            updated_at: now,
        }
    }

    pub(crate) async fn save(&self, schedule: &Schedule) {
        self.env.store.create_schedule(schedule).await.unwrap();
    }

    /// A schedule that is due every hour and was due a moment ago.
    pub(crate) async fn due(&self, overlap: Overlap) -> Schedule {
        let mut schedule = self.schedule("0 * * * *", overlap);
        schedule.next_fire_at = Some(self.env.clock.now() - TimeDelta::seconds(1));
        self.save(&schedule).await;
        schedule
    }

    pub(crate) async fn elect(&self) -> Leadership {
        // Long enough for every move of the clock.
        let ttl = Duration::from_hours(24 * 800);
        self.env
            .store
            .acquire_or_renew("test", Uuid::now_v7(), ttl)
            .await
            .unwrap()
            .expect("nobody leads")
    }

    pub(crate) async fn fires(&self, id: ScheduleId) -> Vec<Decided> {
        let rows =
            sqlx::query("select fire_at, outcome, reason, job_id from fires where schedule_id = $1 order by fire_at")
                .bind(id)
                .fetch_all(&self.pool)
                .await
                .unwrap();
        rows.iter()
            .map(|row| Decided {
                fire_at: row.get("fire_at"),
                outcome: row.get("outcome"),
                reason: row.get("reason"),
                job_id: row.get("job_id"),
            })
            .collect()
    }

    pub(crate) async fn jobs(&self, id: ScheduleId) -> Vec<JobId> {
        let sql = "select id from jobs where schedule_id = $1 order by id";
        sqlx::query_scalar(sql).bind(id).fetch_all(&self.pool).await.unwrap()
    }

    /// Every second from the first to the last fire has exactly one fired row and one job of its own.
    pub(crate) async fn assert_each_second_fired_once(&self, id: ScheduleId) {
        let fires = self.fires(id).await;
        for pair in fires.windows(2) {
            assert_eq!(pair[1].fire_at - pair[0].fire_at, TimeDelta::seconds(1), "{fires:#?}");
        }
        assert!(fires.iter().all(|fire| fire.outcome == "fired"), "{fires:#?}");
        let mut recorded: Vec<JobId> = fires
            .iter()
            .map(|fire| fire.job_id.expect("a fired row has a job"))
            .collect();
        recorded.sort_unstable();
        assert_eq!(recorded, self.jobs(id).await);
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        schedules_max: 100,
        grace: Duration::from_secs(15),
    }
}
