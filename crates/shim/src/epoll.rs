//! epoll instances of the program that watch a UDP socket.
//!
//! The kernel keeps doing what it does for every descriptor in the instance. For lifted data the shim keeps its own ready
//! list beside it, and puts two kinds of descriptor of its own into the instance so that a sleeping `epoll_wait` wakes:
//! the AF_XDP sockets (EPOLLEXCLUSIVE: one thread wakes for a packet) and a bell, rung when another thread's pump made a
//! socket of this instance readable. Their events carry random numbers and never reach the program.

use crate::{
    control,
    driver::{self, Spun},
    engine::{self, ENGINE},
    lock::PumpLock,
    next,
    socket::Socket,
    sys,
    table::{EPOLLS, SOCKETS},
    tcp,
    wait::Deadline,
};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
    fence,
};
use hoist_sys::Errno;
use libc::{
    EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDNORM, c_int, epoll_event, sigset_t,
};
use std::collections::VecDeque;

type Result<T> = core::result::Result<T, Errno>;

const READABLE: u32 = (EPOLLIN | EPOLLRDNORM) as u32;

/// A look at the kernel's own list holds for so long, ns, while lifted data waits: what became ready since then might as well
/// have become ready after the call returned.
const KERNEL_TURN_NS: u64 = 10_000;

/// `data` of the shim's own events.
static TOKEN: AtomicU64 = AtomicU64::new(0);

/// Instances whose bell is to be rung once the pump lock is free.
static TO_RING: [AtomicI32; 32] = [const { AtomicI32::new(-1) }; 32];

#[derive(Clone, Copy)]
struct Interest {
    socket: Option<&'static Socket>,
    fd: c_int,
    events: u32,
    data: u64,
    /// In the ready list.
    queued: bool,
    /// EPOLLONESHOT has not fired since the last MOD.
    armed: bool,
}

impl Interest {
    fn wants(&self) -> u32 {
        if self.armed { self.events & READABLE } else { 0 }
    }
}

#[derive(Default)]
struct Lists {
    interests: Vec<Interest>,
    /// Interests with lifted data, as far as known, oldest first.
    ready: VecDeque<u32>,
}

/// One instance.
pub(crate) struct Epoll {
    lists: PumpLock<Lists>,
    /// A signal handler's pump found data while this thread had the lists in hand.
    missed: AtomicBool,
    /// Sockets of ours ever added.
    watched: AtomicU32,
    /// One of its descriptors.
    epfd: AtomicI32,
    descriptors: AtomicU32,
    /// Threads in `epoll_wait`.
    waiters: AtomicU32,
    /// -1 until made.
    bell: AtomicI32,
    rung: AtomicBool,
    /// Rings already in the kernel's list.
    rings: AtomicU32,
    /// Another epoll instance or a poll watches this one: the bell must tell the truth at any time.
    nested: AtomicBool,
    /// A forked child has it too: no descriptor of ours may be in it.
    shared: AtomicBool,
    /// When the kernel's list was last looked at, CLOCK_MONOTONIC ns; 0: it must be.
    kernel_look: AtomicU64,
    oneshots: AtomicBool,
    /// Some interest is in more than reading, level-triggered: only the kernel can tell, at every wait.
    more_than_reading: AtomicBool,
}

impl Epoll {
    pub(crate) fn new() -> Self {
        Self {
            lists: PumpLock::new(Lists::default()),
            missed: AtomicBool::new(false),
            watched: AtomicU32::new(0),
            epfd: AtomicI32::new(-1),
            descriptors: AtomicU32::new(0),
            waiters: AtomicU32::new(0),
            bell: AtomicI32::new(-1),
            rung: AtomicBool::new(false),
            rings: AtomicU32::new(0),
            nested: AtomicBool::new(false),
            shared: AtomicBool::new(false),
            kernel_look: AtomicU64::new(0),
            oneshots: AtomicBool::new(false),
            more_than_reading: AtomicBool::new(false),
        }
    }

    /// Makes an instance that has no descriptor new again, for `epfd`.
    pub(crate) fn renew(&self, epfd: c_int) {
        self.epfd.store(epfd, Relaxed);
        self.descriptors.store(1, Relaxed);
        for word in [&self.watched, &self.waiters, &self.rings] {
            word.store(0, Relaxed);
        }
        for flag in [&self.rung, &self.nested, &self.shared, &self.oneshots, &self.more_than_reading] {
            flag.store(false, Relaxed);
        }
        self.kernel_look.store(0, Relaxed);
    }

