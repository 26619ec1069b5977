//! The event log: whole and once for every reader, through everything.

use std::time::Duration;

use common::ids::JobId;
use common::job::decision::Decision;
use common::job::event::{Event, EventBody};
use common::queue::Appended;
use common::store::claim::Claimed;
use common::store::events::Chunk;
use common::testing::{TestEnv, TestWorker, failure};
use sqlx::PgPool;

fn names(events: &[Event]) -> Vec<(u64, u32, &'static str)> {
    events
        .iter()
        .map(|event| (event.seq, event.attempt, event.body.name()))
        .collect()
}

async fn running(env: &TestEnv) -> (TestWorker, Claimed) {
    env.enqueue(&env.noop()).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    (worker, claimed)
}

async fn write(env: &TestEnv, worker: &TestWorker, claimed: &Claimed, events: &[Event]) {
    let chunk = Chunk::pack(claimed.job.id, events).unwrap();
    env.store
        .append_chunk(&chunk, claimed.job.attempt, worker.id)
        .await
        .unwrap();
}

/// Every reader sees the same, whatever its pages are like and wherever it resumes.
async fn read_in_every_way(env: &TestEnv, job_id: JobId) -> Vec<Event> {
    let whole = env.events(env.tenant_id, job_id, 1_000_000).await;
    for limit in [1, 2, 3, 7] {
        assert_eq!(
            env.events(env.tenant_id, job_id, limit).await,
            whole,
            "pages of {limit}"
        );
    }
    for resume in [0, 1, whole.len() / 2, whole.len()] {
        let after = resume.checked_sub(1).map_or(0, |index| whole[index].seq);
        let page = env
            .log
            .read(env.tenant_id, job_id, after, 1_000_000)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(page.events, whole[resume..]);
    }
    whole
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_chunk_that_comes_late_takes_nothing_from_a_longer_one(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 5);
    write(&env, &worker, &claimed, &said[..2]).await;
    write(&env, &worker, &claimed, &said).await;
    write(&env, &worker, &claimed, &said).await;
    let late = Chunk::pack(claimed.job.id, &said[..2]).unwrap();
    drop(env.store.append_chunk(&late, 1, worker.id).await);
    let read = env.store.events(claimed.job.id, 0, 100).await.unwrap().0;
    assert_eq!(read, said);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_event_that_cannot_be_read_holds_up_nobody(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let mut said = worker.said(&claimed, 3);
    said[1].body = EventBody::Usage {
        usage: (0..200).fold(serde_json::Value::Null, |inner, _| vec![inner].into()),
    };
    assert_eq!(worker.append(&claimed, 1, &said).await, Appended::Ok);
    let live = env.queue.tail(env.tenant_id, claimed.job.id, 0).await.unwrap();
    write(&env, &worker, &claimed, &said).await;
    for read in [live, env.store.events(claimed.job.id, 0, 100).await.unwrap().0] {
        assert_eq!(read.iter().map(|event| event.seq).collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert!(matches!(&read[1].body, EventBody::Status { phase, .. } if phase == "unreadable"));
    }
    env.advance(env.queue.lease_ttl());
    assert_eq!(env.reclaim().await.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_tail_joins_the_written_part_before_during_and_after_trimming(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 9);
    assert_eq!(worker.append(&claimed, 1, &said[..6]).await, Appended::Ok);
    let expected: Vec<u64> = (1..=7).collect();
    let seqs = |events: Vec<Event>| events.iter().map(|event| event.seq).collect::<Vec<_>>();
    assert_eq!(seqs(read_in_every_way(&env, claimed.job.id).await), expected);
    write(&env, &worker, &claimed, &said[..6]).await;
    assert_eq!(seqs(read_in_every_way(&env, claimed.job.id).await), expected);
    env.queue
        .trim(env.tenant_id, claimed.job.id, said[5].seq)
        .await
        .unwrap();
    assert_eq!(seqs(read_in_every_way(&env, claimed.job.id).await), expected);
    assert_eq!(worker.append(&claimed, said[5].seq, &said[6..]).await, Appended::Ok);
    assert_eq!(
        seqs(read_in_every_way(&env, claimed.job.id).await),
        (1..=11).collect::<Vec<_>>()
    );
    assert!(worker.settle_after(&claimed, Decision::Succeed, &said[6..]).await);
    let events = read_in_every_way(&env, claimed.job.id).await;
    assert_eq!(seqs(events.clone()), (1..=12).collect::<Vec<_>>());
    assert_eq!(events.last().unwrap().body.name(), "succeeded");
    env.wipe_redis().await;
    assert_eq!(read_in_every_way(&env, claimed.job.id).await, events);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn appending_again_adds_nothing_twice(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 4);
    assert_eq!(worker.append(&claimed, 1, &said[..3]).await, Appended::Ok);
    assert_eq!(worker.append(&claimed, 1, &said[..3]).await, Appended::Ok);
    assert_eq!(worker.append(&claimed, 1, &said).await, Appended::Ok);
    let tail = env.queue.tail(env.tenant_id, claimed.job.id, 0).await.unwrap();
    assert_eq!(tail, said);
    assert_eq!(worker.append(&claimed, 1, &[]).await, Appended::Ok);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wiped_log_is_seeded_again(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 8);
    assert_eq!(worker.append(&claimed, 1, &said[..4]).await, Appended::Ok);
    write(&env, &worker, &claimed, &said[..2]).await;
    let written = said[1].seq;
    env.wipe_redis().await;
    assert_eq!(worker.append(&claimed, written, &said[4..6]).await, Appended::Unknown);
    env.begin().await;
    assert!(worker.register(&claimed).await);
    env.rebuild().await;
    assert_eq!(worker.append(&claimed, written, &said[4..6]).await, Appended::NeedsSeed);
    assert_eq!(worker.append(&claimed, written, &said[2..6]).await, Appended::Ok);
    let events = read_in_every_way(&env, claimed.job.id).await;
    assert_eq!(events[1..], said[..6]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_retry_goes_on_in_the_same_log_at_once(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 2);
    assert_eq!(worker.append(&claimed, 1, &said).await, Appended::Ok);
    assert!(
        worker
            .settle_after(&claimed, Decision::RetryAt(env.clock.now(), failure()), &said)
            .await
    );
    assert_eq!(env.promote().await, [claimed.job.id]);
    let again = env.worker();
    let second = again.one().await;
    let said = again.said(&second, 2);
    // What the first attempt left in Redis ends before the retry's own numbers; Postgres has what is between.
    assert_eq!(again.append(&second, second.job.seq - 1, &said).await, Appended::Ok);
    assert_eq!(
        env.queue
            .tail(env.tenant_id, second.job.id, second.job.seq - 1)
            .await
            .unwrap(),
        said
    );
    let events = read_in_every_way(&env, claimed.job.id).await;
    assert_eq!(
        names(&events),
        [
            (1, 0, "queued"),
            (2, 1, "started"),
            (3, 1, "stdout"),
            (4, 1, "stdout"),
            (5, 1, "retrying"),
            (6, 1, "queued"),
            (7, 2, "started"),
            (8, 2, "stdout"),
            (9, 2, "stdout"),
        ]
    );
    assert!(again.settle_after(&second, Decision::Fail(failure()), &said).await);
    let ended = read_in_every_way(&env, claimed.job.id).await;
    assert_eq!((&ended[..9], ended.len()), (&events[..], 10));
    let EventBody::Failed { error, .. } = &ended[9].body else {
        panic!("{ended:?}")
    };
    assert_eq!(error.code, failure().code);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn silent_attempts_leave_their_events_behind(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    assert!(worker.settle(&claimed, Decision::GiveBack).await);
    env.redispatch().await;
    let second = worker.one().await;
    assert!(
        worker
            .settle(&second, Decision::RetryAt(env.clock.now(), failure()))
            .await
    );
    env.promote().await;
    let third = worker.one().await;
    assert!(worker.succeed(&third).await);
    let events = read_in_every_way(&env, claimed.job.id).await;
    let names: Vec<_> = events.iter().map(|event| event.body.name()).collect();
    assert_eq!(
        names,
        [
            "queued",
            "started",
            "queued",
            "started",
            "retrying",
            "queued",
            "started",
            "succeeded"
        ]
    );
    assert_eq!(
        events.iter().map(|event| event.seq).collect::<Vec<_>>(),
        (1..=8).collect::<Vec<_>>()
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_a_lost_worker_said_stays_and_is_marked(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 5);
    assert_eq!(worker.append(&claimed, 1, &said).await, Appended::Ok);
    write(&env, &worker, &claimed, &said[..3]).await;
    let before = read_in_every_way(&env, claimed.job.id).await;
    env.advance(env.queue.lease_ttl());
    assert_eq!(env.reclaim().await.len(), 1);
    let events = read_in_every_way(&env, claimed.job.id).await;
    assert_eq!(events[..before.len()], before);
    let rest: Vec<_> = events[before.len()..].iter().map(|event| &event.body).collect();
    let [EventBody::AttemptReset { discard_from_seq }, EventBody::Queued { .. }] = rest.as_slice() else {
        panic!("{rest:?}")
    };
    assert_eq!(*discard_from_seq, claimed.job.seq);
    env.wipe_redis().await;
    assert_eq!(read_in_every_way(&env, claimed.job.id).await, events);
    env.rebuild().await;
    let live = env.worker();
    let second = live.one().await;
    let said = live.said(&second, 1);
    assert_eq!(live.append(&second, second.job.seq - 1, &said).await, Appended::Ok);
    let grown = read_in_every_way(&env, claimed.job.id).await;
    assert_eq!((&grown[..events.len()], grown.len()), (&events[..], events.len() + 2));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_dead_attempt_adds_nothing_once_its_lease_has_passed(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 5);
    assert_eq!(worker.append(&claimed, 1, &said[..2]).await, Appended::Ok);
    env.advance(env.queue.lease_ttl());
    // Whoever takes it over reads the tail now: what came later would be seen by some and lost for others.
    assert_ne!(worker.append(&claimed, 1, &said[2..]).await, Appended::Ok);
    assert!(worker.register(&claimed).await);
    assert_eq!(worker.append(&claimed, 1, &said[2..]).await, Appended::Ok);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_hole_is_announced(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 5);
    assert_eq!(worker.append(&claimed, 1, &said).await, Appended::Ok);
    let follower = env.events(env.tenant_id, claimed.job.id, 100).await.last().unwrap().seq;
    env.wipe_redis().await;
    env.rebuild().await;
    let row = env.row(claimed.job.id).await;
    assert!(env.take_over(&row, true).await.is_some());
    let events = read_in_every_way(&env, claimed.job.id).await;
    let found: Vec<_> = events.iter().map(|event| event.body.name()).collect();
    assert_eq!(found, ["queued", "started", "resume_gap", "attempt_reset", "queued"]);
    let EventBody::ResumeGap { from_seq, to_seq, .. } = events[2].body else {
        panic!("{events:?}")
    };
    assert!(
        from_seq <= claimed.job.seq + 1 && to_seq >= follower,
        "{from_seq}..{to_seq} and {follower}"
    );
    // Nobody who had read what is lost misses what follows.
    assert!(events[2].seq > follower);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_long_tail_is_read_to_its_end(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 3_500);
    for part in said.chunks(1_000) {
        assert_eq!(worker.append(&claimed, 1, part).await, Appended::Ok);
    }
    let events = env.events(env.tenant_id, claimed.job.id, 5_000).await;
    assert_eq!(events.len(), said.len() + 1);
    write(&env, &worker, &claimed, &said[..2_000]).await;
    env.queue
        .trim(env.tenant_id, claimed.job.id, said[1_999].seq)
        .await
        .unwrap();
    assert_eq!(env.events(env.tenant_id, claimed.job.id, 300).await, events);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_page_of_long_events_is_no_longer_than_a_reader_may_cost(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let mut said = worker.said(&claimed, 40);
    for event in &mut said[1..] {
        let EventBody::Stdout { text } = &mut event.body else {
            unreachable!()
        };
        *text = text.repeat(60_000 / text.len());
    }
    // 2.4 MB, in chunks as a worker writes them.
    for part in said.chunks(4) {
        write(&env, &worker, &claimed, part).await;
    }
    let bytes = |events: &[Event]| serde_json::to_vec(events).unwrap().len();
    let (mut seen, mut pages) = (Vec::<Event>::new(), 0);
    loop {
        let after = seen.last().map_or(0, |event| event.seq);
        let page = env
            .log
            .read(env.tenant_id, claimed.job.id, after, 500)
            .await
            .unwrap()
            .unwrap();
        assert!(bytes(&page.events) < 1 << 20, "{} bytes", bytes(&page.events));
        pages += 1;
        seen.extend(page.events);
        if !page.more {
            break;
        }
    }
    assert_eq!(seen[1..], said);
    assert!(pages > 2);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_follower_sees_everything_while_it_is_written_trimmed_and_ended(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, claimed) = running(&env).await;
    let said = worker.said(&claimed, 400);
    let follow = async {
        let mut seen: Vec<Event> = Vec::new();
        loop {
            let after = seen.last().map_or(0, |event| event.seq);
            let page = env
                .log
                .read(env.tenant_id, claimed.job.id, after, 37)
                .await
                .unwrap()
                .unwrap();
            seen.extend(page.events);
            if page.ended {
                return seen;
            }
        }
    };
    let write_all = async {
        let mut written = 0;
        for (index, part) in said.chunks(7).enumerate() {
            let from = said[written.min(said.len() - 1)].seq - 1;
            assert_eq!(worker.append(&claimed, from, part).await, Appended::Ok);
            if index % 5 == 4 {
                let until = (index + 1) * 7;
                write(&env, &worker, &claimed, &said[written..until]).await;
                written = until;
                env.queue
                    .trim(env.tenant_id, claimed.job.id, said[until - 1].seq)
                    .await
                    .unwrap();
            }
        }
        assert!(worker.settle_after(&claimed, Decision::Succeed, &said[written..]).await);
    };
    let (seen, ()) = tokio::time::timeout(Duration::from_mins(1), async { tokio::join!(follow, write_all) })
        .await
        .unwrap();
    let seqs: Vec<u64> = seen.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (1..=403).collect::<Vec<_>>());
    assert_eq!(seen[1..402], said);
}
