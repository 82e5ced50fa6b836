//! `echo-std ADDRESS:PORT`: sends every datagram back where it came from, with `std::net`.

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).expect("usage: echo-std ADDRESS:PORT");
    let socket = std::net::UdpSocket::bind(&address)?;
    let mut buffer = [0; 65_536];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..len], from)?;
    }
}
