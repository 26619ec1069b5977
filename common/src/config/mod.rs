//! Configuration: documented defaults ← a file ← the environment.
//!
//! The defaults are TOML files with a comment on every key; they are the reference. `HOTHOUSE_SECTION__KEY` overrides
//! `[section] key`; of a list it gives the items, with commas between them. An unknown key is an error; a section that
//! this process does not have is left to the process that has it, because `hothouse up` runs several in one environment.
//! Read once, in `main`; sections are passed on, never the whole.

mod secret;
mod sections;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat, Map, Value};
use serde::de::DeserializeOwned;

pub use secret::Secret;
pub use sections::{Database, Health, Leases, Redis, address};

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
    let mut builder = Config::builder()
        .add_source(File::from_str(SHARED_DEFAULTS, FileFormat::Toml))
        .add_source(File::from_str(S::DEFAULTS, FileFormat::Toml));
    let defaults = builder.clone().build()?;
    let sections: BTreeSet<String> = defaults
        .clone()
        .try_deserialize::<Map<String, Value>>()?
        .into_keys()
        .collect();
    if let Some(path) = file {
        builder = builder.add_source(known_sections(path, &sections)?);
    }
    let mut variables: Map<String, String> = Map::new();
    for (name, value) in environment {
        let key = name.strip_prefix("HOTHOUSE_").unwrap_or_default().to_lowercase();
        let is_known = key
            .split_once("__")
            .is_some_and(|(section, _)| sections.contains(section));
        let key = key.replace("__", ".");
        if is_known && defaults.get_array(&key).is_ok() {
            builder = builder.set_override(key, items(&value))?;
        } else if is_known {
            variables.insert(name, value);
        }
    }
    let variables = Environment::with_prefix("HOTHOUSE")
        .prefix_separator("_")
        .separator("__")
        .source(Some(variables));
    let settings: S = builder.add_source(variables).build()?.try_deserialize()?;
    settings.validate()?;
    Ok(settings)
}

/// The items of a list that a variable gives: what stands between commas, without the spaces around it.
fn items(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

/// Variables that the providers' own programs read, and the settings that they stand for.
const WELL_KNOWN: [(&str, &str); 4] = [
    ("ANTHROPIC_API_KEY", "HOTHOUSE_MODEL__ANTHROPIC__API_KEY"),
    ("ANTHROPIC_BASE_URL", "HOTHOUSE_MODEL__ANTHROPIC__BASE_URL"),
    ("OPENAI_API_KEY", "HOTHOUSE_MODEL__OPENAI__API_KEY"),
    ("OPENAI_BASE_URL", "HOTHOUSE_MODEL__OPENAI__BASE_URL"),
];

/// The process's environment variables, for [`load`].
pub fn environment() -> Vec<(String, String)> {
    known(std::env::vars())
}

/// Our own variables, and the well-known ones under our names where ours are not there.
fn known(variables: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let (mut ours, others): (Vec<_>, Vec<_>) = variables.partition(|(name, _)| name.starts_with("HOTHOUSE_"));
    for (name, value) in others {
        let ours_name = WELL_KNOWN.iter().find(|(theirs, _)| *theirs == name);
        let Some((_, ours_name)) = ours_name.filter(|_| !value.is_empty()) else {
            continue;
        };
        if !ours.iter().any(|(name, _)| name == ours_name) {
            ours.push(((*ours_name).to_owned(), value));
        }
    }
    ours
}

/// A file without the sections of other processes.
fn known_sections(path: &Path, sections: &BTreeSet<String>) -> Result<Config, config::ConfigError> {
    let given = Config::builder()
        .add_source(File::from(path).format(FileFormat::Toml))
        .build()?;
    let mut known = Config::builder();
    for (section, value) in given.try_deserialize::<Map<String, Value>>()? {
        if sections.contains(&section) {
            known = known.set_override(section, value)?;
        }
    }
    known.build()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "the sections must be there for their keys to be known")]
    struct Example {
        database: Database,
        redis: Redis,
        leases: Leases,
        health: Health,
        telemetry: crate::telemetry::Telemetry,
    }

    impl Settings for Example {
        const DEFAULTS: &'static str = "";

        fn validate(&self) -> Result<(), Error> {
            self.leases.validate()?;
            self.health.validate(&self.leases)
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn variable(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let file = file("[redis]\nshards = 3\nprefix = \"x\"\n[http]\naddress = \"of another process\"\n");
        let environment = [
            variable("HOTHOUSE_REDIS__PREFIX", "0123"),
            variable("HOTHOUSE_HTTP__ADDRESS", "z"),
        ];
        let example: Example = load(Some(file.path()), environment).unwrap();
        assert_eq!((example.redis.shards, example.redis.prefix.as_str()), (3, "0123"));
        assert_eq!(example.redis.connections_max, 16);
    }

    #[test]
    fn a_variable_gives_a_lists_items_between_commas() {
        #[derive(Debug, Deserialize)]
        struct Worker {
            labels: Vec<String>,
            name: String,
        }
        #[derive(Debug, Deserialize)]
        struct Listed {
            worker: Worker,
        }
        impl Settings for Listed {
            const DEFAULTS: &'static str = "[worker]\nlabels = [\"default\"]\nname = \"\"\n";

            fn validate(&self) -> Result<(), Error> {
                Ok(())
            }
        }
        let labels = |value: &str| {
            let worker = load::<Listed>(
                None,
                [
                    variable("HOTHOUSE_WORKER__LABELS", value),
                    variable("HOTHOUSE_WORKER__NAME", "a, b"),
                ],
            );
            let worker = worker.unwrap().worker;
            assert_eq!(worker.name, "a, b", "a text keeps its commas");
            worker.labels
        };
        assert_eq!(labels("gpu, eu-west,"), ["gpu", "eu-west"]);
        assert_eq!(labels("gpu"), ["gpu"]);
        assert!(labels("").is_empty(), "it overrides the default");
        assert_eq!(load::<Listed>(None, []).unwrap().worker.labels, ["default"]);
    }

    #[test]
    fn an_unknown_key_and_a_wrong_combination_are_refused() {
        let unknown = load::<Example>(None, [variable("HOTHOUSE_REDIS__SHARD", "3")]).unwrap_err();
        assert!(unknown.to_string().contains("shard"), "{unknown}");
        let wrong = load::<Example>(None, [variable("HOTHOUSE_LEASES__TTL", "3s")]).unwrap_err();
        assert!(wrong.to_string().contains("leases.heartbeat"), "{wrong}");
    }

    #[test]
    fn the_providers_own_variables_stand_for_settings_that_are_not_given() {
        let given = [
            variable("ANTHROPIC_API_KEY", "theirs"),
            variable("OPENAI_API_KEY", "theirs"),
            variable("OPENAI_BASE_URL", ""),
            variable("HOTHOUSE_MODEL__OPENAI__API_KEY", "ours"),
            variable("PATH", "/bin"),
        ];
        assert_eq!(
            known(given.into_iter()),
            [
                variable("HOTHOUSE_MODEL__OPENAI__API_KEY", "ours"),
                variable("HOTHOUSE_MODEL__ANTHROPIC__API_KEY", "theirs"),
            ]
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let database: Database =
            load::<Example>(None, [variable("HOTHOUSE_DATABASE__URL", "postgres://u:hunter2@h/d")])
                .unwrap()
                .database;
        let printed = format!("{database:?} {}", serde_json::to_string(&database).unwrap());
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}
