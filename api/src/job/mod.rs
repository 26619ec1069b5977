//! Jobs on the wire: what a submitter sends, what everybody reads, and what lies between.

mod fields;
mod group;
mod input;
mod request;
mod view;

pub(crate) use fields::is_short_text;
pub use fields::{JobFields, metadata_faults, split};
pub use input::{AgentRef, ResolvedAgent, Runnable};
pub(crate) use input::{fits, refuse};
pub use request::{JobRequest, Submittable, job_for, prepare};
pub use view::{AttemptView, InputView, JobView};
