//! `hoist wire --dev`: a device of this namespace instead of a testbed's.

use hoist_wire::Egress;
use std::net::{IpAddr, SocketAddr};

#[derive(clap::Args)]
#[command(next_help_heading = "Device")]
pub(crate) struct Device {
    /// Send from this device instead of a testbed's.
    ///
    /// What is reported is what the device was offered: frames that its transmit ring had no room for are part of it
    /// (its own counters tell how many it took: `ip -s link show`, `ethtool -S`).
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["testbed", "ipv6"])]
    pub(crate) dev: Option<String>,
    /// The MAC address of the next hop.
    #[arg(long, value_name = "MAC", value_parser = mac, requires = "dev")]
    dst_mac: Option<[u8; 6]>,
    /// The address of the first sender; patterns and flows of many senders also use those that follow it.
    #[arg(long, value_name = "ADDRESS", requires = "dev")]
    src: Option<IpAddr>,
    /// Yes, this link, and everything that the frames reach, may be loaded.
    #[arg(long, requires = "dev")]
    i_own_this_link: bool,
}

/// What a device needs to be told.
pub(crate) struct Hop {
    mac: [u8; 6],
    source: IpAddr,
    pub(crate) target: SocketAddr,
}

impl Device {
    /// A sentence when something is missing.
    pub(crate) fn hop(&self, dev: &str, to: Option<IpAddr>, port: u16) -> Result<Hop, String> {
        let (Some(mac), Some(source), Some(to)) = (self.dst_mac, self.src, to) else {
            return Err(format!(
                "--dev {dev} also needs --dst-mac MAC (of the next hop), --src ADDRESS and --to ADDRESS"
            ));
        };
        if !self.i_own_this_link {
            return Err(format!(
                "this would send from {dev} as fast as --rate says, by default as fast as it can, past every queue and \
                 firewall of this machine, to {to}, and could stop whatever else uses that link: if the link and all \
                 that it reaches are yours, add --i-own-this-link"
            ));
        }
        Ok(Hop { mac, source, target: SocketAddr::new(to, port) })
    }
}

impl Hop {
    pub(crate) fn egress(&self, dev: &str) -> hoist_wire::Result<Egress> {
        Egress::device(dev, self.mac, self.source)
    }
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let byte = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2);
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("{text:?} is no MAC address: six bytes as in 02:00:5e:10:00:01"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(i_own_this_link: bool) -> Device {
        let src = Some("192.0.2.1".parse().unwrap());
        Device { dev: Some("eth9".into()), dst_mac: Some([2; 6]), src, i_own_this_link }
    }

    #[test]
    fn macs_are_six_bytes_in_hexadecimal() {
        assert_eq!(mac("02:00:5e:10:00:fF"), Ok([2, 0, 0x5e, 0x10, 0, 0xff]));
        for bad in ["", "02:00:5e:10:00", "02:00:5e:10:00:01:02", "2:0:5e:10:0:1", "02-00-5e-10-00-01"] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_that_nobody_vouches_for_is_not_loaded() {
        let to = Some("192.0.2.2".parse().unwrap());
        let refused = device(false).hop("eth9", to, 9).err().unwrap();
        assert!(refused.contains("add --i-own-this-link"), "{refused}");
        assert!(device(true).hop("eth9", to, 9).is_ok());
        assert!(device(true).hop("eth9", None, 9).err().unwrap().contains("--to"));
    }
}
