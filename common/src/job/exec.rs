//! The input of an `exec` job: which program to run, on which files, and what to keep of them.
//!
//! The API refuses what [`ExecInput::validate`] names, so a worker that reads a stored input may rely on it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};

use super::invalid::{InvalidField, escape};
use super::pattern;
use crate::egress::{Egress, RULES_MAX, Rule};

/// Most files of one job.
pub const FILES_MAX: usize = 1_000;
/// Most arguments, or parts of a command.
pub const ARGS_MAX: usize = 1_000;
/// Most environment variables.
pub const ENV_MAX: usize = 256;
/// Most packages to install.
pub const INSTALL_MAX: usize = 100;
/// Most patterns of files to keep.
pub const ARTIFACTS_MAX: usize = 100;
/// Longest argument or variable, bytes: Linux refuses one of 128 KiB or more (`MAX_ARG_STRLEN`).
pub const ARG_BYTES_MAX: usize = 128 * 1024 - 1;
/// Longest command line and environment together, bytes of JSON, in which a byte can take six. It is below what one message
/// to a sandbox holds, which has the environment's own variables in it too.
pub const ARGS_BYTES_MAX: usize = 200 * 1024;
/// Longest path or pattern, bytes.
pub const PATH_BYTES_MAX: usize = 1024;

/// Longest name of a language, bytes.
pub const LANGUAGE_BYTES_MAX: usize = 32;

/// A language whose programs can be run by name; which there are is the environment's to say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Language(String);

/// A text that no language can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoLanguage;

impl fmt::Display for NoLanguage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "is the name of a language, such as python: 1 to {LANGUAGE_BYTES_MAX} lower case letters, digits, + # _ or -"
        )
    }
}

impl std::error::Error for NoLanguage {}

impl Language {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Language {
    type Error = NoLanguage;

    fn try_from(name: String) -> Result<Self, NoLanguage> {
        let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+#_-".contains(&byte);
        if (1..=LANGUAGE_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_fine) {
            Ok(Self(name))
        } else {
            Err(NoLanguage)
        }
    }
}

impl FromStr for Language {
    type Err = NoLanguage;

    fn from_str(name: &str) -> Result<Self, NoLanguage> {
        name.to_owned().try_into()
    }
}

impl From<Language> for String {
    fn from(language: Language) -> Self {
        language.0
    }
}

/// What installs packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Installer {
    /// For Python.
    Pip,
    /// For Node.
    Npm,
}

/// One item of `install`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package<'a> {
    /// What installs it.
    pub installer: Installer,
    /// Its name, perhaps with a version, as the installer takes it.
    pub name: &'a str,
}

impl<'a> Package<'a> {
    /// Reads an item of a job in `language`; `None` when nothing says which tool installs it.
    pub fn parse(text: &'a str, language: Option<&Language>) -> Option<Self> {
        let package = |installer, name| Some(Self { installer, name });
        if let Some(name) = text.strip_prefix("pip:") {
            return package(Installer::Pip, name);
        }
        if let Some(name) = text.strip_prefix("npm:") {
            return package(Installer::Npm, name);
        }
        match language?.as_str() {
            "python" => package(Installer::Pip, text),
            "javascript" | "typescript" => package(Installer::Npm, text),
            _ => None,
        }
    }
}

/// A file that is put into the workspace before the program starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InputFile {
    /// Its path below the workspace.
    pub path: String,
    /// Its content as text; this or `content_base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Its content in base64 (RFC 4648, section 4, with padding).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<String>,
}

impl InputFile {
    /// The bytes of the file; `None` when it is not valid.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match (&self.content, &self.content_base64) {
            (Some(text), None) => Some(text.clone().into_bytes()),
            (None, Some(encoded)) => STANDARD.decode(encoded).ok(),
            _ => None,
        }
    }
}

