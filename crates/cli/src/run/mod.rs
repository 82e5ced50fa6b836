//! `hoist run`: the broker of its own child.

mod supervise;
mod warn;

use crate::status::render;
use anyhow::{Context, Result, bail};
use hoist_broker::{Broker, Config, Mode, Policy, Ports, Tcp, elf, launch, status::Status};
use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Run a program with its UDP datagrams and the payload of its TCP connections lifted from the network device
///
/// The program needs no change and no privilege; hoist does: run it as root and give the program to --user.
/// The exit status is the program's (128 + signal if one ended it), 127 if there is no such program, 126 if it
/// cannot be executed. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR2 and SIGWINCH are passed on to the program;
/// SIGUSR1 prints the status of the run to stderr and is not passed on.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Device to lift from; may be repeated [default: every device that can and is up]
    #[arg(long = "dev", value_name = "DEV")]
    devices: Vec<String>,
    /// UDP ports to lift: all, off, or a list such as 53,5000-5100
    #[arg(long, default_value = "all", value_name = "all|PORT,..|off", value_parser = ports)]
    udp: Ports,
    /// TCP connections to lift: those for which it pays (auto), all (lift), none (off), or all of a list of ports such as
    /// 80,8000-8100: the local port of an accepted connection, the peer's of one that was connected. With lift or a list a
    /// program that the shim cannot get into, a static one for instance, is not started
    #[arg(long, default_value = "auto", value_name = "auto|lift|off|PORT,..", value_parser = tcp)]
    tcp: Tcp,
    /// What is lifted: whatever comes for a port, or only flows of which the kernel has delivered a datagram, so that
    /// netfilter and rp_filter have had their say
    #[arg(long, default_value = "port", value_name = "port|flow")]
    admit: Admit,
    /// How packets come into memory: by the device itself, by a copy in the kernel, or as the driver can
    #[arg(long, default_value = "auto", value_name = "auto|zero-copy|copy")]
    mode: ModeArg,
    /// Microseconds a reader that finds nothing runs the driver before it sleeps (Linux 6.9; the first datagram of a socket
    /// passes then)
    #[arg(long, default_value_t = 0, value_name = "N")]
    spin_us: u32,
    /// Fail instead of leaving a socket to the kernel
    #[arg(long)]
    require: bool,
    /// Run the program as this user, without any privilege
    #[arg(long, value_name = "NAME|UID")]
    user: Option<String>,
    /// Print to stderr at exit what was lifted, what was not, and why
    #[arg(long)]
    stats: bool,
    /// Write the same as JSON to a file at exit
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Admit {
    Port,
    Flow,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ModeArg {
    Auto,
    ZeroCopy,
    Copy,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Auto => Self::Auto,
            ModeArg::ZeroCopy => Self::ZeroCopy,
            ModeArg::Copy => Self::Copy,
        }
    }
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let name = &args.command[0];
    let program = match elf::find(name, std::env::var_os("PATH").as_deref()) {
        Ok(program) => program,
        Err(error) => return Ok(cannot_start(Path::new(name), &error)),
    };
    let user = args.user.as_deref().map(launch::user).transpose()?;
    let shim = shim_for(&program, &args)?;
    let mask = supervise::block_signals()?;
    let (mut broker, inherited) = Broker::start(config(&args)).context("the run could not be set up")?;
    if args.require {
        broker.require().context("--require: nothing can be lifted")?;
    }
    if shim.is_some() && args.udp != Ports::Off {
        warn::about_bypasses(matches!(args.admit, Admit::Flow)).iter().for_each(|text| say(text));
    }
    let cgroup = broker.cgroup().map(|procs| procs.try_clone_to_owned()).transpose().context("dup")?;
    let start = launch::Launch { program, arguments: args.command.clone(), shim, user, mask, cgroup };
    let launched = start.spawn(inherited)?;
    broker.check_joined(launched.child.id());
    let code = supervise::supervise(&mut broker, launched, args.require)?;
    broker.finish();
    supervise::print_messages(&mut broker);
    report(&args, &broker.status())?;
    Ok(code)
}

