//! `install`: packages, before the program starts, through the environment's own list of registries.
//!
//! The tools are those of the image. They run as the job, in its workspace, with the job's variables, and their time
//! counts against the job's.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use common::job::event::EventBody;
use common::job::exec::{ExecInput, Installer, Package};
use common::job::{Failure, FailureCode};

use super::super::text::Decoder;
use super::{Broken, GRACE};
use crate::environment::{Environment, Install};
use crate::events::Say;
use crate::sandbox::{Exit, Oom, Output, RunSpec, Sandbox, WORKSPACE};

/// Where pip puts packages; Python looks there when `PYTHONUSERBASE` says so.
const PYTHON_BASE: &str = "/workspace/.packages/python";

/// Lines of a failed tool that its job is told.
const TAIL_LINES: usize = 20;

/// The longest line that is kept, in bytes.
const LINE_BYTES: usize = 500;

/// Progress is told no more often.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// One call of a tool.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    tool: &'static str,
    argv: Vec<String>,
    env: Vec<(String, String)>,
}

/// What must be called for a job.
///
/// # Errors
/// [`FailureCode::InstallFailed`] when the environment names no registry.
pub(super) fn steps(input: &ExecInput, environment: &Environment) -> Result<Vec<Step>, Failure> {
    if input.install.is_empty() {
        return Ok(Vec::new());
    }
    if environment.install.allow.is_empty() {
        let message = format!(
            "packages cannot be installed: environment {:?} names no registry that they may come from",
            environment.name
        );
        return Err(Failure::new(FailureCode::InstallFailed, message));
    }
    let named = |installer| {
        let packages = input
            .install
            .iter()
            .filter_map(|text| Package::parse(text, input.language.as_ref()));
        packages
            .filter(move |package| package.installer == installer)
            .map(|package| package.name.to_owned())
    };
    let (pip, npm): (Vec<_>, Vec<_>) = (named(Installer::Pip).collect(), named(Installer::Npm).collect());
    if pip.len() + npm.len() < input.install.len() {
        let message = "a package of install is for no tool: put pip: or npm: before it";
        return Err(Failure::new(FailureCode::InvalidInput, message));
    }
    let steps = [
        (!pip.is_empty()).then(|| pip_step(pip, &environment.install)),
        (!npm.is_empty()).then(|| npm_step(npm, &environment.install)),
    ];
    Ok(steps.into_iter().flatten().collect())
}

/// Variables by which the program finds what was installed.
pub(super) fn variables(input: &ExecInput, path: Option<&str>) -> Vec<(String, String)> {
    let is_pip = |text: &String| {
        Package::parse(text, input.language.as_ref()).is_some_and(|package| package.installer == Installer::Pip)
    };
    if !input.install.iter().any(is_pip) {
        return Vec::new();
    }
    let path = path.unwrap_or("/usr/local/bin:/usr/bin:/bin");
    vec![
        ("PYTHONUSERBASE".to_owned(), PYTHON_BASE.to_owned()),
        ("PATH".to_owned(), format!("{PYTHON_BASE}/bin:{path}")),
    ]
}

fn pip_step(packages: Vec<String>, install: &Install) -> Step {
    let argv = [
        "python3",
        "-m",
        "pip",
        "install",
        "--user",
        "--no-warn-script-location",
        "--progress-bar=off",
        "--",
    ];
    let mut env = vec![
        ("PYTHONUSERBASE", PYTHON_BASE.to_owned()),
        // The image is read-only; its packages cannot be broken.
        ("PIP_BREAK_SYSTEM_PACKAGES", "1".to_owned()),
        ("PIP_NO_INPUT", "1".to_owned()),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_owned()),
        ("PIP_NO_CACHE_DIR", "1".to_owned()),
    ];
    if let Some(index) = &install.pip_index {
        env.push(("PIP_INDEX_URL", index.clone()));
        // pip takes nothing from a plain address unless it is told that this is meant.
        if let Some(rest) = index.strip_prefix("http://") {
            let host = rest.split(['/', '?']).next().unwrap_or_default();
            env.push(("PIP_TRUSTED_HOST", host.to_owned()));
        }
    }
    step("pip", &argv, packages, env)
}

fn npm_step(packages: Vec<String>, install: &Install) -> Step {
    let argv = [
        "npm",
        "install",
        "--prefix",
        WORKSPACE,
        "--no-save",
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--no-progress",
        "--loglevel=http",
        "--",
    ];
    let mut env = vec![
        ("npm_config_cache", "/tmp/.npm".to_owned()),
        ("npm_config_update_notifier", "false".to_owned()),
    ];
    if let Some(registry) = &install.npm_registry {
        env.push(("npm_config_registry", registry.clone()));
    }
    step("npm", &argv, packages, env)
}

fn step(tool: &'static str, argv: &[&str], packages: Vec<String>, env: Vec<(&str, String)>) -> Step {
    Step {
        tool,
        argv: argv.iter().map(|&word| word.to_owned()).chain(packages).collect(),
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    }
}

/// Runs the steps with the program's variables and their own, until `deadline`.
pub(super) async fn run(
    steps: Vec<Step>,
    env: &[(String, String)],
    sandbox: &Sandbox,
    events: &(dyn Say + Sync),
    deadline: Instant,
) -> Result<(), Broken> {
    for step in steps {
        let mut env: Vec<_> = env.to_vec();
        env.retain(|(name, _)| !step.env.iter().any(|(own, _)| own == name));
        env.extend(step.env);
        let spec = RunSpec {
            env,
            timeout: Some(deadline.saturating_duration_since(Instant::now())),
            grace: GRACE,
            ..RunSpec::new(step.argv)
        };
        let mut told = Progress::new(step.tool, events);
        let mut running = sandbox.run(spec).await?;
        while let Some(output) = running.next().await {
            if let Output::Stdout(bytes) | Output::Stderr(bytes) = output {
                told.take(&bytes);
            }
        }
        let exit = running.wait().await?;
        told.end();
        if let Some(failure) = failure(step.tool, &exit, &told.tail) {
            return Err(failure.into());
        }
    }
    Ok(())
}

