//! Rolling over to a newer image: what starts is of the image that the environment's name stands for, what is warm or kept of
//! an older one is retired, and what a job has stays until the job ends.

use std::sync::Arc;
use std::time::Duration;

use super::shelf::{Image, Shelf};
use super::{Inner, refill};
use crate::driver::Error;

/// How often it is asked what an image's name stands for, besides before each start.
const LOOK: Duration = Duration::from_secs(10);

/// Runs until the pool stops.
pub(super) async fn run(pool: Arc<Inner>) {
    loop {
        tick(&pool).await;
        tokio::select! {
            () = pool.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Looks once.
pub(super) async fn tick(pool: &Arc<Inner>) {
    for shelf in pool.shelves.values() {
        if let Err(error) = look(pool, shelf).await {
            // Starts say the same, and louder.
            tracing::debug!(%error, "images cannot be looked at");
        }
    }
}

/// Looks what an environment's image is now; what is of an older one is retired.
pub(super) async fn look(pool: &Arc<Inner>, shelf: &Arc<Shelf>) -> Result<Image, Error> {
    let name = shelf.environment.image();
    let found = pool.driver.image_id(&name).await?;
    if shelf.see(found.as_deref()) {
        let (environment, image) = (&shelf.environment.name, &found);
        tracing::info!(environment, image, "sandboxes are of this image from now on");
        refill::retire(pool, shelf, false);
        pool.wake.notify_one();
    }
    let image = shelf.image();
    if found.is_none() && image.id.is_some() {
        // It may be there all the same, without a name, as long as sandboxes of it are.
        return Err(Error::NoSuchImage { image: name });
    }
    Ok(image)
}
