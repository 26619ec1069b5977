//! From an `exec` job's input to what is run: pure.

use common::job::exec::ExecInput;
use common::job::{Failure, FailureCode};

use hothouse_protocol::{PAYLOAD_MAX, TextFile};

use super::super::way_out::{self, Means};
use super::install::{self, Step};
use crate::environment::Environment;
use crate::sandbox::WORKSPACE;

/// What is put into the sandbox and run there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// What installs packages first.
    pub(super) install: Vec<Step>,
    pub(super) argv: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    /// Files that go with the request.
    pub(super) texts: Vec<TextFile>,
    /// A tar stream of the files that go before it; empty when there are none.
    pub(super) archive: Vec<u8>,
}

/// What a request may hold beside its files: limits, lengths, names of fields.
const REQUEST_REST: usize = 4 * 1024;

/// Whether a job may reach anything: itself, or while its packages are installed.
pub(super) fn needs_way_out(input: &ExecInput, install: &[Step]) -> bool {
    !(install.is_empty() && input.egress.is_empty())
}

/// Works out what to run.
pub(super) fn plan(input: &ExecInput, environment: &Environment, means: &Means) -> Result<Plan, Failure> {
    let refuse = |message: String| Failure::new(FailureCode::InvalidInput, message);
    let install = install::steps(input, environment)?;
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for file in &input.files {
        let bytes = file
            .bytes()
            .ok_or_else(|| refuse(format!("file {:?} has no content", file.path)))?;
        files.push((file.path.clone(), bytes));
    }
    let argv = match (&input.command, &input.language) {
        (Some(command), _) => command.iter().chain(&input.args).cloned().collect(),
        (None, Some(language)) => {
            let unknown = || {
                refuse(format!(
                    "environment {:?} does not run {}",
                    environment.name,
                    language.as_str()
                ))
            };
            let language = environment.languages.get(language.as_str()).ok_or_else(unknown)?;
            let file = match (&input.entrypoint, &input.code) {
                (Some(entrypoint), _) => entrypoint.clone(),
                (None, Some(code)) => {
                    files.push((language.file.clone(), code.clone().into_bytes()));
                    language.file.clone()
                }
                (None, None) => return Err(refuse("there is neither code nor entrypoint".to_owned())),
            };
            language.command(&format!("{WORKSPACE}/{file}"), &input.args)
        }
        (None, None) => return Err(refuse("there is neither language nor command".to_owned())),
    };
    let mut env = environment.env.clone();
    env.extend(way_out::variables(means, needs_way_out(input, &install)));
    env.extend(install::variables(
        input,
        environment.env.get("PATH").map(String::as_str),
    ));
    env.extend(input.env.clone());
    let env: Vec<(String, String)> = env.into_iter().collect();
    let room = PAYLOAD_MAX.saturating_sub(REQUEST_REST + json_len(&argv) + json_len(&env));
    let (texts, archive) = match texts(files, room) {
        Ok(texts) => (texts, Vec::new()),
        Err(files) => {
            let archive = archive(&files).map_err(|error| refuse(format!("the files cannot be packed: {error}")))?;
            (Vec::new(), archive)
        }
    };
    Ok(Plan {
        install,
        argv,
        env,
        texts,
        archive,
    })
}

/// The files as texts when they are all text and small enough, which saves a round trip and two processes.
fn texts(files: Vec<(String, Vec<u8>)>, room: usize) -> Result<Vec<TextFile>, Vec<(String, Vec<u8>)>> {
    let bytes: usize = files.iter().map(|(_, content)| content.len()).sum();
    if bytes > room || files.iter().any(|(_, content)| std::str::from_utf8(content).is_err()) {
        return Err(files);
    }
    let text = |(path, content)| TextFile {
        path,
        text: String::from_utf8(content).unwrap_or_default(),
    };
    let texts: Vec<TextFile> = files.into_iter().map(text).collect();
    if json_len(&texts) <= room {
        return Ok(texts);
    }
    Err(texts
        .into_iter()
        .map(|file| (file.path, file.text.into_bytes()))
        .collect())
}

