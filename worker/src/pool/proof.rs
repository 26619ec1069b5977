//! Before the first sandbox of an environment serves, another one is attacked with the cheap attempts of
//! [`crate::verify`]. Where one succeeds, nothing of that environment serves. A newer image is another environment in this.

use uuid::Uuid;

use super::shelf::Image;
use super::{Error, Inner};
use crate::driver::Spec;
use crate::sandbox::{self, FailureCode, Sandbox};
use crate::verify;

/// Waits for the proof of the environment with this image; one start at a time gives it, until it is given.
pub(super) async fn prove(pool: &Inner, image: &Image, spec: &Spec) -> Result<(), Error> {
    image.proof.get_or_try_init(|| attack(pool, spec)).await.copied()
}

async fn attack(pool: &Inner, like: &Spec) -> Result<(), Error> {
    let spec = Spec {
        id: Uuid::now_v7(),
        ..like.clone()
    };
    pool.know(spec.id);
    let attacked = attempts(pool, &spec).await;
    // The pipe is closed by now; what is left of it is the reaper's when this fails.
    if let Err(e) = pool.driver.destroy(spec.id).await {
        tracing::warn!(sandbox_id = %spec.id, error = %e, "a sandbox is left to the reaper");
    }
    pool.known().remove(&spec.id);
    attacked
}

async fn attempts(pool: &Inner, spec: &Spec) -> Result<(), Error> {
    let pipe = pool.driver.start(spec).await.map_err(Error::Start)?;
    let sandbox = Sandbox::connect(pipe, &pool.sandbox).await.map_err(Error::Connect)?;
    match verify::probe(&sandbox).await {
        Ok(None) | Err(verify::Error::Setup(_)) => Ok(()),
        Ok(Some((attempt, verdict))) => Err(Error::Unsealed {
            attempt,
            verdict: format!("{verdict:?}"),
        }),
        // An image without Python cannot be attacked from inside; it is served, and that is said.
        Err(verify::Error::Sandbox(sandbox::Error::Refused(failure))) if failure.code == FailureCode::NotFound => {
            let environment = &spec.environment;
            tracing::warn!(environment, "sandboxes without python3 serve without having been tried");
            Ok(())
        }
        Err(verify::Error::Sandbox(error)) => Err(Error::Connect(error)),
        Err(verify::Error::Start(error)) => Err(Error::Start(error)),
    }
}
