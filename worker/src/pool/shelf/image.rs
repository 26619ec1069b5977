//! Which image an environment's name stands for. What is started is of the one that was seen last, and what is of another one
//! serves nobody new.

use std::sync::Arc;

use tokio::sync::OnceCell;

use super::{Shelf, Warm};

/// What an image's name stood for.
#[derive(Debug, Clone, Default)]
pub(in crate::pool) struct Image {
    /// None before it was seen, and where the driver has no images.
    pub(in crate::pool) id: Option<String>,
    /// Set once a sandbox of it stood the cheap attempts to break it.
    pub(in crate::pool) proof: Arc<OnceCell<()>>,
}

impl Image {
    /// Whether a sandbox is of this one.
    pub(super) fn is_of(&self, warm: &Warm) -> bool {
        self.id == warm.image_id
    }
}

impl Shelf {
    /// What was seen last.
    pub(in crate::pool) fn image(&self) -> Image {
        self.lock().image.clone()
    }

    /// Hears what the image's name stands for now. Answers whether that is another than before: then the sweep takes off what
    /// is of the older one. An image that is gone for a moment is not another one.
    pub(in crate::pool) fn see(&self, id: Option<&str>) -> bool {
        let mut state = self.lock();
        if id.is_none() || state.image.id.as_deref() == id {
            return false;
        }
        state.image = Image {
            id: id.map(str::to_owned),
            proof: Arc::default(),
        };
        true
    }

    /// Whether a sandbox is of the image that was seen last.
    pub(in crate::pool) fn is_current(&self, warm: &Warm) -> bool {
        self.lock().image.is_of(warm)
    }
}
