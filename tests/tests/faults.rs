//! What goes wrong around a hoisted program leaves other sockets, the machine and every frame as they should be.

use anyhow::{Context, Result, ensure};
use hoist_tests::{
    cases::find,
    lab::{LIMIT, Lab, Mode, Running, bin, descendants, hoist, kill, may_run},
    peer::{Order, Payloads, Peer, Shot, until_asleep},
};
use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::process::ExitStatusExt,
    process::Command,
    time::{Duration, Instant},
};

const PORT: u16 = 7_000;

fn run(fault: fn(&Lab) -> Result<()>) {
    if may_run() {
        Lab::up().and_then(|lab| fault(&lab)).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// A hoisted echo server on every address of the host.
fn echo(lab: &Lab) -> Result<Running> {
    let argv: [OsString; 2] = [bin("echo-std")?.into(), format!("0.0.0.0:{PORT}").into()];
    let mut echo = lab.program(Mode::Hoisted, &argv)?.start()?;
    echo.until_ready(PORT)?;
    lab.exchange(lab.host4(PORT), 100);
    Ok(echo)
}

/// The program that `hoist run` started.
fn child(run: &Running) -> Result<i32> {
    descendants(run.pid()).get(1).copied().context("hoist run has started no program")
}

fn end(lab: &Lab, mut echo: Running) -> Result<()> {
    let pid = echo.pid();
    echo.stop(libc::SIGTERM)?;
    let report = echo.report()?;
    ensure!(report.leaked_frames == 0, echo.fail("frames leaked"));
    ensure!(report.packets().0 > 0, echo.fail("nothing was lifted"));
    is_clean(lab, pid)
}

/// Nothing of the run is left: no XDP program, no TAP, no process, no file.
fn is_clean(lab: &Lab, pid: i32) -> Result<()> {
    let links = lab.testbed.host().command("ip").args(["-json", "-details", "link"]).output()?;
    let links = String::from_utf8(links.stdout)?;
    ensure!(links.contains("\"lo\""), "ip told nothing: {links}");
    ensure!(!links.contains("xdp") && !links.contains("hoist"), "left on the devices: {links}");
    let processes = lab.testbed.host().netns().processes()?;
    ensure!(processes.is_empty(), "processes left in the namespace: {processes:?}");
    let files = fs::read_dir("/run/hoist").into_iter().flatten().flatten();
    let names: Vec<_> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    let ours = |name: &String| name.split(|c: char| !c.is_ascii_digit()).any(|word| word == pid.to_string());
    let left: Vec<_> = names.iter().filter(|name| ours(name) && !name.starts_with("testbed")).collect();
    ensure!(left.is_empty(), "left in /run/hoist: {left:?}");
    Ok(())
}

/// Waits until something holds; there is no event for it.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < Duration::from_secs(20), "{what} does not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn a_killed_program_leaves_nothing() {
    run(|lab| {
        let mut echo = echo(lab)?;
        kill(child(&echo)?, libc::SIGKILL);
        let status = echo.wait(LIMIT)?;
        ensure!(status.code() == Some(128 + libc::SIGKILL), "hoist run ended with {status}");
        ensure!(echo.report()?.leaked_frames == 0, echo.fail("frames leaked"));
        is_clean(lab, echo.pid())
    });
}

#[test]
fn a_program_that_aborts_is_told_apart() {
    run(|lab| {
        let mut echo = echo(lab)?;
        kill(child(&echo)?, libc::SIGABRT);
        let status = echo.wait(LIMIT)?;
        ensure!(status.code() == Some(128 + libc::SIGABRT), "hoist run ended with {status}");
        is_clean(lab, echo.pid())
    });
}

/// The program goes on through the kernel; the next run sweeps what a kill leaves.
#[test]
fn a_killed_broker_leaves_the_program_running() {
    run(|lab| {
        let mut echo = echo(lab)?;
        let (broker, program) = (echo.pid(), child(&echo)?);
        let status = echo.stop(libc::SIGKILL)?;
        ensure!(status.signal() == Some(libc::SIGKILL), "the broker ended with {status}");
        lab.exchange(lab.host4(PORT), 100);
        kill(program, libc::SIGKILL);
        until("the program has ended", || Ok(lab.testbed.host().netns().processes()?.is_empty()))?;
        lab.program(Mode::Hoisted, &["true"])?.start()?.succeed(LIMIT)?;
        // The kernel removes the TAP some time after the last descriptor of the killed program.
        let _ = until("clean", || Ok(is_clean(lab, broker).is_ok()));
        is_clean(lab, broker)
    });
}

#[test]
fn a_device_set_down_and_up_goes_on() {
    run(|lab| {
        let echo = echo(lab)?;
        lab.testbed.host().set_up(false)?;
        lab.testbed.host().set_up(true)?;
        lab.testbed.wire().settle()?;
        lab.testbed.host().settle()?;
        lab.exchange(lab.host4(PORT), 200);
        end(lab, echo)
    });
}

#[test]
fn a_changed_mtu_goes_on() {
    run(|lab| {
        let echo = echo(lab)?;
        for mtu in [1_400, 1_280, 1_500] {
            lab.testbed.host().set_mtu(mtu)?;
            lab.exchange(lab.host4(PORT), 100);
        }
        end(lab, echo)
    });
}

#[test]
fn a_removed_device_leaves_loopback_alone() {
    run(|lab| {
        let mut echo = echo(lab)?;
        lab.testbed.host().delete_device()?;
        lab.testbed.host().enter(ask_by_loopback)??;
        echo.stop(libc::SIGTERM)?;
        ensure!(echo.report()?.leaked_frames == 0, echo.fail("frames leaked"));
        is_clean(lab, echo.pid())
    });
}

fn ask_by_loopback() -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    for i in 0..20u8 {
        socket.send_to(&[i], (Ipv4Addr::LOCALHOST, PORT))?;
        let mut buffer = [0; 8];
        let len = socket.recv(&mut buffer).context("the echo server is silent on loopback")?;
        ensure!(buffer[..len] == [i], "{:?} is not [{i}]", &buffer[..len]);
    }
    Ok(())
}

