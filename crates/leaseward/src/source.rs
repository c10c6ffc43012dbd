//! The voters as a member's source of content: the nearest first, all of them in turn where several are as near.
//!
//! Must stay true: what is large travels over connections of its own; a voter that lacks something costs one question, one
//! that is silent about a second and then nothing until it was heard again, one that is dead no time at all; one that gave
//! something else than it was asked for is asked last for a minute; the next one is asked. A voter that is slow is not left
//! as long as bytes come. Whoever gets the bytes verifies them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leaseward_raft::net::connection::CallError;
use leaseward_raft::net::is_here;
use leaseward_raft::net::wire::{Answer, Ask};
use leaseward_state::SetName;
use leaseward_state::config::Digest;
use leaseward_sync::BlobStore;
use leaseward_sync::member::{Blob, FetchError, Fetching, FetchingDelta, FetchingMany, GivenBy, Source};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::client::Client;
use crate::limits::{ATTEMPT, REFUSED_FOR, SILENT_LOOK_EACH};

/// One question for blobs: as long as some megabytes take on a slow link.
const BLOBS_WITHIN: Duration = Duration::from_secs(20);

/// A delta is known, or made in this time; else blobs are fetched.
const DELTA_WITHIN: Duration = Duration::from_secs(5);

/// A process that is dead has its machine refuse connections within this.
const DEAD_WITHIN: Duration = Duration::from_millis(250);

/// The voters that an agent knows.
pub(crate) struct FromVoters {
    client: Client,
    /// What the voter of this process holds, if there is one.
    here: Option<Arc<BlobStore>>,
    voters: Mutex<BTreeMap<String, Arc<Voter>>>,
}

/// One of them.
struct Voter {
    address: String,
    client: Client,
    /// Whether it is on this machine.
    is_here: bool,
    /// Since it was found silent: when it is listened for again.
    silent: Mutex<Option<Instant>>,
    /// Until then it is asked last: what it gave was refused.
    refused: Mutex<Option<Instant>>,
}

impl Voter {
    /// Asks it. Whether it is silent is remembered.
    async fn ask(&self, ask: &Ask, within: Duration) -> Result<Answer, CallError> {
        let began = Instant::now();
        let answer = self.client.ask_heard(ask, within).await;
        match &answer {
            Ok(_) => *self.silence() = None,
            Err(CallError::Silent) => self.fell_silent(),
            // Where its packets are lost, no connection comes about.
            Err(CallError::Broken(_)) if began.elapsed() > DEAD_WITHIN => self.fell_silent(),
            // Whoever is dead costs no time, and whoever is slow is heard.
            Err(_) => {}
        }
        answer
    }

    fn fell_silent(&self) {
        if self.silence().replace(Instant::now() + SILENT_LOOK_EACH).is_none() {
            info!(voter = self.address, "it is silent: the other voters are asked first");
        }
    }

    /// Returns whether it was silent when it was asked last. It is listened for now and then, beside what others are asked.
    fn is_silent(self: &Arc<Self>) -> bool {
        let mut silent = self.silence();
        let Some(look_at) = silent.as_mut() else { return false };
        if *look_at <= Instant::now() {
            *look_at = Instant::now() + SILENT_LOOK_EACH;
            let voter = Arc::clone(self);
            tokio::spawn(async move {
                match voter.ask(&Ask::Ping, ATTEMPT).await {
                    Ok(_) => info!(voter = voter.address, "it is heard again"),
                    Err(error) => debug!(voter = voter.address, %error, "it is still silent"),
                }
            });
        }
        true
    }

    fn refuse(&self, why: &str) {
        if self.refusal().replace(Instant::now() + REFUSED_FOR).is_none() {
            warn!(
                voter = self.address,
                why, "it gives something else than it is asked for: the other voters are asked first"
            );
        }
    }

    /// Returns whether something that it gave was refused lately.
    fn is_refused(&self) -> bool {
        self.refusal().take_if(|until| *until <= Instant::now());
        self.refusal().is_some()
    }

