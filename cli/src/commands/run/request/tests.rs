use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: Args,
}

fn parse(words: &[&str]) -> Result<Args, clap::Error> {
    Cli::try_parse_from([&["run"], words].concat()).map(|cli| cli.run)
}

fn job(words: &[&str]) -> Value {
    parse(words).unwrap().to_job().unwrap()
}

fn refused(words: &[&str]) -> String {
    format!("{:#}", parse(words).unwrap().to_job().unwrap_err())
}

/// A folder that is removed with its value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = env::temp_dir().join(format!("hothouse-run-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn code_alone_is_python_unless_its_first_line_says_otherwise() {
    assert_eq!(
        job(&["-c", "print(1)"]),
        json!({"kind": "exec", "input": {"language": "python", "code": "print(1)"}})
    );
    assert_eq!(job(&["-c", "#!/bin/sh\necho 1"])["input"]["language"], "bash");
    assert_eq!(job(&["-c", "1", "-l", "javascript"])["input"]["language"], "javascript");
}

#[test]
fn a_file_keeps_its_name_for_tracebacks() {
    let folder = Folder::new();
    let path = folder.put("hello.ts", b"console.log(1)");
    assert_eq!(
        job(&[&path])["input"],
        json!({"language": "typescript", "entrypoint": "hello.ts",
               "files": [{"path": "hello.ts", "content": "console.log(1)"}]})
    );
}

#[test]
fn a_file_in_no_known_language_is_asked_about() {
    let folder = Folder::new();
    let path = folder.put("program", b"hello");
    assert_eq!(
        refused(&[&path]),
        format!("what language is {path} in? Name it with --language")
    );
    let script = folder.put("script", b"#!/usr/bin/env node\n1");
    assert_eq!(job(&[&script])["input"]["language"], "javascript");
}

#[test]
fn files_and_folders_go_beside_the_program() {
    let folder = Folder::new();
    folder.put("data/b/c.bin", b"\xff\x00");
    folder.put("data/a.csv", b"1,2");
    let data = folder.0.join("data");
    let input = &job(&[
        "-c",
        "1",
        "-f",
        data.to_str().unwrap(),
        "-f",
        &format!("{}/a.csv:x/y.csv", data.display()),
    ])["input"];
    assert_eq!(
        *input,
        json!({"language": "python", "entrypoint": "main.py", "files": [
            {"path": "main.py", "content": "1"},
            {"path": "data/a.csv", "content": "1,2"},
            {"path": "data/b/c.bin", "content_base64": "/wA="},
            {"path": "x/y.csv", "content": "1,2"}]})
    );
}

#[test]
fn every_option_has_its_field() {
    let folder = Folder::new();
    let stdin = folder.put("stdin.txt", b"in");
    let words = [
        "-c",
        "1",
        "--arg",
        "-x",
        "--env",
        "A=b=c",
        "--stdin",
        &stdin,
        "--artifact",
        "out/*",
        "--install",
        "six",
        "--timeout",
        "5s",
        "--priority",
        "9",
        "--queue",
        "q",
        "--label",
        "gpu",
        "--metadata",
        "k=v",
        "--max-attempts",
        "1",
        "--delay",
        "1m",
        "--environment",
        "data",
        "--",
        "--last",
    ];
    assert_eq!(
        job(&words),
        json!({"kind": "exec", "priority": 9, "queue": "q", "labels": ["gpu"], "metadata": {"k": "v"}, "max_attempts": 1,
               "delay": "1m", "timeout": "5s",
               "input": {"language": "python", "code": "1", "args": ["-x", "--last"], "env": {"A": "b=c"}, "stdin": "in",
                         "artifacts": ["out/*"], "install": ["six"], "environment": "data"}})
    );
}

#[test]
fn a_command_needs_no_language() {
    assert_eq!(
        job(&["--command", "--", "ls", "-l"])["input"],
        json!({"command": ["ls", "-l"]})
    );
    assert!(refused(&["--command"]).contains("after `--`"));
}

#[test]
fn what_does_not_go_together_is_a_usage_error() {
    for words in [
        &[][..],
        &["-c", "1", "a.py"],
        &["-c", "1", "--priority", "10"],
        &["-c", "1", "-m", "novalue"],
    ] {
        assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
    }
    assert!(refused(&["-", "--stdin", "-"]).contains("program and input"));
    assert!(refused(&["-c", "1", "--env", "HOTHOUSE_NO_SUCH_VARIABLE"]).contains("no such variable"));
    assert!(refused(&["-c", "1", "--file", "/no/such/file"]).contains("No such file"));
}
