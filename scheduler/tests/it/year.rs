//! A year of random schedules, with leaders that come, go and are wrong about themselves, against an independent
//! implementation of cron: no due time is lost, none is fired twice.
//!
//! `HOTHOUSE_SIMULATION=full` runs the whole year of 1,000 schedules; without it a month of a few.

#![expect(clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use common::cron::Cron;
use common::ids::ScheduleId;
use common::schedule::Overlap;
use common::store::Error;
use common::store::fire::Limits;
use common::store::leaders::Leadership;
use croner::parser::CronParser;
use sqlx::PgPool;
use uuid::Uuid;

use crate::fixture::Fixture;

const ZONES: [&str; 24] = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "Europe/Lisbon",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Africa/Nairobi",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Tokyo",
    "Asia/Beirut",
    "Asia/Jerusalem",
    "Australia/Lord_Howe",
    "Australia/Adelaide",
    "Pacific/Chatham",
    "Pacific/Auckland",
    "Pacific/Apia",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",
    "America/Havana",
    "America/Los_Angeles",
    "America/Sao_Paulo",
    "Atlantic/Azores",
];

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// An expression, and those whose moments together are its own in the other implementation's reading, which takes a
    /// list of times for an interval.
    fn expression(&mut self) -> (String, Vec<String>) {
        let (minute, hour) = (self.below(60), self.below(24));
        let one = |text: String| (text.clone(), vec![text]);
        match self.below(50) {
            0 => one(format!("{minute} * * * *")),
            1..4 => one(format!("{minute} */{} * * *", 2 + self.below(11))),
            4..12 => one(format!("{minute} {hour} * * {}", self.below(8))),
            12..18 => one(format!("{minute} {hour} {} * *", 1 + self.below(31))),
            18..22 => one(format!(
                "{minute} {hour} {} {} *",
                1 + self.below(28),
                1 + self.below(12)
            )),
            22..26 => one(format!("{minute} {hour} {} * {}", 1 + self.below(31), self.below(7))),
            26..34 => {
                let hours: BTreeSet<u64> = (0..2).map(|_| self.below(5)).collect();
                let list = hours.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
                let members = hours.iter().map(|hour| format!("{minute} {hour} * * *")).collect();
                (format!("{minute} {list} * * *"), members)
            }
            _ => one(format!("{minute} {} * * *", self.below(5))),
        }
    }
}

