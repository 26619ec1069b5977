//! From the command line to the body of `POST /jobs`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::language;
use crate::args::{JobOptions, key_value};

/// Options of `hothouse run`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["file", "code", "command"])))]
pub(crate) struct Args {
    /// Program to run; `-` reads it from the standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Program text to run
    #[arg(short, long, value_name = "CODE", allow_hyphen_values = true)]
    code: Option<String>,

    /// Run what stands after `--` as a command: `hothouse run --command -- ls -l`
    #[arg(long)]
    command: bool,

    /// Language of the program; by the file's ending or first line when not given, else python
    #[arg(short, long, value_name = "NAME")]
    language: Option<String>,

    /// Argument for the program; may be repeated, and more can follow after `--`
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    arguments: Vec<String>,

    /// Arguments for the program, or the command of --command
    #[arg(last = true, value_name = "ARGS")]
    rest: Vec<String>,

    /// Text on the program's standard input, from a file; `-` reads this command's own
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,

    /// Variable for the program: NAME=VALUE, or NAME to pass on this shell's; may be repeated
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    variables: Vec<String>,

    /// File or folder to put beside the program, under its own name or DEST; may be repeated
    #[arg(short = 'f', long = "file", value_name = "PATH[:DEST]")]
    files: Vec<String>,

    /// Packages to install before the program runs (pip or npm, by language); may be repeated
    #[arg(long = "install", value_name = "PACKAGE")]
    install: Vec<String>,

    /// Files to keep after the run, such as `out/*.png`; may be repeated
    #[arg(short = 'a', long = "artifact", value_name = "GLOB")]
    artifacts: Vec<String>,

    /// Folder in which the kept files are saved
    #[arg(long, value_name = "FOLDER", default_value = "artifacts")]
    pub(super) artifacts_dir: PathBuf,

    /// Environment (image and limits) of the sandbox
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,

    /// Longest run time, such as 90s or 5m; counts from the program's start
    #[arg(short, long, value_name = "TIME")]
    timeout: Option<String>,

    #[command(flatten)]
    job: JobOptions,

    /// Print the job's id and leave it running
    #[arg(short, long)]
    pub(super) detach: bool,
}

/// The program as it goes into the job's input.
struct Program {
    language: String,
    /// Its name in the sandbox.
    name: String,
    code: Vec<u8>,
    /// Does its name mean something to the user, as in a traceback?
    is_named: bool,
}

impl Args {
    /// The body of `POST /jobs`.
    ///
    /// # Errors
    /// Files that cannot be read, options that do not go together.
    pub(super) fn to_job(&self) -> anyhow::Result<Value> {
        let mut input = Map::new();
        let mut files = Vec::new();
        for spec in &self.files {
            add_files(spec, &mut files)?;
        }
        let mut arguments = self.arguments.clone();
        if self.command {
            ensure!(
                !self.rest.is_empty(),
                "--command needs the command after `--`, as in `--command -- ls -l`"
            );
            input.insert("command".to_owned(), json!(self.rest));
        } else {
            arguments.extend(self.rest.iter().cloned());
            self.add_program(&mut input, &mut files)?;
        }
        if let Some(path) = &self.stdin {
            let text = read_text(path).with_context(|| format!("--stdin {}", path.display()))?;
            input.insert("stdin".to_owned(), text.into());
        }
        let variables = self.variables.iter().map(|spec| variable(spec));
        let variables: BTreeMap<String, String> = variables.collect::<anyhow::Result<_>>()?;
        insert_some(&mut input, "env", &variables, variables.is_empty());
        insert_some(&mut input, "files", &files, files.is_empty());
        insert_some(&mut input, "args", &arguments, arguments.is_empty());
        insert_some(&mut input, "install", &self.install, self.install.is_empty());
        insert_some(&mut input, "artifacts", &self.artifacts, self.artifacts.is_empty());
        insert_some(&mut input, "environment", &self.environment, self.environment.is_none());

        let mut job = self.job.to_fields();
        job.insert("kind".to_owned(), "exec".into());
        job.insert("input".to_owned(), Value::Object(input));
        insert_some(&mut job, "timeout", &self.timeout, self.timeout.is_none());
        Ok(Value::Object(job))
    }

