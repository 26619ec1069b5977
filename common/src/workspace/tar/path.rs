//! Paths of a workspace, as requests name them.

/// The longest path, bytes.
pub const PATH_MAX: usize = 4_096;
/// The longest name in it, bytes.
const NAME_MAX: usize = 255;

/// The most names of a path: folders, and what is in the last of them.
pub const DEPTH_MAX: usize = 128;

/// The path in its one form, or nothing when it is none below the workspace: it climbs, begins at the root, is empty, or
/// could be no file of Linux. A slash at the end means nothing.
pub fn relative(path: &str) -> Option<&str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let names: Vec<&str> = path.split('/').collect();
    let is_name = |name: &&str| !matches!(*name, "" | "." | "..") && name.len() <= NAME_MAX;
    let is_good = path.len() <= PATH_MAX && !path.contains('\0') && names.len() <= DEPTH_MAX;
    (is_good && names.iter().all(is_name)).then_some(path)
}

/// Whether a path is below a folder; everything is below the empty one.
pub fn is_below(path: &str, folder: &str) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_the_workspace_are_paths() {
        for path in ["a", "a/b", "..a/b..", "a b/é", ".hidden"] {
            assert_eq!(relative(path), Some(path));
        }
        assert_eq!(relative("a/"), Some("a"));
        let long = "x".repeat(256);
        for path in [
            "",
            "/",
            "/a",
            "..",
            "a/..",
            "a/../b",
            "./a",
            "a//b",
            "a\0b",
            "a//",
            &long,
            &"a/".repeat(200),
        ] {
            assert_eq!(relative(path), None, "{path:?}");
        }
    }

    #[test]
    fn a_folder_is_not_below_its_like() {
        assert!(is_below("a/b", "a") && is_below("a/b/c", "a") && is_below("a", ""));
        assert!(!is_below("ab", "a") && !is_below("a", "a") && !is_below("b", "a"));
    }
}
