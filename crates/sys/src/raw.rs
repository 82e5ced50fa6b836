//! The `syscall` instruction.

use core::arch::asm;

/// Makes system call `number`; unused arguments are zero. Returns the kernel's raw value: `-errno` on failure.
///
/// # Safety
/// The arguments must satisfy the system call's own contract (pointers valid for what the kernel reads and writes).
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> isize {
    let value: isize;
    // SAFETY: the caller upholds the call's contract; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall",
            inlateout("rax") number as isize => value,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    value
}

/// Makes system call `number`; unused arguments are zero. Returns the kernel's raw value: `-errno` on failure.
///
/// # Safety
/// The arguments must satisfy the system call's own contract (pointers valid for what the kernel reads and writes).
#[cfg(target_arch = "aarch64")]
#[inline]
pub unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> isize {
    let value: isize;
    // SAFETY: the caller upholds the call's contract; the kernel preserves every register but x0.
    unsafe {
        asm!("svc 0",
            in("x8") number,
            inlateout("x0") args[0] as isize => value,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5],
            options(nostack));
    }
    value
}
