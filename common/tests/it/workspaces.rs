//! Workspaces: which archive is the present one, and that a stale writer never wins.

use bytes::Bytes;
use chrono::TimeDelta;
use common::ids::{ArchiveId, ConversationId};
use common::job::NewJob;
use common::job::spec::{JobSpec, Kind};
use common::message::Message;
use common::objects::{self, Objects};
use common::store::branch::BranchAt;
use common::store::claim::Claimed;
use common::store::take_turn::NewTurn;
use common::store::workspaces::{Save, Saved, Writer};
use common::testing::{TestEnv, TestWorker};
use common::workspace::tar::{Change, Conflict, Kind as EntryKind, Reader, rewrite};
use common::workspace::{Owner, Packed, Workspaces, archive_key};
use futures_util::{FutureExt as _, stream};
use sqlx::PgPool;

async fn conversation(env: &TestEnv, pool: &PgPool) -> ConversationId {
    let id = ConversationId::new();
    sqlx::query("insert into tenants (id, name, created_at) values ($1, $2, now()) on conflict do nothing")
        .bind(env.tenant_id)
        .bind(env.tenant_id.to_string())
        .execute(pool)
        .await
        .unwrap();
    sqlx::query(
        "insert into conversations (id, tenant_id, agent, metadata, created_at, updated_at)
         values ($1, $2, '{}', '{}', now(), now())",
    )
    .bind(id)
    .bind(env.tenant_id)
    .execute(pool)
    .await
    .unwrap();
    id
}

fn turn(env: &TestEnv, conversation_id: ConversationId) -> NewJob {
    let mut job = env.job(JobSpec::new(Kind::ChatTurn), b"{}".to_vec());
    job.links.conversation_id = Some(conversation_id);
    job
}

async fn packed(env: &TestEnv, byte: u8) -> Packed {
    let id = ArchiveId::new();
    env.store
        .begin_archive(env.tenant_id, id, env.clock.now())
        .await
        .unwrap();
    Packed {
        id,
        digest: [byte; 32],
        archive_bytes: 10,
    }
}

fn save(env: &TestEnv, id: ConversationId, expected: u64, packed: Packed, writer: Writer) -> Save {
    Save {
        tenant_id: env.tenant_id,
        owner: Owner::Conversation(id),
        expected,
        packed,
        bytes: 1,
        entries: 1,
        writer,
    }
}

fn attempt(worker: &TestWorker, claimed: &Claimed) -> Writer {
    Writer::Attempt {
        job_id: claimed.job.id,
        attempt: claimed.job.attempt,
        worker_id: worker.id,
    }
}

