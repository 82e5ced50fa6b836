//! Where the figures come from.

use serde::{Deserialize, Serialize};
use std::{fs, time::SystemTime};

/// The machine of a run.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Host {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// A hypervisor is below; none where the CPU does not tell.
    pub(crate) virtualised: Option<bool>,
    /// Of the CPU that receives; none without frequency scaling.
    pub(crate) governor: Option<String>,
    pub(crate) unix_time: u64,
    /// What frames arrive on.
    pub(crate) driver: String,
    /// How Hoist was attached: `native, copy` for instance; none when it did not run.
    pub(crate) mode: Option<String>,
}

impl Host {
    pub(crate) fn here(host_cpu: usize) -> Self {
        let info = read("/proc/cpuinfo").unwrap_or_default();
        let governor = format!("/sys/devices/system/cpu/cpu{host_cpu}/cpufreq/scaling_governor");
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
            cpu: field(&info, "model name").unwrap_or("unknown").into(),
            cpus: info.lines().filter(|line| line.starts_with("processor")).count(),
            virtualised: field(&info, "flags").map(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            governor: read(&governor),
            unix_time: since.map_or(0, |since| since.as_secs()),
            driver: "veth".into(),
            mode: None,
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let below = match self.virtualised {
            Some(true) => ", virtual",
            _ => "",
        };
        let governor = self.governor.as_ref().map(|governor| format!(", governor {governor}"));
        let mode = self.mode.as_ref().map(|mode| format!(" ({mode})"));
        let (governor, mode) = (governor.unwrap_or_default(), mode.unwrap_or_default());
        format!("Linux {}, {} x {}{below}{governor}, {}{mode}", self.kernel, self.cpus, self.cpu, self.driver)
    }
}

/// Of the source that this was built from.
pub(crate) const COMMIT: &str = env!("HOIST_COMMIT");

/// As it was typed, without the directory of the program.
pub(crate) fn command() -> String {
    let arguments = std::env::args().skip(1);
    std::iter::once("hoist".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().into())
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let line = cpuinfo.lines().find(|line| line.split(':').next().map(str::trim) == Some(name))?;
    Some(line.split_once(':')?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_cpuinfo_are_found_by_their_whole_name() {
        let info = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(info, "model name"), Some("Some CPU"));
        assert_eq!(field(info, "model"), Some("85"));
        assert_eq!(field(info, "vendor_id"), None);
    }

    #[test]
    fn the_line_leaves_out_what_is_not_known() {
        let host = Host {
            kernel: "6.18".into(),
            cpu: "C".into(),
            cpus: 2,
            driver: "veth".into(),
            ..Host::default()
        };
        assert_eq!(host.line(), "Linux 6.18, 2 x C, veth");
        let (virtualised, mode, governor) =
            (Some(true), Some("native, copy".into()), Some("performance".into()));
        let host = Host { virtualised, mode, governor, ..host };
        assert_eq!(host.line(), "Linux 6.18, 2 x C, virtual, governor performance, veth (native, copy)");
    }
}