    /// Whether any socket of ours was ever added.
    #[inline]
    pub(crate) fn watches(&self) -> bool {
        self.watched.load(Relaxed) > 0
    }

    /// The lists. A signal handler that interrupted this very thread here gets empty ones.
    fn with<R>(&self, f: impl FnOnce(&mut Lists) -> R) -> R {
        match self.lists.lock() {
            Some(mut lists) => f(&mut lists),
            None => f(&mut Lists::default()),
        }
    }

    pub(crate) fn shared(&self) -> bool {
        self.shared.load(Relaxed)
    }

    pub(crate) fn duplicate(&self) {
        self.descriptors.fetch_add(1, Relaxed);
    }

    /// One descriptor of the instance less; the last one ends it.
    pub(crate) fn forget_descriptor(&'static self) {
        if self.descriptors.fetch_sub(1, Relaxed) != 1 {
            return;
        }
        if let Some(mut state) = ENGINE.lock() {
            for socket in self.with(|lists| {
                lists.interests.iter().filter_map(|interest| interest.socket).collect::<Vec<_>>()
            }) {
                socket.lock_held.watchers.with(&mut state).retain(|(epoll, _)| !core::ptr::eq(*epoll, self));
            }
        }
        self.with(|lists| *lists = Lists::default());
        let bell = self.bell.swap(-1, Relaxed);
        if bell >= 0 {
            control::discard(bell);
        }
        control::retire_epoll(self);
    }

    /// A watched socket got data. Called with the pump lock held.
    pub(crate) fn arrived(&'static self, index: u32) {
        let Some(mut lists) = self.lists.lock() else {
            self.missed.store(true, Relaxed);
            return self.ring_later();
        };
        let newly = mark_ready(&mut lists, index);
        drop(lists);
        if newly && (self.waiters.load(Relaxed) > 0 || self.nested.load(Relaxed)) {
            self.ring_later();
        }
    }

    fn ring_later(&self) {
        let bell = self.bell.load(Relaxed);
        if bell < 0 || self.rung.swap(true, SeqCst) {
            return;
        }
        if !TO_RING.iter().any(|slot| slot.compare_exchange(-1, bell, SeqCst, Relaxed).is_ok()) {
            sys::eventfd_ring(bell);
        }
    }

    /// Puts rings and bell in the kernel's list, if they are not there yet.
    fn add_rings(&self) {
        let epfd = self.epfd.load(Relaxed);
        let known = self.rings.load(Relaxed);
        let count = engine::ring_count();
        if self.shared() || known == count {
            return;
        }
        if self.bell.load(Relaxed) < 0
            && let Some(bell) = sys::eventfd().ok().and_then(control::hide)
        {
            add_own(epfd, bell, EPOLLIN as u32);
            self.bell.store(bell, Relaxed);
        }
        for ring in engine::ring_fds().skip(known as usize) {
            add_own(epfd, ring, (EPOLLIN | EPOLLEXCLUSIVE) as u32);
        }
        if self.bell.load(Relaxed) >= 0 {
            self.rings.store(count, Relaxed); // without a bell this is tried again
        }
    }

