//! The warm pool over the docker driver and a real engine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assert_matches::assert_matches;
use common::lifecycle::Lifecycle;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use hothouse_protocol::FromInit;
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::task::JoinSet;
use uuid::Uuid;
use worker::driver::bubblewrap::Bubblewrap;
use worker::driver::{Error as DriverError, Found, Pipe, Profile, SandboxDriver, Spec};
use worker::environment::{Environment, Environments, Warm};
use worker::pool::{Asks, EnvironmentStatus, Error, IsAlive, Pool, Settings, Slot};

use crate::docker::{driver, driver_at, eventually, image, of, profile, sh, spec, test_variable};
use crate::sandbox_bubblewrap::{driver_in, unsealed};
use crate::sandbox_link::{Init, about};

/// A pool with one environment, for a worker of its own. Its drop checks nothing: every test ends with
/// [`Fixture::end`], which does.
pub(crate) struct Fixture {
    pub(crate) pool: Pool,
    worker_id: Uuid,
    lifecycle: Lifecycle,
}

pub(crate) fn warm(size: u32, max: u32) -> Warm {
    Warm {
        size,
        max,
        ..Warm::default()
    }
}

pub(crate) fn environment(warm: Warm) -> Environment {
    let mut environment = Environment::built_in().with_image(image());
    environment.warm = warm;
    environment.profile = profile();
    environment
}

impl Fixture {
    pub(crate) fn new(warm: Warm) -> Self {
        Self::over(driver(), environment(warm), everybody_lives())
    }

    pub(crate) fn over(driver: Arc<dyn SandboxDriver>, environment: Environment, is_alive: IsAlive) -> Self {
        let environments = Environments::from([(environment.name.clone(), Arc::new(environment))]);
        let worker_id = Uuid::now_v7();
        let lifecycle = Lifecycle::new();
        let settings = Settings {
            check_out_timeout: Duration::from_secs(30),
            backoff_max: Duration::from_millis(500),
            ..Settings::new(worker_id)
        };
        let asks = Asks {
            is_alive,
            is_there: Arc::new(|_, _| async { true }.boxed()),
        };
        let pool = Pool::start(driver, &environments, settings, asks, &lifecycle);
        Self {
            pool,
            worker_id,
            lifecycle,
        }
    }

    pub(crate) fn status(&self) -> EnvironmentStatus {
        self.pool.status().remove(0)
    }

    pub(crate) async fn warm(&self, count: u32) {
        self.becomes("warm", |status| status.warm == count).await;
    }

    /// Waits until as many are warm as the pool aims for, which is more than its floor after jobs in quick succession.
    async fn filled(&self) {
        self.becomes("filled", |status| status.warm == status.aim).await;
    }

    async fn becomes(&self, what: &str, is_so: impl Fn(&EnvironmentStatus) -> bool) {
        let becomes_so = eventually(what, async || is_so(&self.status()));
        let is_in_time = AssertUnwindSafe(becomes_so).catch_unwind().await.is_ok();
        assert!(is_in_time, "{:?}", self.status());
    }

    /// Stops the pool; nothing may be left.
    pub(crate) async fn end(self) {
        self.pool.shutdown().await;
        let status = self.status();
        let held = [status.warm, status.leased, status.creating, status.retiring];
        assert_eq!(held, [0; 4]);
        eventually("nothing is left", async || {
            of(&*driver(), self.worker_id).await.is_empty()
        })
        .await;
        assert!(!self.lifecycle.has_failed());
    }
}

pub(crate) fn everybody_lives() -> IsAlive {
    Arc::new(|_| async { true }.boxed())
}

#[tokio::test]
async fn a_job_gets_a_warm_sandbox_and_its_place_is_filled_again() {
    let fixture = Fixture::new(warm(2, 4));
    fixture.warm(2).await;
    let slot = fixture.pool.check_out("default", None).await.unwrap();
    assert!(slot.is_warm());
    assert_eq!(sh(slot.sandbox(), "echo hello").await, "hello");
    assert_eq!(fixture.status().leased, 1);
    fixture.warm(2).await;

    let id = slot.id();
    slot.retire();
    eventually("the used one is gone", async || {
        of(&*driver(), fixture.worker_id)
            .await
            .iter()
            .all(|found| found.id != id)
    })
    .await;
    let status = fixture.status();
    assert_eq!((status.leased, status.warm, status.cold_starts.len()), (0, 2, 0));
    fixture.end().await;
}

