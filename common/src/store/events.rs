//! The written part of event logs: chunks of JSON lines, compressed when that pays.

use std::collections::HashSet;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::row::{bigint, int};
use super::{Error, Store};
use crate::ids::{JobId, WorkerId};
use crate::job::event::Event;

/// First bytes of a zstd frame (RFC 8878, section 3.1.1); JSON never begins so.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Below this many bytes a chunk is kept as it is.
const COMPRESS_FROM: usize = 512;

/// Consecutive events of one job, ready to be written.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub(super) job_id: JobId,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) data: Vec<u8>,
}

impl Chunk {
    /// Whose events.
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    /// Number of the last of its events.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Bytes that it takes in Postgres.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Packs events, which are in order. `None` when there are none.
    pub fn pack(job_id: JobId, events: &[Event]) -> Option<Self> {
        let (first, last) = (events.first()?, events.last()?);
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, event).expect("an event has only string keys");
            lines.push(b'\n');
        }
        let data = if lines.len() < COMPRESS_FROM {
            lines
        } else {
            zstd::bulk::compress(&lines, 3).expect("compressing into memory cannot fail")
        };
        Some(Self {
            job_id,
            first_seq: first.seq,
            last_seq: last.seq,
            data,
        })
    }
}

/// Bytes of events after which no more are read for a page, whatever its limit: whoever asks may never take the answer.
const PAGE_BYTES: usize = 512 * 1024;

/// Reads what [`Chunk::pack`], or a statement that writes a plain event, wrote; with its length when it is not compressed.
fn unpack(data: &[u8]) -> Result<(Vec<Event>, usize), Error> {
    let corrupt = |error: &dyn std::fmt::Display| Error::Corrupt(format!("event chunk: {error}"));
    let decompressed;
    let lines = if data.starts_with(&ZSTD_MAGIC) {
        decompressed = zstd::stream::decode_all(data).map_err(|error| corrupt(&error))?;
        decompressed.as_slice()
    } else {
        data
    };
    // A text of JSON has no line break of its own.
    let events = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let events: Result<Vec<Event>, Error> = events
        .map(|line| Event::read(line).map_err(|error| corrupt(&error)))
        .collect();
    Ok((events?, lines.len()))
}

