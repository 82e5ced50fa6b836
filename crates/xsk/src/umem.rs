//! The UMEM: a memfd of equal frames that the kernel writes packets into and every process that holds the fd can map.

use crate::sys::{self, Mapping};
use crate::{Desc, Error};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;

const HUGE_PAGE: u64 = 2 << 20;

/// Size of a frame. The kernel takes any power of two from 2 KiB to a page (`xdp_umem_reg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkSize {
    /// 2,048 bytes: packets up to 1,792 bytes.
    K2,
    /// 4,096 bytes: packets up to 3,840 bytes.
    K4,
}

impl ChunkSize {
    /// The size in bytes.
    #[must_use]
    #[inline]
    pub const fn bytes(self) -> u32 {
        1 << self.shift()
    }

    #[inline]
    const fn shift(self) -> u32 {
        match self {
            Self::K2 => 11,
            Self::K4 => 12,
        }
    }
}

/// Packet memory shared with the kernel.
///
/// The kernel writes only into frames it was given through a fill ring. The bytes of a packet are stable from the moment its
/// descriptor is in the rx ring until its frame is pushed to a fill ring again; keeping that order is the caller's part.
#[derive(Debug)]
pub struct Umem {
    mapping: Mapping,
    fd: OwnedFd,
    frames: u32,
    chunk: ChunkSize,
    page: usize,
}

impl Umem {
    /// Makes a UMEM of `frames` frames, on 2 MiB pages when `huge`. Its memfd can be passed on and never changes its size.
    ///
    /// # Errors
    /// No frames, too little memory, or too few huge pages configured.
    pub fn create(frames: u32, chunk: ChunkSize, huge: bool) -> Result<Self, Error> {
        let bytes = bytes(frames, chunk)?;
        if huge {
            return Self::create_huge(frames, chunk, bytes.next_multiple_of(HUGE_PAGE));
        }
        Self::map(sys::memfd(bytes, 0)?, frames, chunk)
    }

    fn create_huge(frames: u32, chunk: ChunkSize, bytes: u64) -> Result<Self, Error> {
        sys::memfd(bytes, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)
            .and_then(|fd| Self::map(fd, frames, chunk))
            .map_err(|error| match error {
                Error::Sys { cause, .. } => Error::HugePages { pages: bytes / HUGE_PAGE, cause },
                other => other,
            })
    }

    /// Maps a UMEM that another process made.
    ///
    /// # Errors
    /// The memfd is shorter than `frames` frames, not sealed against shrinking, or cannot be mapped.
    pub fn map(fd: OwnedFd, frames: u32, chunk: ChunkSize) -> Result<Self, Error> {
        let need = bytes(frames, chunk)?;
        if !sys::cannot_shrink(fd.as_fd()) {
            return Err(Error::Unsealed);
        }
        let (have, block) = sys::size_and_block(fd.as_fd())?;
        if have < need {
            return Err(Error::ShortMemfd { have, need });
        }
        // Whole pages: munmap refuses part of a huge one (hugetlb_vm_op_split).
        let page = block.max(1);
        let mapped = usize::try_from(need.next_multiple_of(page)).map_err(|_| Error::UmemSize { frames })?;
        let mapping = Mapping::new(fd.as_fd(), 0, mapped, "mmap(UMEM)")?;
        Ok(Self { mapping, fd, frames, chunk, page: page as usize })
    }

    /// The memfd, to be passed to another process.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Number of frames.
    #[must_use]
    #[inline]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Size of a frame.
    #[must_use]
    #[inline]
    pub fn chunk(&self) -> ChunkSize {
        self.chunk
    }

    /// Size of all frames, in bytes. That many bytes from [`base`](Self::base) are mapped.
    #[must_use]
    #[inline]
    pub fn len_bytes(&self) -> usize {
        (self.frames as usize) << self.chunk.shift()
    }