#[tokio::test]
async fn no_two_jobs_share_a_sandbox() {
    let fixture = Fixture::new(warm(1, 2));
    let first = fixture.pool.check_out("default", None).await.unwrap();
    let first_id = first.id();
    sh(
        first.sandbox(),
        "echo secret > /workspace/a; echo secret > /tmp/a; echo secret > /dev/shm/a",
    )
    .await;
    first.retire();
    let second = fixture.pool.check_out("default", None).await.unwrap();
    assert_ne!(second.id(), first_id);
    assert_eq!(
        sh(second.sandbox(), "ls -A /workspace /tmp /dev/shm | grep -v :").await,
        ""
    );
    second.retire();
    fixture.end().await;
}

#[tokio::test]
async fn a_burst_above_the_ceiling_is_served_in_turn_and_never_passes_it() {
    const CEILING: u32 = 3;
    let fixture = Fixture::new(warm(1, CEILING));
    let (stop, mut most) = (tokio_util::sync::CancellationToken::new(), 0);
    let watch = async {
        while !stop.is_cancelled() {
            most = most.max(of(&*driver(), fixture.worker_id).await.len());
        }
    };
    let jobs = async {
        let jobs = (0..9).map(async |number: u32| {
            let slot = fixture.pool.check_out("default", None).await.unwrap();
            assert_eq!(sh(slot.sandbox(), &format!("echo {number}")).await, number.to_string());
            slot.retire();
        });
        join_all(jobs).await;
        stop.cancel();
    };
    tokio::join!(watch, jobs);
    assert!((1..=CEILING as usize).contains(&most), "{most} at once");
    let cold = fixture.status().cold_starts;
    assert!(
        cold.values().sum::<u64>() >= 8 && cold.keys().all(|why| ["burst", "ceiling", "starting"].contains(why)),
        "{cold:?}"
    );
    fixture.end().await;
}

#[tokio::test]
async fn after_a_burst_as_many_are_ready_as_came_at_once() {
    let fixture = Fixture::new(warm(1, 6));
    fixture.warm(1).await;
    let burst = (0..3).map(async |_| fixture.pool.check_out("default", None).await.unwrap());
    let slots = join_all(burst).await;
    assert!(slots.iter().filter(|slot| slot.is_warm()).count() == 1);
    assert!(
        slots
            .iter()
            .any(|slot| slot.why_cold().unwrap_or("").starts_with("more jobs came"))
    );
    slots.into_iter().for_each(Slot::retire);
    assert_eq!(fixture.status().aim, 3);
    fixture.warm(3).await;
    let again = (0..3).map(async |_| fixture.pool.check_out("default", None).await.unwrap());
    let slots = join_all(again).await;
    assert!(slots.iter().all(Slot::is_warm));
    slots.into_iter().for_each(Slot::retire);
    fixture.end().await;
}

#[tokio::test]
async fn what_schedules_will_ask_for_is_ready_before() {
    let fixture = Fixture::new(warm(1, 4));
    fixture.warm(1).await;
    let fires = |count| std::collections::BTreeMap::from([("default".to_owned(), count)]);
    fixture.pool.expect(&fires(3), Duration::from_mins(1));
    fixture.warm(3).await;
    fixture.pool.expect(&fires(9), Duration::from_mins(1));
    fixture.warm(4).await;
    fixture.pool.expect(&fires(0), Duration::from_mins(1));
    assert_eq!(fixture.status().aim, 1);
    fixture.end().await;
}

#[tokio::test]
async fn one_that_died_while_it_was_warm_is_not_handed_out() {
    let fixture = Fixture::new(warm(1, 2));
    fixture.warm(1).await;
    let dead = of(&*driver(), fixture.worker_id).await[0].id;
    driver().destroy(dead).await.unwrap();
    let slot = fixture.pool.check_out("default", None).await.unwrap();
    assert_ne!(slot.id(), dead);
    assert_eq!(sh(slot.sandbox(), "echo alive").await, "alive");
    slot.retire();
    fixture.end().await;
}

#[tokio::test]
async fn a_job_that_wants_more_gets_a_sandbox_of_its_size() {
    let fixture = Fixture::new(warm(1, 1));
    fixture.warm(1).await;
    let larger = Profile {
        workspace_bytes: 48 << 20,
        ..profile()
    };
    // The ceiling is one: the warm sandbox makes room.
    let slot = fixture.pool.check_out("default", Some(&larger)).await.unwrap();
    assert_eq!(
        sh(slot.sandbox(), "df --output=size -m /workspace | tail -1").await,
        "48"
    );
    assert!(!slot.is_warm());
    slot.retire();

    fixture.warm(1).await;
    let smaller = Profile {
        memory_bytes: 64 << 20,
        ..profile()
    };
    let slot = fixture.pool.check_out("default", Some(&smaller)).await.unwrap();
    assert!(slot.is_warm());
    slot.retire();
    fixture.end().await;
}

