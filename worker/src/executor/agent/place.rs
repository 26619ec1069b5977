//! One tool call, run in the turn's sandbox.

use std::time::Duration;

use super::super::native::{ToolInput, ToolOutcome, TurnSink, edit};
use super::super::text::Decoder;
use super::python::Python;
use crate::sandbox::{self, Exit, Input, Oom, Output, RunSpec, Sandbox};

/// How long a tool may take when the model does not say.
pub(super) const TIMEOUT: Duration = Duration::from_mins(1);

/// How long it may take whatever the model says.
pub(super) const TIMEOUT_MAX: Duration = Duration::from_mins(5);

/// Bytes of each output stream that are kept; the loop cuts what the model sees further.
const KEEP_BYTES: u64 = 256 << 10;

/// Largest file that `read` and `edit` take, bytes.
const FILE_MAX: u64 = 1 << 20;

/// Lists what is in a folder: type, bytes, path.
const LIST: &str = r#"find "$1" -mindepth 1 -maxdepth "$2" -printf '%y %s %p\n' | sort -k3 | head -n 1000"#;

/// Finds lines, and cuts those that are long.
const SEARCH: &str = r#"if [ -n "$3" ]; then set -- "$1" "$2" --include="$3"; else set -- "$1" "$2"; fi
pattern=$1; path=$2; shift 2
grep -rnIE -m 100 --exclude-dir=.git "$@" -e "$pattern" -- "$path" | cut -c 1-400 | head -n 300
exit "${PIPESTATUS[0]}""#;

/// Fetches over HTTP, by the way that the sandbox has.
const FETCH: &str = include_str!("fetch.py");

/// Where one call runs.
pub(super) struct Place<'a> {
    pub(super) sandbox: &'a Sandbox,
    pub(super) env: &'a [(String, String)],
    pub(super) python: &'a Python,
    pub(super) call_id: &'a str,
    pub(super) sink: &'a dyn TurnSink,
}