/// The length as JSON, in which a byte can take six.
fn json_len(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX / 4, |text| text.len())
}

pub(in crate::executor) fn archive(files: &[(String, Vec<u8>)]) -> std::io::Result<Vec<u8>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        // Executable, so that a file can be the command.
        header.set_mode(0o755);
        tar.append_data(&mut header, path, content.as_slice())?;
    }
    tar.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::job::exec::InputFile;

    fn environment() -> Environment {
        Environment::built_in()
    }

    #[test]
    fn code_becomes_the_languages_file() {
        let input = ExecInput {
            language: Some("python".parse().unwrap()),
            code: Some("print(1)\0".to_owned()),
            args: vec!["a b".to_owned()],
            ..ExecInput::default()
        };
        let plan = plan(&input, &environment(), &Means::default()).unwrap();
        assert_eq!(plan.argv, ["python3", "/workspace/main.py", "a b"]);
        assert!(plan.archive.is_empty());
        assert_eq!(plan.texts[0].path, "main.py");
        assert_eq!(plan.texts[0].text, "print(1)\0");
    }

    #[test]
    fn the_operators_certificates_are_named_only_where_they_are_put() {
        let means = Means {
            certificates: "a certificate".into(),
            ..Means::default()
        };
        let names_them = |input: &ExecInput| {
            let plan = plan(input, &environment(), &means).unwrap();
            plan.env.iter().any(|(name, _)| name == "NODE_EXTRA_CA_CERTS")
        };
        let mut input = ExecInput {
            command: Some(vec!["true".to_owned()]),
            ..ExecInput::default()
        };
        assert!(!names_them(&input), "nothing puts the file there");
        input.egress.allow = vec!["example.com".to_owned()];
        assert!(names_them(&input));
    }

    #[test]
    fn what_a_request_has_no_room_for_goes_before_it() {
        let long = "x".repeat(PAYLOAD_MAX);
        // Six bytes of JSON each.
        let grows = "\u{1}".repeat(PAYLOAD_MAX / 4);
        for code in [long, grows] {
            let input = ExecInput {
                language: Some("python".parse().unwrap()),
                code: Some(code.clone()),
                ..ExecInput::default()
            };
            let plan = plan(&input, &environment(), &Means::default()).unwrap();
            assert_eq!(plan.texts, []);
            let mut archive = tar::Archive::new(plan.archive.as_slice());
            let entry = archive.entries().unwrap().next().unwrap().unwrap();
            let size = code.len() as u64;
            assert_eq!((entry.path().unwrap().to_str(), entry.size()), (Some("main.py"), size));
        }
        let input = ExecInput {
            command: Some(vec!["true".to_owned()]),
            files: vec![InputFile {
                path: "a".to_owned(),
                content: None,
                content_base64: Some("/w==".to_owned()),
            }],
            ..ExecInput::default()
        };
        let plan = plan(&input, &environment(), &Means::default()).unwrap();
        assert!(plan.texts.is_empty() && !plan.archive.is_empty());
    }

    #[test]
    fn a_command_runs_as_it_is_and_the_jobs_variables_win() {
        let input = ExecInput {
            command: Some(vec!["env".to_owned()]),
            env: [("HOME".to_owned(), "/tmp".to_owned())].into(),
            files: vec![InputFile {
                path: "a/b".to_owned(),
                content: Some(String::new()),
                content_base64: None,
            }],
            ..ExecInput::default()
        };
        let plan = plan(&input, &environment(), &Means::default()).unwrap();
        assert_eq!(plan.argv, ["env"]);
        assert!(plan.env.contains(&("HOME".to_owned(), "/tmp".to_owned())));
        assert_eq!(plan.texts[0].path, "a/b");
    }

    #[test]
    fn packages_are_refused_where_nothing_can_be_reached() {
        let input = ExecInput {
            install: vec!["six".to_owned()],
            ..ExecInput::default()
        };
        assert_eq!(
            plan(&input, &environment(), &Means::default()).unwrap_err().code,
            FailureCode::InstallFailed
        );
    }
}
