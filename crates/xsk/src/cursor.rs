//! Cursor arithmetic of a single-producer, single-consumer ring, without I/O.
//!
//! Both cursors are free-running `u32`s that wrap; a slot is a cursor masked by the size, a power of two
//! (`net/xdp/xsk_queue.h`). The other end's cursor is untrusted: one that could not have come about is ignored and counted.

#[cfg(all(test, loom))]
mod model;

/// A cursor word that both ends see.
pub(crate) trait Word {
    fn relaxed(&self) -> u32;
    fn acquire(&self) -> u32;
    fn release(&self, value: u32);
}

/// Cursors further apart than the ring is long: no order of operations leads there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Impossible {
    pub(crate) producer: u32,
    pub(crate) consumer: u32,
}

/// The end that takes: rx and completion rings.
#[derive(Debug)]
pub(crate) struct Consumer<W> {
    producer: W,
    consumer: W,
    size: u32,
    mask: u32,
    /// The producer's cursor as last believed: `seen - taken <= size`.
    seen: u32,
    /// This end's cursor, always equal to what it last published.
    taken: u32,
    corrupt: u64,
}

impl<W: Word> Consumer<W> {
    /// Goes on where the shared cursors stand. `size` is a power of two.
    pub(crate) fn resume(producer: W, consumer: W, size: u32) -> Result<Self, Impossible> {
        let (_, taken) = plausible(&producer, &consumer, size)?;
        Ok(Self { producer, consumer, size, mask: size.wrapping_sub(1), seen: taken, taken, corrupt: 0 })
    }

    /// Entries that can be taken. Looks at the producer's cursor only when those of the last look are used up.
    #[inline]
    pub(crate) fn available(&mut self) -> u32 {
        if self.seen == self.taken {
            self.look();
        }
        self.cached()
    }

    /// Slot of the `i`th available entry.
    #[inline]
    pub(crate) fn slot(&self, i: u32) -> Option<u32> {
        (i < self.cached()).then(|| self.taken.wrapping_add(i) & self.mask)
    }

    /// Gives the first `n` slots back, or all that were available when `n` is more.
    #[inline]
    pub(crate) fn release(&mut self, n: u32) {
        let n = n.min(self.cached());
        if n > 0 {
            self.taken = self.taken.wrapping_add(n);
            self.consumer.release(self.taken);
        }
    }

    /// Entries waiting as the shared words stand; 0 when they are impossible.
    #[inline]
    pub(crate) fn pending(&self) -> u32 {
        let waiting = self.producer.acquire().wrapping_sub(self.consumer.relaxed());
        if waiting > self.size { 0 } else { waiting }
    }

    /// How often an impossible producer cursor was ignored.
    #[inline]
    pub(crate) fn corrupt(&self) -> u64 {
        self.corrupt
    }

    #[inline]
    fn cached(&self) -> u32 {
        self.seen.wrapping_sub(self.taken)
    }

    /// Acquire pairs with the producer's release: slots below its cursor are written.
    #[inline]
    fn look(&mut self) {
        let producer = self.producer.acquire();
        if producer.wrapping_sub(self.taken) > self.size {
            self.corrupt = self.corrupt.saturating_add(1);
        } else {
            self.seen = producer;
        }
    }
}

/// The end that gives: fill and tx rings.
#[derive(Debug)]
pub(crate) struct Producer<W> {
    producer: W,
    consumer: W,
    size: u32,
    mask: u32,
    /// Next slot to write: `next - freed <= size`.
    next: u32,
    /// This end's cursor as last published, between `freed` and `next`.
    published: u32,
    /// The consumer's cursor as last believed.
    freed: u32,
    corrupt: u64,
}

impl<W: Word> Producer<W> {
    /// Goes on where the shared cursors stand. `size` is a power of two.
    pub(crate) fn resume(producer: W, consumer: W, size: u32) -> Result<Self, Impossible> {
        let (next, freed) = plausible(&producer, &consumer, size)?;
        let mask = size.wrapping_sub(1);
        Ok(Self { producer, consumer, size, mask, next, published: next, freed, corrupt: 0 })
    }

    /// Takes over where another producer of the same ring stopped: what was claimed and not published is given up. The
    /// cursor published now.
    #[inline]
    pub(crate) fn take_over(&mut self) -> u32 {
        match plausible(&self.producer, &self.consumer, self.size) {
            Ok((next, freed)) => (self.next, self.published, self.freed) = (next, next, freed),
            Err(_) => {
                self.corrupt = self.corrupt.saturating_add(1);
                self.freed = self.next.wrapping_sub(self.size); // full: nothing can be claimed
                self.published = self.next;
            }
        }
        self.next
    }

    /// Slots that can be claimed. Always looks at the consumer's cursor.
    #[inline]
    pub(crate) fn free(&mut self) -> u32 {
        self.look();
        self.cached()
    }

    /// Whether `n` slots can be claimed. Looks at the consumer's cursor only when the last look does not answer.
    #[inline]
    pub(crate) fn reserve(&mut self, n: u32) -> bool {
        if self.cached() < n {
            self.look();
        }
        n <= self.cached()
    }

    /// Claims the next slot; `None` when the ring is full.
    #[inline]
    pub(crate) fn claim(&mut self) -> Option<u32> {
        if !self.reserve(1) {
            return None;
        }
        let slot = self.next & self.mask;
        self.next = self.next.wrapping_add(1);
        Some(slot)
    }

    /// Publishes every claimed slot.
    #[inline]
    pub(crate) fn submit(&mut self) {
        if self.published != self.next {
            self.published = self.next;
            self.producer.release(self.next);
        }
    }

    /// Entries the other end has not taken as the shared words stand; the size when they are impossible.
    #[inline]
    pub(crate) fn pending(&self) -> u32 {
        self.producer.relaxed().wrapping_sub(self.consumer.acquire()).min(self.size)
    }

    /// How often an impossible consumer cursor was ignored.
    #[inline]
    pub(crate) fn corrupt(&self) -> u64 {
        self.corrupt
    }

    #[inline]
    fn cached(&self) -> u32 {
        self.size.wrapping_sub(self.next.wrapping_sub(self.freed))
    }

    /// The consumer moves forward only, and never past what was published. Acquire pairs with its release: slots below
    /// its cursor are read and may be written again.
    #[inline]
    fn look(&mut self) {
        let consumer = self.consumer.acquire();
        if consumer.wrapping_sub(self.freed) > self.published.wrapping_sub(self.freed) {
            self.corrupt = self.corrupt.saturating_add(1);
        } else {
            self.freed = consumer;
        }
    }
}

fn plausible<W: Word>(producer: &W, consumer: &W, size: u32) -> Result<(u32, u32), Impossible> {
    let (consumer, producer) = (consumer.acquire(), producer.acquire());
    if producer.wrapping_sub(consumer) > size {
        Err(Impossible { producer, consumer })
    } else {
        Ok((producer, consumer))
    }
}
