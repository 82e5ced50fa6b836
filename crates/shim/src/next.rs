//! libc's own functions behind the hooks, resolved once with `dlsym(RTLD_NEXT)`.
//!
//! The shim calls them where it passes a call on and where it sleeps: they are cancellation points, raw system calls
//! are not.

use core::ffi::{CStr, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

/// One function of the next library in search order.
pub(crate) struct Next {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// Its address. Ends the process if libc has no such function: the hook could not do what it stands for.
    #[inline]
    pub(crate) fn address(&self) -> *mut c_void {
        let known = self.address.load(Ordering::Relaxed);
        if known.is_null() { self.resolve() } else { known }
    }

    #[cold]
    fn resolve(&self) -> *mut c_void {
        // SAFETY: the name is a C string; dlsym has no other requirement.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        if found.is_null() {
            let _ = crate::sys::write(2, b"hoist: libc lacks a function that the shim stands in for\n");
            // SAFETY: abort is always allowed.
            unsafe { libc::abort() }
        }
        self.address.store(found, Ordering::Relaxed);
        found
    }
}

/// Declares a function that calls libc's own `$name`.
macro_rules! next {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty;)+) => {$(
        /// libc's own function of this name.
        ///
        /// # Safety
        /// As the libc function.
        #[inline]
        pub(crate) unsafe fn $name($($arg: $type),*) -> $ret {
            const NAME: &core::ffi::CStr = match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name without a NUL"),
            };
            static NEXT: Next = Next::new(NAME);
            // SAFETY: dlsym returned libc's function of this name, whose signature is the one declared here.
            let function: unsafe extern "C" fn($($type),*) -> $ret = unsafe { core::mem::transmute(NEXT.address()) };
            // SAFETY: the caller upholds the function's contract.
            unsafe { function($($arg),*) }
        }
    )+};
}

use libc::{c_int, c_long, c_uint, c_ulong, epoll_event, fd_set, iovec, mmsghdr, msghdr, nfds_t, pollfd};
use libc::{sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec, timeval};

next! {
    socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    bind(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int;
    connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int;
    accept(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int;
    accept4(fd: c_int, name: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;
    splice(from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, len: size_t, flags: c_uint) -> ssize_t;
    sendfile(to: c_int, from: c_int, at: *mut i64, len: size_t) -> ssize_t;
    preadv2(fd: c_int, vector: *const iovec, count: c_int, offset: i64, flags: c_int) -> ssize_t;
    fdopen(fd: c_int, mode: *const libc::c_char) -> *mut libc::FILE;
    _exit(status: c_int) -> c_int;
    quick_exit(status: c_int) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int;
    recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t;
    recvfrom(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t;
    recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
    read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t;
    readv(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t;
    sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int;
    poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
    ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int;
    pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    epoll_create(size: c_int) -> c_int;
    epoll_create1(flags: c_int) -> c_int;
    epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int;
    epoll_pwait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int;
    epoll_pwait2(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    close(fd: c_int) -> c_int;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    fclose(stream: *mut libc::FILE) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(fd: c_int, to: c_int) -> c_int;
    dup3(fd: c_int, to: c_int, flags: c_int) -> c_int;
    fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int;
    ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int;
    sigaction(signal: c_int, action: *const libc::sigaction, old: *mut libc::sigaction) -> c_int;
    signal(signal: c_int, handler: libc::sighandler_t) -> libc::sighandler_t;
    __sysv_signal(signal: c_int, handler: libc::sighandler_t) -> libc::sighandler_t;
    posix_spawn_file_actions_adddup2(actions: *mut c_void, fd: c_int, to: c_int) -> c_int;
    siginterrupt(signal: c_int, flag: c_int) -> c_int;
    syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long;

}
