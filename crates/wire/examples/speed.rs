//! How fast one core sends: the host's end drops every frame as it arrives, on another core.
//!
//! `cargo run --release -p hoist-wire --example speed [SECONDS]`, as root on a machine of two cores or more.

use aya::{
    Ebpf,
    programs::{Xdp, xdp::XdpMode},
};
use hoist_wire::{Generator, Limit, Mixed, Pattern, Popularity, Spec, Testbed};
use std::{error::Error, net::SocketAddr, time::Duration};

fn main() -> Result<(), Box<dyn Error>> {
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(1.0), |text| text.parse())?;
    let testbed = Testbed::builder().up()?;
    let mut bpf = Ebpf::load(OBJECT)?;
    let program: &mut Xdp = bpf.program_mut("discard").ok_or("no program `discard`")?.try_into()?;
    program.load()?;
    let device = testbed.host().device();
    testbed.host().enter(|| program.attach(device, XdpMode::Driver).map(drop))??;
    testbed.threaded_napi(1)?;
    for (name, spec) in specs((testbed.host().v4(), 9).into()) {
        let spec = spec.limit(Limit::Time(Duration::from_secs_f64(seconds)));
        let sent = Generator::start(&testbed, &spec)?.wait()?;
        println!("{name:36} {:.3} Mpps", sent.rate() / 1e6);
    }
    Ok(())
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/discard.bpf.o"));

fn specs(target: SocketAddr) -> Vec<(&'static str, Spec)> {
    let to = || Spec::to(target);
    vec![
        ("one flow", to()),
        ("1 M flows in turn", to().flows(1 << 20)),
        ("100 k flows, Zipf(1.1)", to().flows(100_000).zipf(1.1)),
        ("1 M flows, Zipf(1.1)", to().flows(1 << 20).zipf(1.1)),
        ("1 M flows, uniform", to().flows(1 << 20).popularity(Popularity::Uniform)),
        ("24 to 24", to().pattern(Pattern::AllToAll(24))),
        ("one-to-one, 24", to().pattern(Pattern::OneToOne(24))),
        (
            "one long (1,400 bytes), 16 short",
            to().payload_len(1400).pattern(Pattern::Mixed(Mixed::default())),
        ),
    ]
}
