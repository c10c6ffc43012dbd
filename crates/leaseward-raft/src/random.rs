//! Randomness, seedable: elections and retries draw from here, so that a simulation can replay them.

use std::cell::RefCell;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

thread_local! {
    static SEEDED: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
}

/// Makes this thread's randomness follow from `seed`.
pub fn seed(seed: u64) {
    SEEDED.with(|rng| *rng.borrow_mut() = Some(SmallRng::seed_from_u64(seed)));
}

/// The source: the operating system's, or the seeded one of this thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Source;

impl RngCore for Source {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        SEEDED.with(|rng| match &mut *rng.borrow_mut() {
            Some(rng) => rng.next_u64(),
            None => rand::thread_rng().next_u64(),
        })
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

/// Returns a number that nobody else draws.
#[must_use]
pub fn unique() -> u128 {
    u128::from(Source.next_u64()) << 64 | u128::from(Source.next_u64())
}

/// Returns a duration between the two.
#[must_use]
pub fn between(low: Duration, high: Duration) -> Duration {
    Source.gen_range(low..=high.max(low))
}