async fn commit(env: &TestEnv, id: ConversationId, expected: u64, byte: u8, writer: Writer) -> Saved {
    let save = save(env, id, expected, packed(env, byte).await, writer);
    env.store.save_workspace(&save, env.clock.now()).await.unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn only_who_holds_the_attempt_and_began_with_the_present_version_saves(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let talk = conversation(&env, &pool).await;
    env.enqueue(&turn(&env, talk)).await;
    let dead = env.worker();
    let first = dead.one().await;
    assert_eq!(
        commit(&env, talk, 0, 1, attempt(&dead, &first)).await,
        Saved::Committed(1)
    );
    assert_eq!(commit(&env, talk, 0, 2, attempt(&dead, &first)).await, Saved::Stale);
    assert_eq!(commit(&env, talk, 7, 2, attempt(&dead, &first)).await, Saved::Stale);
    assert_eq!(
        commit(&env, talk, 1, 2, Writer::Request).await,
        Saved::NotHeld,
        "a turn is under way"
    );

    env.advance(env.queue.lease_ttl());
    env.reclaim().await;
    let live = env.worker();
    let second = live.one().await;
    assert_eq!(
        commit(&env, talk, 1, 3, attempt(&dead, &first)).await,
        Saved::NotHeld,
        "it was taken over"
    );
    assert_eq!(
        commit(&env, talk, 1, 4, attempt(&live, &second)).await,
        Saved::Committed(2)
    );
    assert!(live.succeed(&second).await);
    assert_eq!(
        commit(&env, talk, 2, 5, attempt(&live, &second)).await,
        Saved::NotHeld,
        "it has ended"
    );
    assert_eq!(commit(&env, talk, 2, 6, Writer::Request).await, Saved::Committed(3));
    let present = env
        .store
        .workspace(env.tenant_id, Owner::Conversation(talk))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((present.version, present.digest), (3, [6; 32]));

    let stranger = common::ids::TenantId::new();
    assert_eq!(
        env.store.workspace(stranger, Owner::Conversation(talk)).await.unwrap(),
        None
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn of_two_that_save_at_once_one_does(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let talk = conversation(&env, &pool).await;
    for expected in 0..20 {
        let saves = [packed(&env, 1).await, packed(&env, 2).await]
            .map(|packed| save(&env, talk, expected, packed, Writer::Request));
        let now = env.clock.now();
        let (one, two) = tokio::join!(
            env.store.save_workspace(&saves[0], now),
            env.store.save_workspace(&saves[1], now)
        );
        let mut both = [one.unwrap(), two.unwrap()];
        both.sort_by_key(|saved| *saved == Saved::Stale);
        assert_eq!(both, [Saved::Committed(expected + 1), Saved::Stale]);
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn archives_that_nobody_uses_are_found_and_shared_ones_are_not(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (talk, branch) = (conversation(&env, &pool).await, ConversationId::new());
    let asked = Message::user("x".to_owned(), env.clock.now());
    let turn = NewTurn {
        message: asked.clone(),
        job: turn(&env, talk),
        seen: 0,
        reject_if_busy: false,
        idempotency: None,
    };
    env.store.insert_turn(talk, turn).await.unwrap();
    let unused = async |env: &TestEnv| {
        let later = env.clock.now() + TimeDelta::seconds(1);
        env.store.unused_archives(later, 100).await.unwrap()
    };
    let (first, second) = (packed(&env, 1).await, packed(&env, 2).await);
    assert_eq!(
        unused(&env).await,
        [first.id, second.id],
        "an upload that nobody comes back to"
    );
    let now = env.clock.now();
    env.store
        .save_workspace(&save(&env, talk, 0, first, Writer::Request), now)
        .await
        .unwrap();
    assert_eq!(unused(&env).await, [second.id]);
    let at = BranchAt::Behind(asked.id);
    let of = (env.tenant_id, talk);
    env.store
        .branch_conversation(of, at, (branch, None), now)
        .await
        .unwrap()
        .unwrap();
    env.store
        .save_workspace(&save(&env, talk, 1, second, Writer::Request), now)
        .await
        .unwrap();
    assert_eq!(unused(&env).await, [], "the branch has the first");
    let of_branch = env
        .store
        .workspace(env.tenant_id, Owner::Conversation(branch))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((of_branch.version, of_branch.archive_id), (1, first.id));

    env.store.delete_conversation(env.tenant_id, branch, now).await.unwrap();
    let (deleted, last) = env
        .store
        .delete_ownerless_workspaces(uuid::Uuid::nil(), 10, now)
        .await
        .unwrap();
    assert_eq!((deleted, last), (1, Some(branch.uuid())));
    assert_eq!(unused(&env).await, [first.id]);
    assert_eq!(
        env.store.forget_archives(&[first.id, second.id]).await.unwrap(),
        1,
        "one in use stays"
    );
    assert_eq!(
        commit(&env, branch, 0, 9, Writer::Request).await,
        Saved::Stale,
        "nobody's files any more"
    );
    assert_eq!(commit(&env, branch, 1, 9, Writer::Request).await, Saved::Stale);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn files_are_put_and_deleted_in_an_archive_as_it_passes_by(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    conversation(&env, &pool).await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let objects = Objects::open(&objects::Settings { url }).unwrap();
    let workspaces = Workspaces::new(env.store.clone(), objects.clone());
    let now = env.clock.now();
    let long = format!("{}/{}.txt", "deep".repeat(40), "name".repeat(50));
    let mut from: Option<ArchiveId> = None;
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let steps: [(&str, Option<&[u8]>); 6] = [
        ("a/one.txt", Some(b"1")),
        (&long, Some(b"long")),
        ("large.bin", Some(&large)),
        ("a/two.txt", Some(&[2; 700])),
        ("a/one.txt", Some(b"changed")),
        (&long, None),
    ];
    for (path, content) in steps {
        let mut saving = workspaces.begin(env.tenant_id, now).await.unwrap();
        let reader = || async { Ok(open(&workspaces, from).await) }.boxed();
        let change = match content {
            Some(content) => Change::Put {
                path,
                size: content.len() as u64,
                content: stream::iter(content.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece)))),
                at: now,
            },
            None => Change::Delete { path },
        };
        rewrite(&reader, &mut saving, change).await.unwrap().unwrap();
        from = saving.finish(None).await.unwrap().map(|packed| packed.id);
    }
    let mut reader = Reader::new(open(&workspaces, from).await);
    let mut seen = Vec::new();
    while let Some(entry) = reader.next().await.unwrap() {
        let mut content = Vec::new();
        loop {
            let piece = reader.read().await.unwrap();
            if piece.is_empty() {
                break;
            }
            content.extend_from_slice(&piece);
        }
        seen.push((entry.path, entry.kind, content));
    }
    let expected = [
        ("large.bin", &large[..]),
        ("a/two.txt", &[2; 700]),
        ("a/one.txt", b"changed"),
    ];
    let expected = expected.map(|(path, content)| (path.to_owned(), EntryKind::File, content.to_vec()));
    assert!(
        seen == expected,
        "{:?}",
        seen.iter().map(|(path, ..)| path).collect::<Vec<_>>()
    );

    let refused = async |change: Change<'_, stream::Empty<std::io::Result<Bytes>>>| {
        let mut saving = workspaces.begin(env.tenant_id, now).await.unwrap();
        let reader = || async { Ok(open(&workspaces, from).await) }.boxed();
        rewrite(&reader, &mut saving, change).await.unwrap()
    };
    let put = |path| Change::Put {
        path,
        size: 0,
        content: stream::empty(),
        at: now,
    };
    assert_eq!(refused(put("a")).await, Err(Conflict::IsFolder));
    assert_eq!(refused(put("a/one.txt/below")).await, Err(Conflict::NoFolder));
    assert_eq!(refused(Change::Delete { path: "nothing" }).await, Err(Conflict::Absent));
    assert_eq!(
        refused(Change::Delete { path: "a" }).await.unwrap().entries,
        1,
        "with all below it"
    );

    objects.delete(&archive_key(from.unwrap())).await.unwrap();
    assert!(workspaces.stream(from.unwrap()).await.is_err());
}

async fn open(workspaces: &Workspaces, id: Option<ArchiveId>) -> impl tokio::io::AsyncRead + Unpin + Send {
    let present = id.map(|archive_id| common::workspace::Present {
        version: 1,
        archive_id,
        digest: [0; 32],
        bytes: 0,
        entries: 0,
        updated_at: chrono::DateTime::UNIX_EPOCH,
    });
    workspaces.open(present.as_ref()).await.unwrap()
}