/// What an `exec` job runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecInput {
    /// Runs `code`, or the file `entrypoint`, in this language; this or `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// The program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Files of the workspace.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<InputFile>,
    /// The file that is the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// The program and its arguments, without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// What the program reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Its arguments.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment variables. The values are never shown again.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The operator's name of the image and limits; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Where its sandbox may connect to, if the environment's list allows it too; nowhere when absent.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Egress::is_empty")]
    pub egress: Egress,
    /// Packages to install first: with pip for python, with npm for javascript and typescript. `pip:` or `npm:` before a
    /// package names the tool, for any program.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub install: Vec<String>,
    /// Patterns of files to keep, such as `out/*.png`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
}

/// Reads `null` as the default.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl ExecInput {
    /// Everything that is wrong with it; empty when it can be run. Pointers are below the input itself.
    pub fn validate(&self) -> Vec<InvalidField> {
        let mut faults = Faults(Vec::new());
        self.validate_program(&mut faults);
        self.validate_files(&mut faults);
        self.validate_process(&mut faults);
        if self.environment.as_deref().is_some_and(|name| !is_name(name)) {
            faults.add(
                "/environment",
                "is 1 to 63 letters, digits, dots, hyphens or underscores",
            );
        }
        self.validate_install(&mut faults);
        faults.limit("/egress/allow", self.egress.allow.len(), RULES_MAX);
        for (index, rule) in self.egress.allow.iter().enumerate() {
            if rule.parse::<Rule>().is_err() {
                faults.add(
                    format!("/egress/allow/{index}"),
                    "is a host with an optional port, such as *.example.org:443",
                );
            }
        }
        faults.limit("/artifacts", self.artifacts.len(), ARTIFACTS_MAX);
        for (index, pattern) in self.artifacts.iter().enumerate() {
            if let Some(detail) = pattern::fault(pattern) {
                faults.add(format!("/artifacts/{index}"), detail);
            }
        }
        faults.0
    }

    /// The same input with every value of `env` replaced, for showing it.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        for value in self.env.values_mut() {
            "[redacted]".clone_into(value);
        }
        self
    }

    fn validate_program(&self, faults: &mut Faults) {
        match (&self.language, &self.command) {
            (None, None) => faults.add("/language", "is required, unless there is a command"),
            (Some(_), Some(_)) => faults.add("/command", "cannot be combined with language"),
            (None, Some(command)) => {
                if command.first().is_none_or(String::is_empty) {
                    faults.add("/command", "must begin with a program");
                }
                if self.code.is_some() {
                    faults.add("/code", "needs a language");
                }
                if self.entrypoint.is_some() {
                    faults.add("/entrypoint", "needs a language");
                }
            }
            (Some(_), None) => match (&self.code, &self.entrypoint) {
                (None, None) => faults.add("/code", "is required, unless there are files and an entrypoint"),
                (Some(_), Some(_)) => faults.add("/entrypoint", "cannot be combined with code"),
                (None, Some(entrypoint)) if !self.files.iter().any(|file| file.path == *entrypoint) => {
                    faults.add("/entrypoint", "is not among the files");
                }
                _ => {}
            },
        }
    }

    fn validate_files(&self, faults: &mut Faults) {
        faults.limit("/files", self.files.len(), FILES_MAX);
        let mut seen = std::collections::BTreeSet::new();
        for (index, file) in self.files.iter().enumerate() {
            if let Some(detail) = path_fault(&file.path) {
                faults.add(format!("/files/{index}/path"), detail);
            } else if !seen.insert(file.path.as_str()) {
                faults.add(format!("/files/{index}/path"), "is there twice");
            }
            match (&file.content, &file.content_base64) {
                (None, None) => faults.add(format!("/files/{index}/content"), "is required, or content_base64"),
                (Some(_), Some(_)) => {
                    faults.add(
                        format!("/files/{index}/content_base64"),
                        "cannot be combined with content",
                    );
                }
                (None, Some(encoded)) if STANDARD.decode(encoded).is_err() => {
                    faults.add(format!("/files/{index}/content_base64"), "is not base64");
                }
                _ => {}
            }
        }
    }

    /// The kernel's rules for what a process is started with.
    fn validate_process(&self, faults: &mut Faults) {
        let command = self.command.as_deref().unwrap_or_default();
        faults.limit("/command", command.len(), ARGS_MAX);
        faults.limit("/args", self.args.len(), ARGS_MAX);
        faults.limit("/env", self.env.len(), ENV_MAX);
        for (name, list) in [("command", command), ("args", &self.args)] {
            for (index, argument) in list.iter().enumerate() {
                faults.argument(format!("/{name}/{index}"), argument);
            }
        }
        for (name, value) in &self.env {
            let pointer = format!("/env/{}", escape(name));
            if name.is_empty() || name.contains(['=', '\0']) {
                faults.add(&pointer, "a variable's name is not empty and has no '=' and no NUL");
            }
            faults.argument(pointer, value);
        }
        if json_len(&(command, &self.args, &self.env)) > ARGS_BYTES_MAX {
            faults.add(
                "/args",
                format!("command, args and env together are over {ARGS_BYTES_MAX} bytes of JSON"),
            );
        }
    }

    fn validate_install(&self, faults: &mut Faults) {
        faults.limit("/install", self.install.len(), INSTALL_MAX);
        let odd = |c: char| c.is_whitespace() || c.is_control();
        for (index, text) in self.install.iter().enumerate() {
            match Package::parse(text, self.language.as_ref()) {
                None => faults.add(
                    format!("/install/{index}"),
                    "needs pip: or npm: before it, or language python, javascript or typescript",
                ),
                Some(Package { name, .. })
                    if name.is_empty() || name.len() > 200 || name.starts_with('-') || name.contains(odd) =>
                {
                    faults.add(format!("/install/{index}"), "is not the name of a package");
                }
                Some(_) => {}
            }
        }
    }
}

