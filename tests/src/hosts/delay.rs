//! A cable on which everything takes time: frames wait in this process between a host and the switch.
//!
//! Must stay true: each frame arrives later than it was sent by the delay or more, in the order of sending, as on one path; what is
//! beyond a router's memory is dropped. Without traffic it costs nothing but a look each fifth of a second, and with its end the cable is
//! as it was.
//!
//! How: `tc` has no `netem` on many kernels. The host's end at the switch and one more cable get a `macvtap` each, whose device nodes
//! are read and written as files; frames keep their checksums and segmentation that are still to be made. So it needs root
//! and `macvtap`, and no `ioctl`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};

use super::network::{Network, ip};
use crate::stamps::boot_ns;

/// A router's memory, in each direction.
const QUEUED_BYTES_MAX: usize = 4 << 20;

/// The greatest frame that the kernel hands over, still to be segmented, with the header that says so.
const FRAME_BYTES_MAX: usize = 70_000;

/// How often somebody looks whether it is over.
const LOOK_EACH: Duration = Duration::from_millis(200);

/// How long frames take, in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// At least.
    pub least: Duration,
    /// And up to so much more.
    pub jitter: Duration,
}

/// A cable that is slow until this is dropped.
#[derive(Debug)]
pub struct Delay {
    is_over: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
    switch: String,
    host: String,
}

impl Network {
    /// Makes the cable of a host slow.
    ///
    /// # Panics
    /// If it cannot be done: it needs root, and `macvtap` in the kernel.
    #[must_use]
    pub fn delay(&self, host: &str, latency: Latency) -> Delay {
        let switch = self.switch();
        let [far, near] = [format!("d-{host}"), format!("b-{host}")];
        ip(&["-n", &switch, "link", "add", "name", &far, "type", "veth", "peer", "name", &near]);
        let mut delay = Delay {
            is_over: Arc::default(),
            carried: Arc::default(),
            thread: None,
            switch: switch.clone(),
            host: host.to_owned(),
        };
        ip(&["-n", &switch, "link", "set", "dev", &far, "up"]);
        ip(&["-n", &switch, "link", "set", "dev", host, "nomaster"]);
        let ends = [tap(&switch, host), tap(&switch, &far)];
        ip(&["-n", &switch, "link", "set", "dev", &near, "master", "br0", "up"]);
        let (is_over, carried) = (Arc::clone(&delay.is_over), Arc::clone(&delay.carried));
        delay.thread = Some(std::thread::spawn(move || carry(ends, latency, &is_over, &carried)));
        delay
    }
}

impl Delay {
    /// Returns how many frames it has carried.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        let (switch, host) = (&self.switch, &self.host);
        let far = format!("d-{host}");
        let quietly = |words: &[&str]| {
            let words = [&["-n", switch, "link"], words].concat();
            Command::new("ip").args(words).stderr(std::process::Stdio::null()).status().ok();
        };
        quietly(&["del", "dev", &format!("t-{host}")]);
        // Its macvtap and its other end go with it.
        quietly(&["del", "dev", &far]);
        quietly(&["set", "dev", host, "master", "br0"]);
    }
}

