//! Attempts to break out of a sandbox, or to break it, which must all fail.
//!
//! `hothouse verify` makes every attempt against the operator's own host and environments; the cheap ones are made
//! when a pool starts, and an environment in which one succeeds does not serve. A new attempt is a row in the table of
//! its group.
//!
//! # Invariants
//! - Silence is no proof: an attempt holds only when it says why it failed, or when what it had to do to the sandbox
//!   was seen from outside. Anything else is [`Verdict::Unclear`], which counts against the sandbox.
//! - No attempt harms a host that lets it through: it looks, or does something that changes nothing.

mod bench;
mod cross_job;
mod escape;
mod files;
mod forgery;
mod keys;
mod network;
mod probe;
mod resources;

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

pub use bench::{Bench, Error};
pub use probe::{PRELUDE, Probe, probe};

/// How long an attempt may take, whatever it does.
const ATTEMPT_MAX: Duration = Duration::from_mins(1);

/// Attempts that are not made against bubblewrap, and why.
const NOT_IN_BUBBLEWRAP: &[(&str, &str)] = &[(
    "use up the names of the workspace",
    "bubblewrap cannot limit the number of files: they count as memory of the sandbox, and its job ends out of memory",
)];

/// What an attempt is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Out of the sandbox, or to more rights in it.
    Escape,
    /// To other machines, the host, or its services.
    Network,
    /// More than its share of memory, processes, disk, time or output.
    Resources,
    /// Files that go in or out and mean something else.
    Files,
    /// From one job to another.
    CrossJob,
    /// Words in the name of init or of the worker.
    Forgery,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "detail", rename_all = "snake_case")]
pub enum Verdict {
    /// It failed, for this reason.
    Held(String),
    /// It succeeded.
    Broken(String),
    /// It cannot be told, which is no proof.
    Unclear(String),
    /// What it attacks is not there with this driver, for this reason, which an operator must know.
    DoesNotApply(String),
}

impl Verdict {
    /// Whether the sandbox stood it.
    pub const fn has_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }

    /// Whether nothing speaks against the sandbox.
    pub const fn is_fine(&self) -> bool {
        matches!(self, Self::Held(_) | Self::DoesNotApply(_))
    }
}

type HostAttempt = for<'a> fn(&'a Bench) -> BoxFuture<'a, Result<Verdict, Error>>;

/// How it is made.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// A program in a fresh sandbox.
    Probe(Probe),
    /// Something that needs the worker's side too.
    Host(HostAttempt),
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// What it is about.
    pub group: Group,
    /// What it tries, for a person.
    pub name: &'static str,
    act: Act,
}

impl Attempt {
    const fn host(group: Group, name: &'static str, act: HostAttempt) -> Self {
        Self {
            group,
            name,
            act: Act::Host(act),
        }
    }

    const fn probe(group: Group, probe: Probe) -> Self {
        Self {
            group,
            name: probe.name,
            act: Act::Probe(probe),
        }
    }

    /// The program that makes it, when it is one.
    pub const fn program(&self) -> Option<&Probe> {
        match &self.act {
            Act::Probe(probe) => Some(probe),
            Act::Host(_) => None,
        }
    }

    /// Why it is not made against this driver.
    fn excuse(&self, driver: &str) -> Option<&'static str> {
        let excuses = (driver == "bubblewrap").then_some(NOT_IN_BUBBLEWRAP)?;
        let (_, why) = excuses.iter().find(|(name, _)| *name == self.name)?;
        Some(why)
    }

    /// Makes it in sandboxes of its own.
    pub async fn make(&self, bench: &Bench) -> Verdict {
        if let Some(why) = self.excuse(bench.driver()) {
            return Verdict::DoesNotApply(why.to_owned());
        }
        let made = async {
            match &self.act {
                Act::Probe(probe) => bench.probe(probe).await,
                Act::Host(act) => act(bench).await,
            }
        };
        match tokio::time::timeout(ATTEMPT_MAX, made).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => Verdict::Unclear(error.to_string()),
            Err(_elapsed) => Verdict::Unclear(format!("it took longer than {} s", ATTEMPT_MAX.as_secs())),
        }
    }
}

/// An attempt and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What it was about.
    pub group: Group,
    /// What it tried.
    pub name: &'static str,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Every attempt, by group.
pub fn attempts() -> Vec<Attempt> {
    let probes = |group, probes: &'static [Probe]| probes.iter().map(move |probe| Attempt::probe(group, *probe));
    probes(Group::Escape, escape::PROBES)
        .chain(probes(Group::Network, network::PROBES))
        .chain(probes(Group::Resources, resources::PROBES))
        .chain(resources::ATTEMPTS.iter().copied())
        .chain(files::ATTEMPTS.iter().copied())
        .chain(probes(Group::CrossJob, cross_job::PROBES))
        .chain(cross_job::ATTEMPTS.iter().copied())
        .chain(forgery::ATTEMPTS.iter().copied())
        .chain(keys::ATTEMPTS.iter().copied())
        .collect()
}

/// Makes `attempts`, a few at a time, and tells each finding as it comes.
pub async fn verify(bench: &Bench, attempts: &[Attempt], mut tell: impl FnMut(&Finding)) -> Vec<Finding> {
    // Resource attempts are slow for the whole machine; more at once would only make them wait for each other.
    const AT_ONCE: usize = 4;
    let mut findings = Vec::new();
    let mut made = stream::iter(attempts)
        .map(|attempt| async move {
            Finding {
                group: attempt.group,
                name: attempt.name,
                verdict: attempt.make(bench).await,
            }
        })
        .buffered(AT_ONCE);
    while let Some(finding) = made.next().await {
        tell(&finding);
        findings.push(finding);
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_are_enough_of_them_and_each_has_a_name_of_its_own() {
        let attempts = attempts();
        assert!(attempts.len() >= 120, "{}", attempts.len());
        let names: BTreeSet<_> = attempts.iter().map(|attempt| attempt.name).collect();
        assert_eq!(names.len(), attempts.len());
        let groups: BTreeSet<_> = attempts.iter().map(|attempt| attempt.group).collect();
        assert_eq!(groups.len(), 6);
        assert!(NOT_IN_BUBBLEWRAP.iter().all(|(name, _)| names.contains(name)));
        assert!(
            escape::PROBES
                .iter()
                .chain(network::PROBES)
                .filter(|probe| probe.is_cheap)
                .count()
                >= 15
        );
    }
}