fn failure(tool: &str, exit: &Exit, tail: &VecDeque<String>) -> Option<Failure> {
    if exit.is_success() {
        return None;
    }
    if exit.timed_out {
        let message = format!("the job's time was over while {tool} installed packages");
        return Some(Failure::new(FailureCode::Timeout, message));
    }
    let why = match (exit.code, exit.signal) {
        _ if exit.oom == Oom::Yes => "it used more memory than it may".to_owned(),
        _ if exit.disk_full => "there is no room left".to_owned(),
        _ if exit.output_limit => "it printed too much".to_owned(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "it ended in an unknown way".to_owned(),
    };
    let lines: Vec<&str> = tail.iter().map(String::as_str).collect();
    let message = format!("{tool} failed ({why})\n{}", lines.join("\n"));
    Some(Failure::new(FailureCode::InstallFailed, message.trim_end()))
}

/// What a tool prints, told as it goes on, and its last lines.
struct Progress<'a> {
    tool: &'static str,
    events: &'a (dyn Say + Sync),
    decoder: Decoder,
    line: String,
    tail: VecDeque<String>,
    told: Option<Instant>,
}

impl<'a> Progress<'a> {
    fn new(tool: &'static str, events: &'a (dyn Say + Sync)) -> Self {
        let progress = Self {
            tool,
            events,
            decoder: Decoder::default(),
            line: String::new(),
            tail: VecDeque::new(),
            told: None,
        };
        progress.say(None);
        progress
    }

    fn take(&mut self, bytes: &[u8]) {
        let text = self.decoder.push(bytes);
        for piece in text.split_inclusive('\n') {
            if self.line.len() < LINE_BYTES {
                self.line.push_str(piece);
            }
            if piece.ends_with('\n') {
                self.line_is_over();
            }
        }
    }

    fn end(&mut self) {
        let rest = self.decoder.finish();
        self.line.push_str(&rest);
        self.line_is_over();
    }

    fn line_is_over(&mut self) {
        let line = std::mem::take(&mut self.line);
        let end = line.floor_char_boundary(LINE_BYTES);
        let line = line.get(..end).unwrap_or_default().trim_end().to_owned();
        if line.is_empty() {
            return;
        }
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            self.say(Some(line.clone()));
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn say(&self, line: Option<String>) {
        let detail = line.map_or_else(|| self.tool.to_owned(), |line| format!("{}: {line}", self.tool));
        self.events.say(EventBody::Status {
            phase: "installing".to_owned(),
            detail: Some(detail),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    struct Nobody;

    impl Say for Nobody {
        fn say(&self, _: EventBody) {}
    }

    fn environment(text: &str) -> Environment {
        Environment::parse(&format!("name = 'mine'\n{text}"), Path::new("mine.toml")).unwrap()
    }

    fn input(language: Option<&str>, install: &[&str]) -> ExecInput {
        ExecInput {
            language: language.map(|name| name.parse().unwrap()),
            install: install.iter().map(|&text| text.to_owned()).collect(),
            ..ExecInput::default()
        }
    }

    #[test]
    fn packages_are_refused_where_no_registry_is_named() {
        let python = input(Some("python"), &["six"]);
        let error = steps(&python, &environment("")).unwrap_err();
        assert_eq!(error.code, FailureCode::InstallFailed);
        assert!(steps(&input(None, &[]), &environment("")).unwrap().is_empty());
    }

    #[test]
    fn each_tool_gets_its_packages_and_its_registry() {
        let environment = environment(
            "[install]\nallow = ['packages.example.org']\npip_index = 'http://packages.example.org:8080/simple'\n\
             npm_registry = 'https://packages.example.org/npm'",
        );
        let all = input(Some("python"), &["six==1.17", "npm:@a/b@1", "pip:x"]);
        let [pip, npm] = &steps(&all, &environment).unwrap()[..] else {
            panic!("two steps")
        };
        assert_eq!(pip.argv[pip.argv.len() - 3..], ["--", "six==1.17", "x"]);
        assert!(
            pip.env
                .contains(&("PIP_TRUSTED_HOST".to_owned(), "packages.example.org:8080".to_owned()))
        );
        assert_eq!(npm.argv[npm.argv.len() - 2..], ["--", "@a/b@1"]);
        assert!(
            npm.env
                .iter()
                .any(|(name, value)| name == "npm_config_registry" && value.ends_with("/npm"))
        );
    }

    #[test]
    fn python_finds_what_pip_installed() {
        let env = variables(&input(Some("python"), &["six"]), Some("/bin"));
        assert_eq!(env[1].1, format!("{PYTHON_BASE}/bin:/bin"));
        assert!(variables(&input(Some("javascript"), &["a"]), Some("/bin")).is_empty());
    }

    #[test]
    fn the_tail_of_a_tool_is_bounded() {
        let mut progress = Progress::new("pip", &Nobody);
        for number in 0..100 {
            progress.take(format!("line {number} {}\n", "\u{e4}".repeat(1000)).as_bytes());
        }
        progress.take(b"the end");
        progress.end();
        assert_eq!(progress.tail.len(), TAIL_LINES);
        assert_eq!(progress.tail.back().map(String::as_str), Some("the end"));
        assert!(progress.tail.iter().all(|line| line.len() <= LINE_BYTES));
    }
}
