//! A status as text. Pure.

use hoist_broker::status::{
    ClosedConnections, ClosedStatus, ConnectionStatus, DeviceStatus, RingStatus, SocketStatus, Status,
    StreamTraffic, Traffic,
};
use std::{collections::BTreeMap, fmt::Write};

/// Sockets shown one by one.
const SOCKETS: usize = 50;

/// The status of one run for a terminal.
pub(crate) fn text(status: &Status) -> String {
    let mut out = String::new();
    write(&mut out, status).unwrap_or_default(); // a String takes everything
    out
}

fn write(out: &mut String, status: &Status) -> std::fmt::Result {
    writeln!(out, "run {}: {}", status.pid, status.command.join(" "))?;
    for process in status.processes.iter().filter(|p| !p.ended) {
        let rings = if process.holds_rings { ", has rings" } else { "" };
        writeln!(out, "  process {} ({}){rings}", process.pid, process.name)?;
    }
    status.devices.iter().try_for_each(|device| write_device(out, device))?;
    status.rings.iter().try_for_each(|ring| write_ring(out, ring))?;
    status.sockets.iter().take(SOCKETS).try_for_each(|socket| write_socket(out, socket))?;
    if status.sockets.len() > SOCKETS {
        writeln!(out, "  … and {} more sockets (--json has all)", status.sockets.len() - SOCKETS)?;
    }
    status.closed.iter().take(SOCKETS).try_for_each(|closed| write_closed(out, closed))?;
    status.connections.iter().take(SOCKETS).try_for_each(|connection| write_connection(out, connection))?;
    if status.connections.len() > SOCKETS {
        writeln!(out, "  … and {} more connections (--json has all)", status.connections.len() - SOCKETS)?;
    }
    write_closed_connections(out, &status.closed_connections)?;
    let unlisted = status.processes.iter().fold(0, |sum: u64, p| sum.saturating_add(p.unregistered_packets));
    if unlisted > 0 {
        writeln!(out, "  passed {unlisted} to sockets that are not listed (young or unregistered)")?;
    }
    write_reasons(out, status)?;
    if status.leaked_frames != 0 {
        writeln!(out, "  {} frames unaccounted for: please report this", status.leaked_frames)?;
    }
    Ok(())
}

fn write_device(out: &mut String, device: &DeviceStatus) -> std::fmt::Result {
    let because = |reason: &Option<String>| reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
    let DeviceStatus { name, driver, xdp, mode, .. } = device;
    write!(out, "  device {name} [{driver}]: XDP {xdp}{}", because(&device.xdp_reason))?;
    writeln!(out, ", {mode}{}", because(&device.mode_reason))?;
    let passed: Vec<_> = device
        .passed
        .iter()
        .filter(|p| p.packets > 0)
        .map(|p| format!("{} {}", p.reason, p.packets))
        .collect();
    writeln!(out, "    lifted {} packets, {} bytes", device.lifted_packets, device.lifted_bytes)?;
    if device.ride_refused > 0 {
        writeln!(out, "    refused {} frames that were never lifted", device.ride_refused)?;
    }
    if !passed.is_empty() {
        writeln!(out, "    passed {}", passed.join(", "))?;
    }
    Ok(())
}

fn write_ring(out: &mut String, ring: &RingStatus) -> std::fmt::Result {
    let troubles = [
        ("bad checksum", ring.bad_checksum),
        ("bad header", ring.bad_header),
        ("given to the stack", ring.rode),
        ("lost on the way to it", ring.ride_failed),
        ("ring full", ring.ring_full),
        ("fill ring empty", ring.fill_empty),
        ("dropped by the kernel", ring.rx_dropped),
        ("bad descriptor", ring.bad_descriptor),
    ];
    let troubles: String =
        troubles.iter().filter(|t| t.1 > 0).map(|(name, n)| format!(", {name} {n}")).collect();
    writeln!(out, "  ring {} queue {}: received {}{troubles}", ring.device, ring.queue, ring.received)
}

fn write_socket(out: &mut String, socket: &SocketStatus) -> std::fmt::Result {
    let peer = socket.peer.as_ref().map(|peer| format!(" from {peer}")).unwrap_or_default();
    let reason = if socket.state == "lifted" { String::new() } else { format!(" ({})", socket.reason) };
    let option = option(socket.option);
    write!(out, "  socket {}{peer}, process {}: {}{reason}{option}", socket.local, socket.pid, socket.state)?;
    write_traffic(out, &socket.traffic)
}

fn option(option: Option<(u32, u32)>) -> String {
    option.map(|(level, name)| format!(" level {level} option {name}")).unwrap_or_default()
}

fn write_connection(out: &mut String, c: &ConnectionStatus) -> std::fmt::Result {
    let arrow = if c.direction == "connected" { "to" } else { "from" };
    let reason = if c.state == "lifted" { String::new() } else { format!(" ({})", c.reason) };
    let process = if c.pid == 0 { String::new() } else { format!(", process {}", c.pid) };
    write!(out, "  connection {} {arrow} {}{process}: {}{reason}", c.local, c.peer, c.state)?;
    write!(out, "{}", option(c.option))?;
    write_stream_traffic(out, &c.traffic)?;
    match c.sent_bytes {
        Some(bytes) => writeln!(out, ", sent {bytes} bytes"),
        None => writeln!(out),
    }
}

