//! A Redis that comes back with older contents, for tests that share one and cannot restart it.

use redis::aio::MultiplexedConnection;

use super::TestEnv;

/// What Redis held of a test: each key, its contents and how long it is kept, ms.
#[derive(Clone, Debug)]
pub struct Saved(Vec<(String, Vec<u8>, i64)>);

impl TestEnv {
    /// What Redis holds now.
    pub async fn save_redis(&self) -> Saved {
        let (mut connection, mut saved) = (self.connect().await, Vec::new());
        for key in self.queue.keys().await.unwrap() {
            let (contents, ttl): (Option<Vec<u8>>, i64) = redis::pipe()
                .cmd("DUMP")
                .arg(&key)
                .cmd("PTTL")
                .arg(&key)
                .query_async(&mut connection)
                .await
                .unwrap();
            saved.extend(contents.map(|contents| (key, contents, ttl.max(0))));
        }
        Saved(saved)
    }

    /// Puts it back, as a server does that was started from a file: another one than that to which it was written.
    pub async fn roll_back_redis(&self, saved: &Saved) {
        self.wipe_redis().await;
        let mut connection = self.connect().await;
        for (key, contents, ttl) in &saved.0 {
            let mut pipe = redis::pipe();
            pipe.cmd("RESTORE").arg(key).arg(*ttl).arg(contents).ignore();
            if key.ends_with("}:gen") {
                pipe.cmd("HSET").arg(key).arg("server").arg("another").ignore();
            }
            let () = pipe.query_async(&mut connection).await.unwrap();
        }
        self.queue.hang_up();
    }

    async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.redis.url.expose()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }
}
