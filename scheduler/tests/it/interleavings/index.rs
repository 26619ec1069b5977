//! What Redis holds, read key by key, and whether it agrees with itself.

use std::collections::{BTreeMap, BTreeSet};

use common::testing::{Contents, TestEnv};

use super::oracle::{Broken, ensure};

/// Every entry, and every place where a job stands.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Job → shard's root and the fields of its record.
    entries: BTreeMap<String, (String, Vec<String>)>,
    sets: Contents,
}

impl Index {
    pub(crate) async fn read(env: &TestEnv) -> Self {
        let (indexes, sets): (Contents, Contents) = env
            .contents()
            .await
            .into_iter()
            .partition(|(key, _)| key.ends_with("}:idx"));
        let mut entries = BTreeMap::new();
        for (key, records) in indexes {
            let root = key.trim_end_matches("idx").to_owned();
            for (job, record) in records {
                let fields = record.split('|').map(str::to_owned).collect();
                let before = entries.insert(job, (root.clone(), fields));
                assert!(before.is_none(), "a job in two shards");
            }
        }
        Self { entries, sets }
    }

    /// Whether each view of the workers has a tenant's lane in a ring, or will take note of it. All of them serve every lane here.
    fn is_found(&self, root: &str, lane: &str, tenant: &str) -> Option<()> {
        let member = |key: String, member: &str| self.sets.get(&key)?.get(member).cloned();
        let begun: u64 = member(format!("{root}open"), &format!("{lane} {tenant}"))?
            .parse()
            .ok()?;
        member(format!("{root}lanes:{tenant}"), lane)?;
        let Some(views) = self.sets.get(&format!("{root}views")) else {
            return Some(());
        };
        for record in views.values() {
            let [view, seen, ..] = record.split('|').collect::<Vec<_>>()[..] else {
                continue;
            };
            if seen.parse::<u64>().ok()? < begun {
                continue;
            }
            let mark = if lane.ends_with('!') { "!" } else { "" };
            member(format!("{root}of:{view}:{mark}*:{tenant}"), lane)?;
            member(format!("{root}ring:{view}:{mark}*"), tenant)?;
        }
        Some(())
    }

    /// Every entry stands in the one place that it names, and whatever stands somewhere has such an entry. Whose claim came too
    /// late may have a place too many.
    pub(crate) fn check(&self, limit: usize, is_late: impl Fn(&str) -> bool) -> Result<(), Broken> {
        let mut expected: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        let mut held: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (job, (root, fields)) in &self.entries {
            let [place, _attempt, tenant, lane, _level, holds, _score, extra] = fields.as_slice() else {
                return Err(format!("a record that cannot be read: {fields:?}"));
            };
            let key = match place.as_str() {
                "b" => format!("{root}b:{lane}:{tenant}"),
                "p" => format!("{root}w:{extra}"),
                "l" | "o" | "f" => format!("{root}leases"),
                "d" => String::new(),
                other => return Err(format!("an entry is {other}")),
            };
            expected.entry(key).or_default().insert(job);
            for hold in holds.split(',').filter_map(|hold| hold.split_once('=')) {
                held.entry(format!("{root}h:{}", hold.0)).or_default().insert(job);
            }
            if place == "b" {
                self.is_found(root, lane, tenant)
                    .ok_or_else(|| format!("{job} is in no ring"))?;
            }
            if matches!(place.as_str(), "l" | "o") && !holds.is_empty() {
                let all = holds.split(',').filter_map(|hold| hold.split_once('='));
                let has = |key: &str| {
                    let holders = self.sets.get(&format!("{root}h:{key}"));
                    holders.is_some_and(|holders| holders.contains_key(job))
                };
                let missing: Vec<_> = all.filter(|(key, _)| !has(key)).collect();
                ensure(missing.is_empty(), || {
                    format!("{job} ({place}) has no place of {missing:?}")
                })?;
            }
        }
        for (key, members) in &self.sets {
            let name = key.split_once("}:").map_or("", |(_, name)| name);
            let here = members.keys().map(String::as_str);
            if name.starts_with("h:") {
                let in_time = members.keys().filter(|job| !is_late(job)).count();
                ensure(in_time <= limit, || format!("{key} has {members:?}"))?;
                let known = held.remove(key).unwrap_or_default();
                let strays: Vec<_> = here.filter(|job| !known.contains(job)).collect();
                ensure(strays.is_empty(), || {
                    format!("{strays:?} have a place of {key}, and no entry")
                })?;
            } else if ["b", "w", "leases"]
                .iter()
                .any(|own| name.split(':').next() == Some(*own))
            {
                let known = expected.remove(key).unwrap_or_default();
                ensure(here.collect::<BTreeSet<_>>() == known, || {
                    format!("{key} has {members:?}, and entries {known:?}")
                })?;
            }
        }
        expected.remove("");
        ensure(expected.is_empty(), || format!("entries stand nowhere: {expected:?}"))
    }
}
