//! `echo-tokio ADDRESS:PORT`: sends every datagram back where it came from, with tokio (epoll, edge-triggered).

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(echo())
}

async fn echo() -> std::io::Result<()> {
    let address = std::env::args().nth(1).expect("usage: echo-tokio ADDRESS:PORT");
    let socket = tokio::net::UdpSocket::bind(&address).await?;
    let mut buffer = vec![0; 65_536];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).await?;
        socket.send_to(&buffer[..len], from).await?;
    }
}