fn write_closed_connections(out: &mut String, closed: &ClosedConnections) -> std::fmt::Result {
    if closed.connections == 0 {
        return Ok(());
    }
    write!(out, "  closed connections: {}", closed.connections)?;
    write_stream_traffic(out, &closed.traffic)?;
    writeln!(out)
}

fn write_stream_traffic(out: &mut String, t: &StreamTraffic) -> std::fmt::Result {
    write!(out, ": lifted {} bytes, passed {} bytes", t.lifted_bytes, t.passed_bytes)?;
    let rest = [
        ("times lifted", t.lifts),
        ("bad checksum", t.bad_checksum),
        ("headers that rode", t.rode),
        ("segments that rode whole", t.rode_real),
    ];
    rest.iter().filter(|r| r.1 > 0).try_for_each(|(name, n)| write!(out, ", {name} {n}"))
}

fn write_closed(out: &mut String, closed: &ClosedStatus) -> std::fmt::Result {
    write!(out, "  closed {} ({} sockets, {})", closed.local, closed.sockets, closed.reason)?;
    write_traffic(out, &closed.traffic)
}

fn write_traffic(out: &mut String, t: &Traffic) -> std::fmt::Result {
    write!(out, ": lifted {} ({} bytes)", t.lifted_packets, t.lifted_bytes)?;
    write!(out, ", passed {} ({} bytes)", t.passed_packets, t.passed_bytes)?;
    let rest = [("dropped", t.dropped), ("given to the stack", t.rode)];
    let rest: String = rest.iter().filter(|r| r.1 > 0).map(|(name, n)| format!(", {name} {n}")).collect();
    writeln!(out, "{rest}")
}

/// What the words of this status mean, each once.
fn write_reasons(out: &mut String, status: &Status) -> std::fmt::Result {
    let passed = status.sockets.iter().filter(|socket| socket.state != "lifted");
    let streams = status.connections.iter().filter(|connection| connection.state != "lifted");
    let streams = streams.map(|connection| (&connection.reason, &connection.explain));
    let reasons: BTreeMap<_, _> =
        passed.map(|socket| (&socket.reason, &socket.explain)).chain(streams).collect();
    reasons.into_iter().try_for_each(|(word, sentence)| writeln!(out, "  {word}: {sentence}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_broker::status::ProcessStatus;

    #[test]
    fn a_socket_that_is_not_lifted_is_shown_with_its_reason_and_the_sentence() {
        let socket = SocketStatus {
            pid: 7,
            local: "10.0.0.1:53".into(),
            state: "passed".into(),
            reason: "port-shared".into(),
            explain: "another process".into(),
            ..SocketStatus::default()
        };
        let status =
            Status { pid: 6, command: vec!["knotd".into()], sockets: vec![socket], ..Status::default() };
        let expected = "run 6: knotd\n  socket 10.0.0.1:53, process 7: passed (port-shared): \
                        lifted 0 (0 bytes), passed 0 (0 bytes)\n  port-shared: another process\n";
        assert_eq!(text(&status), expected);
    }

    #[test]
    fn connections_are_shown_with_bytes_each_way_and_a_long_list_is_cut() {
        let connection = ConnectionStatus {
            pid: 7,
            local: "10.0.0.1:80".into(),
            peer: "10.0.0.2:5000".into(),
            direction: "accepted".into(),
            state: "demoted".into(),
            reason: "forked".into(),
            explain: "it forked".into(),
            sent_bytes: Some(9),
            traffic: StreamTraffic { lifted_bytes: 5, lifts: 1, ..StreamTraffic::default() },
            ..ConnectionStatus::default()
        };
        let closed_connections = ClosedConnections { connections: 3, ..ClosedConnections::default() };
        let one = Status { connections: vec![connection.clone()], closed_connections, ..Status::default() };
        let expected = "  connection 10.0.0.1:80 from 10.0.0.2:5000, process 7: demoted (forked): lifted 5 bytes, \
                        passed 0 bytes, times lifted 1, sent 9 bytes\n  closed connections: 3: lifted 0 bytes, \
                        passed 0 bytes\n  forked: it forked\n";
        assert_eq!(text(&one).split_once('\n').unwrap().1, expected);
        let many = Status { connections: vec![connection; SOCKETS + 7], ..Status::default() };
        assert!(text(&many).contains("and 7 more connections"));
    }

    #[test]
    fn a_process_may_claim_any_count() {
        let process = ProcessStatus { unregistered_packets: u64::MAX, ..ProcessStatus::default() };
        let status = Status { processes: vec![process.clone(), process], ..Status::default() };
        assert!(text(&status).contains(&format!("passed {} to sockets", u64::MAX)));
    }

    #[test]
    fn counters_that_are_zero_are_not_shown() {
        let ring = RingStatus { device: "eth0".into(), received: 5, ring_full: 1, ..RingStatus::default() };
        let status = Status { rings: vec![ring], ..Status::default() };
        assert!(text(&status).contains("ring eth0 queue 0: received 5, ring full 1\n"));
    }
}