    /// Takes rings and bell out: a child is about to share the instance.
    fn share(&self) {
        self.shared.store(true, Relaxed);
        let epfd = self.epfd.load(Relaxed);
        let bell = self.bell.swap(-1, Relaxed);
        for fd in
            engine::ring_fds().take(self.rings.swap(0, Relaxed) as usize).chain((bell >= 0).then_some(bell))
        {
            let _ = sys::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, fd, core::ptr::null_mut());
        }
        if bell >= 0 {
            control::discard(bell);
        }
    }

    /// Events of lifted sockets, at most `room.len()`.
    fn collect(&self, room: &mut [epoll_event]) -> usize {
        let mut after = After::default();
        let count = self.with(|lists| {
            if self.missed.swap(false, Relaxed) {
                for index in 0..lists.interests.len() as u32 {
                    mark_ready(lists, index);
                }
            }
            collect(lists, room, &mut after)
        });
        after.writable.iter().flatten().for_each(|&(at, fd)| room[at].events |= writable_now(fd));
        for (fd, data) in after.disarm {
            // the kernel's half of a one-shot interest is spent too
            let mut event = epoll_event { events: EPOLLONESHOT as u32, u64: data };
            let _ = sys::epoll_ctl(self.epfd.load(Relaxed), libc::EPOLL_CTL_MOD, fd, &raw mut event);
        }
        if self.rung.load(Relaxed) && self.with(|lists| lists.ready.is_empty()) {
            self.silence();
        }
        count
    }

    fn note_kind(&self, events: u32) {
        const READING: u32 =
            READABLE | (libc::EPOLLERR | libc::EPOLLHUP | EPOLLONESHOT | EPOLLEXCLUSIVE) as u32;
        self.oneshots.fetch_or(events & EPOLLONESHOT as u32 != 0, Relaxed);
        self.more_than_reading.fetch_or(events & EPOLLET as u32 == 0 && events & !READING != 0, Relaxed);
    }

    /// Whether the kernel's list must be looked at before lifted data is reported.
    fn kernel_due(&self, now: u64) -> bool {
        self.more_than_reading.load(Relaxed)
            || now.wrapping_sub(self.kernel_look.load(Relaxed)) > KERNEL_TURN_NS
    }

    fn nothing_lifted(&self) -> bool {
        self.with(|lists| lists.ready.is_empty())
    }

    /// Forgets ready interests that were read meanwhile, so that the bell tells the truth to who watches the instance.
    fn refresh(&self) {
        let empty = self.with(|lists| {
            prune(lists);
            lists.ready.is_empty()
        });
        if empty && self.rung.load(Relaxed) {
            self.silence();
        }
    }

    /// Clears the bell, unless something became ready meanwhile.
    fn silence(&self) {
        self.rung.store(false, SeqCst);
        sys::eventfd_clear(self.bell.load(Relaxed));
        fence(SeqCst);
        if !self.with(|lists| lists.ready.is_empty()) {
            self.rung.store(true, SeqCst);
            sys::eventfd_ring(self.bell.load(Relaxed));
        }
    }

    /// Takes the shim's own events out of what the kernel returned, and notes one-shots that fired. Returns how many are left.
    fn own_out(&self, events: &mut [epoll_event]) -> usize {
        let token = TOKEN.load(Relaxed);
        let mut kept = 0;
        for i in 0..events.len() {
            let event = events[i];
            if event.u64 != token {
                events[kept] = event;
                kept += 1;
            }
        }
        if self.oneshots.load(Relaxed) {
            self.with(|lists| disarm_fired(lists, &events[..kept]));
        }
        kept
    }
}

fn add_own(epfd: c_int, fd: c_int, events: u32) {
    let mut event = epoll_event { events, u64: token() };
    let _ = sys::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, &raw mut event);
}

fn token() -> u64 {
    let token = TOKEN.load(Relaxed);
    if token != 0 {
        return token;
    }
    let _ = TOKEN.compare_exchange(0, sys::getrandom_u64() | 1, SeqCst, Relaxed);
    TOKEN.load(Relaxed)
}

/// Puts an interest in the ready list; false if it is there or does not care.
fn mark_ready(lists: &mut Lists, index: u32) -> bool {
    let Some(interest) = lists.interests.get_mut(index as usize) else { return false };
    if interest.socket.is_none() || interest.queued || interest.wants() == 0 {
        return false;
    }
    interest.queued = true;
    lists.ready.push_back(index);
    true
}

/// What is left to do once the lists are unlocked again.
#[derive(Default)]
struct After {
    /// One-shot interests that fired: descriptor and data.
    disarm: Vec<(c_int, u64)>,
    /// Events of edge-triggered interests in writing too: where in the array, and the descriptor. The kernel reports all that
    /// is ready whenever it reports anything (`ep_item_poll`).
    writable: [Option<(usize, c_int)>; 16],
}

impl After {
    fn note_writable(&mut self, at: usize, fd: c_int) {
        if let Some(free) = self.writable.iter_mut().find(|place| place.is_none()) {
            *free = Some((at, fd));
        }
    }
}

