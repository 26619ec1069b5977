//! The log of a job as it is now, page by page.

use uuid::Uuid;

use super::{Client, Error, Event, Page};

/// Reads a job's events that are there already.
#[derive(Debug)]
pub(crate) struct LogPages<'c> {
    client: &'c Client,
    job_id: Uuid,
    after: Option<u64>,
    is_over: bool,
}

impl<'c> LogPages<'c> {
    /// From the first event, or from the one after `after`.
    pub(crate) fn new(client: &'c Client, job_id: Uuid, after: Option<u64>) -> Self {
        Self {
            client,
            job_id,
            after,
            is_over: false,
        }
    }

    /// The next page; none when the log as it is now was read.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let mut query = vec![("limit", Client::PAGE_ROWS.to_string())];
        query.extend(self.after.map(|after| ("after", after.to_string())));
        let page: Page = self
            .client
            .get(&["jobs", &self.job_id.to_string(), "events"], &query)
            .await?;
        let events = page
            .data
            .into_iter()
            .map(serde_json::from_value)
            .collect::<Result<Vec<Event>, _>>();
        let events = events.map_err(Error::Answer)?;
        let last = events.last().map(|event| event.seq);
        // A page that leads no further is the last, whatever it says.
        self.is_over = page.next_cursor.is_none() || last <= self.after;
        self.after = last.max(self.after);
        Ok(Some(events))
    }
}
