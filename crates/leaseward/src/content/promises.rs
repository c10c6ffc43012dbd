//! Blobs that somebody was told are here, though no version may name them yet.
//!
//! Must stay true: what was promised stays for an hour, by a clock that nobody sets; a blob is looked at for removal under
//! the same lock. What an earlier run promised is unknown, so nothing is removed in the first hour.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use leaseward_state::config::Digest;
use tokio::time::Instant;

/// What was promised lately. Bounded by what is asked for in two such times.
#[derive(Default)]
pub(super) struct Promises(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// Since then `young` is gathered; nothing before the first promise.
    since: Option<Instant>,
    young: HashSet<Digest>,
    old: HashSet<Digest>,
}

impl Promises {
    /// Promises that these stay for a while, if they are here.
    pub(super) fn keep<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.young.extend(digests);
    }

    /// Forgets promises that are older than `age`; younger ones stay for less than twice as long.
    pub(super) fn grow(&self, age: Duration, now: Instant) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *kept.since.get_or_insert(now);
        if now.duration_since(since) > age {
            kept.old = std::mem::take(&mut kept.young);
            kept.since = Some(now);
        }
    }

    /// Removes one blob with `remove`, unless it was promised. Nobody is promised anything meanwhile.
    pub(super) fn unless_kept<T>(&self, digest: Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let promised = kept.young.contains(&digest) || kept.old.contains(&digest);
        (!promised).then(remove)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_promise_lasts_its_time_and_not_twice() {
        let (promises, hour) = (Promises::default(), Duration::from_secs(3600));
        let digest = Digest([1; 32]);
        promises.grow(hour, Instant::now());
        tokio::time::advance(hour * 9 / 10).await;
        promises.keep([&digest]);
        for _ in 0..10 {
            promises.grow(hour, Instant::now());
            assert_eq!(promises.unless_kept(digest, || ()), None);
            tokio::time::advance(hour / 10).await;
        }
        tokio::time::advance(hour).await;
        promises.grow(hour, Instant::now());
        tokio::time::advance(hour).await;
        promises.grow(hour, Instant::now());
        assert_eq!(promises.unless_kept(digest, || ()), Some(()));
    }
}