fn writable_now(fd: c_int) -> u32 {
    let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let ready = sys::poll_look(&raw mut entry, 1).is_ok() && entry.revents & libc::POLLOUT != 0;
    if ready { EPOLLOUT as u32 } else { 0 }
}

/// Goes once through the ready list, as `ep_send_events`: a level-triggered interest stays in it while there is data.
fn collect(lists: &mut Lists, room: &mut [epoll_event], after: &mut After) -> usize {
    let mut count = 0;
    for _ in 0..lists.ready.len() {
        if count == room.len() {
            break;
        }
        let Some(index) = lists.ready.pop_front() else { break };
        let Some(interest) = lists.interests.get_mut(index as usize) else { continue };
        interest.queued = false;
        let (Some(socket), wants) = (interest.socket, interest.wants()) else { continue };
        if wants == 0 || socket.is_empty() {
            continue;
        }
        room[count] = epoll_event { events: wants, u64: interest.data };
        if interest.events & EPOLLOUT as u32 != 0 && interest.events & EPOLLET as u32 != 0 {
            after.note_writable(count, interest.fd);
        }
        count += 1;
        if interest.events & EPOLLONESHOT as u32 != 0 {
            interest.armed = false;
            after.disarm.push((interest.fd, interest.data));
        } else if interest.events & EPOLLET as u32 == 0 {
            interest.queued = true;
            lists.ready.push_back(index);
        }
    }
    count
}

fn prune(lists: &mut Lists) {
    for _ in 0..lists.ready.len() {
        let Some(index) = lists.ready.pop_front() else { break };
        let Some(interest) = lists.interests.get_mut(index as usize) else { continue };
        interest.queued = interest.socket.is_some_and(|socket| !socket.is_empty());
        if interest.queued {
            lists.ready.push_back(index);
        }
    }
}

fn disarm_fired(lists: &mut Lists, events: &[epoll_event]) {
    for event in events {
        let data = event.u64;
        for interest in lists.interests.iter_mut().filter(|interest| interest.data == data) {
            interest.armed &= interest.events & EPOLLONESHOT as u32 == 0;
        }
    }
}

/// Rings what the pump left to be rung.
#[inline]
pub(crate) fn ring_pending() {
    if TO_RING[0].load(Relaxed) < 0 {
        return;
    }
    for slot in &TO_RING {
        let bell = slot.swap(-1, SeqCst);
        if bell >= 0 {
            sys::eventfd_ring(bell);
        }
    }
}

/// After a socket was lifted: instances that watch it learn of the rings, and of data it may have already.
pub(crate) fn add_rings_for(socket: &'static Socket) {
    let Some(mut state) = ENGINE.lock() else { return };
    let watchers = socket.lock_held.watchers.with(&mut state).clone();
    drop(state);
    for (epoll, index) in watchers {
        epoll.add_rings();
        if !socket.is_empty() {
            epoll.arrived(index);
        }
    }
    ring_pending();
}

/// A socket is closed: nobody watches it.
pub(crate) fn forget_socket(socket: &'static Socket) {
    let Some(mut state) = ENGINE.lock() else { return };
    for (epoll, index) in core::mem::take(socket.lock_held.watchers.with(&mut state)) {
        epoll.with(|lists| {
            if let Some(interest) = lists.interests.get_mut(index as usize) {
                interest.socket = None;
            }
        });
    }
}

/// Before fork: every instance will have a second owner.
pub(crate) fn share_all() {
    for (_, epoll) in EPOLLS.iter(control::highest()) {
        epoll.share();
    }
}

/// A poll or another instance watches `fd`: if it is an instance of ours, its bell tells the truth from now on.
pub(crate) fn watched_from_outside(fd: c_int) {
    let Some(epoll) = EPOLLS.of(fd) else { return };
    epoll.nested.store(true, SeqCst);
    if !epoll.watches() {
        return;
    }
    epoll.add_rings();
    engine::pump();
    epoll.refresh();
    if !epoll.nothing_lifted() {
        epoll.ring_later();
        ring_pending();
    }
}