impl Place<'_> {
    /// Runs the call.
    pub(super) async fn run_call(&self, input: ToolInput) -> Result<ToolOutcome, sandbox::Error> {
        match input {
            ToolInput::Bash { command, timeout } => self.show(&["bash", "-c", &command], timeout).await,
            ToolInput::Python { code, timeout } => {
                let timeout = timeout.unwrap_or(TIMEOUT).min(TIMEOUT_MAX);
                self.python.run(self, &code, timeout).await
            }
            ToolInput::Read { path } => {
                let read = self.read(&path).await;
                read.map(|read| read.unwrap_or_else(|refused| refused))
            }
            ToolInput::Write { path, content } => self.write(&path, content).await,
            ToolInput::Edit { path, old, new } => self.edit(&path, &old, &new).await,
            ToolInput::List { path, depth } => {
                let (path, depth) = (
                    path.as_deref().unwrap_or("."),
                    depth.unwrap_or(1).clamp(1, 10).to_string(),
                );
                self.quiet(&["bash", "-c", LIST, "bash", &rooted(path), &depth], "(nothing)")
                    .await
            }
            ToolInput::Search { pattern, path, glob } => {
                let path = rooted(path.as_deref().unwrap_or("."));
                let glob = glob.unwrap_or_default();
                self.quiet(
                    &["bash", "-c", SEARCH, "bash", &pattern, &path, &glob],
                    "(no line matches)",
                )
                .await
            }
            ToolInput::Fetch { url } => self.show(&["python3", "-c", FETCH, &url], None).await,
        }
    }

    /// Runs a program of ours, whose exit code 1 without output means that there is nothing.
    async fn quiet(&self, argv: &[&str], nothing: &str) -> Result<ToolOutcome, sandbox::Error> {
        let (exit, text) = self.run(argv, Input::None, TIMEOUT, false).await?;
        Ok(match (exit.code, text.trim().is_empty()) {
            (Some(0 | 1), true) => ToolOutcome::ok(nothing),
            (Some(0 | 1), false) => ToolOutcome::ok(text),
            _ => ToolOutcome::error(text),
        })
    }

    /// Runs a program and shows what it prints while it does.
    async fn show(&self, argv: &[&str], timeout: Option<Duration>) -> Result<ToolOutcome, sandbox::Error> {
        let timeout = timeout.unwrap_or(TIMEOUT).min(TIMEOUT_MAX);
        let (exit, mut text) = self.run(argv, Input::None, timeout, true).await?;
        if let Some(note) = note(&exit, timeout) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&note);
        }
        Ok(ToolOutcome {
            output: text,
            is_error: !exit.is_success(),
        })
    }

    async fn run(
        &self,
        argv: &[&str],
        stdin: Input,
        timeout: Duration,
        is_shown: bool,
    ) -> Result<(Exit, String), sandbox::Error> {
        let spec = RunSpec {
            env: self.env.to_vec(),
            stdin,
            timeout: Some(timeout),
            keep_bytes: Some(if is_shown { KEEP_BYTES } else { 2 * FILE_MAX }),
            ..RunSpec::new(argv.iter().copied())
        };
        let mut running = self.sandbox.run(spec).await?;
        let (mut decoder, mut text) = (Decoder::default(), String::new());
        while let Some(output) = running.next().await {
            let piece = match output {
                Output::Stdout(bytes) | Output::Stderr(bytes) => decoder.push(&bytes),
                Output::Cut { dropped, .. } => format!("{}\n[{dropped} bytes left out]\n", decoder.finish()),
            };
            if is_shown && !piece.is_empty() {
                self.sink.tool_output(self.call_id, &piece);
            }
            text.push_str(&piece);
        }
        text.push_str(&decoder.finish());
        Ok((running.wait().await?, text))
    }

    /// The content of a file, or what to tell the model instead.
    async fn read(&self, path: &str) -> Result<Result<ToolOutcome, ToolOutcome>, sandbox::Error> {
        // One more byte than may be shown tells that there is more.
        let limit = (FILE_MAX + 1).to_string();
        let (exit, text) = self
            .run(&["head", "-c", &limit, "--", path], Input::None, TIMEOUT, false)
            .await?;
        Ok(if !exit.is_success() {
            Err(ToolOutcome::error(text))
        } else if text.len() as u64 > FILE_MAX {
            Err(ToolOutcome::error(format!(
                "{path} is larger than {FILE_MAX} bytes: read a part of it with bash"
            )))
        } else {
            Ok(ToolOutcome::ok(text))
        })
    }

    async fn write(&self, path: &str, content: String) -> Result<ToolOutcome, sandbox::Error> {
        let script = "mkdir -p -- \"$(dirname -- \"$1\")\" && cat > \"$1\"";
        let bytes = content.len();
        let stdin = Input::Bytes(content.into_bytes().into());
        let (exit, text) = self
            .run(&["sh", "-c", script, "sh", path], stdin, TIMEOUT, false)
            .await?;
        Ok(if exit.is_success() {
            ToolOutcome::ok(format!("wrote {bytes} bytes to {path}"))
        } else {
            ToolOutcome::error(text)
        })
    }

    async fn edit(&self, path: &str, old: &str, new: &str) -> Result<ToolOutcome, sandbox::Error> {
        let before = match self.read(path).await? {
            Ok(read) => read.output,
            Err(refused) => return Ok(refused),
        };
        match edit::apply(&before, old, new) {
            Ok(after) => self.write(path, after).await,
            Err(error) => Ok(ToolOutcome::error(error.to_string())),
        }
    }
}

/// A path that no program takes for an option.
fn rooted(path: &str) -> String {
    if path.starts_with('-') {
        format!("./{path}")
    } else {
        path.to_owned()
    }
}

/// What the model must know besides the output.
pub(super) fn note(exit: &Exit, timeout: Duration) -> Option<String> {
    Some(match (exit.code, exit.signal) {
        _ if exit.timed_out => format!("[killed: it ran longer than {} s]", timeout.as_secs()),
        _ if exit.output_limit => "[killed: it printed too much]".to_owned(),
        (Some(0), _) => return None,
        _ if exit.oom == Oom::Yes => "[killed: out of memory]".to_owned(),
        (Some(code), _) => format!("[exit code {code}]"),
        (None, Some(signal)) => format!("[killed by signal {signal}]"),
        (None, None) => "[ended in an unknown way]".to_owned(),
    })
}