    /// Bytes of a page of the mapping: 4 KiB, or 2 MiB when it is huge.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page
    }

    /// Address of frame 0.
    #[must_use]
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.mapping.base().as_ptr()
    }

    /// Bytes of a packet the kernel handed over; `None` if the descriptor leaves its frame or the UMEM.
    ///
    /// They stay as they are until the frame is pushed to a fill ring: drop the slice before that. Another process that maps
    /// this UMEM can write to it; who does not trust it copies before judging the bytes.
    #[must_use]
    #[inline]
    pub fn packet(&self, desc: Desc) -> Option<&[u8]> {
        let offset = self.offset(desc)?;
        // SAFETY: offset() keeps offset + len within the mapping, which lives as long as self. The frame left the fill ring
        // when the kernel put it into the rx ring, so the kernel does not write to it (type-level contract).
        Some(unsafe { slice::from_raw_parts(self.base().add(offset), desc.len as usize) })
    }

    /// The bytes a descriptor names, to be written before it goes into a tx ring; `None` as in [`packet`](Self::packet).
    ///
    /// Writing through the pointer is sound while no slice of [`packet`](Self::packet) and no ring holds the frame.
    #[must_use]
    #[inline]
    pub fn packet_mut(&self, desc: Desc) -> Option<*mut [u8]> {
        let offset = self.offset(desc)?;
        // SAFETY: offset() keeps offset within the mapping.
        let start = unsafe { self.base().add(offset) };
        Some(std::ptr::slice_from_raw_parts_mut(start, desc.len as usize))
    }

    /// Frame that holds the UMEM address `addr`; `None` beyond the last one.
    #[must_use]
    #[inline]
    pub fn frame_of(&self, addr: u64) -> Option<u32> {
        let frame = addr >> self.chunk.shift();
        (frame < u64::from(self.frames)).then_some(frame as u32)
    }

    /// UMEM address of the first byte of `frame`. The kernel silently skips fill addresses beyond the last frame.
    #[must_use]
    #[inline]
    pub fn addr_of(&self, frame: u32) -> u64 {
        u64::from(frame) << self.chunk.shift()
    }

    /// Where a descriptor's bytes begin, if all of them lie in one frame.
    #[inline]
    fn offset(&self, desc: Desc) -> Option<usize> {
        self.frame_of(desc.addr)?;
        let chunk = u64::from(self.chunk.bytes());
        let end = (desc.addr & (chunk - 1)) + u64::from(desc.len);
        (end <= chunk).then_some(desc.addr as usize)
    }
}