/// After a successful epoll_ctl.
///
/// # Safety
/// `event` is null or the program's, as in epoll_ctl(2).
pub(crate) unsafe fn controlled(epfd: c_int, op: c_int, fd: c_int, event: *const epoll_event) {
    // SAFETY: the kernel has just read it, so it is readable; null for DEL.
    let event = unsafe { event.as_ref() }.map(|event| (event.events, event.u64));
    if let Some(epoll) = EPOLLS.of(epfd) {
        epoll.kernel_look.store(0, Relaxed);
    }
    match (op, event) {
        (libc::EPOLL_CTL_ADD, Some((events, data))) => {
            watched_from_outside(fd);
            if let Some(socket) = SOCKETS.of(fd) {
                add(epfd, fd, socket, events, data);
            }
        }
        (libc::EPOLL_CTL_MOD, Some((events, data))) => modify(epfd, fd, events, data),
        (libc::EPOLL_CTL_DEL, _) => remove(epfd, fd),
        _ => {}
    }
}

fn instance(epfd: c_int) -> Option<&'static Epoll> {
    if EPOLLS.of(epfd).is_none() {
        control::track_epoll(epfd); // made past the shim, or inherited
    }
    EPOLLS.of(epfd)
}

fn add(epfd: c_int, fd: c_int, socket: &'static Socket, events: u32, data: u64) {
    let Some(epoll) = instance(epfd) else { return };
    epoll.watched.fetch_add(1, Relaxed);
    if epoll.shared() {
        control::demote(socket, hoist_ipc::Reason::Forked, 0);
    }
    let interest = Interest { socket: Some(socket), fd, events, data, queued: false, armed: true };
    let index = epoll.with(|lists| place(lists, interest));
    epoll.note_kind(events);
    let Some(mut state) = ENGINE.lock() else { return };
    socket.lock_held.watchers.with(&mut state).push((epoll, index));
    drop(state);
    if socket.lifted() {
        epoll.add_rings();
    }
    rearm(epoll, socket, index);
}

fn place(lists: &mut Lists, interest: Interest) -> u32 {
    let free = lists.interests.iter().position(|old| old.socket.is_none() && !old.queued);
    let index = free.unwrap_or(lists.interests.len());
    if index == lists.interests.len() {
        lists.interests.push(interest);
    } else {
        lists.interests[index] = interest;
    }
    index as u32
}

fn rearm(epoll: &'static Epoll, socket: &'static Socket, index: u32) {
    if !socket.is_empty() {
        epoll.arrived(index);
        ring_pending();
    }
}

fn modify(epfd: c_int, fd: c_int, events: u32, data: u64) {
    let (Some(epoll), Some(socket)) = (EPOLLS.of(epfd), SOCKETS.of(fd)) else { return };
    epoll.note_kind(events);
    let index = epoll.with(|lists| {
        let index = lists.interests.iter().position(|old| old.fd == fd && old.socket.is_some())?;
        let interest = &mut lists.interests[index];
        (interest.events, interest.data, interest.armed) = (events, data, true);
        Some(index as u32)
    });
    if let Some(index) = index {
        rearm(epoll, socket, index);
    }
}

fn remove(epfd: c_int, fd: c_int) {
    let Some(epoll) = EPOLLS.of(epfd) else { return };
    let removed = epoll.with(|lists| {
        let index = lists.interests.iter().position(|old| old.fd == fd && old.socket.is_some())?;
        lists.interests[index].socket.take().map(|socket| (socket, index as u32))
    });
    let (Some((socket, index)), Some(mut state)) = (removed, ENGINE.lock()) else { return };
    let watchers = socket.lock_held.watchers.with(&mut state);
    watchers.retain(|&(other, at)| !(core::ptr::eq(other, epoll) && at == index));
}

/// An `epoll_wait` of libc's on an instance that watches no socket of ours as yet: another thread may add one meanwhile, and
/// then the shim's own events must not reach the program. None: nothing but those came.
///
/// # Safety
/// `events` has room for what `wait` returns.
pub(crate) unsafe fn wait_plainly(
    epoll: &'static Epoll,
    events: *mut epoll_event,
    wait: impl FnOnce() -> c_int,
) -> Option<c_int> {
    epoll.waiters.fetch_add(1, SeqCst);
    let count = wait();
    epoll.waiters.fetch_sub(1, SeqCst);
    if count <= 0 || TOKEN.load(Relaxed) == 0 {
        return Some(count);
    }
    // SAFETY: the kernel has just written that many.
    let kept = epoll.own_out(unsafe { core::slice::from_raw_parts_mut(events, count as usize) });
    (kept > 0).then_some(kept as c_int)
}

