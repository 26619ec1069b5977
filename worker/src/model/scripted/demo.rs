//! The built-in script: runs the code that a message contains, and repeats everything else.

use serde_json::json;

use super::script::{Action, Scene};
use crate::model::ModelRequest;

/// Says in every answer where it comes from.
const NOTE: &str = "This answer is scripted: no real model was asked.";

const HELP: &str = "Write `run: COMMAND`, or a fenced block of bash or python, and it is run in the sandbox.";

pub(super) fn reply(scene: &Scene, request: &ModelRequest) -> Vec<Action> {
    if !scene.outputs.is_empty() {
        return vec![Action::Text(report(&scene.outputs))];
    }
    let programs = programs(&scene.user);
    if programs.is_empty() {
        return vec![Action::Text(format!("You said:\n\n{}\n\n{HELP} {NOTE}", scene.user))];
    }
    let is_offered = |name: &str| request.tools.iter().any(|tool| tool.name == name);
    if let Some((tool, _)) = programs.iter().find(|(tool, _)| !is_offered(tool)) {
        return vec![Action::Text(format!(
            "There is {tool} code to run, but this agent has no {tool} tool. {NOTE}"
        ))];
    }
    let mut actions = vec![
        Action::Reasoning("The message contains code, so it is to be run.".to_owned()),
        Action::Text("Let me run that.".to_owned()),
    ];
    actions.extend(programs.into_iter().map(|(tool, code)| {
        let argument = if tool == "python" { "code" } else { "command" };
        Action::ToolCall {
            name: tool.to_owned(),
            input: json!({ argument: code }),
        }
    }));
    actions
}

fn report(outputs: &[(bool, String)]) -> String {
    let mut text = String::new();
    for (failed, output) in outputs {
        text.push_str(if *failed { "It failed:" } else { "It printed:" });
        // A fence must be longer than any in the output.
        let fence = "`".repeat(longest_ticks(output).max(2) + 1);
        text.extend(["\n\n", &fence, "\n", output.trim_end(), "\n", &fence, "\n\n"]);
    }
    text + NOTE
}

fn longest_ticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// The programs in a message, as (tool, code): its fenced blocks, else what stands after `run:`.
fn programs(text: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut open: Option<(&'static str, Vec<&str>)> = None;
    for line in text.lines() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => open = Some((tool_of(language.trim()), Vec::new())),
            (Some((_, code)), None) => code.push(line),
            (Some(_), Some(_)) => found.extend(open.take().map(|(tool, code)| (tool, code.join("\n")))),
            (None, None) => {}
        }
    }
    if found.is_empty() {
        let commands = text.lines().filter_map(|line| line.trim_start().strip_prefix("run:"));
        found = commands.map(|command| ("bash", command.trim().to_owned())).collect();
    }
    found.retain(|(_, code)| !code.trim().is_empty());
    found
}

fn tool_of(language: &str) -> &'static str {
    match language {
        "python" | "python3" | "py" => "python",
        _ => "bash",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("run: ls -l", &[("bash", "ls -l")])]
    #[case("do this:\n```python\nprint(1)\nprint(2)\n```\nthanks", &[("python", "print(1)\nprint(2)")])]
    #[case("```sh\nls\n```\nand\n```py\n1\n```", &[("bash", "ls"), ("python", "1")])]
    #[case("```\npwd\n```\nrun: not this", &[("bash", "pwd")])]
    #[case("```python\nnever closed", &[])]
    #[case("hello", &[])]
    #[case("run:  ", &[])]
    fn programs_are_found_in_a_message(#[case] text: &str, #[case] expected: &[(&str, &str)]) {
        let found = programs(text);
        let found: Vec<(&str, &str)> = found.iter().map(|(tool, code)| (*tool, code.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn output_with_fences_in_it_is_fenced_longer() {
        let report = report(&[(false, "```\nx\n```\n".to_owned()), (true, "no".to_owned())]);
        assert!(report.contains("It printed:\n\n````\n```\nx\n```\n````\n"), "{report}");
        assert!(report.contains("It failed:\n\n```\nno\n```\n"), "{report}");
        assert!(report.ends_with(NOTE));
    }
}
