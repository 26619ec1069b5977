//! What a worker says of its environments.

use common::store::environments::Offered;

use super::{Environment, Reuse};

impl Environment {
    /// What others are told of it; `image_id` is what its image's name stands for now.
    pub fn offered(&self, image_id: Option<String>) -> Offered {
        let Self {
            profile, warm, egress, ..
        } = self;
        Offered {
            name: self.name.clone(),
            description: self.description.clone(),
            image: self.image(),
            image_id,
            languages: self.languages.keys().cloned().collect(),
            cpus: profile.cpus,
            memory_bytes: profile.memory_bytes,
            pids: profile.pids,
            workspace_bytes: profile.workspace_bytes,
            warm_size: warm.size,
            warm_max: warm.max,
            egress: egress.clone(),
            installs: !self.install.allow.is_empty(),
            reuse: match self.reuse {
                Reuse::Never => "never",
                Reuse::User => "user",
            }
            .to_owned(),
        }
    }
}