fn bytes(frames: u32, chunk: ChunkSize) -> Result<u64, Error> {
    let bytes = u64::from(frames) << chunk.shift();
    if frames == 0 || isize::try_from(bytes).is_err() { Err(Error::UmemSize { frames }) } else { Ok(bytes) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::io::Write;

    fn desc(addr: u64, len: u32) -> Desc {
        Desc { addr, len, options: 0 }
    }

    fn small(chunk: ChunkSize) -> Umem {
        Umem::create(4, chunk, false).expect("a UMEM of four frames")
    }

    #[test]
    fn two_mappings_of_one_memfd_see_the_same_bytes() {
        for chunk in [ChunkSize::K2, ChunkSize::K4] {
            let ours = small(chunk);
            let theirs = Umem::map(ours.fd().try_clone_to_owned().unwrap(), 4, chunk).unwrap();
            let last = desc(ours.addr_of(3) + 256, chunk.bytes() - 256);
            // SAFETY: no slice of this fresh UMEM exists.
            unsafe { (*ours.packet_mut(last).unwrap()).fill(0xa5) };
            assert!(theirs.packet(last).unwrap().iter().all(|&byte| byte == 0xa5));
            assert_eq!(theirs.len_bytes(), 4 * chunk.bytes() as usize);
        }
    }

    #[test]
    fn an_odd_number_of_half_pages_is_mapped_whole() {
        let umem = Umem::create(3, ChunkSize::K2, false).unwrap();
        assert_eq!(umem.len_bytes(), 3 * 2048);
        assert_eq!(umem.packet(desc(umem.addr_of(2), 2048)).unwrap(), [0; 2048]);
        assert!(umem.packet(desc(umem.addr_of(3), 0)).is_none());
    }

    #[test]
    fn a_memfd_shorter_than_the_umem_is_refused() {
        let fd = small(ChunkSize::K2).fd().try_clone_to_owned().unwrap();
        let error = Umem::map(fd, 5, ChunkSize::K2).unwrap_err();
        assert!(matches!(error, Error::ShortMemfd { have: 8192, need: 10240 }), "{error}");
    }

    #[test]
    fn a_umem_without_frames_is_refused() {
        assert!(matches!(Umem::create(0, ChunkSize::K4, false), Err(Error::UmemSize { frames: 0 })));
        let fd = small(ChunkSize::K4).fd().try_clone_to_owned().unwrap();
        assert!(matches!(Umem::map(fd, 0, ChunkSize::K4), Err(Error::UmemSize { frames: 0 })));
    }

    #[test]
    fn a_descriptor_that_could_shrink_is_refused() {
        let file = File::open("/proc/self/exe").unwrap();
        assert!(matches!(Umem::map(file.into(), 1, ChunkSize::K2), Err(Error::Unsealed)));
    }

    #[test]
    fn the_memfd_keeps_its_size() {
        let umem = small(ChunkSize::K4);
        let mut file = File::from(umem.fd().try_clone_to_owned().unwrap());
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(file.set_len(1 << 20).unwrap_err().raw_os_error(), Some(libc::EPERM));
        file.write_all(&[1]).unwrap();
        assert_eq!(umem.packet(desc(0, 1)), Some(&[1][..]));
    }

    #[test]
    fn huge_pages_are_mapped_or_refused_with_the_remedy() {
        match Umem::create(1025, ChunkSize::K2, true) {
            Ok(umem) => assert_eq!(umem.packet(desc(umem.addr_of(1024), 2048)), Some(&[0; 2048][..])),
            Err(error @ Error::HugePages { pages: 2, .. }) => {
                assert!(error.to_string().contains("vm.nr_hugepages=2"), "{error}");
                let reason = format!("skipped the mapping itself: {error}\n");
                std::io::stderr().write_all(reason.as_bytes()).unwrap();
            }
            Err(other) => panic!("{other}"),
        }
    }

    proptest! {
        #[test]
        fn a_descriptor_never_escapes_its_frame(
            addr in prop_oneof![any::<u64>(), 0..20_000u64, (u64::MAX - 5000)..],
            len in prop_oneof![any::<u32>(), 0..5000u32],
            options: u32,
            four: bool,
        ) {
            let umem = small(if four { ChunkSize::K4 } else { ChunkSize::K2 });
            let chunk = u128::from(umem.chunk().bytes());
            let (start, end) = (u128::from(addr), u128::from(addr) + u128::from(len));
            let inside = start < 4 * chunk && end <= (start / chunk + 1) * chunk;
            let packet = umem.packet(Desc { addr, len, options });
            prop_assert_eq!(packet.is_some(), inside);
            prop_assert_eq!(umem.packet_mut(Desc { addr, len, options }).is_some(), inside);
            if let Some(packet) = packet {
                prop_assert_eq!(packet.as_ptr() as usize, umem.base() as usize + addr as usize);
                prop_assert_eq!(packet.len(), len as usize);
            }
        }

        #[test]
        fn frames_and_addresses_agree(addr: u64, frame in 0..4u32) {
            let umem = small(ChunkSize::K2);
            prop_assert_eq!(umem.frame_of(addr).is_some(), addr < 4 * 2048);
            prop_assert_eq!(umem.frame_of(umem.addr_of(frame) + addr % 2048), Some(frame));
        }
    }
}
