//! What init found out about its sandbox when it was greeted.

use std::os::fd::OwnedFd;

use crate::cgroup::Cgroup;
use crate::plan::Identity;

/// What all runs share.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Who programs run as.
    pub(crate) identity: Identity,
    /// Where files are moved to and from.
    pub(crate) workspace: String,
    /// Where programs can write.
    pub(crate) mounts: Vec<String>,
    /// The sandbox's counters.
    pub(crate) cgroup: Cgroup,
    /// Init's own file.
    pub(crate) own_image: OwnedFd,
}
