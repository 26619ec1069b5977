//! Configuration: documented defaults ← a file ← the environment.
//!
//! The defaults are TOML files with a comment on every key; they are the reference. `HOTHOUSE_SECTION__KEY` overrides
//! `[section] key`. An unknown key is an error; a section that this process does not have is left to the process that
//! has it, because `hothouse up` runs several in one environment. Read once, in `main`; sections are passed on, never
//! the whole.

mod secret;
mod sections;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat, Map};
use serde::de::DeserializeOwned;

pub use secret::Secret;
pub use sections::{Database, Leases, Redis};

/// The defaults of the sections that all processes share.
pub const SHARED_DEFAULTS: &str = include_str!("shared.default.toml");

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source cannot be read, a key is unknown or a value has the wrong type.
    #[error("configuration: {0}")]
    Read(#[from] config::ConfigError),
    /// Two settings do not go together.
    #[error("configuration: {0}")]
    Invalid(String),
    /// A file that a `*_file` setting names cannot be read.
    #[error("configuration: cannot read {path}")]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A process's configuration.
pub trait Settings: DeserializeOwned {
    /// The documented defaults of its own sections, TOML.
    const DEFAULTS: &'static str;

    /// Refuses values that do not go together.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a sentence that names both settings.
    fn validate(&self) -> Result<(), Error>;
}

/// Merges the defaults, `file` and the variables of `environment`, and validates.
///
/// # Errors
/// A sentence that names the key.
pub fn load<S: Settings>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<S, Error> {
    let defaults = Config::builder()
        .add_source(File::from_str(SHARED_DEFAULTS, FileFormat::Toml))
        .add_source(File::from_str(S::DEFAULTS, FileFormat::Toml));
    let sections: BTreeSet<String> =
        defaults.build_cloned()?.collect_sections();
    let mut builder = defaults;
    if let Some(path) = file {
        let given = Config::builder().add_source(File::from(path).format(FileFormat::Toml)).build()?;
        builder = builder.add_source(only(&given, &sections)?);
    }
    let variables: Map<String, String> = environment
        .into_iter()
        .filter(|(name, _)| {
            let section = name.strip_prefix("HOTHOUSE_").and_then(|rest| rest.split_once("__"));
            section.is_some_and(|(section, _)| sections.contains(&section.to_lowercase()))
        })
        .collect();
    let variables = Environment::with_prefix("HOTHOUSE").prefix_separator("_").separator("__").source(Some(variables));
    let settings: S = builder.add_source(variables).build()?.try_deserialize()?;
    settings.validate()?;
    Ok(settings)
}

/// The process's environment variables, for [`load`].
pub fn environment() -> Vec<(String, String)> {
    std::env::vars().filter(|(name, _)| name.starts_with("HOTHOUSE_")).collect()
}

trait Sections {
    fn collect_sections(self) -> BTreeSet<String>;
}

impl Sections for Config {
    fn collect_sections(self) -> BTreeSet<String> {
        match self.cache.kind {
            config::ValueKind::Table(table) => table.into_keys().collect(),
            _ => BTreeSet::new(),
        }
    }
}

trait BuildCloned {
    fn build_cloned(&self) -> Result<Config, config::ConfigError>;
}

impl BuildCloned for config::ConfigBuilder<config::builder::DefaultState> {
    fn build_cloned(&self) -> Result<Config, config::ConfigError> {
        self.clone().build()
    }
}

/// The part of a file whose sections this process has.
fn only(given: &Config, sections: &BTreeSet<String>) -> Result<Config, config::ConfigError> {
    let mut kept = Config::builder();
    if let config::ValueKind::Table(table) = &given.cache.kind {
        for (section, value) in table {
            if sections.contains(section) {
                kept = kept.set_override(section, value.clone())?;
            }
        }
    }
    kept.build()
}
