//! The tree of processes below one, as `/proc` shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::unistd::Pid;

/// All living descendants of `root`, without itself. Complete when nobody forks meanwhile.
pub(crate) fn descendants(root: Pid) -> BTreeSet<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read(entry.path().join("stat")) else {
            continue;
        };
        if let Some((state, parent)) = parse_stat(&stat)
            && !matches!(state, b'Z' | b'X')
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut next = vec![root.as_raw()];
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.insert(Pid::from_raw(child));
            next.push(child);
        }
    }
    found
}

/// State and parent of a process. Its name stands in parentheses before them and may hold anything, so the last closing
/// one counts.
fn parse_stat(stat: &[u8]) -> Option<(u8, i32)> {
    let rest = stat.get(stat.iter().rposition(|byte| *byte == b')')? + 1..)?;
    let mut fields = rest.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    let parent = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    Some((state, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_a_stat_line_does_not_deceive() {
        assert_eq!(parse_stat(b"7 (a) Z 1 (b) S 42 7 7 0"), Some((b'S', 42)));
        assert_eq!(parse_stat(b"7 (\xff\n) R 1 1"), Some((b'R', 1)));
        assert_eq!(parse_stat(b"7 no parentheses"), None);
    }

    #[test]
    fn a_child_is_a_descendant_of_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let found = descendants(Pid::this());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&pid));
    }
}