    /// A lone program without a name of its own goes as `code`; with company, or with a name, as a file.
    fn add_program(&self, input: &mut Map<String, Value>, files: &mut Vec<Value>) -> anyhow::Result<()> {
        let program = self.program()?;
        input.insert("language".to_owned(), program.language.into());
        match String::from_utf8(program.code) {
            Ok(code) if files.is_empty() && !program.is_named => {
                input.insert("code".to_owned(), code.into());
            }
            code => {
                let bytes = code.map_or_else(std::string::FromUtf8Error::into_bytes, String::into_bytes);
                files.insert(0, file(&program.name, bytes));
                input.insert("entrypoint".to_owned(), program.name.into());
            }
        }
        Ok(())
    }

    fn program(&self) -> anyhow::Result<Program> {
        let path = self.file.as_deref().filter(|path| *path != Path::new("-"));
        let code = match (&self.code, path) {
            (Some(code), _) => code.clone().into_bytes(),
            (None, Some(path)) => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
            (None, None) => {
                ensure!(
                    self.stdin.as_deref() != Some(Path::new("-")),
                    "the standard input cannot be program and input"
                );
                read_all_of_stdin()?
            }
        };
        let given = self.language.as_deref();
        let language = given
            .or_else(|| path.and_then(language::by_ending))
            .or_else(|| language::by_shebang(str::from_utf8(&code).unwrap_or_default()));
        let language = match (language, path) {
            (Some(language), _) => language.to_owned(),
            (None, None) => "python".to_owned(),
            (None, Some(path)) => bail!("what language is {} in? Name it with --language", path.display()),
        };
        let name = path
            .and_then(Path::file_name)
            .and_then(|name| name.to_str())
            .map(str::to_owned);
        Ok(Program {
            is_named: name.is_some(),
            name: name.unwrap_or_else(|| format!("main.{}", language::ending(&language))),
            language,
            code,
        })
    }
}

fn insert_some(fields: &mut Map<String, Value>, name: &str, value: &impl serde::Serialize, is_absent: bool) {
    if !is_absent {
        fields.insert(name.to_owned(), json!(value));
    }
}

/// NAME=VALUE, or NAME for the value that it has in this shell.
fn variable(spec: &str) -> anyhow::Result<(String, String)> {
    if spec.contains('=') {
        return key_value(spec).map_err(anyhow::Error::msg);
    }
    let value = env::var_os(spec).with_context(|| format!("--env {spec}: this shell has no such variable"))?;
    let value = value
        .into_string()
        .map_err(|_bytes| anyhow::anyhow!("--env {spec}: its value is not text"))?;
    Ok((spec.to_owned(), value))
}

/// Adds the file, or everything in the folder, that `PATH[:DEST]` names.
fn add_files(spec: &str, files: &mut Vec<Value>) -> anyhow::Result<()> {
    let (path, destination) = match spec.split_once(':') {
        Some((path, destination)) if !destination.is_empty() => (Path::new(path), destination.to_owned()),
        _ => {
            let path = Path::new(spec.trim_end_matches(':'));
            let name = path.file_name().and_then(|name| name.to_str());
            (
                path,
                name.with_context(|| format!("--file {spec}: name its place with {spec}:DEST"))?
                    .to_owned(),
            )
        }
    };
    add_tree(path, &destination, files).with_context(|| format!("--file {}", path.display()))
}

fn add_tree(path: &Path, destination: &str, files: &mut Vec<Value>) -> anyhow::Result<()> {
    if !path.is_dir() {
        files.push(file(destination, fs::read(path)?));
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_str().context("a file's name is not text")?;
        add_tree(&entry.path(), &format!("{destination}/{name}"), files)?;
    }
    Ok(())
}

fn file(path: &str, content: Vec<u8>) -> Value {
    match String::from_utf8(content) {
        Ok(text) => json!({"path": path, "content": text}),
        Err(error) => json!({"path": path, "content_base64": BASE64_STANDARD.encode(error.as_bytes())}),
    }
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = if path == Path::new("-") {
        read_all_of_stdin()?
    } else {
        fs::read(path)?
    };
    String::from_utf8(bytes).context("the input is not UTF-8 text")
}

fn read_all_of_stdin() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .context("cannot read the standard input")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
