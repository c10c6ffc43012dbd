//! The voters as a member's source of content: the nearest first, all of them in turn where several are as near.
//!
//! Must stay true: what is large travels over connections of its own; a voter that is silent or lacks something costs one
//! question, one that is dead no time at all, and the next one is asked. Whoever gets the bytes verifies them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use leaseward_raft::net::wire::{Answer, Ask};
use leaseward_state::SetName;
use leaseward_state::config::Digest;
use leaseward_sync::member::{Blob, FetchError, Fetching, FetchingDelta, FetchingMany, Source};

use crate::client::Client;

/// One question for blobs: as long as some megabytes take on a slow link.
const BLOBS_WITHIN: Duration = Duration::from_secs(20);

/// A delta is known, or made in this time; else blobs are fetched.
const DELTA_WITHIN: Duration = Duration::from_secs(5);

/// The voters that an agent knows.
pub(crate) struct FromVoters {
    client: Client,
    /// A client for each address, and whether it is on this machine.
    voters: Mutex<BTreeMap<String, (Client, bool)>>,
}

impl FromVoters {
    /// Returns the voters that `client` knows, now and later.
    pub(crate) fn of(client: &Client) -> Self {
        Self { client: client.clone(), voters: Mutex::default() }
    }

    /// Returns a client for each voter: first those on this machine, from the one whose turn it is.
    fn voters(&self, turn: usize) -> Vec<Client> {
        let mut voters = self.voters.lock().unwrap_or_else(PoisonError::into_inner);
        for address in self.client.addresses() {
            voters.entry(address).or_insert_with_key(|address| (self.client.of_one(address), is_here(address)));
        }
        let some = |here: bool| {
            let mut some: Vec<Client> =
                voters.values().filter(|(_, is)| *is == here).map(|(client, _)| client.clone()).collect();
            if !some.is_empty() {
                let first = turn % some.len();
                some.rotate_left(first);
            }
            some
        };
        [some(true), some(false)].concat()
    }
}

/// Returns whether an address is one of this machine: then it can be listened on.
fn is_here(address: &str) -> bool {
    let ip: Option<IpAddr> = match address.parse::<SocketAddr>() {
        Ok(address) => Some(address.ip()),
        Err(_) => address.to_socket_addrs().ok().and_then(|mut found| found.next()).map(|found| found.ip()),
    };
    ip.is_some_and(|ip| UdpSocket::bind((ip, 0)).is_ok())
}

impl Source for FromVoters {
    fn fetch(&self, digest: Digest) -> Fetching<'_> {
        Box::pin(async move {
            let digests = [digest];
            let mut blobs = self.fetch_many(&digests, 0).await?;
            blobs.pop().map(|(_, blob)| blob).ok_or_else(|| FetchError { digest, why: "nobody gives it".into() })
        })
    }

    fn fetch_many<'a>(&'a self, digests: &'a [Digest], turn: usize) -> FetchingMany<'a> {
        Box::pin(async move {
            let mut why = "no voter is known".to_owned();
            for voter in self.voters(turn) {
                match voter.ask_once(&Ask::GetFrames(digests.to_vec()), BLOBS_WITHIN).await {
                    Ok(Answer::Frames { frames, .. }) if !frames.is_empty() => {
                        let wanted: BTreeSet<Digest> = digests.iter().copied().collect();
                        let frames = frames.into_iter().filter(|(digest, _)| wanted.contains(digest));
                        return Ok(frames.map(|(digest, frame)| (digest, Blob::Frame(frame))).collect());
                    }
                    Ok(_) => why = "no voter that answers has it".to_owned(),
                    Err(error) => why = error.to_string(),
                }
            }
            let digest = digests.first().copied().unwrap_or(Digest([0; 32]));
            Err(FetchError { digest, why })
        })
    }

    fn delta<'a>(&'a self, set: &'a SetName, base: Digest, next: Digest) -> FetchingDelta<'a> {
        Box::pin(async move {
            for voter in self.voters(0) {
                let ask = Ask::Delta { set: set.clone(), base, next };
                if let Ok(Answer::Delta(delta)) = voter.ask_once(&ask, DELTA_WITHIN).await {
                    return delta;
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use leaseward_raft::net::listener::{self, Serve};
    use leaseward_raft::net::transport::Transport;
    use leaseward_raft::net::wire::{Hello, Welcome};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    /// A voter that has every blob.
    struct Rich;

    impl Serve for Rich {
        fn welcome(&self, _: &Hello) -> Welcome {
            Welcome::Welcome { cluster: 1, node: 1, instance: 1 }
        }

        async fn answer(self: Arc<Self>, _: Arc<Hello>, ask: Ask) -> Answer {
            let Ask::GetFrames(digests) = ask else { return Answer::Done };
            let frames = digests.into_iter().map(|digest| (digest, vec![1].into())).collect();
            Answer::Frames { frames, lacking: Vec::new() }
        }

        fn hears(&self, _: &Hello) -> bool {
            true
        }

        fn gone(&self, _: &Hello) {}
    }

    #[tokio::test]
    async fn a_voter_that_is_gone_costs_one_question_and_not_all_the_patience_for_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let living = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(listener::run(listener, Arc::new(Rich)));
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let source = FromVoters::of(&Client::new(vec![gone, living], Transport::PlainLoopback));
        let began = Instant::now();
        // With either of them asked first.
        for turn in [0, 1] {
            assert_eq!(source.fetch_many(&[Digest([7; 32])], turn).await.unwrap().len(), 1);
        }
        let after = began.elapsed();
        serving.abort();
        assert!(after < BLOBS_WITHIN / 4, "it took {after:?}");
    }

    #[test]
    fn what_can_be_listened_on_is_here() {
        assert!(is_here("127.0.0.1:7") && is_here("localhost:7"));
        assert!(!is_here("192.0.2.1:7") && !is_here("no such host:7"));
    }
}
