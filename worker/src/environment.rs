//! Environments: what a sandbox holds and how large it is.
//!
//! One file `environments/NAME.toml` each; three come along, and a file of the same name takes the place of one. What is
//! said here is fixed when a sandbox starts, long before a job claims it, so nothing about a job belongs here.
//!
//! # Not here
//! Building the image is `scripts/image.sh`, which reads the `[packages]` table of the same file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::driver::Profile;

mod offer;
mod size;
mod validate;

const BUILT_IN: &str = include_str!("../../environments/default.toml");

/// Those that come along and are there once their images are built.
const MORE: [(&str, &str); 2] = [
    ("polyglot.toml", include_str!("../../environments/polyglot.toml")),
    ("claude-code.toml", include_str!("../../environments/claude-code.toml")),
];

/// The name of the environment of jobs that name none.
pub const DEFAULT: &str = common::agent::DEFAULT_ENVIRONMENT;

/// The name of the environment that has the Claude Code command line.
pub const CLAUDE_CODE: &str = "claude-code";

/// One environment.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Its name, that of its file too: lower case letters, digits and hyphens.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// The image to start; without one, that which `scripts/image.sh` built last for this name.
    image: Option<String>,
    /// What the image is built from.
    #[serde(default)]
    pub packages: Packages,
    /// How code in a language is run, by the language's name.
    #[serde(default)]
    pub languages: BTreeMap<String, Language>,
    /// Variables that every job starts with; those of the job come on top.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How large its sandboxes are.
    #[serde(default, with = "size::profile")]
    pub profile: Profile,
    /// How many are kept ready.
    #[serde(default)]
    pub warm: Warm,
    /// Hosts that jobs may reach when they name them too, as [`common::egress::Rule`]; none when empty.
    #[serde(default)]
    pub egress: Vec<String>,
    /// Where packages come from that a job asks for.
    #[serde(default)]
    pub install: Install,
    /// Whether a sandbox serves more than one job.
    #[serde(default)]
    pub reuse: Reuse,
}

/// Where packages come from that a job asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Install {
    /// Hosts that may be reached while packages are installed, and only then; without one nothing is installed.
    pub allow: Vec<String>,
    /// The index that pip asks; without one, its own.
    pub pip_index: Option<String>,
    /// The registry that npm asks; without one, its own.
    pub npm_registry: Option<String>,
}

/// What an image is built from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Packages {
    /// The image below, when a registry gives it.
    pub base: Option<String>,
    /// The environment whose root is below, instead.
    pub from: Option<String>,
    /// Packages of the distribution.
    pub system: Vec<String>,
    /// Packages for pip.
    pub pip: Vec<String>,
    /// Packages for npm, installed globally.
    pub npm: Vec<String>,
}

/// How code in one language is run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// The file that code is written to when it came as text.
    pub file: String,
    /// The program and its arguments; `{file}` stands for the path of the code.
    command: Vec<String>,
}

/// How many sandboxes are kept ready, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Warm {
    /// Always ready: the floor.
    pub size: u32,
    /// The most in all, in use or starting ones counted: the ceiling.
    pub max: u32,
    /// Of those, how many have Claude Code started and waiting, in each way in which it was used lately. Where it is not in
    /// use there are none.
    pub claude_code: u32,
    /// How long one beyond the floor waits for a job.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// How old one may be when a job gets it.
    #[serde(with = "humantime_serde")]
    pub age: Duration,
    /// How long one is kept for the conversation, or the user, that it served; zero keeps none.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
}

/// Whether a sandbox serves more than one job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reuse {
    /// One job, one sandbox.
    #[default]
    Never,
    /// Jobs of one tenant's one user, after a reset that is verified.
    User,
}

/// All environments that a worker serves, by name.
pub type Environments = BTreeMap<String, Arc<Environment>>;

/// Why environments could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file is not TOML of the right shape.
    #[error("{} is not an environment", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{}: {key} {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key in it.
        key: String,
        /// What is wrong, as the rest of a sentence.
        reason: String,
    },
}

impl Environment {
    /// The environment that is built in.
    pub fn built_in() -> Self {
        Self::parse(BUILT_IN, Path::new("default.toml")).expect("a test reads the built-in environment")
    }

    /// Reads one from the text of a file; `path` names it in errors, and its stem must be the environment's name.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let environment: Self = toml::from_str(text).map_err(|e| Error::Parse {
            path: path.to_owned(),
            source: Box::new(e),
        })?;
        validate::environment(&environment, path)?;
        Ok(environment)
    }

    /// The image that its sandboxes start from.
    pub fn image(&self) -> String {
        self.image
            .clone()
            .unwrap_or_else(|| format!("hothouse/{}:current", self.name))
    }

    /// The same environment with another image, as a setting of the worker may ask for.
    #[must_use]
    pub fn with_image(self, image: impl Into<String>) -> Self {
        Self {
            image: Some(image.into()),
            ..self
        }
    }
}

impl Language {
    /// The command that runs the code in `file` with arguments.
    pub fn command(&self, file: &str, args: &[String]) -> Vec<String> {
        self.command
            .iter()
            .map(|word| word.replace("{file}", file))
            .chain(args.iter().cloned())
            .collect()
    }
}

impl Default for Warm {
    fn default() -> Self {
        Self {
            size: 5,
            max: 16,
            claude_code: 0,
            idle: Duration::from_mins(5),
            age: Duration::from_hours(1),
            keep: Duration::from_mins(5),
        }
    }
}