#[tokio::test]
async fn an_image_that_is_missing_fails_jobs_at_once_and_shows_in_the_status() {
    let missing = environment(warm(1, 2)).with_image("hothouse/no-such:image");
    let fixture = Fixture::over(driver(), missing, everybody_lives());
    let error = fixture.pool.check_out("default", None).await.unwrap_err();
    assert_matches!(&error, Error::Failing { .. });
    assert!(!error.is_transient());
    let last = fixture.status().last_error.expect("the failure is visible").error;
    assert!(last.contains("hothouse/no-such:image"), "{last}");
    assert_matches!(
        fixture.pool.check_out("nowhere", None).await.unwrap_err(),
        Error::NoSuchEnvironment { .. }
    );
    fixture.end().await;
}

#[tokio::test]
async fn a_slot_that_is_dropped_is_retired_all_the_same() {
    let fixture = Fixture::new(warm(0, 1));
    let slot = fixture.pool.check_out("default", None).await.unwrap();
    let id = slot.id();
    drop(slot);
    // The ceiling is one: the next proves that the place came back.
    let next = fixture.pool.check_out("default", None).await.unwrap();
    assert_ne!(next.id(), id);
    next.retire();
    fixture.end().await;
}

#[tokio::test]
async fn a_job_that_gives_up_waiting_leaves_nothing_behind() {
    let fixture = Fixture::new(warm(0, 4));
    let waits = fixture.pool.check_out("default", None);
    assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err());
    let larger = Profile { pids: 200, ..profile() };
    let starts = fixture.pool.check_out("default", Some(&larger));
    assert!(tokio::time::timeout(Duration::from_millis(20), starts).await.is_err());
    fixture.end().await;
}

#[tokio::test]
async fn the_reaper_takes_those_of_dead_workers_and_no_others() {
    let (dead, living) = (Uuid::now_v7(), Uuid::now_v7());
    let driver = driver();
    let (orphan, stranger) = (spec(dead), spec(living));
    let _orphan_pipe = driver.start(&orphan).await.unwrap();
    let _stranger_pipe = driver.start(&stranger).await.unwrap();
    let is_alive: IsAlive = Arc::new(move |worker| async move { worker != dead }.boxed());
    let fixture = Fixture::over(
        Arc::clone(&driver) as Arc<dyn SandboxDriver>,
        environment(warm(1, 1)),
        is_alive,
    );
    fixture.warm(1).await;
    // One of its own worker that it does not know: a start that was cut short in an earlier life.
    let lost = spec(fixture.worker_id);
    let _lost_pipe = driver.start(&lost).await.unwrap();

    let now = common::clock::Clock::system().now();
    fixture.pool.reap(now).await.unwrap();
    assert_eq!(of(&*driver, dead).await.len(), 1, "too young to tell");

    let report = fixture.pool.reap(now + chrono::TimeDelta::seconds(31)).await.unwrap();
    assert_eq!((report.destroyed, report.failed), (2, 0));
    eventually("the orphan is gone", async || of(&*driver, dead).await.is_empty()).await;
    assert_eq!(of(&*driver, living).await.len(), 1);
    assert_eq!(of(&*driver, fixture.worker_id).await.len(), 1);
    let slot = fixture.pool.check_out("default", None).await.unwrap();
    assert!(slot.is_warm());
    slot.retire();
    driver.destroy(stranger.id).await.unwrap();
    fixture.end().await;
}

/// The tests' engine behind a socket that can be cut, with all connections, and put back.
struct Cable {
    engine: PathBuf,
    socket: PathBuf,
    connections: JoinSet<()>,
}

impl Cable {
    fn new() -> Self {
        let engine = test_variable("HOTHOUSE_TEST_DOCKER_HOST").unwrap();
        let engine = PathBuf::from(engine.strip_prefix("unix://").expect("the tests' engine has a socket"));
        let socket = std::env::temp_dir().join(format!("hothouse-{}.sock", Uuid::new_v4()));
        Self {
            engine,
            socket,
            connections: JoinSet::new(),
        }
    }

    fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn plug_in(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let engine = self.engine.clone();
        self.connections.spawn(async move {
            let mut streams = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let engine = engine.clone();
                streams.spawn(async move {
                    let mut far = UnixStream::connect(engine).await.unwrap();
                    // Either side may go away at any time here.
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
    }

    async fn cut(&mut self) {
        self.connections.shutdown().await;
        std::fs::remove_file(&self.socket).unwrap();
    }
}

#[tokio::test]
async fn an_engine_that_goes_away_and_comes_back_needs_nobody() {
    let mut cable = Cable::new();
    let fixture = Fixture::over(driver_at(cable.address()), environment(warm(2, 4)), everybody_lives());
    eventually("the failure shows", async || fixture.status().last_error.is_some()).await;
    cable.plug_in();
    fixture.warm(2).await;
    assert_matches!(fixture.status().last_error, None);

    let held = fixture.pool.check_out("default", None).await.unwrap();
    // With a start under way the cut could fall just after its first answer.
    fixture.warm(2).await;
    cable.cut().await;
    eventually("sandboxes die with their connection", async || {
        !held.sandbox().is_alive() && fixture.status().warm == 0
    })
    .await;
    held.retire();
    let waits = fixture.pool.check_out("default", None);
    let replug = async {
        eventually("the failure shows", async || fixture.status().last_error.is_some()).await;
        cable.plug_in();
    };
    let (slot, ()) = tokio::join!(waits, replug);
    let slot = slot.unwrap();
    assert_eq!(sh(slot.sandbox(), "echo back").await, "back");
    slot.retire();
    fixture.warm(2).await;
    fixture.end().await;
    cable.cut().await;
}

/// A driver with an engine that can be on its way down: it answers nobody, and its sandboxes still live.
#[derive(Debug)]
struct Ending {
    inner: Arc<dyn SandboxDriver>,
    is_away: AtomicBool,
    asked: AtomicU32,
}

impl Ending {
    fn answers(&self) -> Result<(), DriverError> {
        if self.is_away.load(Ordering::Relaxed) {
            let (driver, reason) = ("ending", "it is on its way down".to_owned());
            return Err(DriverError::Unavailable { driver, reason });
        }
        Ok(())
    }
}

impl SandboxDriver for Ending {
    fn name(&self) -> &'static str {
        "ending"
    }

    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Pipe, DriverError>> {
        match self.answers() {
            Ok(()) => self.inner.start(spec),
            Err(away) => async { Err(away) }.boxed(),
        }
    }

    fn destroy(&self, id: Uuid) -> BoxFuture<'_, Result<(), DriverError>> {
        self.inner.destroy(id)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, DriverError>> {
        self.inner.list()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        async { self.answers() }.boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        self.ping()
    }
}

#[tokio::test]
async fn what_is_warm_is_not_handed_out_while_its_engine_is_on_its_way_down() {
    let driver = Arc::new(Ending {
        inner: driver(),
        is_away: AtomicBool::new(false),
        asked: AtomicU32::new(0),
    });
    let over = Arc::clone(&driver) as Arc<dyn SandboxDriver>;
    let fixture = Fixture::over(over, environment(warm(2, 4)), everybody_lives());
    let asked = || driver.asked.load(Ordering::Relaxed);
    let dies_in_use = async || {
        fixture.filled().await;
        let held = fixture.pool.check_out("default", None).await.unwrap();
        fixture.filled().await;
        driver.destroy(held.id()).await.unwrap();
        eventually("it is found dead", async || !held.sandbox().is_alive()).await;
        held
    };

    let held = dies_in_use().await;
    assert_eq!(asked(), 0, "nothing had died");
    held.retire();
    let slot = fixture.pool.check_out("default", None).await.unwrap();
    assert!(slot.is_warm() && asked() > 0, "its engine is there");
    slot.retire();

    let held = dies_in_use().await;
    driver.is_away.store(true, Ordering::Relaxed);
    held.retire();
    let waits = fixture.pool.check_out("default", None);
    let comes_back = async {
        eventually("starts fail", async || fixture.status().last_error.is_some()).await;
        driver.is_away.store(false, Ordering::Relaxed);
    };
    let (slot, ()) = tokio::join!(waits, comes_back);
    let slot = slot.unwrap();
    assert!(!slot.is_warm(), "no sandbox of before");
    slot.retire();
    fixture.end().await;
}

/// A driver whose sandboxes are sealed until its image is another one.
#[derive(Debug)]
struct Turning {
    sealed: Bubblewrap,
    is_newer: AtomicBool,
    unsealed: Mutex<Vec<Child>>,
}

impl SandboxDriver for Turning {
    fn name(&self) -> &'static str {
        "turning"
    }

    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Pipe, DriverError>> {
        if !self.is_newer.load(Ordering::Relaxed) {
            return self.sealed.start(spec);
        }
        let mut child = unsealed().spawn().unwrap();
        let (reader, writer) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
        self.unsealed.lock().unwrap().push(child);
        let (reader, writer) = (Box::new(reader), Box::new(writer));
        async { Ok(Pipe { reader, writer }) }.boxed()
    }

    fn destroy(&self, id: Uuid) -> BoxFuture<'_, Result<(), DriverError>> {
        self.sealed.destroy(id)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, DriverError>> {
        self.sealed.list()
    }

    fn image_id<'a>(&'a self, _image: &'a str) -> BoxFuture<'a, Result<Option<String>, DriverError>> {
        let id = if self.is_newer.load(Ordering::Relaxed) {
            "newer"
        } else {
            "older"
        };
        async move { Ok(Some(id.to_owned())) }.boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        async { Ok(()) }.boxed()
    }
}

#[tokio::test]
async fn an_environment_that_falls_to_an_attempt_serves_nobody_also_when_its_image_is_newer() {
    let state = tempfile::tempdir().unwrap();
    let driver = Arc::new(Turning {
        sealed: driver_in(state.path()),
        is_newer: AtomicBool::new(false),
        unsealed: Mutex::default(),
    });
    let fixture = Fixture::over(
        Arc::clone(&driver) as Arc<dyn SandboxDriver>,
        environment(warm(1, 2)),
        everybody_lives(),
    );
    fixture.pool.roll_over().await;
    fixture.warm(1).await;
    fixture.pool.check_out("default", None).await.unwrap().retire();

    driver.is_newer.store(true, Ordering::Relaxed);
    // The next start sees it, whoever looks before; until then the older one serves.
    let refused = loop {
        match fixture.pool.check_out("default", None).await {
            Ok(slot) => {
                assert!(
                    of(&*driver, fixture.worker_id)
                        .await
                        .iter()
                        .any(|found| found.id == slot.id())
                );
                slot.retire();
            }
            Err(refused) => break refused,
        }
    };
    assert_eq!(
        refused.told(),
        "sandboxes of its environment are not sealed on this machine, so nothing runs in them"
    );
    assert_matches!(&refused, Error::Failing { source } if matches!(**source, Error::Unsealed { .. }));
    let status = fixture.status();
    let said = status.last_error.unwrap().error;
    assert!(said.starts_with("a sandbox did not stand the attempt to "), "{said}");
    assert_eq!((status.warm, status.leased), (0, 0));

    driver.is_newer.store(false, Ordering::Relaxed);
    fixture.pool.roll_over().await;
    // Two when both of those who asked count as a burst.
    eventually("it is warm again", async || fixture.status().warm >= 1).await;
    fixture.end().await;
}

/// A driver of an image whose init is of another version.
#[derive(Debug, Default)]
struct Foreign(Mutex<JoinSet<()>>);

impl SandboxDriver for Foreign {
    fn name(&self) -> &'static str {
        "foreign"
    }

    fn start<'a>(&'a self, _spec: &'a Spec) -> BoxFuture<'a, Result<Pipe, DriverError>> {
        let (mut init, pipe) = Init::pipe();
        self.0.lock().unwrap().spawn(async move {
            init.hear().await;
            let mut about = about();
            about.version += 1;
            init.say(FromInit::Hello(about)).await;
            // It stands until the worker closes it.
            while init.from_worker.read_buf(&mut init.wire).await.unwrap_or(0) > 0 {}
        });
        async { Ok(pipe) }.boxed()
    }

    fn destroy(&self, _id: Uuid) -> BoxFuture<'_, Result<(), DriverError>> {
        async { Ok(()) }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, DriverError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        async { Ok(()) }.boxed()
    }
}

#[tokio::test]
async fn an_image_of_another_version_is_told_at_once() {
    let fixture = Fixture::over(Arc::new(Foreign::default()), environment(warm(1, 2)), everybody_lives());
    let check_out = fixture.pool.check_out("default", None);
    let refused = tokio::time::timeout(Duration::from_secs(10), check_out)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        refused.told(),
        "the image of its environment was built for another version of Hothouse than this worker's"
    );
    fixture.end().await;
}
