//! What Redis holds of jobs, key by key: for tests that check whether it agrees with itself.

use std::collections::BTreeMap;

use redis::aio::MultiplexedConnection;

use super::TestEnv;

/// Members of each key, with what stands beside each: its record, score or stream entry.
pub type Contents = BTreeMap<String, BTreeMap<String, String>>;

impl TestEnv {
    /// Every key below the test's prefix that names jobs, tenants or lanes.
    pub async fn contents(&self) -> Contents {
        let client = redis::Client::open(self.redis.url.expose()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut contents = Contents::new();
        for key in self.queue.keys().await.unwrap() {
            if let Some(members) = members(&mut connection, &key).await {
                contents.insert(key, members);
            }
        }
        contents
    }
}

async fn members(connection: &mut MultiplexedConnection, key: &str) -> Option<BTreeMap<String, String>> {
    let (_, name) = key.split_once("}:")?;
    if !["idx", "b", "w", "leases", "views", "ring", "of", "h", "open", "lanes"].contains(&name.split(':').next()?) {
        return None;
    }
    let kind: String = redis::cmd("TYPE").arg(key).query_async(connection).await.unwrap();
    let mut command = redis::Cmd::new();
    match kind.as_str() {
        "hash" => command.arg("HGETALL").arg(key),
        "zset" => command.arg("ZRANGE").arg(key).arg(0).arg(-1).arg("WITHSCORES"),
        "set" => {
            let all: Vec<String> = command.arg("SMEMBERS").arg(key).query_async(connection).await.unwrap();
            return Some(all.into_iter().map(|member| (member, String::new())).collect());
        }
        "stream" => {
            command.arg("XRANGE").arg(key).arg("-").arg("+");
            let all: Vec<(String, Vec<String>)> = command.query_async(connection).await.unwrap();
            return Some(
                all.into_iter()
                    .map(|(entry, fields)| (fields[1].clone(), entry))
                    .collect(),
            );
        }
        _ => return None,
    };
    let pairs: Vec<(String, String)> = command.query_async(connection).await.unwrap();
    Some(pairs.into_iter().collect())
}
