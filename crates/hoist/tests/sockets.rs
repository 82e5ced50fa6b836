//! The native API without `hoist run`, over loopback.
#![allow(unsafe_code)] // AsyncFd asks for a promise
#![allow(clippy::unwrap_used)] // a test fails by panicking

use hoist::{CHUNK_MAX, TcpListener, TcpStream, UdpSocket};
use std::{
    io::{ErrorKind, Read, Write},
    net::{self, Shutdown, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    task::Poll,
    thread,
    time::Duration,
};
use tokio::io::{Interest, unix::AsyncFd};

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, peer) = listener.accept().unwrap();
    assert_eq!(peer, near.local_addr().unwrap());
    (near, far)
}

fn udp() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    (socket, at)
}

#[test]
fn a_stream_comes_in_chunks_and_ends_with_an_empty_one() {
    let sent: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_be_bytes).collect();
    let (mut near, far) = pair();
    let received = thread::scope(|scope| {
        scope.spawn(|| {
            near.write_all(&sent).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        loop {
            let chunk = far.recv_chunk(CHUNK_MAX).unwrap();
            assert!(!chunk.is_borrowed() && chunk.len() <= CHUNK_MAX);
            if chunk.is_empty() {
                break received;
            }
            received.extend_from_slice(&chunk);
        }
    });
    assert!(received == sent);
    assert!(far.recv_chunk(1).unwrap().is_empty());
}

#[test]
fn chunks_and_reads_take_turns() {
    let (mut near, mut far) = pair();
    near.write_all(b"one two three").unwrap();
    let mut buffer = [0; 4];
    far.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"one ");
    assert_eq!(far.recv_chunk(4).unwrap().into_vec(), b"two ");
    assert!(far.recv_chunk(0).unwrap().is_empty());
    assert_eq!(Vec::from(far.recv_chunk(100).unwrap()), b"three");
}

#[test]
fn nothing_there_is_would_block() {
    let (_near, far) = pair();
    far.set_nonblocking(true).unwrap();
    assert_eq!(far.recv_chunk(1).unwrap_err().kind(), ErrorKind::WouldBlock);
    let (socket, _) = udp();
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(socket.recv_chunk().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn datagrams_come_whole_with_their_sender() {
    let ((here, at), (there, sender)) = (udp(), udp());
    let large = vec![0xa5; 65_507];
    for payload in [&b"small"[..], b"", &large] {
        there.send_to(payload, at).unwrap();
        let (chunk, from) = here.recv_chunk().unwrap();
        assert!(*chunk == *payload && from == sender);
    }
    let (v6, to) = (UdpSocket::bind("[::1]:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
    v6.send_to(b"six", to.local_addr().unwrap()).unwrap();
    let (chunk, from) = to.recv_chunk().unwrap();
    assert_eq!((&chunk[..], from), (&b"six"[..], v6.local_addr().unwrap()));
}

#[test]
fn a_chunk_outlives_its_socket_and_changes_threads() {
    let (mut near, far) = pair();
    near.write_all(b"kept").unwrap();
    let chunk = far.recv_chunk(100).unwrap();
    drop((near, far));
    assert_eq!(thread::spawn(move || chunk.to_vec()).join().unwrap(), b"kept");
}

#[test]
fn sockets_convert_to_std_and_back() {
    let (near, far) = pair();
    let (fd, at) = (near.as_raw_fd(), near.local_addr().unwrap());
    let stream = net::TcpStream::from(near);
    let owned = OwnedFd::from(TcpStream::from(stream));
    assert_eq!(owned.as_raw_fd(), fd);
    let mut near = TcpStream::from(owned).try_clone().unwrap();
    assert_eq!(near.local_addr().unwrap(), at);
    near.write_all(b"still connected").unwrap();
    assert_eq!(&far.recv_chunk(100).unwrap()[..], b"still connected");
    assert!(!hoist::is_hoisted());
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(work)
}

#[test]
fn streams_of_tokio_give_chunks() {
    let (mut near, far) = pair();
    far.set_nonblocking(true).unwrap();
    let received = block_on(async {
        let far = tokio::net::TcpStream::from_std(far.into()).unwrap();
        let next = || far.async_io(Interest::READABLE, || hoist::recv_chunk(&far, CHUNK_MAX));
        let mut received = Vec::new();
        for word in ["wait ", "for ", "me"] {
            let mut waiting = std::pin::pin!(next());
            let early = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await;
            assert!(!early, "nothing was sent");
            near.write_all(word.as_bytes()).unwrap();
            received.extend_from_slice(&waiting.await.unwrap());
        }
        near.shutdown(Shutdown::Write).unwrap();
        assert!(next().await.unwrap().is_empty());
        received
    });
    assert_eq!(received, b"wait for me");
}

#[test]
fn tokio_waits_on_our_sockets() {
    let ((here, at), (there, sender)) = (udp(), udp());
    here.set_nonblocking(true).unwrap();
    block_on(async {
        // SAFETY: the socket owns its descriptor, which stays the same.
        let here = unsafe { AsyncFd::register_with_interest(here, Interest::READABLE) }.unwrap();
        let mut waiting = std::pin::pin!(here.async_io(Interest::READABLE, UdpSocket::recv_chunk));
        let early = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await;
        assert!(!early, "nothing was sent");
        there.send_to(b"awaited", at).unwrap();
        let (chunk, from) = waiting.await.unwrap();
        assert_eq!((&chunk[..], from), (&b"awaited"[..], sender));
    });
}