/// How an `epoll_wait` waits.
pub(crate) struct Wait {
    pub(crate) epfd: c_int,
    pub(crate) events: *mut epoll_event,
    pub(crate) max: c_int,
    pub(crate) deadline: Deadline,
    /// Poll only: the timeout was zero.
    pub(crate) look: bool,
    pub(crate) mask: *const sigset_t,
}

impl Wait {
    /// The program's array.
    ///
    /// # Safety
    /// `events` has room for `max`, as in epoll_wait(2).
    unsafe fn room(&self) -> &'static mut [epoll_event] {
        // SAFETY: by contract; the array outlives the call that this wait is.
        unsafe { core::slice::from_raw_parts_mut(self.events, self.max as usize) }
    }

    /// Waits on an instance that watches sockets of ours.
    ///
    /// # Safety
    /// As epoll_wait(2); `max` > 0 and `events` not null were checked.
    pub(crate) unsafe fn run(&self, epoll: &'static Epoll) -> Result<usize> {
        // SAFETY: by contract.
        let room = unsafe { self.room() };
        loop {
            epoll.add_rings();
            engine::pump();
            tcp::before_wait();
            if let Some(count) = self.without_sleep(epoll, room)? {
                return Ok(count);
            }
            if tcp::involved() && driver::spins() {
                let count = sys::epoll_look(self.epfd, self.events, self.max)?;
                let kept = epoll.own_out(&mut room[..count]);
                if kept > 0 {
                    return Ok(kept);
                }
            }
            match driver::spin(self.deadline, self.mask, || !epoll.nothing_lifted()) {
                Spun::Lifted => continue,
                Spun::Signal { .. } => return Err(Errno(libc::EINTR)),
                Spun::Nothing => {}
            }
            epoll.waiters.fetch_add(1, SeqCst);
            fence(SeqCst);
            let count = epoll.collect(room); // what another thread's pump found before it could see us wait
            if count > 0 {
                epoll.waiters.fetch_sub(1, SeqCst);
                return Ok(count);
            }
            let asleep = tcp::Asleep::new();
            let slept = self.sleep();
            drop(asleep);
            epoll.waiters.fetch_sub(1, SeqCst);
            let count = slept?;
            let kept = epoll.own_out(&mut room[..count]);
            if kept > 0 {
                return Ok(kept + merge(room, kept, |rest| epoll.collect(rest)));
            }
            if count > 0 && epoll.nothing_lifted() {
                epoll.silence(); // rung late, for what has been read since
            }
            if self.deadline.over() {
                engine::pump();
                return Ok(epoll.collect(room));
            }
        }
    }

    /// What is there now; None: nothing, and the program wants to wait.
    fn without_sleep(&self, epoll: &Epoll, room: &mut [epoll_event]) -> Result<Option<usize>> {
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        if self.look || epoll.kernel_due(now) {
            if epoll.nothing_lifted() && !self.look {
                return Ok(None); // the sleep looks too
            }
            epoll.kernel_look.store(now, Relaxed);
            let count = sys::epoll_look(self.epfd, self.events, self.max)?;
            let kept = epoll.own_out(&mut room[..count]);
            let count = kept + merge(room, kept, |rest| epoll.collect(rest));
            return Ok((count > 0 || self.look).then_some(count));
        }
        let count = epoll.collect(room);
        Ok((count > 0).then_some(count))
    }

    /// Through libc, so that the wait is a cancellation point.
    fn sleep(&self) -> Result<usize> {
        let left = self.deadline.left();
        // SAFETY: the program's own array and mask.
        let count = unsafe {
            match left {
                None => next::epoll_pwait(self.epfd, self.events, self.max, -1, self.mask),
                Some(ns) => next::epoll_pwait(self.epfd, self.events, self.max, millis(ns), self.mask),
            }
        };
        if count < 0 { Err(Errno(crate::errno())) } else { Ok(count as usize) }
    }
}

/// Rounded up, so that a wait never ends early.
fn millis(ns: u64) -> c_int {
    ns.div_ceil(1_000_000).min(c_int::MAX as u64) as c_int
}

