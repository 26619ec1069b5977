//! The workspace of a conversation or an agent, in and out of a sandbox.
//!
//! It is packed and unpacked inside; what passes here is a stream of bytes. Nothing of an attempt runs while its workspace
//! is restored or saved, so what is saved is whole.

use std::time::Instant;

use common::clock::Clock;
use common::ids::TenantId;
use common::job::event::EventBody;
use common::job::{Failure, FailureCode};
use common::store::Store;
use common::store::workspaces::{Save, Saved, Writer};
use common::workspace::tar::{DEPTH_MAX, PATH_MAX};
use common::workspace::{Error, Owner, Present, Workspaces};

use super::Context;
use super::keeper::NO_SPACE;
use crate::events::{Say, Sink};
use crate::sandbox::{self, GetFiles, PutFiles, Sandbox};

/// Files, folders and links that a workspace may have to be saved.
const ENTRIES_MAX: u64 = 200_000;

/// The workspace of one attempt.
#[derive(Debug)]
pub(super) struct Workspace {
    workspaces: Workspaces,
    store: Store,
    clock: Clock,
    events: Sink,
    tenant_id: TenantId,
    owner: Owner,
    writer: Writer,
    /// The most bytes of all files together: what the sandbox has room for.
    bytes_max: u64,
    /// The version that this attempt began with.
    present: Option<Present>,
}

impl Workspace {
    /// The present version of an owner's workspace, of which `bytes_max` fit into a sandbox. None where no worker keeps
    /// workspaces.
    pub(super) async fn find(context: &Context, owner: Owner, bytes_max: u64) -> Result<Option<Self>, Failure> {
        let machine = &context.machine;
        if !machine.workspaces.is_configured() {
            return Ok(None);
        }
        let tenant_id = context.job.tenant_id;
        let present = machine.store.workspace(tenant_id, owner).await.map_err(|error| {
            tracing::warn!(%error, "a workspace cannot be looked up");
            failed("its workspace could not be looked up")
        })?;
        Ok(Some(Self {
            workspaces: machine.workspaces.clone(),
            store: machine.store.clone(),
            clock: context.clock.clone(),
            events: context.events.clone(),
            tenant_id,
            owner,
            writer: Writer::Attempt {
                job_id: context.job.id,
                attempt: context.job.attempt,
                worker_id: context.worker_id,
            },
            bytes_max,
            present,
        }))
    }

    /// The version; 0 when there is none yet.
    pub(super) fn version(&self) -> u64 {
        self.present.map_or(0, |present| present.version)
    }

    /// Whose it is.
    pub(super) fn owner(&self) -> Owner {
        self.owner
    }

    /// Puts the files into an empty sandbox.
    pub(super) async fn restore(&self, sandbox: &Sandbox) -> Result<(), Failure> {
        let Some(present) = &self.present else { return Ok(()) };
        let archive = self.workspaces.open(Some(present)).await;
        let archive = archive.map_err(|error| refused(&Error::from(error), "restored"))?;
        let put = PutFiles {
            entries_max: ENTRIES_MAX,
            bytes_max: self.bytes_max,
            outside_links: true,
            ..PutFiles::default()
        };
        let begun = Instant::now();
        let put = sandbox.put_stream(archive, put).await;
        let report = put.map_err(|error| self.not_restored(error))?;
        metrics::histogram!("hothouse_workspace_restore_seconds").record(begun.elapsed().as_secs_f64());
        self.say(
            "workspace_restored",
            present.version,
            (report.bytes, report.entries),
            begun,
        );
        Ok(())
    }

    fn not_restored(&self, error: sandbox::Error) -> Failure {
        let sandbox::Error::Files { reason } = error else {
            return super::keeper::sandbox_failure(&error);
        };
        tracing::warn!(reason, owner = %self.owner.id(), "a workspace was not restored");
        let is_full = reason.contains(NO_SPACE) || reason.starts_with("more than");
        let code = if is_full {
            FailureCode::DiskFull
        } else {
            FailureCode::WorkspaceFailed
        };
        Failure::new(code, format!("its workspace could not be restored: {reason}"))
    }

    fn say(&self, phase: &str, version: u64, (bytes, entries): (u64, u64), begun: Instant) {
        let ms = begun.elapsed().as_millis();
        self.events.say(EventBody::Status {
            phase: phase.to_owned(),
            detail: Some(format!(
                "version {version}: {bytes} bytes in {entries} entries, {ms} ms"
            )),
        });
    }

    /// Saves the files, when they are not those that the attempt began with. Answers the version that they are.
    pub(super) async fn save(&mut self, sandbox: &Sandbox) -> Result<u64, Failure> {
        let begun = Instant::now();
        let saving = self.workspaces.begin(self.tenant_id, self.clock.now()).await;
        let mut saving = saving.map_err(|error| refused(&error, "saved"))?;
        let everything = GetFiles::everything(self.bytes_max, ENTRIES_MAX);
        let broken = |error: sandbox::Error| match error {
            sandbox::Error::Files { reason } => failed(&format!("its workspace could not be saved: {reason}")),
            error => super::keeper::sandbox_failure(&error),
        };
        let mut packing = sandbox.pack(everything).await.map_err(broken)?;
        while let Some(piece) = packing.next().await.map_err(broken)? {
            saving.write(&piece).await.map_err(|error| refused(&error, "saved"))?;
        }
        let report = packing.finish().await.map_err(broken)?;
        if report.incomplete {
            let message = format!(
                "its workspace was not saved, and is as before: it has more than {ENTRIES_MAX} entries, a path of more than \
                 {} folders or {PATH_MAX} bytes, or files of more than {} bytes",
                DEPTH_MAX - 1,
                self.bytes_max
            );
            return Err(Failure::new(FailureCode::DiskFull, message));
        }
        let unless = self.present.map(|present| present.digest);
        let packed = if self.present.is_none() && report.entries == 0 {
            None
        } else {
            saving
                .finish(unless.as_ref())
                .await
                .map_err(|error| refused(&error, "saved"))?
        };
        let Some(packed) = packed else {
            return Ok(self.version());
        };
        let save = Save {
            tenant_id: self.tenant_id,
            owner: self.owner,
            expected: self.version(),
            packed,
            bytes: report.bytes,
            entries: report.entries,
            writer: self.writer,
        };
        let saved = self.store.save_workspace(&save, self.clock.now()).await;
        let saved = saved.map_err(|error| refused(&Error::from(error), "saved"))?;
        metrics::histogram!("hothouse_workspace_save_seconds").record(begun.elapsed().as_secs_f64());
        match saved {
            Saved::Committed(version) => {
                self.say("workspace_saved", version, (report.bytes, report.entries), begun);
                Ok(version)
            }
            // Deleted meanwhile, or changed by another; the attempt's own end says which when it is not held any more.
            Saved::Stale | Saved::NotHeld => Err(failed("its workspace was changed or deleted by others meanwhile")),
        }
    }
}

fn failed(message: &str) -> Failure {
    Failure::new(FailureCode::WorkspaceFailed, message)
}

fn refused(error: &Error, what: &str) -> Failure {
    tracing::warn!(error = error as &dyn std::error::Error, "a workspace was not {what}");
    let why = match error {
        Error::Store(_) => "the database does not answer",
        Error::Objects(common::objects::Error::NotFound) => "its archive is gone",
        Error::Objects(_) => "the object store does not answer",
        Error::Archive(_) => "its archive is broken",
    };
    failed(&format!("its workspace could not be {what}: {why}"))
}