/// Makes a device whose frames are read and written as a file, above an interface of the switch.
fn tap(switch: &str, above: &str) -> File {
    let name = format!("t-{above}");
    ip(&["-n", switch, "link", "add", "link", above, "name", &name, "type", "macvtap", "mode", "passthru"]);
    ip(&["-n", switch, "link", "set", "dev", &name, "up"]);
    // `/sys` shows the interfaces of whoever mounted it.
    let shown = ["netns", "exec", switch, "sh", "-c", "cat /sys/class/net/\"$0\"/tap*/dev", &name];
    let number = ip(&shown);
    let numbers: Vec<u32> = number.trim().split(':').filter_map(|part| part.parse().ok()).collect();
    let [major, minor] = numbers[..] else { panic!("{name} has no device: {number}") };
    // Where nodes are allowed; it is gone once it is open.
    let node = PathBuf::from(format!("/dev/.leaseward-{}-{minor}", std::process::id()));
    mknodat(CWD, &node, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(major, minor)).expect("a node");
    let opened = rustix::fs::open(&node, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    fs::remove_file(&node).ok();
    opened.expect("macvtap devices can be opened").into()
}

/// Frames on their way in one direction.
#[derive(Debug, Default)]
struct Way {
    queue: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    last: u64,
}

impl Way {
    /// Takes a frame that was sent at `now`.
    fn take(&mut self, frame: &[u8], now: u64, latency: Latency, random: &mut SmallRng) {
        if self.bytes + frame.len() > QUEUED_BYTES_MAX {
            return;
        }
        let more = random.gen_range(0..=latency.jitter.as_nanos() as u64);
        // One path: nobody overtakes.
        self.last = self.last.max(now + latency.least.as_nanos() as u64 + more);
        self.bytes += frame.len();
        self.queue.push_back((self.last, frame.to_vec()));
    }

    /// Gives out the next frame that has arrived at `now`.
    fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        self.queue.front().filter(|(at, _)| *at <= now)?;
        let (_, frame) = self.queue.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    fn next(&self) -> Option<u64> {
        self.queue.front().map(|(at, _)| *at)
    }
}

fn carry(mut ends: [File; 2], latency: Latency, is_over: &AtomicBool, carried: &AtomicU64) {
    let mut random = SmallRng::seed_from_u64(boot_ns());
    let mut ways = [Way::default(), Way::default()];
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    while !is_over.load(Ordering::Relaxed) {
        for from in [0, 1] {
            // Anything but a frame: none is there now, or the cable is pulled.
            while let Ok(length) = ends[from].read(&mut buffer) {
                ways[from].take(&buffer[..length], boot_ns(), latency, &mut random);
            }
            while let Some(frame) = ways[from].arrived(boot_ns()) {
                // Whatever cannot be delivered now is lost, as on a cable.
                match ends[1 - from].write(&frame) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    _ => _ = carried.fetch_add(1, Ordering::Relaxed),
                }
            }
        }
        let next = ways.iter().filter_map(Way::next).min().unwrap_or(u64::MAX);
        let wait = Duration::from_nanos(next.saturating_sub(boot_ns())).min(LOOK_EACH);
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let mut polled = ends.each_ref().map(|end| PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN));
        poll(&mut polled, Some(&wait)).ok();
        if polled.iter().any(|end| end.revents().intersects(PollFlags::ERR | PollFlags::HUP)) {
            // The cable is pulled: it would be reported at once, again and again.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_in_order_and_none_too_early() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut way = Way::default();
        let ms = Duration::from_millis;
        let latency = Latency { least: ms(50), jitter: ms(20) };
        for i in 0..100_u8 {
            way.take(&[i], u64::from(i) * 1_000_000, latency, &mut random);
        }
        assert_eq!(way.arrived(49_999_999), None, "too early");
        let mut arrived = Vec::new();
        for now in (50..170_u64).map(|now| now * 1_000_000) {
            while let Some(frame) = way.arrived(now) {
                assert!(now >= u64::from(frame[0]) * 1_000_000 + 50_000_000, "frame {} came too early", frame[0]);
                arrived.push(frame[0]);
            }
        }
        assert_eq!(arrived, (0..100).collect::<Vec<_>>());
        assert_eq!(way.bytes, 0);
    }

    #[test]
    fn what_is_beyond_its_memory_is_dropped() {
        let mut way = Way::default();
        let latency = Latency { least: Duration::from_secs(1), jitter: Duration::ZERO };
        for _ in 0..100 {
            way.take(&[0; 64 << 10], 0, latency, &mut SmallRng::seed_from_u64(1));
        }
        assert_eq!(way.queue.len(), QUEUED_BYTES_MAX / (64 << 10));
    }
}