impl Store {
    /// Written events after `after`, in order, until `limit` or more are read, or some hundred KiB. The flag says whether
    /// there may be more.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn events(&self, job_id: JobId, after: u64, limit: usize) -> Result<(Vec<Event>, bool), Error> {
        // Chunks are up to 256 KiB before compression.
        const CHUNKS: i64 = 2;
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut from = after;
        loop {
            let rows = sqlx::query(
                "select last_seq, data from job_events where job_id = $1 and last_seq > $2 order by first_seq limit $3",
            )
            .bind(job_id)
            .bind(bigint(from))
            .bind(CHUNKS)
            .fetch_all(self.pool())
            .await?;
            for row in &rows {
                let (chunk, length) = unpack(row.try_get::<&[u8], _>("data")?)?;
                bytes += length;
                events.extend(chunk.into_iter().filter(|event| event.seq > after));
                from = u64::try_from(row.try_get::<i64, _>("last_seq")?).unwrap_or(from);
            }
            let more = rows.len() == usize::try_from(CHUNKS).unwrap_or(usize::MAX);
            if !more || events.len() >= limit || bytes >= PAGE_BYTES {
                return Ok((events, more));
            }
        }
    }

    /// Writes a chunk of an attempt that is still the caller's: see [`Self::append_chunks`].
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when the attempt is not current any more.
    pub async fn append_chunk(&self, chunk: &Chunk, attempt: u32, worker_id: WorkerId) -> Result<(), Error> {
        let written = self.append_chunks(worker_id, &[(chunk.clone(), attempt)]).await?;
        written.contains(&chunk.job_id).then_some(()).ok_or(Error::LeaseLost)
    }

    /// Writes chunks of attempts, each of another job, as far as they are still the caller's; answers the jobs of those.
    /// Repeating it, even with more events after the same first one, leaves one chunk, the longest: a commit whose answer was
    /// lost is tried again, and may come to be after that.
    ///
    /// # Errors
    /// When Postgres is away: then none is written.
    pub async fn append_chunks(&self, worker_id: WorkerId, chunks: &[(Chunk, u32)]) -> Result<HashSet<JobId>, Error> {
        self.within(async {
            let all = |value: fn(&Chunk) -> i64| chunks.iter().map(|(chunk, _)| value(chunk)).collect::<Vec<_>>();
            let written: Vec<Uuid> = sqlx::query_scalar(
                // Whoever takes an attempt over locks its row first, then reads how far its log goes: it sees what is written
                // here, or nothing is. Ids in order, so that no two wait for each other.
                "with held as materialized (
                    select j.id from unnest($1::uuid[], $5::int[]) as c (job_id, attempt)
                    join jobs j on j.id = c.job_id and j.state = 'running' and j.attempt = c.attempt and j.worker_id = $6
                    order by j.id for share of j
                 )
                 insert into job_events (job_id, first_seq, last_seq, data)
                 select c.job_id, c.first_seq, c.last_seq, c.data
                 from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bytea[]) as c (job_id, first_seq, last_seq, data)
                 join held on held.id = c.job_id
                 on conflict (job_id, first_seq) do update set last_seq = excluded.last_seq, data = excluded.data
                    where excluded.last_seq >= job_events.last_seq
                 returning job_id",
            )
            .bind(
                chunks
                    .iter()
                    .map(|(chunk, _)| chunk.job_id.uuid())
                    .collect::<Vec<Uuid>>(),
            )
            .bind(all(|chunk| bigint(chunk.first_seq)))
            .bind(all(|chunk| bigint(chunk.last_seq)))
            .bind(
                chunks
                    .iter()
                    .map(|(chunk, _)| chunk.data.as_slice())
                    .collect::<Vec<_>>(),
            )
            .bind(chunks.iter().map(|(_, attempt)| int(*attempt)).collect::<Vec<_>>())
            .bind(worker_id)
            .fetch_all(self.pool())
            .await?;
            Ok(written.into_iter().map(JobId).collect())
        })
        .await
    }
}

/// Writes chunks in the transaction that changes their jobs' rows.
pub(super) async fn insert_chunks(connection: &mut PgConnection, chunks: &[&Chunk]) -> Result<(), Error> {
    if chunks.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into job_events (job_id, first_seq, last_seq, data)
         select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bytea[])
         on conflict (job_id, first_seq) do update set last_seq = excluded.last_seq, data = excluded.data
            where excluded.last_seq >= job_events.last_seq",
    )
    .bind(chunks.iter().map(|chunk| chunk.job_id.uuid()).collect::<Vec<Uuid>>())
    .bind(chunks.iter().map(|chunk| bigint(chunk.first_seq)).collect::<Vec<_>>())
    .bind(chunks.iter().map(|chunk| bigint(chunk.last_seq)).collect::<Vec<_>>())
    .bind(chunks.iter().map(|chunk| chunk.data.as_slice()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Number of the last written event of a job; 0 when none is.
pub(super) async fn last_written(connection: &mut PgConnection, job_id: JobId) -> Result<u64, Error> {
    let last: Option<i64> = sqlx::query_scalar("select max(last_seq) from job_events where job_id = $1")
        .bind(job_id)
        .fetch_one(connection)
        .await?;
    Ok(last.and_then(|seq| u64::try_from(seq).ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::event::EventBody;

    #[test]
    fn small_and_large_chunks_come_back_whole() {
        let at = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        for text in ["\0", &"line\n".repeat(50_000)] {
            let events: Vec<Event> = (1..4)
                .map(|seq| Event {
                    seq,
                    at,
                    attempt: 1,
                    body: EventBody::Stdout { text: text.to_owned() },
                })
                .collect();
            let chunk = Chunk::pack(JobId::new(), &events).unwrap();
            assert_eq!((chunk.first_seq, chunk.last_seq), (1, 3));
            assert!(chunk.data.len() < 2_000);
            assert_eq!(unpack(&chunk.data).unwrap().0, events);
        }
        assert!(Chunk::pack(JobId::new(), &[]).is_none());
    }
}
