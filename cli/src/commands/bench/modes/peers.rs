//! Other queues, measured by scripts that are no part of this repository.
//!
//! The folder holds a `driver.py` that takes `--peers a,b --modes x,y --rounds n` and prints, for each measurement, one
//! line with the Python dictionary of its figures: `peer`, `mode`, `rate` (a second), `p50` and `p99` (ms).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// One figure: (peer, mode, name) → value.
pub(super) type Figures = BTreeMap<(String, String, String), f64>;

/// Runs one peer's measurements.
///
/// # Errors
/// When the scripts cannot be run, or measured nothing.
pub(super) async fn measure(folder: &Path, peer: &str, modes: &str) -> anyhow::Result<Figures> {
    let driver = folder.join("driver.py");
    if !driver.is_file() {
        bail!(
            "{} is not there: --peers names the folder with the scripts of the others",
            driver.display()
        );
    }
    // Its own Python, where the scripts' README makes one.
    let own = Path::new("/tmp/peers-venv/bin/python");
    let python = if own.is_file() { own } else { Path::new("python3") };
    let output = Command::new(python)
        .arg("driver.py")
        .args(["--peers", peer, "--modes", modes, "--rounds", "1"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run {}", driver.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Figures = text.lines().filter_map(read).flatten().collect();
    if figures.is_empty() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{peer} was not measured: {}{}", text.trim(), error.trim());
    }
    Ok(figures)
}

/// A figure and what it is of: peer, mode, name.
type Figure = ((String, String, String), f64);

/// The figures of one line such as `{'rate': 13559.1, 'p50': 4.1, 'peer': 'bullmq', 'mode': 'http'}`.
fn read(line: &str) -> Option<Vec<Figure>> {
    let fields = line.trim().strip_prefix('{')?.strip_suffix('}')?;
    let fields: BTreeMap<&str, &str> = fields
        .split(", '")
        .filter_map(|field| field.split_once("': "))
        .map(|(name, value)| (name.trim_start_matches('\''), value.trim_matches('\'')))
        .collect();
    let (peer, mode) = (fields.get("peer")?, fields.get("mode")?);
    let figure = |name: &str| {
        let value = fields.get(name)?.parse().ok()?;
        Some((((*peer).to_owned(), (*mode).to_owned(), name.to_owned()), value))
    };
    Some(["rate", "p50", "p99"].into_iter().filter_map(figure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_figures_is_read() {
        let line =
            "{'rate': 13559.1, 'p50': 4.1, 'p99': 54.5, 'errors': None, 'peer': 'bullmq', 'mode': 'http', 'round': 0}";
        let figures: Figures = read(line).unwrap().into_iter().collect();
        let key = |name: &str| ("bullmq".to_owned(), "http".to_owned(), name.to_owned());
        assert_eq!(figures.get(&key("rate")), Some(&13559.1));
        assert_eq!(figures.get(&key("p99")), Some(&54.5));
        assert!(read("node: something else").is_none());
    }
}
