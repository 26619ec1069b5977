//! Which session of the command line's is a conversation's.

use common::message::Message;
use uuid::Uuid;

use super::super::super::exec::Broken;
use super::super::place::Place;
use crate::claude::{CONFIG_DIR, SESSIONS_DIR, Session};
use crate::sandbox::{Output, RunSpec};

/// Prints the id of the session whose transcript is there: that of the conversation's own id, or the one that was noted.
const FIND: &str = r#"has() { ls "$1"/projects/*/"$2".jsonl >/dev/null 2>&1; }
has "$1" "$3" && echo "$3" && exit
read -r noted <"$2/$3" && has "$1" "$noted" && echo "$noted""#;

/// The session of this conversation, or of this run.
pub(super) async fn find(place: &Place<'_>, history: &[Message]) -> Result<Session, Broken> {
    let name = place.name();
    if history.len() < 2 && place.context.job.attempt < 2 {
        return Ok(Session::New(name));
    }
    let spec = RunSpec::new(["/bin/sh", "-c", FIND, "sh", CONFIG_DIR, SESSIONS_DIR, &name]);
    let mut running = place.sandbox().run(spec).await?;
    let mut printed = Vec::new();
    while let Some(output) = running.next().await {
        if let Output::Stdout(bytes) = output {
            printed.extend_from_slice(&bytes);
        }
    }
    running.wait().await?;
    // What a workspace holds may be anything.
    let found = str::from_utf8(&printed)
        .ok()
        .and_then(|text| Uuid::parse_str(text.trim()).ok());
    Ok(found.map_or(Session::New(name), |id| Session::Known(id.to_string())))
}
