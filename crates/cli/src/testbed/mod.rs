//! `hoist testbed`: two namespaces joined by a cable, for people to try things on.

use anyhow::{Context, Result, bail};
use hoist_wire::{End, Facts, Listed, State, Testbed};
use serde::Serialize;
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

/// Make, use and remove a pair of network namespaces joined by a veth pair.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make a testbed; it stays until `down`.
    Up(Up),
    /// Run a command on one end of a testbed.
    Exec(Exec),
    /// Remove a testbed and end what runs in it.
    Down(Down),
    /// Show the testbeds there are.
    List {
        /// One JSON array.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Up {
    /// Its name: 1 to 24 of a-z, 0-9 and -.
    #[arg(long, default_value = "demo")]
    name: String,
    /// Receive and transmit queues of each end.
    #[arg(long, default_value_t = 1)]
    queues: u32,
    /// MTU in bytes.
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// Add VLAN devices with this id.
    #[arg(long, value_name = "ID")]
    vlan: Option<u16>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Exec {
    /// The testbed.
    name: String,
    /// The end: the peer, or the machine under test.
    end: Which,
    /// The command and its arguments.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Which {
    Wire,
    Host,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Down {
    /// The testbed.
    name: Option<String>,
    /// Every testbed that no running process owns.
    #[arg(long)]
    all: bool,
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    match args.command {
        Action::Up(args) => up(&args)?,
        Action::Exec(args) => exec(&args)?,
        Action::Down(Down { name: Some(name), .. }) => hoist_wire::remove(&name)?,
        Action::Down(_) => down_all()?,
        Action::List { json } => list(json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(args: &Up) -> Result<()> {
    let mut builder = Testbed::builder().name(&args.name).queues(args.queues).mtu(args.mtu);
    if let Some(id) = args.vlan {
        builder = builder.vlan(id);
    }
    let testbed = builder.up()?;
    let made = Made::of(&testbed);
    testbed.keep()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&made)?);
    } else {
        made.print();
    }
    Ok(())
}

#[derive(Serialize)]
struct Made {
    name: String,
    #[serde(flatten)]
    facts: Facts,
    wire: MadeEnd,
    host: MadeEnd,
}

#[derive(Serialize)]
struct MadeEnd {
    namespace: String,
    device: String,
    ifindex: u32,
    mac: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    vlan: Option<MadeVlan>,
}

#[derive(Serialize)]
struct MadeVlan {
    device: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl Made {
    fn of(testbed: &Testbed) -> Self {
        Self {
            name: testbed.name().into(),
            facts: testbed.facts(),
            wire: MadeEnd::of(testbed.wire()),
            host: MadeEnd::of(testbed.host()),
        }
    }

    fn print(&self) {
        println!("testbed {}: {} queue(s), MTU {}", self.name, self.facts.queues, self.facts.mtu);
        for (name, end) in [("wire", &self.wire), ("host", &self.host)] {
            println!("  {name}  {:8} {:12} {:10} netns {}", end.device, end.ipv4, end.ipv6, end.namespace);
            if let Some(vlan) = &end.vlan {
                println!("        {:8} {:12} {}", vlan.device, vlan.ipv4, vlan.ipv6);
            }
        }
        let name = &self.name;
        println!("use it:    hoist testbed exec {name} host -- COMMAND    (or wire)");
        println!("load it:   hoist wire --testbed {name} --port PORT --rate 1M");
        println!("remove it: hoist testbed down {name}");
    }
}

impl MadeEnd {
    fn of(end: &End) -> Self {
        Self {
            namespace: end.netns().name().into(),
            device: end.device().into(),
            ifindex: end.ifindex(),
            mac: end.mac().map(|byte| format!("{byte:02x}")).join(":"),
            ipv4: end.v4(),
            ipv6: end.v6(),
            vlan: end.vlan_device().map(|device| MadeVlan {
                device,
                ipv4: end.vlan_v4(),
                ipv6: end.vlan_v6(),
            }),
        }
    }
}

fn exec(args: &Exec) -> Result<()> {
    let testbed = Testbed::open(&args.name)?;
    let end = match args.end {
        Which::Wire => testbed.wire(),
        Which::Host => testbed.host(),
    };
    end.netns().join()?;
    let (program, rest) = args.command.split_first().context("no command given")?;
    let error = Command::new(program).args(rest).exec();
    bail!("running {program} (execvp): {error}")
}

fn down_all() -> Result<()> {
    for listed in hoist_wire::list()? {
        match listed.state {
            State::Owned => tell_line!("hoist: {} belongs to a process that still runs: left", listed.name),
            State::Kept | State::Stale => hoist_wire::remove(&listed.name)?,
        }
    }
    Ok(())
}

fn list(json: bool) -> Result<()> {
    let all = hoist_wire::list()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else if all.is_empty() {
        println!("no testbeds: `hoist testbed up` makes one");
    } else {
        all.iter().for_each(print_listed);
    }
    Ok(())
}

fn print_listed(listed: &Listed) {
    let state = match listed.state {
        State::Owned => "owned by a running process",
        State::Kept => "kept until down",
        State::Stale => "left behind: the next up sweeps it",
    };
    let facts =
        listed.facts.map_or(String::new(), |facts| format!("{} queue(s), MTU {}, ", facts.queues, facts.mtu));
    println!("{:24} {facts}{state}", listed.name);
}
