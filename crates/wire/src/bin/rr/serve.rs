//! The server: what comes goes back.

use crate::{During, Options, say, sys};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
};

pub(super) fn run(options: &Options) -> Result<(), String> {
    if options.tcp { tcp(options) } else { udp(options) }
}

fn udp(options: &Options) -> Result<(), String> {
    let socket = UdpSocket::bind(options.address).during("bind")?;
    if let Some(us) = options.busy_poll_us {
        sys::busy_poll(&socket, us).during("setsockopt SO_BUSY_POLL (needs CAP_NET_ADMIN)")?;
    }
    socket.set_nonblocking(options.spin).during("fcntl O_NONBLOCK")?;
    say("ready")?;
    let mut buffer = [0; 65536];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => reply(&socket, &buffer[..length], from)?,
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(format!("recvfrom: {error}")),
        }
    }
}

fn reply(socket: &UdpSocket, payload: &[u8], to: std::net::SocketAddr) -> Result<(), String> {
    match socket.send_to(payload, to) {
        Err(error) if !is_transient(&error) => Err(format!("sendto {to}: {error}")),
        _ => Ok(()),
    }
}

/// ECONNREFUSED is what the kernel reports of a client that has gone.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused)
}

fn tcp(options: &Options) -> Result<(), String> {
    let listener = TcpListener::bind(options.address).during("bind")?;
    say("ready")?;
    loop {
        let (stream, _) = listener.accept().during("accept")?;
        prepare(&stream, options)?;
        thread::Builder::new().spawn(move || echo(stream)).during("starting a thread")?;
    }
}

fn prepare(stream: &TcpStream, options: &Options) -> Result<(), String> {
    stream.set_nodelay(true).during("setsockopt TCP_NODELAY")?;
    if let Some(us) = options.busy_poll_us {
        sys::busy_poll(stream, us).during("setsockopt SO_BUSY_POLL (needs CAP_NET_ADMIN)")?;
    }
    stream.set_nonblocking(options.spin).during("fcntl O_NONBLOCK")
}

/// Until the client closes or the connection breaks.
fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if write_all(&mut stream, &buffer[..length]).is_ok() => {}
            Err(error) if is_transient(&error) => {}
            _ => return,
        }
    }
}

fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
