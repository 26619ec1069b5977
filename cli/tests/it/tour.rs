//! The commands of the README's tour, run as they stand there.

use std::path::Path;
use std::process::Command;

use crate::up::Place;

const README: &str = include_str!("../../../README.md");

/// The blocks that are marked as the tour.
fn tour() -> String {
    let blocks: Vec<&str> = README
        .split("```sh tour\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty(), "the README has no tour");
    blocks.join("\n")
}

#[test]
fn the_tour_of_the_readme_works_as_it_stands() {
    let place = Place::new();
    let mut up = place.up();
    up.until("stops everything");
    let key = std::fs::read_to_string(place.folder.join("admin.key")).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_hothouse")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var_os("PATH").unwrap().display());

    let toured = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &tour()])
        .current_dir(&place.folder)
        .env("PATH", path)
        .env("HOTHOUSE_SERVER", format!("http://127.0.0.1:{}", place.port))
        .env("HOTHOUSE_API_KEY", key.trim())
        .output()
        .unwrap();

    let (said, complained) = (
        String::from_utf8_lossy(&toured.stdout),
        String::from_utf8_lossy(&toured.stderr),
    );
    assert!(toured.status.success(), "{said}\n{complained}");
    for expected in ["hello from a sandbox", "step 3", "42\\n", "event: succeeded", "Linux"] {
        assert!(said.contains(expected), "no {expected:?} in {said}\n{complained}");
    }
}
