//! The network fence: the kernel stops the packets of an address when the server's time is over.
//!
//! A *guarded* address sends, receives and answers for itself only while it is in the *allowed* set, whose elements
//! have a lifetime. Nobody has to be alive to end it.
//!
//! Must stay true: an address is guarded before it is added and until it is proven gone; each change is one batch,
//! so there is no moment without an allowance between two. Left out on purpose: frames that this crate sends past
//! the kernel's hooks (`herald.rs` looks at its clock first); suspend, during which the lifetimes stand still.

use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::error::{AddressError, failed};
use crate::limits::NFT_WAIT;

const PROGRAMS: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// Changes nothing where it is in place.
const SETUP: &str = "\
add table inet leaseward
add set inet leaseward guarded4 { type ipv4_addr; }
add set inet leaseward guarded6 { type ipv6_addr; }
add set inet leaseward allowed4 { type ipv4_addr; flags timeout; }
add set inet leaseward allowed6 { type ipv6_addr; flags timeout; }
add chain inet leaseward in { type filter hook input priority -300; policy accept; }
add chain inet leaseward out { type filter hook output priority -300; policy accept; }
flush chain inet leaseward in
flush chain inet leaseward out
add rule inet leaseward in ip daddr @guarded4 ip daddr != @allowed4 drop
add rule inet leaseward in ip6 daddr @guarded6 ip6 daddr != @allowed6 drop
add rule inet leaseward out ip saddr @guarded4 ip saddr != @allowed4 drop
add rule inet leaseward out ip6 saddr @guarded6 ip6 saddr != @allowed6 drop
add table arp leaseward
add set arp leaseward guarded4 { type ipv4_addr; }
add set arp leaseward allowed4 { type ipv4_addr; flags timeout; }
add chain arp leaseward out { type filter hook output priority 0; policy accept; }
flush chain arp leaseward out
add rule arp leaseward out arp saddr ip @guarded4 arp saddr ip != @allowed4 drop
";

/// Sets the fence up, guarding nothing: where this works, the rest does.
pub(super) async fn check() -> Result<(), AddressError> {
    run(SETUP).await
}

/// Guards addresses and lets their packets through for `lifetime` from now.
pub(super) async fn allow(ips: &[IpAddr], lifetime: Duration) -> Result<(), AddressError> {
    apply(&ips.iter().map(|ip| allowed(*ip, lifetime)).collect::<String>()).await
}

/// Stops the packets of a guarded address at once.
pub(super) async fn close(ip: IpAddr) -> Result<(), AddressError> {
    apply(&closed(ip)).await
}

/// Guards an address no longer. Only for one that is not on this machine.
pub(super) async fn forget(ip: IpAddr) -> Result<(), AddressError> {
    apply(&forgotten(ip)).await
}

fn allowed(ip: IpAddr, lifetime: Duration) -> String {
    // Older kernels do not move the lifetime of an element that is there, so it is removed in the same batch. What
    // may be missing is added first, since removing what is not there would refuse the batch.
    let element = format!("{{ {ip} timeout {}ms }}", lifetime.as_millis().max(1));
    on_each(ip, |family, version| {
        format!(
            "add element {family} leaseward guarded{version} {{ {ip} }}\n\
             add element {family} leaseward allowed{version} {element}\n\
             delete element {family} leaseward allowed{version} {{ {ip} }}\n\
             add element {family} leaseward allowed{version} {element}\n"
        )
    })
}

fn closed(ip: IpAddr) -> String {
    on_each(ip, |family, version| {
        format!(
            "add element {family} leaseward allowed{version} {{ {ip} timeout 1s }}\n\
             delete element {family} leaseward allowed{version} {{ {ip} }}\n"
        )
    })
}

fn forgotten(ip: IpAddr) -> String {
    on_each(ip, |family, version| {
        format!(
            "add element {family} leaseward guarded{version} {{ {ip} }}\n\
             delete element {family} leaseward guarded{version} {{ {ip} }}\n"
        )
    })
}

fn on_each(ip: IpAddr, lines: impl Fn(&str, u8) -> String) -> String {
    match ip {
        IpAddr::V4(_) => lines("inet", 4) + &lines("arp", 4),
        IpAddr::V6(_) => lines("inet", 6),
    }
}

/// Sets the fence up only where a change fails without it: the first one does, and one after somebody's flush.
async fn apply(batch: &str) -> Result<(), AddressError> {
    match run(batch).await {
        Err(AddressError::Nft { .. }) => run(&format!("{SETUP}{batch}")).await,
        done => done,
    }
}

async fn run(batch: &str) -> Result<(), AddressError> {
    let program = PROGRAMS.into_iter().find(|path| Path::new(path).exists()).ok_or(AddressError::NoNft)?;
    let talk = async {
        let mut command = Command::new(program);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn()?;
        let mut input = child.stdin.take();
        if let Some(input) = &mut input {
            // One that ends before it has read all says why below.
            let _ = input.write_all(batch.as_bytes()).await;
        }
        drop(input);
        child.wait_with_output().await
    };
    let Ok(output) = timeout(NFT_WAIT, talk).await else {
        return Err(AddressError::Nft { why: format!("it did not end within {NFT_WAIT:?}") });
    };
    let output = output.map_err(failed("run nft"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let why = words.lines().next().unwrap_or("no reason given").to_owned();
    if why.contains("Operation not permitted") {
        return Err(AddressError::NotAllowed { doing: "set the network fence".to_owned() });
    }
    Err(AddressError::Nft { why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_renewed_in_one_batch() {
        let batch = allowed("fd09::100".parse().unwrap(), Duration::from_micros(2_500_900));
        let lines: Vec<&str> = batch.lines().collect();
        assert_eq!(
            lines,
            [
                "add element inet leaseward guarded6 { fd09::100 }",
                "add element inet leaseward allowed6 { fd09::100 timeout 2500ms }",
                "delete element inet leaseward allowed6 { fd09::100 }",
                "add element inet leaseward allowed6 { fd09::100 timeout 2500ms }",
            ]
        );
    }

    #[test]
    fn of_ipv4_also_the_answers_to_arp_are_guarded() {
        let batch = closed("10.9.0.100".parse().unwrap());
        assert_eq!(batch.lines().filter(|line| line.contains(" arp leaseward allowed4 ")).count(), 2);
    }
}
