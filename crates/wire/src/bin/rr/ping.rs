//! The client: one request under way on each socket, and never asleep, so that what is measured is the server's side.

use crate::{During, Options, rtt::Tally, sys};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

/// Bytes of sequence number and client.
pub(super) const LEAST_SIZE: usize = 16;
/// A UDP request that is not answered by then is lost, and another one goes out.
const PATIENCE: Duration = Duration::from_millis(200);
/// TCP loses nothing: an answer that does not come by then is an error.
const TCP_PATIENCE: Duration = Duration::from_secs(10);
/// Round trips before those that count: the path is resolved and warm then.
const WARM_UP: u64 = 200;

pub(super) fn run(options: &Options) -> Result<Tally, String> {
    let clients = (0..options.clients).map(|number| Client::connect(options, number));
    let mut clients: Vec<Client> = clients.collect::<Result<_, _>>()?;
    let mut tally = Tally::new();
    let warm = |client: &Client| client.request.sequence() > WARM_UP;
    turn(&mut clients, &mut tally, |clients| clients.iter().all(warm))?;
    tally = Tally::new();
    let start = Instant::now();
    turn(&mut clients, &mut tally, |_| start.elapsed() >= options.time)?;
    tally.seconds = start.elapsed().as_secs_f64();
    Ok(tally)
}

/// Serves the clients in turn until `done`.
fn turn(clients: &mut [Client], tally: &mut Tally, done: impl Fn(&[Client]) -> bool) -> Result<(), String> {
    while !done(clients) {
        for client in &mut *clients {
            client.turn(tally)?;
        }
    }
    Ok(())
}

struct Client {
    link: Link,
    request: Request,
    answer: Vec<u8>,
    sent: Option<Instant>,
}

impl Client {
    fn connect(options: &Options, number: usize) -> Result<Self, String> {
        let link = Link::connect(options)?;
        let request = Request::new(options.size, number as u64);
        // Room for one byte more, so that a datagram that is too long shows.
        let mut answer = Vec::with_capacity(options.size + 1);
        answer.resize(options.size, 0);
        Ok(Self { link, answer, request, sent: None })
    }