/// Adds lifted events after the first `kept`; one that the kernel has reported too is joined with it.
fn merge(room: &mut [epoll_event], kept: usize, collect: impl FnOnce(&mut [epoll_event]) -> usize) -> usize {
    let (kernel, rest) = room.split_at_mut(kept);
    let count = collect(rest);
    let mut added = 0;
    for i in 0..count {
        let event = rest[i];
        let data = event.u64;
        match kernel.iter_mut().find(|known| { known.u64 } == data) {
            Some(known) => known.events |= event.events,
            None => {
                rest[added] = event;
                added += 1;
            }
        }
    }
    added
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(events: u32, sockets: usize) -> Lists {
        let mut lists = Lists::default();
        for i in 0..sockets {
            let socket: &'static Socket = Box::leak(Box::new(Socket::new()));
            socket.set_queue(8);
            let interest = Interest {
                socket: Some(socket),
                fd: i as c_int,
                events,
                data: i as u64,
                queued: false,
                armed: true,
            };
            assert_eq!(place(&mut lists, interest), i as u32);
        }
        lists
    }

    fn fill(lists: &mut Lists, index: u32) -> bool {
        assert!(lists.interests[index as usize].socket.unwrap().push(index));
        mark_ready(lists, index)
    }

    fn report(lists: &mut Lists, max: usize) -> Vec<u64> {
        let mut room = vec![epoll_event { events: 0, u64: 0 }; max];
        let count = collect(lists, &mut room, &mut After::default());
        room[..count].iter().map(|event| event.u64).collect()
    }

    #[test]
    fn level_triggered_is_reported_until_it_is_drained() {
        let mut lists = lists(EPOLLIN as u32, 1);
        assert!(fill(&mut lists, 0));
        assert_eq!(report(&mut lists, 4), [0]);
        assert_eq!(report(&mut lists, 4), [0]);
        lists.interests[0].socket.unwrap().pop();
        assert!(report(&mut lists, 4).is_empty());
        assert!(lists.ready.is_empty());
    }

    #[test]
    fn edge_triggered_is_reported_once_for_each_arrival() {
        let mut lists = lists((EPOLLIN | EPOLLET) as u32, 1);
        fill(&mut lists, 0);
        assert_eq!(report(&mut lists, 4), [0]);
        assert!(report(&mut lists, 4).is_empty());
        fill(&mut lists, 0);
        assert_eq!(report(&mut lists, 4), [0]);
    }

    #[test]
    fn one_shot_is_silent_until_armed_again() {
        let mut lists = lists((EPOLLIN | EPOLLONESHOT) as u32, 1);
        fill(&mut lists, 0);
        assert_eq!(report(&mut lists, 4), [0]);
        assert!(!fill(&mut lists, 0));
        lists.interests[0].armed = true;
        assert!(mark_ready(&mut lists, 0));
        assert_eq!(report(&mut lists, 4), [0]);
    }

    #[test]
    fn a_small_array_takes_turns() {
        let mut lists = lists(EPOLLIN as u32, 3);
        (0..3).for_each(|i| assert!(fill(&mut lists, i)));
        let seen: Vec<u64> = (0..3).flat_map(|_| report(&mut lists, 1)).collect();
        assert_eq!(seen, [0, 1, 2]);
    }

    #[test]
    fn interests_in_writing_alone_and_removed_ones_are_silent() {
        let mut lists = lists(libc::EPOLLOUT as u32, 1);
        assert!(!fill(&mut lists, 0));
        lists.interests[0].events |= EPOLLIN as u32;
        assert!(mark_ready(&mut lists, 0));
        lists.interests[0].socket = None;
        assert!(report(&mut lists, 4).is_empty());
    }

    #[test]
    fn an_event_known_to_the_kernel_too_is_joined() {
        let mut room = [epoll_event { events: libc::EPOLLOUT as u32, u64: 5 }; 3];
        let added = merge(&mut room, 1, |rest| {
            rest[0] = epoll_event { events: EPOLLIN as u32, u64: 5 };
            rest[1] = epoll_event { events: EPOLLIN as u32, u64: 6 };
            2
        });
        assert_eq!(added, 1);
        assert_eq!(({ room[0].events }, { room[1].u64 }), ((libc::EPOLLOUT | EPOLLIN) as u32, 6));
    }
}
