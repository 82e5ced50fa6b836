//! CPU lists as the kernel writes them (`0-3,8`).

use std::collections::BTreeSet;

/// CPUs in ascending order, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(pub(crate) Vec<u32>);

/// More than any kernel's NR_CPUS.
const MOST: u32 = 8192;

impl std::str::FromStr for Cpus {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let mut cpus = BTreeSet::new();
        for part in list.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse().ok().filter(|cpu: &u32| *cpu < MOST);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
                _ => return Err(format!("'{part}' is no CPU or range of CPUs; a list looks like 0-3,8")),
            }
        }
        Ok(Self(cpus.into_iter().collect()))
    }
}

/// Where the kernel lists CPUs.
const DIRECTORY: &str = "/sys/devices/system/cpu";

impl Cpus {
    /// Those that are online.
    pub(crate) fn online() -> anyhow::Result<Self> {
        let file = format!("{DIRECTORY}/online");
        let list =
            std::fs::read_to_string(&file).map_err(|error| anyhow::anyhow!("reading {file}: {error}"))?;
        list.parse().map_err(|error| anyhow::anyhow!("{file}: {error}"))
    }

    /// Without those that were set apart for other work (isolcpus=, nohz_full=, cpuset partitions), unless that is all.
    pub(crate) fn for_everybody(&self) -> Self {
        let apart = |file| std::fs::read_to_string(format!("{DIRECTORY}/{file}")).unwrap_or_default();
        self.without(&[apart("isolated"), apart("nohz_full")])
    }

    /// An empty list and `(null)` name none.
    fn without(&self, lists: &[String]) -> Self {
        let apart: Vec<u32> =
            lists.iter().filter_map(|list| list.parse().ok()).flat_map(|Self(list)| list).collect();
        let rest: Vec<u32> = self.0.iter().copied().filter(|cpu| !apart.contains(cpu)).collect();
        if rest.is_empty() { self.clone() } else { Self(rest) }
    }

    /// The first of these that is not in `others`.
    pub(crate) fn missing_in(&self, others: &Self) -> Option<u32> {
        self.0.iter().copied().find(|cpu| !others.0.contains(cpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!("0-2,8\n".parse(), Ok(Cpus(vec![0, 1, 2, 8])));
        assert_eq!("3,1,1".parse(), Ok(Cpus(vec![1, 3])));
    }

    #[test]
    fn cpus_that_are_set_apart_are_left_out() {
        let all = Cpus(vec![0, 1, 2, 3]);
        let without = |isolated: &str, nohz: &str| all.without(&[isolated.into(), nohz.into()]).0;
        assert_eq!(without("\n", "(null)\n"), [0, 1, 2, 3]);
        assert_eq!(without("2\n", "1-2\n"), [0, 3]);
        assert_eq!(without("0-3\n", ""), [0, 1, 2, 3], "somebody must");
    }

    #[test]
    fn what_is_no_list_is_told() {
        for bad in ["", "a", "1-", "2-1", "1,,2", "-1", "0-99999999"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }
}
