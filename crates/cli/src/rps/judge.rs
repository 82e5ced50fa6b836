//! Whether a device's packets can be spread. Pure.

use crate::doctor::Receiver;

/// Why not, and what to do; for a device that only has to be watched, too.
pub(super) fn refusal(name: &str, device: &Receiver, observe: bool) -> Option<String> {
    if device.loopback {
        return Some(format!("{name} is a loopback: its packets have no driver to be taken from"));
    }
    if !device.up {
        return Some(format!("{name} is down: ip link set {name} up"));
    }
    if let Some(id) = device.attached {
        return Some(format!(
            "{name}: another XDP program (id {id}) is attached, and hoist replaces none: see bpftool net"
        ));
    }
    if device.redirects == Some(false) {
        return Some(format!(
            "{name}: its driver ({}) has no native XDP that redirects. Generic XDP carries no number to another CPU by which \
             order could be kept, so Hoist does not use it; the kernel's own RPS works here: \
             /sys/class/net/{name}/queues/rx-*/rps_cpus",
            device.kind
        ));
    }
    if !observe && !device.vlans.is_empty() && device.strips_tags == Some(true) {
        return Some(format!(
            "{name} takes VLAN tags off ({} need them), and CPUMAP would lose them: ethtool -K {name} rxvlan off",
            device.vlans.join(", ")
        ));
    }
    None
}

/// What may surprise.
pub(super) fn warning(name: &str, device: &Receiver) -> Option<String> {
    (device.kernel_rps > 0).then(|| {
        format!(
            "{name}: the kernel's RPS is on for {} of its queues and moves packets once more, by a hash; it is left as it is \
             (off: echo 0 > /sys/class/net/{name}/queues/rx-*/rps_cpus)",
            device.kernel_rps
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Receiver {
        Receiver {
            kind: "veth".into(),
            up: true,
            loopback: false,
            redirects: Some(true),
            attached: None,
            queues: 1,
            kernel_rps: 0,
            vlans: Vec::new(),
            strips_tags: Some(true),
        }
    }

    #[track_caller]
    fn refused(device: &Receiver, words: &str) {
        let why = refusal("eth0", device, false).expect("refused");
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn a_device_that_can_is_taken() {
        assert_eq!(refusal("eth0", &device(), false), None);
        assert_eq!(
            refusal("eth0", &Receiver { redirects: None, ..device() }, false),
            None,
            "the kernel will tell"
        );
        assert_eq!(warning("eth0", &device()), None);
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        refused(&Receiver { loopback: true, ..device() }, "no driver");
        refused(&Receiver { up: false, ..device() }, "ip link set eth0 up");
        refused(&Receiver { attached: Some(7), ..device() }, "id 7");
        refused(&Receiver { redirects: Some(false), ..device() }, "rps_cpus");
        let tagged = Receiver { vlans: vec!["eth0.5".into()], ..device() };
        refused(&tagged, "ethtool -K eth0 rxvlan off");
        assert_eq!(refusal("eth0", &tagged, true), None, "nothing moves");
        assert_eq!(refusal("eth0", &Receiver { strips_tags: Some(false), ..tagged }, false), None);
    }

    #[test]
    fn the_kernels_own_rps_is_named() {
        let warned = warning("eth0", &Receiver { kernel_rps: 2, ..device() }).expect("a warning");
        assert!(warned.contains("2 of its queues"), "{warned}");
    }
}