/// When a schedule should have fired.
fn expected(members: &[String], zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> BTreeSet<DateTime<Utc>> {
    let parser = CronParser::new();
    let mut all = BTreeSet::new();
    for member in members {
        let cron = parser.parse(member).unwrap();
        let mut at = zone.from_utc_datetime(&from.naive_utc());
        loop {
            at = cron.find_next_occurrence(&at, false).unwrap();
            if at.to_utc() > to {
                break;
            }
            all.insert(at.to_utc());
        }
    }
    all
}

struct World {
    fixture: Fixture,
    random: Random,
    leader: Option<Leadership>,
    stale: Vec<Leadership>,
    elections: u32,
    refused: u32,
    cut_off: u32,
}

impl World {
    const TTL: Duration = Duration::from_mins(10);

    fn limits() -> Limits {
        Limits {
            schedules_max: 500,
            grace: Duration::from_secs(15),
        }
    }

    /// Somebody leads: the one that did, or another when it may.
    async fn elect(&mut self) -> Leadership {
        let store = &self.fixture.env.store;
        if let Some(leader) = &self.leader {
            let changes = self.random.below(3) == 0;
            if !changes {
                let kept = store.acquire_or_renew("test", leader.holder, Self::TTL).await.unwrap();
                if let Some(kept) = kept {
                    return kept;
                }
            } else if self.random.below(2) == 0 {
                store.release_leadership(leader).await.unwrap();
            }
        }
        let candidate = Uuid::now_v7();
        match store.acquire_or_renew("test", candidate, Self::TTL).await.unwrap() {
            Some(new) => {
                self.elections += 1;
                self.stale.extend(self.leader.replace(new.clone()));
                new
            }
            // It is alive, as far as anybody knows.
            None => self.leader.clone().unwrap(),
        }
    }

    /// Fires what is due; answers whether nothing is left. A lease may pass on the way.
    async fn tick(&mut self) -> bool {
        let leader = self.elect().await;
        let store = self.fixture.env.store.clone();
        if self.random.below(3) == 0
            && let Some(stale) = self.stale.last()
        {
            match store.fire_due(stale, Self::limits()).await {
                Err(Error::LeaseLost) => self.refused += 1,
                Ok(fired) => assert!(fired.jobs.is_empty(), "a stale leader fired {}", fired.jobs.len()),
                Err(error) => panic!("{error}"),
            }
        }
        if self.random.below(4) == 0 {
            // It dies somewhere on the way.
            let until = Duration::from_micros(self.random.below(20_000));
            if tokio::time::timeout(until, store.fire_due(&leader, Self::limits()))
                .await
                .is_err()
            {
                self.cut_off += 1;
            }
        }
        loop {
            match store.fire_due(&leader, Self::limits()).await {
                Ok(fired) if fired.next_in.is_none_or(|next| !next.is_zero()) => return true,
                Ok(_) => {}
                Err(Error::LeaseLost) => return false,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn fires(pool: &PgPool) -> BTreeMap<ScheduleId, BTreeSet<DateTime<Utc>>> {
    let rows: Vec<(ScheduleId, DateTime<Utc>)> = sqlx::query_as(
        "select fires.schedule_id, fire_at from fires join jobs on jobs.id = fires.job_id
            and jobs.schedule_id = fires.schedule_id where outcome = 'fired'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (id, at) in rows {
        assert!(all.entry(id).or_default().insert(at), "{id} fired twice at {at}");
    }
    all
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_year_with_failovers_loses_no_fire_and_doubles_none(pool: PgPool) {
    let is_full = std::env::var_os("HOTHOUSE_SIMULATION").is_some_and(|size| size == "full");
    let (schedules, days) = if is_full { (1_000, 365) } else { (40, 60) };
    let (begun, fixture) = (Instant::now(), Fixture::new(pool).await);
    // With a change of the clocks in half of the zones.
    let start: DateTime<Utc> = "2027-02-20T00:00:00.5Z".parse().unwrap();
    let end = start + TimeDelta::days(days);
    let mut random = Random(7);
    let mut oracle = BTreeMap::new();
    for n in 0..schedules {
        let (expression, members) = random.expression();
        let zone: Tz = ZONES[n % ZONES.len()].parse().unwrap();
        let mut schedule = fixture.schedule("@daily", Overlap::Allow);
        schedule.timing.cron = Cron::parse(&expression, zone.name()).unwrap();
        schedule.timing.catch_up = Duration::from_hours(24 * 7);
        schedule.timing.ends_at = Some(end);
        schedule.next_fire_at = common::schedule::plan::first(&schedule.timing, start);
        fixture.save(&schedule).await;
        oracle.insert(schedule.id, (expression, zone, expected(&members, zone, start, end)));
    }
    let mut world = World {
        fixture,
        random,
        leader: None,
        stale: Vec::new(),
        elections: 0,
        refused: 0,
        cut_off: 0,
    };
    let mut now = start;
    while now < end + TimeDelta::hours(1) {
        // Mostly minutes to hours; now and then everybody is away for days.
        let minutes = match world.random.below(100) {
            0 => 60 * 24 * 3,
            1..30 => 1 + world.random.below(10),
            _ => 10 + world.random.below(600),
        };
        now += TimeDelta::minutes(i64::try_from(minutes).unwrap());
        let system = common::clock::Clock::system().now();
        world.fixture.env.store.set_clock_offset(now - system);
        let is_last = now >= end + TimeDelta::hours(1);
        while !world.tick().await && is_last {}
    }
    let found = fires(&world.fixture.pool).await;
    let mut count = 0;
    for (id, (expression, zone, times)) in &oracle {
        let fired = found.get(id).cloned().unwrap_or_default();
        let lost: Vec<_> = times.difference(&fired).collect();
        let extra: Vec<_> = fired.difference(times).collect();
        assert!(
            lost.is_empty() && extra.is_empty(),
            "{expression} in {zone}: lost {lost:?}, extra {extra:?}"
        );
        count += times.len();
    }
    let jobs: i64 = sqlx::query_scalar("select count(*) from jobs")
        .fetch_one(&world.fixture.pool)
        .await
        .unwrap();
    assert_eq!(usize::try_from(jobs).unwrap(), count, "one job for each fire");
    assert!(
        world.elections > 10 && world.refused > 0 && world.cut_off > 0,
        "nothing went wrong on the way"
    );
    assert!(count > schedules, "hardly anything was due");
    if is_full {
        let told = format!(
            "{schedules} schedules, {days} days: {count} fires, {} elections, {} stale leaders refused, {} cut off, {:.0?}\n",
            world.elections,
            world.refused,
            world.cut_off,
            begun.elapsed()
        );
        std::fs::write(std::env::temp_dir().join("hothouse-simulation.txt"), told).unwrap();
    }
}