struct Faults(Vec<InvalidField>);

impl Faults {
    fn add(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.0.push(InvalidField::new(pointer, detail));
    }

    fn limit(&mut self, pointer: &str, length: usize, max: usize) {
        if length > max {
            self.add(pointer, format!("has {length} items, at most {max} are allowed"));
        }
    }

    fn argument(&mut self, pointer: String, text: &str) {
        if text.contains('\0') {
            self.add(
                pointer,
                "contains NUL, which neither an argument nor a variable can hold",
            );
        } else if text.len() > ARG_BYTES_MAX {
            self.add(pointer, format!("is over {ARG_BYTES_MAX} bytes"));
        }
    }
}

/// Whether this can name an environment or a label.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=63).contains(&name.len()) && name.bytes().all(allowed)
}

/// How long it is as JSON, bytes.
pub(crate) fn json_len(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |text| text.len())
}

/// What is wrong with a path below the workspace.
pub fn path_fault(path: &str) -> Option<&'static str> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        Some("is 1 to 1024 bytes long")
    } else if path.contains('\0') {
        Some("contains NUL, which a path cannot hold")
    } else if path.starts_with('/') {
        Some("is relative to the workspace and does not begin with a slash")
    } else if path
        .split('/')
        .any(|step| step.is_empty() || step == "." || step == "..")
    {
        Some("has no empty step and none that is '.' or '..'")
    } else if path.split('/').any(|step| step.len() > 255) {
        Some("has a step of more than 255 bytes")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Vec<String> {
        let input: ExecInput = serde_json::from_str(json).unwrap();
        input.validate().into_iter().map(|fault| fault.pointer).collect()
    }

    #[rstest::rstest]
    #[case::code(r#"{"language":"python","code":"print(1)\u0000"}"#)]
    #[case::files(r#"{"language":"bash","files":[{"path":"a/b.sh","content":""}],"entrypoint":"a/b.sh"}"#)]
    #[case::command(r#"{"command":["ls","-l"],"files":[{"path":"x","content_base64":"AAE="}],"env":{"A":""}}"#)]
    #[case::nulls(r#"{"language":"typescript","code":"","files":null,"args":null,"env":null,"install":["a@1"]}"#)]
    #[case::tools(r#"{"command":["ls"],"install":["pip:six==1.17","npm:@a/b@1"],"egress":{"allow":["*.a.org:8080"]}}"#)]
    fn a_usable_input_has_no_faults(#[case] json: &str) {
        assert_eq!(faults(json), Vec::<String>::new());
    }

    #[rstest::rstest]
    #[case::nothing("{}", "/language")]
    #[case::no_code(r#"{"language":"python"}"#, "/code")]
    #[case::both(r#"{"language":"python","code":"","command":["ls"]}"#, "/command")]
    #[case::no_program(r#"{"command":[]}"#, "/command")]
    #[case::no_entrypoint(r#"{"language":"python","entrypoint":"main.py"}"#, "/entrypoint")]
    #[case::two_programs(r#"{"language":"python","code":"","entrypoint":"a"}"#, "/entrypoint")]
    #[case::nul_in_argument(r#"{"command":["ls","a\u0000"]}"#, "/command/1")]
    #[case::nul_in_variable(r#"{"command":["ls"],"env":{"A/B":"\u0000"}}"#, "/env/A~1B")]
    #[case::nul_in_path(r#"{"command":["ls"],"files":[{"path":"\u0000","content":""}]}"#, "/files/0/path")]
    #[case::climbing(r#"{"command":["ls"],"files":[{"path":"a/../../b","content":""}]}"#, "/files/0/path")]
    #[case::absolute(r#"{"command":["ls"],"artifacts":["/etc/*"]}"#, "/artifacts/0")]
    #[case::pattern(r#"{"command":["ls"],"artifacts":["out/*","out/[a"]}"#, "/artifacts/1")]
    #[case::twice(
        r#"{"command":["ls"],"files":[{"path":"a","content":""},{"path":"a","content":""}]}"#,
        "/files/1/path"
    )]
    #[case::not_base64(
        r#"{"command":["ls"],"files":[{"path":"a","content_base64":"*"}]}"#,
        "/files/0/content_base64"
    )]
    #[case::option_as_package(r#"{"language":"python","code":"","install":["--index-url=x"]}"#, "/install/0")]
    #[case::option_behind_a_tool(r#"{"command":["ls"],"install":["npm:-g"]}"#, "/install/0")]
    #[case::package_for_bash(r#"{"language":"bash","code":"","install":["x"]}"#, "/install/0")]
    #[case::egress(r#"{"command":["ls"],"egress":{"allow":["a.org","*"]}}"#, "/egress/allow/1")]
    fn a_fault_is_named(#[case] json: &str, #[case] pointer: &str) {
        assert_eq!(faults(json), [pointer]);
    }

    #[rstest::rstest]
    #[case::bytes("x", 100_000, 2)]
    #[case::bytes_of_json("\u{1}", 17_000, 2)]
    fn what_no_message_to_a_sandbox_has_room_for_is_refused(
        #[case] text: &str,
        #[case] times: usize,
        #[case] fitting: usize,
    ) {
        let faults = |count| {
            let input = ExecInput {
                command: Some(vec!["true".to_owned()]),
                args: vec![text.repeat(times); count],
                ..ExecInput::default()
            };
            input.validate().len()
        };
        assert_eq!((faults(fitting), faults(fitting + 1)), (0, 1));
    }

    #[test]
    fn values_of_variables_are_not_shown() {
        let input: ExecInput = serde_json::from_str(r#"{"command":["x"],"env":{"KEY":"secret"}}"#).unwrap();
        let shown = serde_json::to_string(&input.redacted()).unwrap();
        assert!(shown.contains("KEY") && !shown.contains("secret"), "{shown}");
    }
}
