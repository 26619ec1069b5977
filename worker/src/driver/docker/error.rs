//! What the engine's answers mean to us.

use bollard::errors::Error as Docker;
use uuid::Uuid;

use super::super::{Error, Spec};
use super::NAME;

/// The kernel's words for a full disk, which are all that the engine passes on of it.
const NO_ROOM: &str = "no space left on device";

/// The engine does not answer, or not as an engine does.
pub(super) fn unavailable(error: &Docker) -> Error {
    Error::Unavailable {
        driver: NAME,
        reason: format!("the Docker engine does not answer: {}", text(error)),
    }
}

/// A container was not created.
pub(super) fn create(spec: &Spec, error: Docker) -> Error {
    match error {
        // The only thing that a creation can miss.
        Docker::DockerResponseServerError { status_code: 404, .. } => Error::NoSuchImage {
            image: spec.image.clone(),
        },
        other => start(spec.id, other),
    }
}

/// A container was not started.
pub(super) fn start(id: Uuid, error: Docker) -> Error {
    match error {
        Docker::DockerResponseServerError { message, .. } if message.contains(NO_ROOM) => {
            Error::NoRoom { id, reason: message }
        }
        Docker::DockerResponseServerError { message, .. } => Error::Start { id, reason: message },
        other => unavailable(&other),
    }
}

/// A container was not removed.
pub(super) fn destroy(id: Uuid, error: Docker) -> Error {
    match error {
        Docker::DockerResponseServerError { message, .. } => Error::Destroy { id, reason: message },
        other => unavailable(&other),
    }
}

/// Whether there is no such container.
pub(super) fn is_gone(error: &Docker) -> bool {
    matches!(error, Docker::DockerResponseServerError { status_code: 404, .. })
}

/// Whether the container is being removed already.
pub(super) fn is_going(error: &Docker) -> bool {
    matches!(error, Docker::DockerResponseServerError { status_code: 409, .. })
}

/// Whether a wait succeeded, and the container had ended with something else than 0.
pub(super) fn is_exit(error: &Docker) -> bool {
    matches!(error, Docker::DockerContainerWaitError { .. })
}

/// The error with its causes: the library's own text is often only "client error".
fn text(error: &Docker) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
