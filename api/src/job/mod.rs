//! Jobs on the wire: what a submitter sends, what everybody reads, and what lies between.

mod fields;
mod input;
mod request;
mod view;

pub use fields::{JobFields, metadata_faults};
pub use input::{AgentRef, Runnable};
pub use request::{JobRequest, Submittable, prepare};
pub use view::{AttemptView, InputView, JobView};
