//! The Docker engine without a pool: sandboxes that a measurement makes and destroys itself.

use std::sync::Arc;

use uuid::Uuid;
use worker::driver::docker::{DockerDriver, Settings};
use worker::driver::{Pipe, Profile, SandboxDriver, Spec};

/// The engine, and what it starts. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    driver: Arc<DockerDriver>,
    image: String,
    worker_id: Uuid,
}

impl Engine {
    /// The engine that Docker's own command would use.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) async fn open(image: &str) -> anyhow::Result<Self> {
        let driver = Arc::new(DockerDriver::new(Settings::default()));
        driver.check().await?;
        Ok(Self {
            driver,
            image: image.to_owned(),
            worker_id: Uuid::now_v7(),
        })
    }

    /// Starts a sandbox of the usual size.
    ///
    /// # Errors
    /// When the engine does not start it.
    pub(super) async fn start(&self) -> anyhow::Result<(Uuid, Pipe)> {
        let spec = Spec {
            id: Uuid::now_v7(),
            worker_id: self.worker_id,
            environment: "bench".to_owned(),
            image: self.image.clone(),
            image_id: None,
            profile: Profile::default(),
        };
        Ok((spec.id, self.driver.start(&spec).await?))
    }

    /// Removes one.
    ///
    /// # Errors
    /// When the engine does not remove it.
    pub(super) async fn destroy(&self, id: Uuid) -> anyhow::Result<()> {
        Ok(self.driver.destroy(id).await?)
    }
}
