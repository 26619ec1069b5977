//! Redis Cluster: every script stays in one slot, and more than one shard works.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::config::{Redis, Secret};
use common::ids::TenantId;
use common::job::NewJob;
use common::job::decision::Decision;
use common::queue::{Among, Beat, Shard};
use common::testing::{TestEnv, TestWorker, eventually, failure, ids, leases, light, redis_section};
use sqlx::PgPool;

/// A Redis of one's own in cluster mode, one node with every slot. It refuses a script that touches two slots.
pub(crate) struct ClusterNode {
    child: Child,
    pub(crate) url: String,
    folder: PathBuf,
}

impl ClusterNode {
    pub(crate) async fn start() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // The bus listens 10,000 above.
        let port = 20_000 + free.local_addr().unwrap().port() % 30_000;
        drop(free);
        let folder = std::env::temp_dir().join(format!("hothouse-cluster-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--cluster-enabled",
                "yes",
                "--save",
                "",
                "--bind",
                "127.0.0.1",
            ])
            .current_dir(&folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let node = Self {
            child,
            url: format!("redis://127.0.0.1:{port}/"),
            folder,
        };
        let ask = |words: &[&str]| {
            let (url, words) = (
                node.url.clone(),
                words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(),
            );
            async move {
                let client = redis::Client::open(url).ok()?;
                let mut connection = client.get_multiplexed_async_connection().await.ok()?;
                let mut command = redis::cmd(&words[0]);
                command.arg(&words[1..]);
                command.query_async::<String>(&mut connection).await.ok()
            }
        };
        let limit = Duration::from_secs(20);
        let slots = ["CLUSTER", "ADDSLOTSRANGE", "0", "16383"];
        eventually(limit, "every slot is this node's", || ask(&slots)).await;
        let is_ok = || async {
            ask(&["CLUSTER", "INFO"])
                .await
                .filter(|info| info.contains("cluster_state:ok"))
        };
        eventually(limit, "the cluster is up", is_ok).await;
        node
    }
}

