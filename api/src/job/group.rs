//! The input of a group: every job of it is checked as if it were submitted alone.

use common::job::NewJob;
use common::job::group::{GroupInput, GroupJob, OnFailure};
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::input::Runnable;
use super::request::{JobRequest, Submittable, prepare, slot_of};
use crate::auth::Caller;
use crate::extract::from_json;
use crate::problem::Problem;
use crate::state::App;

/// The input of a `group` as it is submitted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupFields {
    /// What happens to the others when one of its jobs does not succeed: `continue` or `cancel`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    on_failure: OnFailure,
    /// 1 to 1,000 jobs as for `POST /jobs`, but for groups, `run_at` and `delay`.
    #[schema(value_type = Vec<JobRequest>)]
    jobs: Vec<Box<RawValue>>,
}

/// Reads the input of a group, which stands at `base` in the body.
///
/// # Errors
/// As each of its jobs alone, and 422 for a job that cannot be part of a group.
pub(super) async fn read(app: &App, caller: &Caller, json: &str, base: &str) -> Result<Runnable, Problem> {
    let fields: GroupFields = from_json(json, base)?;
    let max = app.config().submit.group_jobs_max;
    if fields.jobs.is_empty() || fields.jobs.len() > max {
        return Err(Problem::field(format!("{base}/jobs"), format!("has 1 to {max} items")));
    }
    let mut jobs = Vec::with_capacity(fields.jobs.len());
    for (place, json) in fields.jobs.iter().enumerate() {
        let base = format!("{base}/jobs/{place}");
        // Asked before the job is read: a group in a group in a group would be read as deep as it goes.
        if is_group(json) {
            return Err(Problem::field(
                format!("{base}/kind"),
                "cannot be group: a job of a group is none itself",
            ));
        }
        jobs.push(member(prepare(app, caller, json.get(), &base).await?, &base)?);
    }
    let stored = GroupInput {
        on_failure: fields.on_failure,
        jobs,
    };
    Ok(Runnable {
        input: serde_json::to_vec(&stored).unwrap_or_default(),
        slot: slot_of(Submittable::Group),
        agent: None,
        timeout: None,
        alone: None,
    })
}

fn is_group(json: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct OfKind<'a> {
        kind: Option<std::borrow::Cow<'a, str>>,
    }
    serde_json::from_str::<OfKind<'_>>(json.get()).is_ok_and(|job| job.kind.as_deref() == Some("group"))
}

fn member(job: NewJob, base: &str) -> Result<GroupJob, Problem> {
    if job.spec.run_at.is_some() {
        let detail = "is left out, as is delay: the jobs of a group run when the group does";
        return Err(Problem::field(format!("{base}/run_at"), detail));
    }
    let input =
        serde_json::from_slice(&job.input).map_err(|_broken| Problem::field(format!("{base}/input"), "is no JSON"))?;
    Ok(GroupJob {
        spec: job.spec,
        class: job.class,
        agent: job.links.agent,
        input,
    })
}
