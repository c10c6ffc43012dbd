//! Takes the operating system's randomness away from this process.
//!
//! Must stay true: whatever the standard library and tokio draw (the order in which waiters of a channel wake, the arm
//! that a `select!` looks at first, the order of a hash map) comes from here, so it is the same in each run of the same
//! process. Tokio counts its runtimes, too: so each simulation has a process of its own.

/// The standard library asks this symbol for the keys of its hash maps, and tokio makes its own randomness of those.
///
/// # Safety
/// As in libc: `buffer` is writable for `length` bytes.
#[expect(unsafe_code, reason = "a symbol of libc is replaced; its signature is the kernel's")]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for at in 0..length {
        // SAFETY: the caller says that so many bytes may be written.
        unsafe { buffer.add(at).write((at as u8).wrapping_mul(29).wrapping_add(7)) };
    }
    length as isize
}

/// Returns whether the symbol is in use: with it, two hashers of two threads are alike.
#[must_use]
pub fn is_taken_away() -> bool {
    use std::hash::{BuildHasher, RandomState};
    let first_hash = || std::thread::spawn(|| RandomState::new().hash_one(1_u8)).join().ok();
    first_hash() == first_hash()
}