/// Whether an environment of this name comes along.
pub fn comes_along(name: &str) -> bool {
    let file = format!("{name}.toml");
    name == DEFAULT || MORE.iter().any(|(more, _)| *more == file)
}

/// The environments that come along and those of a folder's `*.toml` files, which come before them.
pub fn load(folder: Option<&Path>) -> Result<Environments, Error> {
    let built_in = Environment::built_in();
    let mut environments = Environments::from([(built_in.name.clone(), Arc::new(built_in))]);
    for (file, text) in MORE {
        let more = Environment::parse(text, Path::new(file)).expect("a test reads those that come along");
        environments.insert(more.name.clone(), Arc::new(more));
    }
    let Some(folder) = folder else {
        return Ok(environments);
    };
    let unreadable = |source| Error::Read {
        path: folder.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = std::fs::read_to_string(&path).map_err(|source| Error::Read {
                path: path.clone(),
                source,
            })?;
            let environment = Environment::parse(&text, &path)?;
            environments.insert(environment.name.clone(), Arc::new(environment));
        }
    }
    Ok(environments)
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;

    use super::*;

    fn parse(text: &str) -> Result<Environment, Error> {
        Environment::parse(text, Path::new("environments/mine.toml"))
    }

    #[test]
    fn the_built_in_one_runs_what_it_promises() {
        let environment = Environment::built_in();
        assert_eq!(environment.image(), "hothouse/default:current");
        assert_eq!(environment.warm, Warm::default());
        assert_eq!(
            (environment.warm.size, environment.warm.idle),
            (5, Duration::from_mins(5))
        );
        assert_eq!(environment.profile, Profile::default());
        assert!(environment.egress.is_empty());
        assert_eq!(environment.reuse, Reuse::Never);
        let languages: Vec<_> = environment.languages.keys().map(String::as_str).collect();
        assert_eq!(languages, ["bash", "javascript", "python", "typescript"]);
        let command = environment.languages["python"].command("/workspace/main.py", &["a b".to_owned()]);
        assert_eq!(command, ["python3", "/workspace/main.py", "a b"]);
    }

    #[test]
    fn a_name_alone_is_an_environment() {
        let environment = parse("name = 'mine'").unwrap();
        assert_eq!(environment.image(), "hothouse/mine:current");
        assert_eq!(environment.profile, Profile::default());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let error = parse("name = 'mine'\n[warm]\nsise = 3").unwrap_err();
        assert_matches!(error, Error::Parse { source, .. } if source.to_string().contains("sise"));
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        for (text, wrong) in [
            ("name = 'yours'", "name"),
            ("name = 'mine'\nimage = ''", "image"),
            ("name = 'mine'\negress = ['http://example.com']", "egress"),
            ("name = 'mine'\n[install]\nallow = ['*']", "install.allow"),
            (
                "name = 'mine'\n[install]\npip_index = 'example.com'",
                "install.pip_index",
            ),
            (
                "name = 'mine'\n[install]\nnpm_registry = 'ftp://a'",
                "install.npm_registry",
            ),
            ("name = 'mine'\negress = ['*:80']", "egress"),
            ("name = 'mine'\negress = ['example.com:0']", "egress"),
            ("name = 'mine'\n[warm]\nsize = 9\nmax = 8", "warm.max"),
            ("name = 'mine'\n[warm]\nidle = '0s'", "warm.idle"),
            ("name = 'mine'\n[profile]\ncpus = 0.0", "profile.cpus"),
            ("name = 'mine'\n[profile]\nmemory = '1MiB'", "profile.memory"),
            ("name = 'mine'\n[profile]\npids = 1", "profile.pids"),
            ("name = 'mine'\n[env]\n'A=B' = 'c'", "env"),
            ("name = 'mine'\n[packages]\nsystem = ['-o x']", "packages.system"),
            ("name = 'mine'\n[packages]\npip = ['a;b']", "packages.pip"),
            ("name = 'mine'\n[packages]\nfrom = '../default'", "packages.from"),
            (
                "name = 'mine'\n[packages]\nfrom = 'default'\nbase = 'debian'",
                "packages.from",
            ),
            (
                "name = 'mine'\n[languages.r]\nfile = '../x'\ncommand = ['R', '{file}']",
                "languages.r.file",
            ),
            (
                "name = 'mine'\n[languages.r]\nfile = 'x.r'\ncommand = ['R']",
                "languages.r.command",
            ),
        ] {
            assert_matches!(parse(text).unwrap_err(), Error::Invalid { key, .. } if key == wrong, "{text}");
        }
    }

    #[test]
    fn a_file_in_the_folder_takes_the_place_of_the_built_in_one() {
        let folder = std::env::temp_dir().join(format!("hothouse-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("default.toml"), "name = 'default'\n[warm]\nsize = 1").unwrap();
        std::fs::write(folder.join("other.toml"), "name = 'other'").unwrap();
        std::fs::write(folder.join("notes.md"), "no environment").unwrap();
        let environments = load(Some(&folder)).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let names: Vec<_> = environments.keys().collect();
        assert_eq!(names, ["claude-code", "default", "other", "polyglot"]);
        assert_eq!(environments["default"].warm.size, 1);
        assert_matches!(load(Some(&folder)), Err(Error::Read { .. }));
    }
}
