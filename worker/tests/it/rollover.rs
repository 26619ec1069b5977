//! An image's name that comes to stand for another image: what of the older one serves, and what not any more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::{Arc, Mutex};

use common::ids::TenantId;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use uuid::Uuid;
use worker::driver::bubblewrap::Bubblewrap;
use worker::driver::{Error, Found, Pipe, SandboxDriver, Spec};
use worker::environment::Warm;
use worker::pool::{KeptFor, Slot, Who};

use crate::docker::{eventually, sh};
use crate::pool::{Fixture, environment, everybody_lives, warm};
use crate::sandbox_bubblewrap::driver_in;

/// A driver with an image whose name can be given to another.
#[derive(Debug)]
struct Tagged {
    inner: Bubblewrap,
    _state: tempfile::TempDir,
    image_id: Mutex<&'static str>,
    /// What was started, of which image.
    started: Mutex<Vec<(Uuid, Option<String>)>>,
    /// How many more may start.
    may_start: Semaphore,
}

impl Tagged {
    fn new() -> Arc<Self> {
        let state = tempfile::tempdir().unwrap();
        Arc::new(Self {
            inner: driver_in(state.path()),
            _state: state,
            image_id: Mutex::new("older"),
            started: Mutex::default(),
            may_start: Semaphore::new(100),
        })
    }

    fn image_of(&self, id: Uuid) -> Option<String> {
        let started = self.started.lock().unwrap();
        started.iter().find(|(other, _)| *other == id).unwrap().1.clone()
    }

    fn started(&self, image_id: &str) -> usize {
        let started = self.started.lock().unwrap();
        started.iter().filter(|(_, of)| of.as_deref() == Some(image_id)).count()
    }
}

impl SandboxDriver for Tagged {
    fn name(&self) -> &'static str {
        "tagged"
    }

    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Pipe, Error>> {
        self.started.lock().unwrap().push((spec.id, spec.image_id.clone()));
        async {
            self.may_start.acquire().await.unwrap().forget();
            self.inner.start(spec).await
        }
        .boxed()
    }

    fn destroy(&self, id: Uuid) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.destroy(id)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        self.inner.list()
    }

    fn image_id<'a>(&'a self, _image: &'a str) -> BoxFuture<'a, Result<Option<String>, Error>> {
        async { Ok(Some((*self.image_id.lock().unwrap()).to_owned())) }.boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.check()
    }
}

fn fixture(driver: &Arc<Tagged>, warm: Warm) -> Fixture {
    let driver = Arc::clone(driver) as Arc<dyn SandboxDriver>;
    Fixture::over(driver, environment(warm), everybody_lives())
}

fn somebody(name: &str) -> KeptFor {
    KeptFor {
        tenant_id: TenantId::new(),
        who: Who::User(name.to_owned()),
    }
}

async fn slot(fixture: &Fixture) -> Slot {
    fixture.pool.check_out("default", None).await.unwrap()
}

#[tokio::test]
async fn what_is_kept_of_an_older_image_serves_nobody_any_more() {
    let driver = Tagged::new();
    let fixture = fixture(&driver, warm(0, 4));
    let owners = ["kept", "keeps", "resets"].map(somebody);
    let (kept, keeps, resets) = (slot(&fixture).await, slot(&fixture).await, slot(&fixture).await);
    kept.keep(owners[0].clone(), 3).await.unwrap();
    assert_eq!(fixture.status().kept, 1);

    *driver.image_id.lock().unwrap() = "newer";
    fixture.pool.roll_over().await;
    assert_eq!((fixture.status().kept, fixture.status().leased), (0, 2));
    // What a job has stays until the job ends, and no longer.
    assert_eq!(sh(keeps.sandbox(), "echo still here").await, "still here");
    assert!(keeps.keep(owners[1].clone(), 1).await.is_none());
    resets.recycle(owners[2].clone());
    for owner in &owners {
        assert!(fixture.pool.check_out_kept("default", owner).await.is_none());
    }
    eventually("all have gone", async || {
        let status = fixture.status();
        status.leased + status.kept + status.retiring == 0
    })
    .await;
    fixture.end().await;
}

#[tokio::test]
async fn a_start_is_of_the_image_that_the_name_stands_for_then_and_that_one_was_tried() {
    let driver = Tagged::new();
    let fixture = fixture(&driver, warm(0, 4));
    slot(&fixture).await.retire();
    assert_eq!((driver.started("older"), driver.started("newer")), (2, 0));
    *driver.image_id.lock().unwrap() = "newer";
    let job = slot(&fixture).await;
    assert_eq!(driver.image_of(job.id()).as_deref(), Some("newer"));
    assert_eq!(driver.started("newer"), 2, "one of them was attacked first");
    assert_eq!(fixture.status().image_id.as_deref(), Some("newer"));
    job.retire();
    fixture.end().await;
}

#[tokio::test]
async fn one_that_was_starting_when_its_image_was_replaced_is_not_handed_out() {
    let driver = Tagged::new();
    let fixture = fixture(&driver, warm(0, 4));
    slot(&fixture).await.retire();
    driver.may_start.forget_permits(100);
    let replaced = async {
        eventually("one starts", async || driver.started("older") == 3).await;
        *driver.image_id.lock().unwrap() = "newer";
        fixture.pool.roll_over().await;
        driver.may_start.add_permits(100);
    };
    let (job, ()) = tokio::join!(slot(&fixture), replaced);
    assert_eq!(driver.image_of(job.id()).as_deref(), Some("newer"));
    job.retire();
    fixture.end().await;
}
