//! Cases that take long or use up frames.

use super::Ctx;
use crate::{
    peer::number_of,
    sock::{self, set},
};

const SOCKETS: u32 = 10_000;
const HOARD: u32 = 40_000;
const BATCH: u32 = 500;

/// 10,000 sockets opened, bound and closed, 100 at a time, while one stays open and is read.
pub(super) fn ten_thousand_sockets(ctx: &mut Ctx) {
    let (kept, kept_at) = ctx.bound4();
    for round in 0..SOCKETS / 100 {
        let sockets: Vec<_> = (0..100).map(|i| sock::bound((ctx.net.host4, 30_000 + i).into())).collect();
        let at = sock::name(&sockets[round as usize]).unwrap();
        ctx.send_numbered(at, round, 1, 8);
        ctx.send_numbered(kept_at, round, 1, 8);
        assert_eq!(number_of(&sock::take(&sockets[round as usize], 100, 0).unwrap()), round);
        assert_eq!(number_of(&sock::take(&kept, 100, 0).unwrap()), round);
    }
}

/// One socket with a buffer of 64 MiB is never read until the end; another is, all the time.
pub(super) fn a_hoarder_of_frames(ctx: &mut Ctx) {
    let ((hoard, hoard_at), (other, other_at)) = (ctx.bound4(), ctx.bound4());
    set(&hoard, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64i32 << 20).unwrap();
    for i in 0..HOARD / BATCH {
        ctx.send_numbered(hoard_at, i * BATCH, BATCH, 100);
        ctx.send_numbered(other_at, i, 1, 8);
        assert_eq!(number_of(&sock::take(&other, 100, 0).unwrap()), i);
    }
    ctx.fence();
    let kept: Vec<_> = super::drain(&hoard).iter().map(|bytes| number_of(bytes)).collect();
    assert_eq!(kept, (0..HOARD).collect::<Vec<_>>());
}
