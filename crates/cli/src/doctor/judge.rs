//! What the facts mean for Hoist. Pure: the same facts give the same findings.

mod device;
mod machine;

use super::facts::{Facts, Seen, Unseen};
use serde::Serialize;

/// How much a finding matters. Only `Bad` keeps Hoist from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    Ok,
    /// Worth knowing; nothing need be done.
    Note,
    /// Costs rate, or changes what a program sees.
    Warn,
    Bad,
}

/// One thing found, what it means for Hoist, and the commands that mend it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The name of its section in docs/tuning.md.
    pub(super) topic: &'static str,
    /// None: the machine.
    pub(super) device: Option<String>,
    pub(super) severity: Severity,
    pub(super) found: String,
    pub(super) means: String,
    pub(super) mend: Vec<String>,
}

impl Finding {
    fn new(
        topic: &'static str,
        severity: Severity,
        found: impl Into<String>,
        means: impl Into<String>,
    ) -> Finding {
        Finding { topic, device: None, severity, found: found.into(), means: means.into(), mend: Vec::new() }
    }

    fn ok(topic: &'static str, found: impl Into<String>, means: impl Into<String>) -> Finding {
        Finding::new(topic, Severity::Ok, found, means)
    }

    fn note(topic: &'static str, found: impl Into<String>, means: impl Into<String>) -> Finding {
        Finding::new(topic, Severity::Note, found, means)
    }

    fn warn(topic: &'static str, found: impl Into<String>, means: impl Into<String>) -> Finding {
        Finding::new(topic, Severity::Warn, found, means)
    }

    fn bad(topic: &'static str, found: impl Into<String>, means: impl Into<String>) -> Finding {
        Finding::new(topic, Severity::Bad, found, means)
    }

    fn unseen(topic: &'static str, unseen: &Unseen) -> Finding {
        let finding = Finding::note(topic, format!("unknown: {}", unseen.why), "Not seen, so not judged.");
        if unseen.privileged { finding.mend("sudo hoist doctor") } else { finding }
    }

    fn mend(mut self, command: impl Into<String>) -> Finding {
        self.mend.push(command.into());
        self
    }
}

/// Every finding: the machine's first, then each device's.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = machine::judge(&facts.machine);
    for device in &facts.devices {
        let judged = device::judge(device, &facts.machine, facts.one_device);
        findings.extend(
            judged.into_iter().map(|finding| Finding { device: Some(device.name.clone()), ..finding }),
        );
    }
    findings
}

/// The finding for a fact that was seen, or that it was not.
fn when_seen<T>(topic: &'static str, fact: &Seen<T>, judge: impl FnOnce(&T) -> Finding) -> Finding {
    match fact {
        Ok(value) => judge(value),
        Err(unseen) => Finding::unseen(topic, unseen),
    }
}

fn plural(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

#[cfg(test)]
pub(super) mod made_up;
#[cfg(test)]
mod tests;
