//! Backlogs that were full and lines at gates that were too long: what waits in Postgres is brought in as there is room.

use common::ids::JobId;
use common::queue::{Line, Spilled};
use common::store::recent::Left;

use super::{DRAINING, FULL, IDLE, Redispatch, lanes};

impl Redispatch {
    /// Whether more of a backlog is brought in. Half of it at once, or it would be asked for all the time.
    fn has_room(&self, lane: &Spilled) -> bool {
        lane.room >= self.dispatched_max.div_ceil(2)
    }

    /// Brings in what is next of the backlogs that were full, and of the lines at gates. Answers how many jobs it added.
    pub(super) async fn page_in(&self) -> anyhow::Result<u64> {
        let (spilled, lines) = (self.queue.spilled().await?, self.queue.lines().await?);
        let crowded = self.queue.crowded().await?;
        let before = std::mem::replace(&mut self.cursor().spilled, spilled.clone());
        let is_idle = spilled.is_empty() && lines.is_empty() && crowded.is_empty();
        self.pause.set(if is_idle {
            IDLE
        } else if spilled == before && !crowded.iter().any(lanes::has_room) {
            FULL
        } else {
            DRAINING
        });
        let mut added = self.bring_lanes(&crowded).await? + self.bring_lines(&lines).await?;
        for lane in spilled.iter().filter(|lane| self.has_room(lane)) {
            let is_its =
                |line: &&Line| line.tenant_id == lane.tenant_id && line.queue == lane.queue && line.class == lane.class;
            let gates: Vec<&str> = lines.iter().filter(is_its).map(|line| line.gate.as_str()).collect();
            let (of, limit) = ((lane.queue.as_str(), lane.class.as_str()), self.dispatched_max);
            let next = self.store.next_past(lane.tenant_id, of, &gates, limit).await?;
            let done = self.dispatch(&self.unknown(lane.tenant_id, &next).await?).await?;
            added += done.added;
            if done.spilled == 0 && is_all(&next, limit) {
                self.queue.unspill(&lane.queue, &lane.class, lane.tenant_id).await?;
            }
        }
        Ok(added)
    }

    /// Brings in what is next of the lines at gates that were too long.
    async fn bring_lines(&self, lines: &[Line]) -> anyhow::Result<u64> {
        let (mut added, limit) = (0, self.queue.line_max());
        for line in lines.iter().filter(|line| line.is_short) {
            let of = (line.queue.as_str(), line.class.as_str());
            let next = self.store.next_at_gate(line.tenant_id, of, &line.gate, limit).await?;
            let unknown = self.unknown(line.tenant_id, &next).await?;
            let done = self.offer(&unknown, true).await?;
            added += done.added;
            if done.spilled == 0 && is_all(&next, limit) {
                self.queue.end_line(line).await?;
            }
        }
        Ok(added)
    }

    /// What waits in Postgres for room: [`Self::page_in`] brings it. Of a flood that is nearly everything, and reading each of
    /// its rows to be told that there is no room costs more than accepting it.
    pub(super) async fn left(&self) -> anyhow::Result<Vec<Left>> {
        let lanes = self.queue.spilled().await?.into_iter();
        // Where others may stand at a gate for hours, what there is room for does not wait for half a backlog.
        let is_brought = |lane: &Spilled| lane.room == 0 || lane.parked == 0 || self.has_room(lane);
        let lanes = lanes.filter(|lane| !lane.is_alone && is_brought(lane));
        let left = lanes.filter_map(|lane| {
            Some(Left {
                from: lane.last?,
                tenant_id: lane.tenant_id,
                queue: lane.queue,
                class: lane.class,
            })
        });
        Ok(left.collect())
    }
}

/// Whether these jobs are all that there were.
fn is_all(next: &[JobId], limit: u32) -> bool {
    next.len() < usize::try_from(limit).unwrap_or(usize::MAX)
}
