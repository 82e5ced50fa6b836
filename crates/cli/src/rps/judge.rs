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
    if observe { None } else { lost_tags(name, device) }
}

/// Why tags would be lost: the device takes them off, CPUMAP forgets them, and somebody needs them.
pub(super) fn lost_tags(name: &str, device: &Receiver) -> Option<String> {
    let who = match (&device.vlans[..], &device.tags_for) {
        ([], None) => return None,
        ([], Some(bridge)) => format!("{bridge}, a bridge that filters by VLAN, needs"),
        (vlans, _) => format!("{} need", vlans.join(", ")),
    };
    (device.strips_tags == Some(true)).then(|| {
        format!(
            "{name} takes VLAN tags off ({who} them), and CPUMAP would lose them: ethtool -K {name} rxvlan off"
        )
    })
}

/// What to do if most packets stay where they are for their checksums, given packets of such a while.
pub(super) fn mostly_unfilled(name: &str, unfilled: u64, all: u64) -> Option<String> {
    (unfilled > 1000 && unfilled > all / 2).then(|| {
        format!(
            "{name}: {unfilled} of {all} packets stay on the CPU they arrive on: their senders may leave checksums to the device \
             (senders behind the other end of a veth: ethtool -K PEER tx off)"
        )
    })
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
            tags_for: None,
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
    fn a_bridge_that_filters_needs_tags() {
        let port = Receiver { tags_for: Some("br0".into()), ..device() };
        refused(&port, "br0, a bridge");
        assert_eq!(lost_tags("eth0", &Receiver { strips_tags: Some(false), ..port }), None);
    }

    #[test]
    fn few_packets_that_stay_are_no_news() {
        assert_eq!(mostly_unfilled("eth0", 900, 1000), None);
        assert_eq!(mostly_unfilled("eth0", 2000, 4000), None);
        let said = mostly_unfilled("eth0", 2001, 4000).expect("a warning");
        assert!(said.contains("2001 of 4000"), "{said}");
    }

    #[test]
    fn the_kernels_own_rps_is_named() {
        let warned = warning("eth0", &Receiver { kernel_rps: 2, ..device() }).expect("a warning");
        assert!(warned.contains("2 of its queues"), "{warned}");
    }
}
