//! What was measured, in words: the title of a bench and what each of its sides is there, from the settings of the run.

use super::{
    document::{Document, distinct},
    gro,
    kinds::{self, Kind},
    number, simulate,
};
use serde_json::Value;

/// What the figures of a bench show.
pub(crate) fn title(document: &Document, bench: &str) -> String {
    let title = kinds::title_of(bench).unwrap_or(bench);
    let tolerated = document.settings["tolerated_loss"].as_f64();
    match tolerated.filter(|_| bench == Kind::UdpLossless.name()) {
        Some(loss) => format!("{title} (at most {} % lost)", number::short(loss * 100.0)),
        None => title.into(),
    }
}

/// A line for each side that the bench has.
pub(crate) fn sides(document: &Document, bench: &str) -> Vec<String> {
    let rows = document.rows.iter().filter(|row| row.bench == bench);
    let sides = distinct(rows.map(|row| row.side.as_str()));
    let lines = sides.into_iter().map(|side| (side, side_of(&document.settings, bench, side)));
    lines.filter(|(_, what)| !what.is_empty()).map(|(side, what)| format!("{side}: {what}")).collect()
}

fn side_of(settings: &Value, bench: &str, side: &str) -> String {
    let number = |name: &str| settings[name].as_u64().unwrap_or(0);
    let rcvbuf = match settings["rcvbuf"].as_u64() {
        Some(bytes) => format!("{} of SO_RCVBUF", binary(bytes)),
        None => "the default SO_RCVBUF".into(),
    };
    let spinning = || format!("spinning for {} us at spin-us {0}", kinds::SPIN_US);
    if bench == Kind::Steering.name() {
        return simulate::side(side).into();
    }
    if bench == Kind::Gro.name() {
        return gro::side(side).into();
    }
    if bench == Kind::GroWire.name() {
        return match side {
            "kernel" => {
                "the lab's segments from a packet socket, veth without a hash; CPU time is NAPI's, all of it"
                    .into()
            }
            "lab" => {
                "what `hoist bench gro` says of the same segments in polls of 64, one bucket of 8".into()
            }
            _ => String::new(),
        };
    }
    match (side, family(bench)) {
        ("kernel", Family::Passed) => format!("the program as is, nice 0, {rcvbuf}"),
        ("hoist", Family::Passed) => "the same program, with Hoist attached to the device for another; \
            CPU time of hoist run is that of the other too"
            .into(),
        ("kernel", Family::RoundTrips) => "the blocking program as is, nice 0, at any spin-us".into(),
        ("kernel", Family::Answers) => "Knot DNS as is, nice 0, the SO_RCVBUF it sets itself".into(),
        ("kernel", _) => format!("the program as is, nice 0, {rcvbuf}"),
        ("kernel-nonblocking", _) => "the program asks again and again and never sleeps, nice 0".into(),
        ("kernel-tuned", Family::RoundTrips) => {
            format!(
                "the program busy-polls (SO_BUSY_POLL {} us) at spin-us {0}, program and NAPI at nice -20",
                kinds::SPIN_US
            )
        }
        ("kernel-tuned", Family::Bulk) => format!(
            "the program busy-polls (SO_BUSY_POLL {} us) with {} of SO_RCVBUF, program and NAPI at nice -20",
            kinds::BULK_BUSY_POLL_US,
            binary(kinds::BULK_RCVBUF)
        ),
        ("kernel-tuned", Family::Answers) => "the same program, it and NAPI at nice -20, nothing else".into(),
        ("kernel-tuned", _) => format!(
            "recvmmsg(2) of {}, {} of SO_RCVBUF, program and NAPI at nice -20",
            number("tuned_batch"),
            binary(number("tuned_rcvbuf"))
        ),
        ("hoist", Family::RoundTrips) => format!("the program as is under hoist run, nice 0, {}", spinning()),
        ("hoist-lift", Family::RoundTrips) => format!("the same under hoist run --tcp lift, {}", spinning()),
        ("hoist-lift", _) => {
            format!("the same program under hoist run --tcp lift --spin-us {}", kinds::SPIN_US)
        }
        ("hoist-chunks", _) => {
            "the same, but the program takes payload where it lies (hoist_recv_chunk)".into()
        }
        ("hoist", Family::Answers) => "the same program as is under hoist run, nice 0".into(),
        ("hoist", _) => format!("the program as is under hoist run, nice 0, {rcvbuf}"),
        ("limit", Family::RoundTrips) => format!("a raw AF_XDP echo, nice 0, {}", spinning()),
        ("limit", _) => "a raw AF_XDP sink, nice 0".into(),
        ("testpmd", _) => "DPDK's testpmd, which counts and looks at nothing; NAPI at nice -20".into(),
        ("io-uring", _) => "io_uring with 4 MiB of SO_RCVBUF, nice 0".into(),
        _ => String::new(),
    }
}

/// Benches whose sides are the same.
enum Family {
    Datagrams,
    Passed,
    RoundTrips,
    Bulk,
    Answers,
}

fn family(bench: &str) -> Family {
    match Kind::EACH.iter().find(|kind| kind.name() == bench) {
        Some(Kind::UdpRr | Kind::TcpRr) => Family::RoundTrips,
        Some(Kind::TcpBulk) => Family::Bulk,
        Some(Kind::App) => Family::Answers,
        Some(Kind::PassCost) => Family::Passed,
        _ => Family::Datagrams,
    }
}

/// Bytes in powers of 1024.
fn binary(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".into(),
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::made_up;

    fn side(settings: &Value, bench: &str, side: &str) -> String {
        side_of(settings, bench, side)
    }

    #[test]
    fn kernel_tuned_is_what_it_is_in_each_bench() {
        let settings = made_up::document().settings;
        let tuned = |bench| side(&settings, bench, "kernel-tuned");
        assert!(tuned("udp-overload").contains("recvmmsg(2) of 32, 4 MiB of SO_RCVBUF"));
        assert!(tuned("udp-rr").contains("SO_BUSY_POLL") && !tuned("udp-rr").contains("recvmmsg"));
        assert!(tuned("tcp-bulk").contains("50 us) with 256 KiB"));
        assert!(tuned("app").contains("nothing else"));
    }

    #[test]
    fn a_buffer_that_was_asked_for_is_not_called_the_default() {
        let mut settings = made_up::document().settings;
        assert!(side(&settings, "udp-overload", "hoist").contains("the default SO_RCVBUF"));
        settings["rcvbuf"] = 100_000.into();
        for (bench, name) in [("udp-overload", "hoist"), ("flows", "kernel"), ("pass-cost", "kernel")] {
            assert!(side(&settings, bench, name).contains("100000 bytes of SO_RCVBUF"), "{bench} {name}");
        }
    }

    #[test]
    fn the_title_says_what_may_be_lost() {
        let run = made_up::document();
        assert!(title(&run, "udp-lossless").ends_with("(at most 0.1 % lost)"));
        assert!(!title(&run, "udp-overload").contains("lost"));
    }
}
