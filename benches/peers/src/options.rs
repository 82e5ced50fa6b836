//! The command line: `peer-NAME DEVICE PORT [--seconds N] [--idle-ms N]`, and what a peer adds.

use std::time::Duration;

/// What a peer was asked for.
#[derive(Debug, PartialEq)]
pub struct Options {
    /// The device that datagrams arrive on.
    pub device: String,
    /// The port that they are for.
    pub port: u16,
    /// It ends this long after it was ready, at the latest.
    pub seconds: f64,
    /// It ends when nothing has come for so long after a first datagram.
    pub idle: Duration,
    own: Vec<(String, u32)>,
}

impl Options {
    /// Parses what follows the program's name. `own` names the options that this peer adds; each takes a number.
    pub fn parse(mut args: impl Iterator<Item = String>, own: &[&str]) -> Result<Self, String> {
        let usage = || usage(own);
        let device = args.next().ok_or_else(usage)?;
        let port = args.next().and_then(|port| port.parse().ok()).ok_or_else(usage)?;
        let (seconds, idle) = (f64::INFINITY, Duration::from_millis(200));
        let mut options = Self { device, port, seconds, idle, own: Vec::new() };
        while let Some(name) = args.next() {
            let value: u32 = args.next().and_then(|value| value.parse().ok()).ok_or_else(usage)?;
            match name.as_str() {
                "--seconds" => options.seconds = value.into(),
                "--idle-ms" => options.idle = Duration::from_millis(value.max(1).into()),
                other if own.contains(&other) => options.own.push((name, value)),
                _ => return Err(usage()),
            }
        }
        Ok(options)
    }

    /// An option of this peer, if given.
    pub fn own(&self, name: &str) -> Option<u32> {
        self.own.iter().rev().find(|(own, _)| own == name).map(|(_, value)| *value)
    }
}

fn usage(own: &[&str]) -> String {
    let own: String = own.iter().map(|name| format!(" [{name} N]")).collect();
    format!("usage: DEVICE PORT [--seconds N] [--idle-ms N]{own}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split(' ').map(String::from), &["--budget"])
    }

    #[test]
    fn options_follow_device_and_port_in_any_order() {
        let options = parse("vb 9000 --budget 7 --idle-ms 50 --seconds 3").unwrap();
        assert_eq!((options.device.as_str(), options.port), ("vb", 9000));
        assert_eq!((options.seconds, options.idle), (3.0, Duration::from_millis(50)));
        assert_eq!(options.own("--budget"), Some(7));
    }

    #[test]
    fn what_is_not_given_has_the_defaults_of_the_other_sinks() {
        let options = parse("vb 9000").unwrap();
        assert_eq!((options.seconds, options.idle), (f64::INFINITY, Duration::from_millis(200)));
        assert_eq!(options.own("--budget"), None);
    }

    #[test]
    fn wrong_lines_are_answered_with_the_usage() {
        for line in ["vb", "vb port", "vb 9000 --budget", "vb 9000 --other 1"] {
            assert!(parse(line).unwrap_err().contains("[--budget N]"), "{line}");
        }
    }
}
