//! Saving the files that a program made.

use std::path::{Component, Path};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;
use tokio::fs;
use tokio::io::AsyncWriteExt as _;

use crate::client::Client;
use crate::output;

#[derive(Debug, Deserialize)]
struct Artifact {
    path: String,
    #[serde(default)]
    size: u64,
    url: String,
}

/// Saves every artifact of a result below a folder, under its own path.
///
/// # Errors
/// A path that leads out of the folder, an artifact that cannot be read, a file that cannot be written.
pub(super) async fn save(client: &Client, result: &Value, folder: &Path) -> anyhow::Result<()> {
    let Some(artifacts) = result.get("artifacts") else {
        return Ok(());
    };
    let artifacts: Option<Vec<Artifact>> = serde_json::from_value(artifacts.clone()).context("artifacts of the job")?;
    for artifact in artifacts.unwrap_or_default() {
        save_one(client, &artifact, folder)
            .await
            .with_context(|| format!("artifact {}", output::clean(&artifact.path)))?;
    }
    Ok(())
}

async fn save_one(client: &Client, artifact: &Artifact, folder: &Path) -> anyhow::Result<()> {
    let relative = Path::new(&artifact.path);
    if !is_below(relative) {
        bail!("its path leads out of the folder");
    }
    let path = folder.join(relative);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).await?;
    }
    let mut response = client.open(client.resolve(&artifact.url)?).await?;
    let mut file = fs::File::create(&path).await?;
    let bar = output::bar(artifact.size, "saving");
    while let Some(piece) = response.chunk().await? {
        file.write_all(&piece).await?;
        bar.inc(piece.len().try_into().unwrap_or(u64::MAX));
    }
    file.flush().await?;
    bar.finish_and_clear();
    output::note(format_args!("saved {}", path.display()));
    Ok(())
}

/// Is it a plain path that stays below wherever it is put?
fn is_below(path: &Path) -> bool {
    let mut components = path.components().peekable();
    components.peek().is_some() && components.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_never_leaves_its_folder() {
        for path in ["out/a.png", "a", "a b/..c"] {
            assert!(is_below(Path::new(path)), "{path}");
        }
        for path in ["", "/etc/passwd", "../a", "a/../../b", "."] {
            assert!(!is_below(Path::new(path)), "{path}");
        }
    }
}