fn flood(lab: &Lab, to: SocketAddr, count: u32) {
    let from = (lab.testbed.wire().v4(), 30_000).into();
    let payloads = Payloads::Numbered { first: 0, count, len: 100 };
    let shot = Shot { from, to, payloads, ttl: None, tos: None, gap_us: 0, asleep: None, segment: None };
    Peer::at(&lab.path("peer")).order(&Order::Send(shot));
}

/// A stopped program fills its rings; a program outside the run goes on, and so does this one when it is woken.
#[test]
fn a_program_that_stops_reading_harms_only_itself() {
    run(|lab| {
        let echo = echo(lab)?;
        let argv: [OsString; 2] = [bin("echo-std")?.into(), lab.host4(PORT + 1).to_string().into()];
        let mut other = lab.program(Mode::Native, &argv)?.start()?;
        other.until_bound(PORT + 1)?;
        let program = child(&echo)?;
        kill(program, libc::SIGSTOP);
        flood(lab, lab.host4(PORT), 50_000);
        lab.exchange(lab.host4(PORT + 1), 500);
        kill(program, libc::SIGCONT);
        until_asleep(program)?; // what had queued up is answered: there is room again
        lab.exchange(lab.host4(PORT), 100);
        other.stop(libc::SIGKILL)?;
        end(lab, echo)
    });
}

/// A case of the dual suite that is long or hard on the frames.
fn case(name: &'static str) {
    if may_run() {
        let case = find(name).expect("a case of this name");
        for mode in [Mode::Native, Mode::Hoisted] {
            Lab::up()
                .and_then(|lab| lab.run_case(mode, case))
                .unwrap_or_else(|error| panic!("{mode:?}: {error:#}"));
        }
    }
}

#[test]
fn ten_thousand_sockets_come_and_go() {
    case("fault::ten_thousand_sockets");
}

#[test]
fn a_hoarder_of_frames_starves_nobody() {
    case("fault::a_hoarder_of_frames");
}

/// 200,000 frames, cut and mangled anywhere. Some are valid by chance and are echoed to nobody.
#[test]
fn garbage_by_the_hundred_thousand_is_survived() {
    run(|lab| {
        let echo = echo(lab)?;
        let frames = garbage(lab);
        let rounds = 200_000 / frames.len() as u32;
        Peer::at(&lab.path("peer")).order(&Order::Frames { frames, rounds });
        lab.exchange(lab.host4(PORT), 500);
        end(lab, echo)
    });
}

fn garbage(lab: &Lab) -> Vec<Vec<u8>> {
    let net = lab.net();
    let link = (net.wire_mac, net.host_mac);
    let frame4 = hoist_tests::frame::Frame::new(
        link,
        (net.wire4, 1_111).into(),
        (net.host4, PORT).into(),
        &[0xaa; 200],
    );
    let frame6 = hoist_tests::frame::Frame::new(
        link,
        (net.wire6, 1_111).into(),
        (net.host6, PORT).into(),
        &[0xaa; 200],
    );
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let good = [frame4.bytes(), frame6.bytes()];
    (0..1_000).map(|i| mangled(&good[i % 2], &mut random)).collect()
}

/// Keeps the addresses of Ethernet, changes up to eight bytes of the rest, mostly headers, and cuts one in two.
fn mangled(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..random.below(9) {
        let at = 12 + random.below(60);
        bytes[at] = random.below(256) as u8;
    }
    if random.below(2) == 0 {
        bytes.truncate(14 + random.below(bytes.len() - 14));
    }
    bytes
}

/// xorshift64: the same garbage every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// What an unclean end left in /run/hoist never stops another run.
#[test]
fn runs_follow_each_other_at_once() {
    run(|lab| {
        for _ in 0..5 {
            let echo = echo(lab)?;
            end(lab, echo)?;
        }
        let listed = Command::new(hoist()?).args(["status", "--json"]).output()?;
        ensure!(listed.status.success(), "hoist status: {}", String::from_utf8_lossy(&listed.stderr));
        Ok(())
    });
}
