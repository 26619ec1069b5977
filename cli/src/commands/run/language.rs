//! Which language a program is in: by the name of its file, else by its first line.

use std::path::Path;

/// The language that the file's ending names.
pub(super) fn by_ending(path: &Path) -> Option<&'static str> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "py" | "pyw" => Some("python"),
        "js" | "mjs" | "cjs" => Some("javascript"),
        "ts" | "mts" | "cts" => Some("typescript"),
        "sh" | "bash" => Some("bash"),
        "c" => Some("c"),
        "cc" | "cpp" | "cxx" => Some("cpp"),
        "go" => Some("go"),
        "java" => Some("java"),
        "rb" => Some("ruby"),
        _ => None,
    }
}

/// The language of the interpreter that the first line names, as in `#!/usr/bin/env python3`.
pub(super) fn by_shebang(code: &str) -> Option<&'static str> {
    let line = code.lines().next()?.strip_prefix("#!")?;
    let mut words = line
        .split_whitespace()
        .map(|word| word.rsplit('/').next().unwrap_or(word));
    let mut program = words.next()?;
    if program == "env" {
        // Options and assignments come before the program: `env -S A=1 node`.
        program = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
    }
    match program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.') {
        "python" | "pypy" => Some("python"),
        "node" | "nodejs" => Some("javascript"),
        "ts-node" | "tsx" => Some("typescript"),
        "bash" | "sh" | "dash" => Some("bash"),
        "ruby" => Some("ruby"),
        _ => None,
    }
}

/// The ending that a file in this language has.
pub(super) fn ending(language: &str) -> &str {
    match language {
        "python" => "py",
        "javascript" => "js",
        "typescript" => "ts",
        "bash" => "sh",
        "c" | "cpp" | "go" | "java" => language,
        "ruby" => "rb",
        _ => "txt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_name_languages() {
        let named =
            ["a.py", "b/c.MJS", "d.ts", "e.sh", "Makefile", "f.tcl", ".py"].map(|name| by_ending(Path::new(name)));
        assert_eq!(
            named,
            [
                Some("python"),
                Some("javascript"),
                Some("typescript"),
                Some("bash"),
                None,
                None,
                None
            ]
        );
    }

    #[test]
    fn shebangs_name_languages() {
        let cases = [
            ("#!/usr/bin/python3.12\nprint(1)", Some("python")),
            ("#!/usr/bin/env python3", Some("python")),
            ("#!/usr/bin/env -S A=1 node --flag", Some("javascript")),
            ("#! /bin/sh -e\necho", Some("bash")),
            ("#!/usr/bin/env tsx", Some("typescript")),
            ("#!/usr/bin/perl", None),
            ("#!/usr/bin/env", None),
            ("print(1)", None),
            ("", None),
        ];
        for (code, language) in cases {
            assert_eq!(by_shebang(code), language, "{code:?}");
        }
    }
}