    /// Sends if nothing is under way, and looks for the answer once.
    fn turn(&mut self, tally: &mut Tally) -> Result<(), String> {
        let sent = match self.sent {
            Some(sent) => sent,
            None => self.send()?,
        };
        if self.link.receive(&mut self.answer)? {
            self.judge(sent, tally);
        } else if sent.elapsed() > self.link.patience() {
            self.give_up(tally)?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<Instant, String> {
        self.request.advance();
        let now = Instant::now();
        self.link.send(&self.request.bytes)?;
        self.sent = Some(now);
        Ok(now)
    }

    fn judge(&mut self, sent: Instant, tally: &mut Tally) {
        match self.request.judge(&self.answer) {
            Verdict::Right => tally.answered(sent.elapsed().as_nanos() as u64),
            Verdict::Late => return tally.late += 1,
            Verdict::Wrong => tally.wrong += 1,
        }
        self.sent = None;
    }

    fn give_up(&mut self, tally: &mut Tally) -> Result<(), String> {
        tally.lost += 1;
        self.sent = None;
        match self.link {
            Link::Udp(_) => Ok(()),
            Link::Tcp { .. } => Err(format!("no answer over TCP for {} s", TCP_PATIENCE.as_secs())),
        }
    }
}

/// What goes out and is to come back: a sequence number, the client's number, a pattern.
struct Request {
    bytes: Vec<u8>,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Right,
    /// Of an earlier request that was given up.
    Late,
    Wrong,
}

impl Request {
    fn new(size: usize, client: u64) -> Self {
        let mut bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
        bytes[..8].fill(0);
        bytes[8..16].copy_from_slice(&client.to_le_bytes());
        Self { bytes }
    }

    fn sequence(&self) -> u64 {
        sequence(&self.bytes)
    }

    fn advance(&mut self) {
        let next = self.sequence() + 1;
        self.bytes[..8].copy_from_slice(&next.to_le_bytes());
    }

    fn judge(&self, answer: &[u8]) -> Verdict {
        if answer == self.bytes {
            Verdict::Right
        } else if answer.get(8..) == self.bytes.get(8..) && sequence(answer) < self.sequence() {
            Verdict::Late
        } else {
            Verdict::Wrong
        }
    }
}

fn sequence(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

enum Link {
    Udp(UdpSocket),
    Tcp { stream: TcpStream, received: usize },
}

impl Link {
    fn connect(options: &Options) -> Result<Self, String> {
        let (link, to) = (if options.tcp { Self::tcp } else { Self::udp }, options.address);
        link(to, options.busy_poll_us)
    }

    fn udp(to: SocketAddr, busy_poll_us: Option<u32>) -> Result<Self, String> {
        let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).during("bind")?;
        socket.connect(to).during(&format!("connect {to}"))?;
        socket.set_nonblocking(true).during("fcntl O_NONBLOCK")?;
        busy_poll_us.map_or(Ok(()), |us| sys::busy_poll(&socket, us)).during("setsockopt SO_BUSY_POLL")?;
        Ok(Self::Udp(socket))
    }

    fn tcp(to: SocketAddr, busy_poll_us: Option<u32>) -> Result<Self, String> {
        let stream = TcpStream::connect(to).during(&format!("connect {to}"))?;
        stream.set_nodelay(true).during("setsockopt TCP_NODELAY")?;
        stream.set_nonblocking(true).during("fcntl O_NONBLOCK")?;
        busy_poll_us.map_or(Ok(()), |us| sys::busy_poll(&stream, us)).during("setsockopt SO_BUSY_POLL")?;
        Ok(Self::Tcp { stream, received: 0 })
    }

    fn patience(&self) -> Duration {
        if matches!(self, Self::Udp(_)) { PATIENCE } else { TCP_PATIENCE }
    }

    fn send(&mut self, request: &[u8]) -> Result<(), String> {
        match self {
            Self::Udp(socket) => unless_transient(socket.send(request)).map(drop).during("send"),
            Self::Tcp { stream, received } => {
                *received = 0;
                stream.write_all(request).during("send")
            }
        }
    }

    /// Looks once; true when `answer` holds one.
    fn receive(&mut self, answer: &mut Vec<u8>) -> Result<bool, String> {
        match self {
            Self::Udp(socket) => receive_datagram(socket, answer).during("recv"),
            Self::Tcp { stream, received } => {
                let length = unless_transient(stream.read(&mut answer[*received..])).during("recv")?;
                if length == Some(0) {
                    return Err("the server closed the connection".into());
                }
                *received += length.unwrap_or(0);
                Ok(*received == answer.len())
            }
        }
    }
}

/// With its length, so that one that was cut short is wrong.
fn receive_datagram(socket: &UdpSocket, answer: &mut Vec<u8>) -> io::Result<bool> {
    answer.resize(answer.capacity(), 0);
    let length = unless_transient(socket.recv(answer))?;
    answer.truncate(length.unwrap_or(0));
    Ok(length.is_some())
}

/// None if there is nothing yet, or nobody (ECONNREFUSED): the request counts as lost then.
fn unless_transient(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let mut request = Request::new(40, 3);
        (0..5).for_each(|_| request.advance());
        request
    }

    #[test]
    fn only_the_very_bytes_are_the_right_answer() {
        let request = request();
        assert_eq!(request.judge(&request.bytes), Verdict::Right);
        for index in 8..40 {
            let mut answer = request.bytes.clone();
            answer[index] ^= 1;
            assert_eq!(request.judge(&answer), Verdict::Wrong, "byte {index}");
        }
        assert_eq!(request.judge(&request.bytes[..39]), Verdict::Wrong);
        assert_eq!(request.judge(&[]), Verdict::Wrong);
    }

    #[test]
    fn an_answer_to_a_request_given_up_is_late_and_one_to_a_request_to_come_is_wrong() {
        let request = request();
        let (mut earlier, mut later) = (request.bytes.clone(), request.bytes.clone());
        earlier[0] -= 1;
        later[0] += 1;
        assert_eq!((request.judge(&earlier), request.judge(&later)), (Verdict::Late, Verdict::Wrong));
    }
}
