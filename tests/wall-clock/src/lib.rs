//! A wall clock for one host: what its programs are told when they ask the C library what time it is. `hosts/clock.rs` of the
//! tests mounts it where the loader of each program looks, and writes into `CLOCK` how far it is ahead.
//!
//! Must stay true: nothing but the wall clock is changed, for what the kernel's timers wait for is measured by the others; without
//! `CLOCK` nothing is; whoever asks is never kept waiting, also not by somebody who died while writing there. Nobody names this
//! crate in code: linked with a program, it would take that one's clock.
//!
//! Left out on purpose: what does not ask the C library. The kernel stamps files by the machine's clock, and so it ends waits for
//! an hour of the wall clock.

#![expect(unsafe_code, reason = "symbols of libc are replaced; their signatures are libc's")]

use std::ptr::null_mut;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, Ordering, fence};

use libc::{c_int, c_void, clockid_t, time_t, timespec, timeval};

/// Where a host finds how its clock goes.
const CLOCK: &std::ffi::CStr = c"/etc/leaseward-wall-clock";

/// C's name of the wall clock for `timespec_get`.
const TIME_UTC: c_int = 1;

/// Whoever writes is done within a few of them, or dead.
const TRIES: u32 = 1_000;

const NS: i64 = 1_000_000_000;

/// What stands in [`CLOCK`], as the machine stores numbers.
#[repr(C)]
struct Clock {
    /// Odd while the others are written.
    turn: AtomicU64,
    /// How far it was ahead when the machine's said `from`, in nanoseconds.
    ahead: AtomicI64,
    /// In nanoseconds since 1970.
    from: AtomicI64,
    /// How much faster it goes, in millionths.
    rate: AtomicI64,
}

/// Null where the machine's clock is the host's.
static HOST: AtomicPtr<Clock> = AtomicPtr::new(null_mut());

/// libc's own `clock_gettime`; null until it is found.
static OWN: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// Before anything of the program: it has no other threads and has changed no directory, root or user.
extern "C" fn begin() {
    // SAFETY: libc's functions with valid arguments; the mapping is never undone, and as long as the file at least.
    unsafe {
        OWN.store(libc::dlsym(libc::RTLD_NEXT, c"clock_gettime".as_ptr()), Ordering::Release);
        let file = libc::open(CLOCK.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return;
        }
        let mapped =
            libc::mmap(null_mut(), size_of::<Clock>(), libc::PROT_READ, libc::MAP_SHARED, file, 0).cast::<Clock>();
        libc::close(file);
        if mapped.cast() != libc::MAP_FAILED {
            HOST.store(mapped, Ordering::Release);
        }
    }
}

/// Returns how far the host's clock is ahead when the machine's says `now`, in nanoseconds.
fn ahead(now: i64) -> i64 {
    // SAFETY: null, or mapped for good.
    let Some(clock) = (unsafe { HOST.load(Ordering::Acquire).as_ref() }) else { return 0 };
    for _ in 0..TRIES {
        let turn = clock.turn.load(Ordering::Acquire);
        let (ahead, from, rate) = (
            clock.ahead.load(Ordering::Relaxed),
            clock.from.load(Ordering::Relaxed),
            clock.rate.load(Ordering::Relaxed),
        );
        fence(Ordering::Acquire);
        if turn.is_multiple_of(2) && clock.turn.load(Ordering::Relaxed) == turn {
            let drifted = i128::from(now.wrapping_sub(from)) * i128::from(rate) / 1_000_000;
            return ahead.wrapping_add(drifted as i64);
        }
    }
    0
}

/// Reads a clock of the machine.
///
/// # Safety
/// As in libc: a moment may be written to `to`.
unsafe fn machine(clock: clockid_t, to: *mut timespec) -> c_int {
    type Read = unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int;
    let own = OWN.load(Ordering::Acquire);
    // SAFETY: what `dlsym` found has libc's signature; the caller says that `to` may be written.
    unsafe {
        match own.is_null() {
            // The loader asks for the time, before it calls `begin`.
            true => libc::syscall(libc::SYS_clock_gettime, clock, to) as c_int,
            false => std::mem::transmute::<*mut c_void, Read>(own)(clock, to),
        }
    }
}

/// Returns the time of the host; `None` if the machine knows none.
fn wall(clock: clockid_t) -> Option<timespec> {
    let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it is ours.
    if unsafe { machine(clock, &raw mut now) } != 0 {
        return None;
    }
    let ns = now.tv_sec.wrapping_mul(NS).wrapping_add(now.tv_nsec);
    let ns = ns.wrapping_add(ahead(ns));
    Some(timespec { tv_sec: ns.div_euclid(NS), tv_nsec: ns.rem_euclid(NS) })
}

/// # Safety
/// As in libc: a moment may be written to `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, to: *mut timespec) -> c_int {
    let is_wall = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_COARSE, libc::CLOCK_REALTIME_ALARM, libc::CLOCK_TAI];
    if !is_wall.contains(&clock) || to.is_null() {
        // SAFETY: as the caller says.
        return unsafe { machine(clock, to) };
    }
    match wall(clock) {
        Some(now) => {
            // SAFETY: as the caller says, and it is not null.
            unsafe { to.write(now) };
            0
        }
        None => -1,
    }
}

/// # Safety
/// As in libc: each of them is null, or may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn gettimeofday(to: *mut timeval, zone: *mut libc::timezone) -> c_int {
    let Some(now) = wall(libc::CLOCK_REALTIME) else { return -1 };
    // SAFETY: as the caller says. A zone is two numbers; nobody's kernel has another one than zero.
    unsafe {
        if !to.is_null() {
            to.write(timeval { tv_sec: now.tv_sec, tv_usec: now.tv_nsec / 1_000 });
        }
        if !zone.is_null() {
            zone.cast::<[c_int; 2]>().write([0; 2]);
        }
    }
    0
}

/// # Safety
/// As in libc: `to` is null, or may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn time(to: *mut time_t) -> time_t {
    let Some(now) = wall(libc::CLOCK_REALTIME) else { return -1 };
    if !to.is_null() {
        // SAFETY: as the caller says.
        unsafe { to.write(now.tv_sec) };
    }
    now.tv_sec
}

/// # Safety
/// As in libc: a moment may be written to `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn timespec_get(to: *mut timespec, base: c_int) -> c_int {
    match wall(libc::CLOCK_REALTIME) {
        Some(now) if base == TIME_UTC => {
            // SAFETY: as the caller says.
            unsafe { to.write(now) };
            base
        }
        _ => 0,
    }
}
