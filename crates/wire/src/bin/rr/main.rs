//! `hoist-rr`: one request, one answer, over UDP or TCP; it knows nothing of Hoist.
//!
//! `hoist-rr serve ADDRESS:PORT [--tcp] [--spin] [--busy-poll US]` echoes, blocking or (`--spin`) asking the kernel again
//! and again. `hoist-rr ping ADDRESS:PORT [--tcp] [--size BYTES] [--seconds N] [--clients N] [--busy-poll US]` never sleeps,
//! has one request under way on each of N sockets, compares every byte of every answer, and prints one line of JSON.

#![deny(unsafe_code)]

mod ping;
mod rtt;
mod serve;
mod sys;

use std::{env, io::Write, net::SocketAddr, process::ExitCode, time::Duration};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hoist-rr: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let options = Options::parse(env::args().skip(1))?;
    match options.role {
        Role::Serve => serve::run(&options),
        Role::Ping => say(&ping::run(&options)?.json()),
    }
}

/// What a failed operation was, for its error.
trait During<T> {
    fn during(self, operation: &str) -> Result<T, String>;
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, operation: &str) -> Result<T, String> {
        self.map_err(|error| format!("{operation}: {error}"))
    }
}

/// Prints a line at once.
fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).during("writing to standard output")
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Serve,
    Ping,
}

#[derive(Clone, Debug, PartialEq)]
struct Options {
    role: Role,
    address: SocketAddr,
    tcp: bool,
    spin: bool,
    busy_poll_us: Option<u32>,
    size: usize,
    time: Duration,
    clients: usize,
}

const USAGE: &str = "usage: hoist-rr serve ADDRESS:PORT [--tcp] [--spin] [--busy-poll US] | hoist-rr ping ADDRESS:PORT \
                     [--tcp] [--busy-poll US] [--size BYTES] [--seconds N] [--clients N]";

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let role = match words.next().as_deref() {
            Some("serve") => Role::Serve,
            Some("ping") => Role::Ping,
            _ => return Err(USAGE.into()),
        };
        let mut options = Self::new(role, number(words.next())?);
        while let Some(name) = words.next() {
            options.set(&name, &mut words)?;
        }
        Ok(options)
    }

    fn new(role: Role, address: SocketAddr) -> Self {
        let (size, time) = (ping::LEAST_SIZE, Duration::from_secs(1));
        Self { role, address, tcp: false, spin: false, busy_poll_us: None, size, time, clients: 1 }
    }

    fn set(&mut self, name: &str, words: &mut impl Iterator<Item = String>) -> Result<(), String> {
        match (name, self.role) {
            ("--tcp", _) => self.tcp = true,
            ("--busy-poll", _) => self.busy_poll_us = Some(number(words.next())?),
            ("--spin", Role::Serve) => self.spin = true,
            ("--size", Role::Ping) => self.size = within(number(words.next())?, ping::LEAST_SIZE, 65_507)?,
            ("--clients", Role::Ping) => self.clients = within(number(words.next())?, 1, 10_000)?,
            ("--seconds", Role::Ping) => self.time = seconds(number(words.next())?)?,
            _ => return Err(USAGE.into()),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(word: Option<String>) -> Result<T, String> {
    word.and_then(|word| word.parse().ok()).ok_or_else(|| USAGE.into())
}

fn within(value: usize, least: usize, most: usize) -> Result<usize, String> {
    if (least..=most).contains(&value) { Ok(value) } else { Err(format!("{value} is not {least} to {most}")) }
}

fn seconds(value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value).map_err(|error| format!("--seconds {value}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        Options::parse(line.split(' ').map(String::from))
    }

    #[test]
    fn each_role_has_options_of_its_own() {
        let serve = parsed("serve 10.0.0.1:7 --tcp --spin --busy-poll 50").unwrap();
        assert_eq!(
            (serve.role, serve.tcp, serve.spin, serve.busy_poll_us),
            (Role::Serve, true, true, Some(50))
        );
        let ping = parsed("ping [::1]:7 --size 100 --seconds 0.5 --clients 3").unwrap();
        assert_eq!((ping.size, ping.time, ping.clients), (100, Duration::from_millis(500), 3));
        for bad in
            ["ping [::1]:7 --spin", "serve 10.0.0.1:7 --size 100", "serve", "listen 10.0.0.1:7", "ping 7"]
        {
            assert_eq!(parsed(bad).unwrap_err(), USAGE, "{bad}");
        }
    }

    #[test]
    fn a_request_has_room_for_what_identifies_it() {
        assert!(parsed("ping 10.0.0.1:7 --size 15").unwrap_err().contains("16 to"));
        assert!(parsed("ping 10.0.0.1:7 --seconds -1").unwrap_err().contains("--seconds -1"));
    }
}
