//! Private stores, tenants, schedules, and the process that is measured.

use std::process::Stdio;
use std::time::Duration;
use std::{env, fs};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use common::clock::Clock;
use common::config;
use common::cron::Cron;
use common::ids::{ScheduleId, TenantId};
use common::job::Kind;
use common::job::spec::JobSpec;
use common::queue::Queue;
use common::schedule::{Form, Overlap, Schedule, Target, Timing};
use common::store::Store;
use serde_json::value::RawValue;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::output;
use crate::services::folder::DataFolder;
use crate::services::stores::{Ports, Stores};

/// Tenants among which schedules are spread.
const TENANTS: usize = 10;
/// Schedules of one insert.
const CHUNK: usize = 5_000;
/// Clock ticks of /proc in a second.
const TICKS: f64 = 100.0;

/// Everything that a measurement needs.
pub(super) struct Stage {
    folder: DataFolder,
    stores: Stores,
    variables: Vec<(String, String)>,
    pub(super) store: Store,
    pub(super) queue: Queue,
    pub(super) tenants: Vec<TenantId>,
}

impl Stage {
    /// Starts the stores and makes the tenants.
    pub(super) async fn set() -> anyhow::Result<Self> {
        let name = format!("hothouse-bench-{}", Uuid::new_v4().simple());
        let folder = DataFolder::create(&env::temp_dir().join(name))?;
        let stores = Stores::start(&folder, Ports::default()).await?;
        let variables = [
            ("HOTHOUSE_DATABASE__URL", stores.postgres_url.clone()),
            ("HOTHOUSE_REDIS__URL", stores.redis_url.clone()),
            // What this claims is never worked on: it stays claimed while it is measured.
            ("HOTHOUSE_LEASES__TTL", "600s".to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let settings: scheduler::Config = config::load(None, variables.clone())?;
        let store = Store::open(&settings.database)?;
        store.migrate().await?;
        let mut tenants = Vec::new();
        for n in 0..TENANTS {
            tenants.push(
                store
                    .ensure_tenant(&format!("bench-{n}"), Clock::system().now())
                    .await?
                    .id,
            );
        }
        let queue = Queue::open(&settings.redis, &settings.leases)?;
        Ok(Self {
            folder,
            stores,
            variables,
            store,
            queue,
            tenants,
        })
    }

    /// Ends the stores and removes the folder.
    pub(super) async fn strike(self) {
        self.store.close().await;
        self.stores.stop().await;
        if let Err(error) = fs::remove_dir_all(self.folder.path()) {
            output::note(format_args!("{} stays: {error}", self.folder.path().display()));
        }
    }

    /// Saves schedules of jobs that do nothing; `expression` says when the nth is due.
    pub(super) async fn fill(&self, count: usize, expression: impl Fn(usize) -> String) -> anyhow::Result<()> {
        let bar = output::bar(u64::try_from(count)?, "saving schedules");
        let now = Clock::system().now();
        for from in (0..count).step_by(CHUNK) {
            let range = from..count.min(from + CHUNK);
            let made = range.map(|n| schedule(self.tenants[n % TENANTS], &expression(n), now));
            let made = made.collect::<anyhow::Result<Vec<_>>>()?;
            self.store.create_schedules(&made).await?;
            bar.inc(u64::try_from(made.len())?);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Starts the process that is measured.
    pub(super) fn spawn(&self) -> anyhow::Result<Measured> {
        let child = Command::new(env::current_exe()?)
            .args(["bench", "scheduler", "serve"])
            .envs(self.variables.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the scheduler")?;
        Ok(Measured { child })
    }

    /// A scheduler that leads, and whose index is open.
    pub(super) async fn lead(&self) -> anyhow::Result<Measured> {
        let measured = self.spawn()?;
        for _ in 0..1_000 {
            let duties = self.store.duties().await?;
            if duties.iter().any(|duty| duty.name == "redispatch" && duty.ticks > 1) {
                return Ok(measured);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("the scheduler does not lead")
    }
}

/// The process that is measured.
pub(super) struct Measured {
    child: Child,
}

impl Measured {
    fn read(&self, file: &str) -> String {
        let pid = self.child.id().unwrap_or(0);
        fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
    }

    /// Processor time so far, s.
    pub(super) fn cpu_seconds(&self) -> f64 {
        let stat = self.read("stat");
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: f64 = fields
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum();
        ticks / TICKS
    }

    /// Most memory at any moment, MiB.
    pub(super) fn memory_peak_mib(&self) -> f64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
        kibibytes.unwrap_or(f64::NAN) / 1024.0
    }
}

fn schedule(tenant_id: TenantId, expression: &str, now: DateTime<Utc>) -> anyhow::Result<Schedule> {
    let timing = Timing::new(Cron::parse(expression, "UTC")?);
    let mut schedule = Schedule {
        id: ScheduleId::new(),
        tenant_id,
        name: "bench".to_owned(),
        timing,
        target: Target {
            form: Form::Job,
            agent_id: None,
            conversation_id: None,
            spec: JobSpec::new(Kind::Noop),
            input: RawValue::from_string("{}".to_owned())?,
        },
        overlap: Overlap::Skip,
        enabled: true,
        paused_reason: None,
        next_fire_at: None,
        last_fire_at: None,
        last_job_id: None,
        prior_job_id: None,
        fired: 0,
        pause_after_failures: None,
        failures_in_row: 0,
        version: 1,
        created_at: now,
        updated_at: now,
    };
    schedule.next_fire_at = schedule.first(now);
    Ok(schedule)
}
