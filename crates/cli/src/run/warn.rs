//! What lifted datagrams go past, in one line each. `hoist doctor` has the long version.

use std::{fs, path::Path};

/// What netfilter and rp_filter would have had to say. Nothing with `--admit flow`: there they have had it.
pub(super) fn about_bypasses(admit_flow: bool) -> Vec<String> {
    if admit_flow {
        return Vec::new();
    }
    let mut texts = Vec::new();
    if let Some(what) = netfilter() {
        texts.push(format!("{what}: rules on INPUT and PREROUTING do not see lifted datagrams; --admit flow lets them decide on each flow"));
    }
    let strict = strict_rp_filter(Path::new("/proc/sys/net/ipv4/conf"));
    if !strict.is_empty() {
        texts.push(format!("rp_filter is strict on {}: it does not see lifted datagrams", strict.join(", ")));
    }
    texts
}

fn netfilter() -> Option<String> {
    let hooks = hoist_broker::netfilter::input_rules();
    if hooks > 0 {
        return Some(format!("nftables has {hooks} rules for what comes in"));
    }
    let legacy = ["ip", "ip6"].into_iter().filter(|family| {
        fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"))
            .is_ok_and(|names| !names.trim().is_empty())
    });
    let legacy: Vec<_> = legacy.map(|family| format!("{family}tables")).collect();
    (!legacy.is_empty()).then(|| format!("{} is in use", legacy.join(" and ")))
}

/// Devices with rp_filter 1; the kernel takes the higher of `all` and the device's own (IN_DEV_RPFILTER).
fn strict_rp_filter(conf: &Path) -> Vec<String> {
    let value = |name: &str| {
        fs::read_to_string(conf.join(name).join("rp_filter"))
            .ok()
            .and_then(|v| v.trim().parse::<u32>().ok())
            .unwrap_or(0)
    };
    let all = value("all");
    let names =
        fs::read_dir(conf).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let real = names.filter(|name| !["all", "default", "lo"].contains(&name.as_str()));
    let mut strict: Vec<_> = real.filter(|name| value(name).max(all) == 1).collect();
    strict.sort();
    strict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_higher_of_all_and_the_device_decides_whether_rp_filter_is_strict() {
        let conf = std::env::temp_dir().join(format!("hoist-rp-{}", std::process::id()));
        for (name, value) in [("all", "1"), ("lo", "1"), ("eth0", "0"), ("eth1", "2")] {
            fs::create_dir_all(conf.join(name)).unwrap();
            fs::write(conf.join(name).join("rp_filter"), value).unwrap();
        }
        let found = strict_rp_filter(&conf);
        fs::remove_dir_all(&conf).unwrap();
        assert_eq!(found, ["eth0"]);
    }
}
