//! Which driver makes the sandboxes, and what it needs: the image for Docker, the init for bubblewrap.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::folder::DataFolder;
use super::progress::Step;
use super::{docker, process, programs};
use crate::output;

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wanted {
    /// Docker where an engine answers, else bubblewrap.
    Auto,
    Docker,
    Bubblewrap,
}

/// What is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sandboxes {
    /// Containers of this engine and image.
    Docker { host: String, image: String },
    /// Processes of this machine, for development.
    Bubblewrap { init: PathBuf },
}

impl Sandboxes {
    /// Finds out what can be used, and prepares it. An image is built once; that takes minutes.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub(crate) async fn prepare(
        wanted: Wanted,
        docker_host: &str,
        init: Option<PathBuf>,
        folder: &DataFolder,
    ) -> anyhow::Result<Self> {
        let step = Step::begin("sandboxes");
        let init = find_init(init)?;
        let engine = match wanted {
            Wanted::Bubblewrap => None,
            Wanted::Docker => Some(docker::probe(docker_host).await?),
            Wanted::Auto => docker::probe(docker_host)
                .await
                .ok()
                .filter(docker::Engine::is_new_enough),
        };
        if let Some(engine) = engine {
            if !engine.is_new_enough() {
                let version = engine.api_version;
                bail!(
                    "the Docker engine at {docker_host} is too old (API {version}): update it, or use --driver bubblewrap"
                );
            }
            match build_image(docker_host, &init, folder, &step).await {
                Ok(image) => {
                    step.done(&format!("Docker {}, image {image}", engine.version));
                    return Ok(Self::Docker {
                        host: docker_host.to_owned(),
                        image,
                    });
                }
                Err(error) if wanted == Wanted::Auto => output::note(format_args!("{error:#}")),
                Err(error) => return Err(error),
            }
        }
        if programs::find("bwrap").is_none() {
            bail!("there is neither a Docker engine nor bubblewrap: run `apt-get install bubblewrap`, or `make up`");
        }
        step.done("bubblewrap, which is for development: no Docker engine is used");
        Ok(Self::Bubblewrap { init })
    }
}

/// The init where the build leaves it, or beside this program.
pub(crate) fn find_init(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.join("hothouse-init")));
    let built = repository().map(|root| {
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        root.join("target/init").join(triple).join("init/hothouse-init")
    });
    let is_given = given.is_some();
    let found = given
        .into_iter()
        .chain(built.into_iter().chain(beside).filter(|_| !is_given))
        .find(|file| file.is_file());
    let found = found.context("hothouse-init is not built: run `make up`, or name it with HOTHOUSE_INIT")?;
    found
        .canonicalize()
        .with_context(|| format!("cannot read {}", found.display()))
}

/// The source tree that this program is called from, or was built in.
pub(crate) fn repository() -> Option<PathBuf> {
    let here = std::env::current_dir().ok();
    let built_in = std::env::current_exe().ok();
    let ancestors = here.iter().chain(&built_in).flat_map(|path| path.ancestors());
    ancestors
        .map(Path::to_owned)
        .find(|path| path.join("scripts/image.sh").is_file())
}

/// Builds the default image, unless it is there already; the last line that the script prints is its name.
async fn build_image(host: &str, init: &Path, folder: &DataFolder, step: &Step) -> anyhow::Result<String> {
    let root = repository().context("the image is built by scripts/image.sh: run in Hothouse's folder")?;
    let log = folder.join("image.log");
    let mut child = Command::new(root.join("scripts/image.sh"))
        .arg("default")
        .arg(init)
        .env("DOCKER_HOST", host)
        .env("HOTHOUSE_CACHE", folder.join("cache"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C on the terminal is for `up`, which then ends the whole group.
        .process_group(0)
        .spawn()
        .context("cannot run scripts/image.sh")?;
    let _group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()));
    let output = child.stdout.take().context("a script without its output")?;
    let remarks = child.stderr.take().context("a script without its remarks")?;
    let (image, kept) = tokio::join!(last_line(output), keep(remarks, &log, step));
    kept.with_context(|| format!("cannot write {}", log.display()))?;
    if !child.wait().await?.success() {
        let why = process::last_lines(&log, 2);
        bail!(
            "the sandbox image does not build: {why} (all of it is in {})",
            log.display()
        );
    }
    image?.context("scripts/image.sh named no image")
}

async fn last_line(output: impl AsyncRead + Unpin) -> std::io::Result<Option<String>> {
    let mut lines = BufReader::new(output).lines();
    let mut last = None;
    while let Some(line) = lines.next_line().await? {
        last = Some(line);
    }
    Ok(last)
}

/// Writes the script's remarks to its log, and shows each.
async fn keep(remarks: impl AsyncRead + Unpin, log: &Path, step: &Step) -> std::io::Result<()> {
    let mut file = tokio::fs::File::create(log).await?;
    let mut lines = BufReader::new(remarks).lines();
    while let Some(line) = lines.next_line().await? {
        // The rest is what the programs it calls have to say, and for the log.
        if let Some(remark) = line.strip_prefix("image.sh: ") {
            step.now(remark);
        }
        file.write_all(format!("{line}\n").as_bytes()).await?;
    }
    file.flush().await
}

/// A process group that ends with its owner.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Minus the pid is the group; where it has ended already there is nobody to hear.
            process::send(-pid, Signal::SIGTERM);
        }
    }
}
