//! Who gets a used sandbox after its reset.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use common::ids::TenantId;
use futures_util::future::join;
use worker::pool::{KeptFor, Slot, Who};

use crate::docker::{eventually, sh};
use crate::pool::{Fixture, warm};

/// So many files that a reset takes a while.
const SLOW: &str = "mkdir d; cd d; seq 4000 | xargs touch; echo made";

fn somebody() -> KeptFor {
    KeptFor {
        tenant_id: TenantId::new(),
        who: Who::User("ann".to_owned()),
    }
}

async fn used(fixture: &Fixture, script: &str) -> Slot {
    let slot = fixture.pool.check_out("default", None).await.unwrap();
    assert_eq!(sh(slot.sandbox(), script).await, "made");
    slot
}

#[tokio::test]
async fn a_job_waits_for_the_reset_of_its_owners_sandbox_and_no_other_job_does() {
    let fixture = Fixture::new(warm(1, 3));
    fixture.warm(1).await;
    let (ann, bob) = (somebody(), somebody());
    let slot = used(&fixture, SLOW).await;
    let id = slot.id();
    slot.recycle(ann.clone());
    assert!(fixture.pool.check_out_kept("default", &bob).await.is_none());
    let kept = || fixture.pool.check_out_kept("default", &ann);
    let (first, second) = join(kept(), kept()).await;
    assert!(second.is_none(), "one reset is for one job");
    let (slot, _) = first.unwrap();
    assert_eq!(slot.id(), id);
    assert_eq!(sh(slot.sandbox(), "find /workspace -mindepth 1 | wc -l").await, "0");
    slot.retire();
    fixture.end().await;
}

#[tokio::test]
async fn a_job_that_waited_for_one_that_is_not_clean_gets_none() {
    let fixture = Fixture::new(warm(1, 3));
    fixture.warm(1).await;
    let ann = somebody();
    let leave = "python3 -c \"import ctypes; assert ctypes.CDLL(None).shmget(7, 4096, 0o1666) >= 0\"";
    let slot = used(&fixture, &format!("{leave}; {SLOW}")).await;
    slot.recycle(ann.clone());
    assert!(fixture.pool.check_out_kept("default", &ann).await.is_none());
    eventually("the dirty one is gone", async || fixture.status().retiring == 0).await;
    assert_eq!(fixture.status().kept, 0);
    fixture.end().await;
}

#[tokio::test]
async fn others_who_wait_for_room_come_before_a_successor() {
    let fixture = Fixture::new(warm(0, 1));
    let ann = somebody();
    let slot = used(&fixture, SLOW).await;
    let id = slot.id();
    let other = async {
        let slot = fixture.pool.check_out("default", None).await.unwrap();
        let other = slot.id();
        slot.retire();
        other
    };
    let successor = async {
        eventually("somebody waits", async || fixture.status().waiting == 1).await;
        slot.recycle(ann.clone());
        fixture.pool.check_out_kept("default", &ann).await
    };
    let (other, successor) = join(other, successor).await;
    assert!(successor.is_none());
    assert_ne!(other, id, "a used sandbox serves nobody else");
    fixture.end().await;
}

#[tokio::test]
async fn a_connection_that_left_nothing_is_no_reason_to_throw_a_sandbox_away() {
    let fixture = Fixture::new(warm(1, 3));
    fixture.warm(1).await;
    let ann = somebody();
    // Closed by a reset, so that nothing waits.
    let connect = "import socket, struct; s = socket.create_server(('127.0.0.1', 5000)); \
                   c = socket.create_connection(('127.0.0.1', 5000)); a, _ = s.accept(); \
                   c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close(); a.close()";
    let mut slot = used(&fixture, &format!("python3 -c \"{connect}\"; echo made")).await;
    let id = slot.id();
    // Looked at twice: when the counters had moved, and when they had not.
    for _ in 0..2 {
        slot.recycle(ann.clone());
        (slot, _) = fixture.pool.check_out_kept("default", &ann).await.unwrap();
        assert_eq!(slot.id(), id);
    }
    let leave = connect.replace(
        "c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); ",
        "",
    );
    assert_eq!(
        sh(slot.sandbox(), &format!("python3 -c \"{leave}\"; echo made")).await,
        "made"
    );
    slot.recycle(ann.clone());
    assert!(
        fixture.pool.check_out_kept("default", &ann).await.is_none(),
        "a closed connection waits for a minute"
    );
    fixture.end().await;
}
