//! Hears from a host's kernel when an address is added to it.
//!
//! Must stay true: a moment is read when the kernel's word arrives, so it is never earlier than the address.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::network::Network;
use crate::end_child;
use crate::stamps::boot_ns;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Monitor {
    said: Arc<Mutex<Vec<(u64, String)>>>,
    ip: Child,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    pub(super) fn start(network: &Network, host: &str) -> Self {
        let mut command = network.command(host, std::path::Path::new("ip"));
        let mut ip =
            command.args(["-o", "monitor", "address"]).stdout(Stdio::piped()).spawn().expect("iproute2 is installed");
        let said = Arc::<Mutex<Vec<(u64, String)>>>::default();
        let (lines, heard) = (BufReader::new(ip.stdout.take().expect("it is piped")), Arc::clone(&said));
        let thread = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                heard.lock().expect("nobody panics with it").push((boot_ns(), line));
            }
        });
        Self { said, ip, thread: Some(thread) }
    }

    /// Returns when this address was added, or prolonged, first after this moment.
    #[must_use]
    pub fn added(&self, address: IpAddr, after: u64) -> Option<u64> {
        let said = self.said.lock().expect("nobody panics with it");
        let names = |line: &str| !line.starts_with("Deleted") && line.contains(&format!(" {address}/"));
        said.iter().find(|(at, line)| *at > after && names(line)).map(|(at, _)| *at)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        end_child(&mut self.ip);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
