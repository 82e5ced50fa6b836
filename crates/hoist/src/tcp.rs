//! TCP.

use crate::{Chunk, sys};
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{self, Shutdown, SocketAddr, ToSocketAddrs},
    os::fd::AsFd,
    time::Duration,
};

/// A TCP connection; [`std::net::TcpStream`] with [`recv_chunk`](Self::recv_chunk).
#[derive(Debug)]
pub struct TcpStream(net::TcpStream);

/// A TCP socket that accepts connections; [`std::net::TcpListener`] of [`TcpStream`]s.
#[derive(Debug)]
pub struct TcpListener(net::TcpListener);

wraps! { TcpStream TcpListener }

impl TcpStream {
    /// Connects, as [`std::net::TcpStream::connect`].
    ///
    /// # Errors
    /// Those of the `std` function.
    pub fn connect(to: impl ToSocketAddrs) -> io::Result<Self> {
        net::TcpStream::connect(to).map(Self)
    }

    /// Connects within a time, as [`std::net::TcpStream::connect_timeout`].
    ///
    /// # Errors
    /// Those of the `std` function.
    pub fn connect_timeout(to: &SocketAddr, limit: Duration) -> io::Result<Self> {
        net::TcpStream::connect_timeout(to, limit).map(Self)
    }

    /// Takes the next bytes of the stream, at most `max`, as many as lie together. Waits as `read` does. An empty chunk
    /// is the end of the stream (or `max` was 0).
    ///
    /// Chunks and `read` may be mixed: each takes what follows the other's.
    ///
    /// # Errors
    /// Those of recv(2): [`WouldBlock`](io::ErrorKind::WouldBlock) when nonblocking or after
    /// [`set_read_timeout`](Self::set_read_timeout), [`Interrupted`](io::ErrorKind::Interrupted) by a signal.
    pub fn recv_chunk(&self, max: usize) -> io::Result<Chunk> {
        sys::recv(self.as_fd(), max)
    }

    delegate! { TcpStream:
        fn peer_addr() -> io::Result<SocketAddr>;
        fn local_addr() -> io::Result<SocketAddr>;
        fn shutdown(how: Shutdown) -> io::Result<()>;
        fn peek(buffer: &mut [u8]) -> io::Result<usize>;
        fn set_nonblocking(on: bool) -> io::Result<()>;
        fn set_nodelay(on: bool) -> io::Result<()>;
        fn nodelay() -> io::Result<bool>;
        fn set_read_timeout(limit: Option<Duration>) -> io::Result<()>;
        fn read_timeout() -> io::Result<Option<Duration>>;
        fn set_write_timeout(limit: Option<Duration>) -> io::Result<()>;
        fn write_timeout() -> io::Result<Option<Duration>>;
        fn set_ttl(ttl: u32) -> io::Result<()>;
        fn ttl() -> io::Result<u32>;
        fn take_error() -> io::Result<Option<io::Error>>;
    }
}

impl Read for &TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&self.0).read_vectored(buffers)
    }
}

impl Write for &TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.0).write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(buffers)
    }
}

impl Write for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TcpListener {
    /// Listens, as [`std::net::TcpListener::bind`].
    ///
    /// # Errors
    /// Those of the `std` function.
    pub fn bind(at: impl ToSocketAddrs) -> io::Result<Self> {
        net::TcpListener::bind(at).map(Self)
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// Those of accept(2).
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().map(|(stream, peer)| (TcpStream(stream), peer))
    }

    /// Connections, one after the other, without end.
    #[must_use]
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming(self)
    }

    delegate! { TcpListener:
        fn local_addr() -> io::Result<SocketAddr>;
        fn set_nonblocking(on: bool) -> io::Result<()>;
        fn set_ttl(ttl: u32) -> io::Result<()>;
        fn ttl() -> io::Result<u32>;
        fn take_error() -> io::Result<Option<io::Error>>;
    }
}

/// Connections of a [`TcpListener`].
#[derive(Debug)]
pub struct Incoming<'l>(&'l TcpListener);

impl Iterator for Incoming<'_> {
    type Item = io::Result<TcpStream>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.accept().map(|(stream, _)| stream))
    }
}

impl std::iter::FusedIterator for Incoming<'_> {}