    fn refusal(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silence(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FromVoters {
    /// Returns the voters that `client` knows, now and later.
    pub(crate) fn of(client: &Client) -> Self {
        Self { client: client.clone(), here: None, voters: Mutex::default() }
    }

    /// Returns them, with what a voter of this process holds.
    pub(crate) fn beside(self, here: Option<Arc<BlobStore>>) -> Self {
        Self { here, ..self }
    }

    /// Returns the voters: first those on this machine, from the one whose turn it is; then those that are
    /// silent; last those that gave what was refused.
    fn voters(&self, turn: usize) -> Vec<Arc<Voter>> {
        let mut voters = self.voters.lock().unwrap_or_else(PoisonError::into_inner);
        for address in self.client.addresses() {
            voters.entry(address).or_insert_with_key(|address| {
                let (address, client) = (address.clone(), self.client.of_one(address));
                Arc::new(Voter {
                    is_here: is_here(&address),
                    address,
                    client,
                    silent: Mutex::default(),
                    refused: Mutex::default(),
                })
            });
        }
        let (refused, good): (Vec<_>, Vec<_>) = voters.values().cloned().partition(|voter| voter.is_refused());
        let (silent, heard): (Vec<_>, Vec<_>) = good.into_iter().partition(Voter::is_silent);
        let (here, there): (Vec<_>, Vec<_>) = heard.into_iter().partition(|voter| voter.is_here);
        let in_turn = |mut some: Vec<Arc<Voter>>| {
            if !some.is_empty() {
                let first = turn % some.len();
                some.rotate_left(first);
            }
            some
        };
        [here, there, silent, refused].map(in_turn).concat()
    }
}

/// What a voter's answer has of the blobs that it was asked for.
enum Answered {
    Blobs(Vec<(Digest, Blob)>),
    /// Nothing, as may be.
    Lacks(String),
    /// Nothing, and something else.
    Wrong(&'static str),
}

fn wanted(digests: &[Digest], answer: Answer) -> Answered {
    let wanted: BTreeSet<Digest> = digests.iter().copied().collect();
    match answer {
        Answer::Frames { frames, lacking } => {
            let given = frames.into_iter().filter(|(digest, _)| wanted.contains(digest));
            let given: Vec<_> = given.map(|(digest, frame)| (digest, Blob::Frame(frame))).collect();
            match given.is_empty() {
                false => Answered::Blobs(given),
                true if lacking.iter().any(|digest| wanted.contains(digest)) => {
                    Answered::Lacks("it does not have it".to_owned())
                }
                true => Answered::Wrong("it gives nothing of what it was asked for"),
            }
        }
        Answer::Failed { code, why } => Answered::Lacks(format!("{code}: {why}")),
        _ => Answered::Wrong("it answers another question"),
    }
}

impl Source for FromVoters {
    fn fetch(&self, digest: Digest) -> Fetching<'_> {
        Box::pin(async move {
            let digests = [digest];
            self.fetch_many(&digests, 0)
                .await?
                .given
                .pop()
                .map(|(_, blob)| blob)
                .ok_or_else(|| FetchError { digest, why: "nobody gives it".into() })
        })
    }

    fn fetch_many<'a>(&'a self, digests: &'a [Digest], turn: usize) -> FetchingMany<'a> {
        Box::pin(async move {
            let mut said = BTreeMap::new();
            for voter in self.voters(turn) {
                let why = match voter.ask(&Ask::GetFrames(digests.to_vec()), BLOBS_WITHIN).await {
                    Ok(answer) => match wanted(digests, answer) {
                        Answered::Blobs(given) => return Ok(GivenBy { who: voter.address.clone(), given }),
                        Answered::Lacks(why) => why,
                        Answered::Wrong(why) => {
                            voter.refuse(why);
                            why.to_owned()
                        }
                    },
                    Err(error) => error.to_string(),
                };
                said.insert(voter.address.clone(), why);
            }
            let digest = digests.first().copied().unwrap_or(Digest([0; 32]));
            let said: Vec<String> = said.iter().map(|(voter, why)| format!("{voter}: {why}")).collect();
            let why = if said.is_empty() { "no voter is known".to_owned() } else { said.join("; ") };
            Err(FetchError { digest, why })
        })
    }

    fn is_here(&self, digest: Digest) -> bool {
        self.here.as_ref().is_some_and(|store| store.lacking(&[digest]).is_empty())
    }

    fn read_here(&self, digest: Digest) -> Option<Blob> {
        let read = self.here.as_ref()?.get_frame(digest);
        // It was collected since, or is damaged: others are asked.
        let frame = read.inspect_err(|error| debug!(%digest, %error, "the voter here cannot give it")).ok()?;
        Some(Blob::Frame(frame.into()))
    }

    fn refuse(&self, who: &str, why: &str) {
        let voter = self.voters.lock().unwrap_or_else(PoisonError::into_inner).get(who).cloned();
        if let Some(voter) = voter {
            voter.refuse(why);
        }
    }

    fn delta<'a>(&'a self, set: &'a SetName, base: Digest, next: Digest) -> FetchingDelta<'a> {
        Box::pin(async move {
            for voter in self.voters(0) {
                let ask = Ask::Delta { set: set.clone(), base, next };
                if let Ok(Answer::Delta(delta)) = voter.ask(&ask, DELTA_WITHIN).await {
                    return delta.map(|given| GivenBy { who: voter.address.clone(), given });
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
            assert_eq!(source.fetch_many(&[Digest([7; 32])], turn).await.unwrap().given.len(), 1);
        }
        let after = began.elapsed();
        serving.abort();
        assert!(after < BLOBS_WITHIN / 4, "it took {after:?}");
    }

    /// A voter that takes questions and says nothing, until it is told to.
    struct Mute(tokio::sync::watch::Receiver<bool>);

    impl Serve for Mute {
        fn welcome(&self, _: &Hello) -> Welcome {
            Welcome::Welcome { cluster: 1, node: 2, instance: 2 }
        }

        async fn answer(self: Arc<Self>, _: Arc<Hello>, ask: Ask) -> Answer {
            self.0.clone().wait_for(|speaks| *speaks).await.expect("the test lives");
            Arc::new(Rich).answer(Arc::new(hello()), ask).await
        }

        fn hears(&self, _: &Hello) -> bool {
            true
        }

        fn gone(&self, _: &Hello) {}
    }

    fn hello() -> Hello {
        let (protocol, purpose) = (leaseward_raft::net::wire::PROTOCOL, leaseward_raft::net::wire::Purpose::Client);
        Hello { protocol, cluster: None, node: None, instance: 1, purpose }
    }

    #[tokio::test]
    async fn a_silent_voter_costs_a_second_once_and_is_asked_again_when_it_is_heard() {
        let (speak, speaks) = tokio::sync::watch::channel(false);
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rich = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [&mute, &rich].map(|listener| listener.local_addr().unwrap().to_string());
        let serving = [
            tokio::spawn(listener::run(mute, Arc::new(Mute(speaks)))),
            tokio::spawn(listener::run(rich, Arc::new(Rich))),
        ];
        let source = FromVoters::of(&Client::new(addresses.to_vec(), Transport::PlainLoopback));
        let silent = |source: &FromVoters| source.voters(0).last().map(|voter| voter.silence().is_some());
        let mut took = Vec::new();
        // Each of them is asked first, several times.
        for turn in 0..6 {
            let began = Instant::now();
            assert_eq!(source.fetch_many(&[Digest([7; 32])], turn).await.unwrap().given.len(), 1);
            took.push(began.elapsed());
        }
        let slow = took.iter().filter(|took| **took > Duration::from_millis(500)).count();
        assert!(slow == 1 && took.iter().all(|took| *took < BLOBS_WITHIN / 4), "{took:?}");
        assert_eq!(silent(&source), Some(true));
        speak.send_replace(true);
        let heard = async {
            // Nobody but the fetches of a member looks after it.
            while silent(&source) == Some(true) {
                source.fetch_many(&[Digest([7; 32])], 0).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SILENT_LOOK_EACH * 5, heard).await.expect("it is listened for");
        serving.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// A voter that gives what nobody asked for.
    struct Liar;

    impl Serve for Liar {
        fn welcome(&self, _: &Hello) -> Welcome {
            Welcome::Welcome { cluster: 1, node: 3, instance: 3 }
        }

        async fn answer(self: Arc<Self>, _: Arc<Hello>, _: Ask) -> Answer {
            Answer::Frames { frames: vec![(Digest([8; 32]), vec![1].into())], lacking: Vec::new() }
        }

        fn hears(&self, _: &Hello) -> bool {
            true
        }

        fn gone(&self, _: &Hello) {}
    }

    #[tokio::test]
    async fn a_voter_that_gives_what_nobody_asked_for_is_passed_over_named_and_asked_last_for_a_while() {
        let liar = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rich = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let [lying, honest] = [&liar, &rich].map(|listener| listener.local_addr().unwrap().to_string());
        let serving =
            [tokio::spawn(listener::run(liar, Arc::new(Liar))), tokio::spawn(listener::run(rich, Arc::new(Rich)))];
        let wanted = [Digest([7; 32])];
        let source = |all: &[&String]| {
            let addresses = all.iter().map(|address| (*address).clone()).collect();
            FromVoters::of(&Client::new(addresses, Transport::PlainLoopback))
        };
        let both = source(&[&lying, &honest]);
        for turn in [0, 1] {
            let came = both.fetch_many(&wanted, turn).await.unwrap();
            assert_eq!((came.who, came.given[0].0), (honest.clone(), wanted[0]));
        }
        let order = |source: &FromVoters, turn| -> Vec<String> {
            source.voters(turn).iter().map(|voter| voter.address.clone()).collect()
        };
        for turn in 0..3 {
            assert_eq!(order(&both, turn), [honest.clone(), lying.clone()]);
        }
        let alone = source(&[&lying]);
        let error = alone.fetch_many(&wanted, 0).await.unwrap_err();
        assert!(error.why.contains(&lying) && error.why.contains("nothing of what it was asked for"), "{error}");
        serving.iter().for_each(tokio::task::JoinHandle::abort);
        // Wrong bytes are seen by whoever verifies them; and nothing is refused for ever.
        both.refuse(&honest, "its content has another name");
        assert!(both.voters(0).iter().all(|voter| voter.is_refused()));
        tokio::time::pause();
        tokio::time::advance(REFUSED_FOR).await;
        assert!(both.voters(0).iter().all(|voter| !voter.is_refused()));
    }
}