fn config(args: &Args) -> Config {
    Config {
        devices: args.devices.clone(),
        udp: args.udp.clone(),
        tcp: args.tcp.clone(),
        admit_flow: matches!(args.admit, Admit::Flow),
        mode: args.mode.into(),
        spin_us: args.spin_us,
        command: args.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
    }
}

/// The shim to preload; None with a warning if it cannot get into the program.
fn shim_for(program: &Path, args: &Args) -> Result<Option<PathBuf>> {
    let why = elf::examine(program).with_context(|| format!("read {}", program.display()))?;
    let name = program.display();
    match why {
        None => Ok(Some(launch::find_shim()?)),
        Some(why) if args.require => bail!("--require: nothing of {name} can be lifted: {why}"),
        Some(why) if args.tcp.policy == Policy::Lift => bail!(
            "--tcp: no connection of {name} can be lifted: {why}; use a build that is dynamically linked against \
             glibc, or --tcp off to run it as it is"
        ),
        Some(why) => {
            say(&format!("nothing of {name} is lifted: {why}"));
            Ok(None)
        }
    }
}

/// As env(1) does.
fn cannot_start(program: &Path, error: &io::Error) -> ExitCode {
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound => (127, "no such program".to_owned()),
        io::ErrorKind::PermissionDenied => (126, "not executable".to_owned()),
        _ => (126, error.to_string()),
    };
    say(&format!("{}: {why}", program.display()));
    ExitCode::from(code)
}

fn report(args: &Args, status: &Status) -> Result<()> {
    if args.stats {
        print(&render::text(status));
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(status)? + "\n";
        fs::write(path, json).with_context(|| format!("--json: write {}", path.display()))?;
    }
    Ok(())
}

/// One line to stderr.
fn say(text: &str) {
    print(&format!("hoist: {text}\n"));
}

/// To stderr, if anybody listens: that nobody does ends no run and changes no exit status.
fn print(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn ports(text: &str) -> Result<Ports, String> {
    match text {
        "all" => Ok(Ports::All),
        "off" => Ok(Ports::Off),
        list => list.split(',').map(port_range).collect::<Result<_, _>>().map(Ports::Some),
    }
}

fn tcp(text: &str) -> Result<Tcp, String> {
    let all = |policy| Ok(Tcp { policy, ports: Ports::All });
    match text {
        "auto" => all(Policy::Auto),
        "lift" => all(Policy::Lift),
        "off" => Ok(Tcp { policy: Policy::Off, ports: Ports::Off }),
        list => Ok(Tcp {
            policy: Policy::Lift,
            ports: list.split(',').map(port_range).collect::<Result<_, _>>().map(Ports::Some)?,
        }),
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is no port (1 to 65535)")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first <= last { Ok(first..=last) } else { Err(format!("{text}: a range runs upwards")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_all_off_or_a_list_of_ranges() {
        assert_eq!(ports("all"), Ok(Ports::All));
        assert_eq!(ports("off"), Ok(Ports::Off));
        assert_eq!(ports("53,5000-5100"), Ok(Ports::Some(vec![53..=53, 5000..=5100])));
        for bad in ["", "0", "65536", "9-3", "a", "1,,2", "1-"] {
            assert!(ports(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn connections_are_chosen_by_policy_or_all_of_a_list_of_ports() {
        let all = |policy| Ok(Tcp { policy, ports: Ports::All });
        assert_eq!(tcp("auto"), all(Policy::Auto));
        assert_eq!(tcp("lift"), all(Policy::Lift));
        assert_eq!(tcp("off"), Ok(Tcp { policy: Policy::Off, ports: Ports::Off }));
        let listed = Ports::Some(vec![80..=80, 8000..=8100]);
        assert_eq!(tcp("80,8000-8100"), Ok(Tcp { policy: Policy::Lift, ports: listed }));
        for bad in ["", "all", "0", "lift,80", "9-3"] {
            assert!(tcp(bad).is_err(), "{bad:?}");
        }
    }
}
