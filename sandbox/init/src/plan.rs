//! A run made ready: everything that can be wrong with a request, before anything is done for it.

use std::ffi::CString;

use hothouse_protocol::{Exec, Failure, FailureCode, Program, Rlimits, TextFile};
use nix::unistd::{Gid, Uid};
use serde::Serialize;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who programs run as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    /// The user.
    pub(crate) uid: Uid,
    /// The group.
    pub(crate) gid: Gid,
    /// Whether init may change to it; otherwise programs run as init's own user.
    pub(crate) can_change: bool,
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The file to execute.
    pub(crate) image: Image,
    /// Its arguments, the name first.
    pub(crate) argv: Vec<CString>,
    /// Its environment.
    pub(crate) env: Vec<CString>,
    /// What is written before it starts.
    pub(crate) files: Vec<TextFile>,
    /// Where that is written.
    pub(crate) workspace: CString,
    /// Where it starts.
    pub(crate) cwd: CString,
    /// Limits of each process.
    pub(crate) rlimits: Rlimits,
    /// Whether its three descriptors are one terminal.
    pub(crate) has_terminal: bool,
}

/// The file to execute.
#[derive(Debug)]
pub(crate) enum Image {
    /// The first of these that can be executed.
    Paths(Vec<CString>),
    /// Init's own, with another face.
    Own,
}

impl Plan {
    /// Makes a program ready, or says what is wrong with it.
    pub(crate) fn new(program: &Program, workspace: &str) -> Result<Self, Failure> {
        match program {
            Program::Exec(exec) => Self::exec(exec, workspace),
            Program::Unpack(unpack) => Self::own("unpack", unpack, workspace),
            Program::Reset(reset) => Self::own("reset", reset, workspace),
            Program::Pack(pack) => Self::own("pack", pack, workspace),
        }
    }

    fn exec(exec: &Exec, workspace: &str) -> Result<Self, Failure> {
        let name = exec
            .argv
            .first()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| invalid("there is no program"))?;
        let path = exec
            .env
            .iter()
            .find(|(key, _)| key == "PATH")
            .map_or(DEFAULT_PATH, |(_, value)| value);
        let candidates = if name.contains('/') {
            vec![c_string(name)?]
        } else {
            path.split(':')
                .filter(|f| !f.is_empty())
                .map(|f| c_string(&format!("{f}/{name}")))
                .collect::<Result<_, _>>()?
        };
        let env = exec.env.iter().map(|(key, value)| {
            if key.is_empty() || key.contains('=') {
                return Err(invalid(&format!("{key:?} is no name of a variable")));
            }
            c_string(&format!("{key}={value}"))
        });
        Ok(Self {
            image: Image::Paths(candidates),
            argv: exec.argv.iter().map(|arg| c_string(arg)).collect::<Result<_, _>>()?,
            env: env.collect::<Result<_, _>>()?,
            files: exec.files.clone(),
            workspace: c_string(workspace)?,
            cwd: c_string(&exec.cwd)?,
            rlimits: exec.rlimits,
            has_terminal: exec.terminal.is_some(),
        })
    }

    fn own(face: &str, request: &impl Serialize, workspace: &str) -> Result<Self, Failure> {
        let request = serde_json::to_string(request).map_err(|e| invalid(&e.to_string()))?;
        Ok(Self {
            image: Image::Own,
            argv: vec![c_string("hothouse-init")?, c_string(face)?, c_string(&request)?],
            env: Vec::new(),
            files: Vec::new(),
            workspace: c_string(workspace)?,
            cwd: c_string(workspace)?,
            rlimits: Rlimits::default(),
            has_terminal: false,
        })
    }
}

/// Whether a program reads what init sends it.
pub(crate) fn has_input(program: &Program) -> bool {
    match program {
        Program::Exec(exec) => exec.stdin,
        Program::Unpack(_) => true,
        Program::Pack(_) | Program::Reset(_) => false,
    }
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|e| {
        invalid(&format!(
            "a NUL at byte {} of an argument, variable or path",
            e.nul_position()
        ))
    })
}

fn invalid(message: &str) -> Failure {
    Failure {
        code: FailureCode::Invalid,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;

    use super::*;

    fn exec(argv: &[&str], env: &[(&str, &str)]) -> Program {
        Program::Exec(Exec {
            argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
            env: env
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            files: Vec::new(),
            cwd: "/".to_owned(),
            stdin: false,
            rlimits: Rlimits::default(),
            terminal: None,
        })
    }

    #[test]
    fn a_bare_name_is_looked_up_in_the_path_of_its_own_environment() {
        let plan = Plan::new(&exec(&["ls"], &[("PATH", "/a::/b")]), "/workspace").unwrap();
        assert_matches!(plan.image, Image::Paths(paths) if paths == [c"/a/ls".to_owned(), c"/b/ls".to_owned()]);
        let plan = Plan::new(&exec(&["./ls"], &[]), "/workspace").unwrap();
        assert_matches!(plan.image, Image::Paths(paths) if paths == [c"./ls".to_owned()]);
    }

    #[test]
    fn what_no_process_could_be_given_is_refused() {
        for program in [
            exec(&[], &[]),
            exec(&[""], &[]),
            exec(&["a\0b"], &[]),
            exec(&["a"], &[("A=B", "")]),
            exec(&["a"], &[("", "")]),
        ] {
            assert_eq!(
                Plan::new(&program, "/workspace").unwrap_err().code,
                FailureCode::Invalid
            );
        }
    }
}