impl Drop for ClusterNode {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// One tenant of each shard.
fn tenants(env: &TestEnv) -> Vec<(Shard, TenantId)> {
    let of = |shard: Shard| std::iter::repeat_with(TenantId::new).find(|id| env.queue.shard_of(*id) == shard);
    env.queue.shards().map(|shard| (shard, of(shard).unwrap())).collect()
}

fn keyed(env: &TestEnv, tenant_id: TenantId) -> NewJob {
    NewJob {
        tenant_id,
        ..env.keyed("key", 1)
    }
}

/// Every script, in every state that changes which keys it touches.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn every_script_stays_in_one_slot_of_a_cluster(pool: PgPool) {
    let node = ClusterNode::start().await;
    let redis = Redis {
        url: Secret::from(node.url.clone()),
        shards: 3,
        ..redis_section()
    };
    let env = TestEnv::with(pool.clone(), &leases(), redis).await;
    let (worker, other) = (env.worker(), env.worker());
    for (shard, tenant_id) in tenants(&env) {
        env.queue.set_weight(tenant_id, 2).await.unwrap();
        let jobs: Vec<NewJob> = (0..4).map(|_| keyed(&env, tenant_id)).collect();
        for job in &jobs {
            env.enqueue(job).await; // dispatch
        }
        let claimed = worker.claim(4).await.remove(0); // claim, release; the others are parked
        assert_eq!(worker.beat(&claimed).await, Beat::Ok);
        worker.append(&claimed, 1, &worker.said(&claimed, 2)).await;
        env.wipe_redis().await;
        env.open().await; // generation, open
        env.queue
            .adopt(shard, std::slice::from_ref(&claimed.job))
            .await
            .unwrap();
        assert_eq!(worker.beat(&claimed).await, Beat::Unknown);
        assert!(worker.register(&claimed).await);
        env.redispatch().await;
        assert_eq!(ids(&worker.claim(4).await), []);
        let due = env.clock.now();
        assert!(worker.settle(&claimed, Decision::RetryAt(due, failure())).await); // ack
        assert_eq!(env.queue.strays(shard, Among::All, 0, 100).await.unwrap().1.len(), 4);
        assert_eq!(
            env.queue.strays(shard, Among::Unleased, 0, 100).await.unwrap().1,
            [claimed.job.id]
        );
        assert_eq!(env.promote().await.len(), 1);
        let cancelled = env.store.cancel(tenant_id, jobs[0].id, due).await.unwrap().unwrap();
        env.queue
            .cancel(tenant_id, jobs[0].id, cancelled.seq, true)
            .await
            .unwrap(); // cancel
        let claims = other.take(&light(4)).await.unwrap();
        assert_eq!(claims.len(), 1);
        env.queue
            .drop_claims(shard, other.id, &[(claims[0].job_id, claims[0].attempt)])
            .await
            .unwrap(); // drop
        env.redispatch().await;
        let lost = worker.one().await;
        // Taken over while its lease lives: held back, and released when it has passed.
        let taken = env
            .store
            .reclaim(lost.job.id, 1, &[], false, env.clock.now())
            .await
            .unwrap()
            .unwrap();
        env.queue
            .dispatch(&[common::queue::Dispatch::from_job(&taken)])
            .await
            .unwrap();
        env.advance(env.queue.lease_ttl());
        env.reclaim().await; // expired
        for _ in 0..3 {
            let claimed = worker.one().await;
            assert!(worker.succeed(&claimed).await);
        }
        assert_eq!(ids(&worker.claim(4).await), []);
        offered(&env, &pool, tenant_id, (&worker, &other)).await; // sticky
    }
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// A turn that is offered to one worker before the other gets it.
async fn offered(env: &TestEnv, pool: &PgPool, tenant_id: TenantId, (keeper, other): (&TestWorker, &TestWorker)) {
    let talk = crate::turns::conversation(pool, tenant_id).await;
    let keep = Duration::from_mins(5);
    env.queue.say_kept(tenant_id, talk, keeper.id, keep).await.unwrap();
    let mut turn = crate::turns::turn(env, talk);
    turn.tenant_id = tenant_id;
    env.enqueue(&turn).await;
    assert_eq!(ids(&other.claim(1).await), []);
    assert!(keeper.succeed(&keeper.one().await).await);
}

/// Whatever a script calls a key begins with the root that it was given.
#[test]
fn every_key_of_a_script_begins_with_its_root() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/queue/lua");
    let mut calls = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let code: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .collect::<Vec<_>>()
            .join("\n");
        assert!(!code.contains("KEYS[2]") && !code.contains("redis.pcall"), "{path:?}");
        // Names of keys: the root itself, what is joined to it, and what is called after such.
        let mut keys = vec![
            "R ..".to_owned(),
            "IDX".to_owned(),
            "LEASES".to_owned(),
            "backlog(".to_owned(),
            "parked(".to_owned(),
            "group.ring".to_owned(),
            "group.of".to_owned(),
            "any.of".to_owned(),
            "turn.lanes".to_owned(),
            "lane.key".to_owned(),
            "TIMERS".to_owned(),
            "LIMITS".to_owned(),
            // Filled with what is joined to the root, above in the same script.
            "unpack(logs)".to_owned(),
            "logs[".to_owned(),
        ];
        for line in code.lines().filter_map(|line| line.trim().strip_prefix("local ")) {
            let Some((names, values)) = line.split_once(" = ") else {
                continue;
            };
            for (name, value) in names.split(", ").zip(split(values)) {
                if keys.iter().any(|key| value.starts_with(key.as_str())) {
                    keys.push(name.to_owned());
                }
            }
        }
        for call in code.split("redis.call(").skip(1) {
            let mut words = split(call);
            let command = words.remove(0);
            if command.starts_with("'TIME'") {
                continue;
            }
            calls += 1;
            let key = words.first().map_or("", |word| word.trim());
            let is_ours = keys.iter().any(|ours| key.starts_with(ours.as_str()));
            assert!(is_ours, "{}: {command} of {key:?}", path.display());
        }
    }
    assert!(calls > 60, "{calls} calls were found");
}

/// The parts of a list, as far as commas outside of brackets part them.
#[expect(clippy::string_slice, reason = "cut where a bracket or a comma was found")]
fn split(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (at, letter) in list.char_indices() {
        match letter {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
        if depth < 0 {
            parts.push(list[from..at].trim());
            return parts;
        }
    }
    parts.push(list[from..].trim());
    parts
}
