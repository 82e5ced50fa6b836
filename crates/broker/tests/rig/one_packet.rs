//! BPF_PROG_TEST_RUN: an XDP program on one packet, without a device.

use std::os::fd::{AsRawFd, BorrowedFd};

/// What the program returned, and the packet as it came out.
#[expect(unsafe_code, reason = "bpf(2) with two buffers")]
pub(crate) fn run(program: BorrowedFd<'_>, packet: &[u8]) -> (u32, Vec<u8>) {
    const BPF_PROG_TEST_RUN: usize = 10;
    let mut out = vec![0_u8; packet.len() + 256];
    // struct { prog_fd, retval, data_size_in, data_size_out, data_in (64), data_out (64), repeat, duration … }
    let (input, output) = (packet.as_ptr() as u64, out.as_mut_ptr() as u64);
    let mut words = [0_u32; 20];
    words[..8].copy_from_slice(&[
        program.as_raw_fd() as u32,
        0,
        packet.len() as u32,
        out.len() as u32,
        input as u32,
        (input >> 32) as u32,
        output as u32,
        (output >> 32) as u32,
    ]);
    words[8] = 1;
    // SAFETY: the buffers live across the call and are as long as the words say.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, words.as_mut_ptr(), size_of_val(&words)) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    out.truncate(words[3] as usize);
    (words[1], out)
}
