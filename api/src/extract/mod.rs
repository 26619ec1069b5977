//! Reading requests, so that everything a client can send wrong has a clear answer.

mod body;
mod params;
mod path;

pub use body::{OptionalJson, RawBody, ValidJson, from_json, from_json_beside};
pub use params::{Cursor, Params};
pub use path::{PathId, PathSteps};
