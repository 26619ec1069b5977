//! Artifacts: the files that a job asks to be kept.
//!
//! They leave the sandbox as a tar stream that was made by a process of the sandbox; it is read in memory and never
//! unpacked, and a path in it is only ever hashed into a key.

use std::io::Read as _;

use bytes::Bytes;
use common::job::event::EventBody;
use common::job::{Failure, FailureCode};
use common::objects::artifact_key;
use serde::Serialize;

use super::super::Context;
use super::super::keeper::sandbox_failure;
use crate::events::Say;
use crate::sandbox::{GetFiles, Sandbox};

/// A kept file, as the result shows it.
#[derive(Debug, Serialize)]
pub(super) struct Artifact {
    path: String,
    size: u64,
    url: String,
}

/// Fetches and stores the files that match.
pub(super) async fn keep(context: &Context, sandbox: &Sandbox, globs: &[String]) -> Result<Vec<Artifact>, Failure> {
    let files = sandbox.get_files(GetFiles::matching(globs)).await;
    let files = files.map_err(|error| sandbox_failure(&error))?;
    if files.report.incomplete {
        let detail = Some("not every file that matches was kept: at most 1,000 files and 64 MiB are".to_owned());
        context.events.say(EventBody::Status {
            phase: "artifacts_cut".to_owned(),
            detail,
        });
    }
    let mut kept = Vec::new();
    for (path, content) in read(&files.archive)? {
        let size = content.len() as u64;
        let key = artifact_key(context.job.id, context.job.attempt, &path);
        context.machine.objects.put(&key, content).await.map_err(|error| {
            tracing::error!(error = %format!("{:#}", anyhow::Error::from(error)), "an artifact was not stored");
            Failure::new(FailureCode::Internal, "an artifact could not be stored")
        })?;
        kept.push(Artifact {
            url: url(&context.job.id.to_string(), &path),
            path,
            size,
        });
    }
    Ok(kept)
}

fn read(archive: &Bytes) -> Result<Vec<(String, Bytes)>, Failure> {
    let broken = |_error: std::io::Error| Failure::new(FailureCode::SandboxFailed, "the artifacts arrived broken");
    let mut found = Vec::new();
    for entry in tar::Archive::new(&archive[..]).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(broken)?;
        found.push((path, Bytes::from(content)));
    }
    Ok(found)
}

/// The URL below the API, each part of the path encoded as RFC 3986, section 2.3, asks.
fn url(job_id: &str, path: &str) -> String {
    let encoded: String = path
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect();
    format!("/api/v1/jobs/{job_id}/artifacts/{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_encoded_part_by_part() {
        assert_eq!(
            url("J", "out/a b?é.png"),
            "/api/v1/jobs/J/artifacts/out/a%20b%3F%C3%A9.png"
        );
    }
}
