//! Jobs on the wire: what a submitter sends, what everybody reads, and what lies between.

mod fields;
mod group;
mod input;
mod request;
mod timestamp;
mod view;

pub use fields::{JobFields, metadata_faults, split};
pub(crate) use fields::{duration, is_short_text, split_at};
pub use input::{AgentRef, AgentRun, ResolvedAgent, Runnable};
pub(crate) use input::{fits, refuse};
pub use request::{JobRequest, Submittable, job_for, prepare};
pub(crate) use request::{below, job_at};
pub use view::{AttemptView, InputView, JobView};
