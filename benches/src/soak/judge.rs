//! Whether something grew during a soak: a pure function of its samples.
//!
//! The rule: the first quarter warms up. In the second and in the last one the tenth, the middle and the ninth of ten are
//! taken; what grows without end lifts all three of them. It counts as growth if the one that rose least rose by more than
//! what is allowed: a part of what was there, or an absolute amount, whichever is larger.
//!
//! Must stay true: noise and teeth of a saw that are shorter than a quarter pass, for they lift only one of the three or
//! none; a leak fails that is larger than what is allowed in half of the run. So an hour finds what ten minutes cannot.

use serde_json::{Value, json};

use crate::figures::at_share;

/// Fewer samples in a quarter say nothing.
const SAMPLES_MIN: usize = 6;

/// What was sampled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) allowed: Allowed,
    /// Seconds since the beginning, and the value.
    pub(crate) samples: Vec<(f64, f64)>,
}

/// By how much something may be larger in the last quarter than in the second one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Allowed {
    /// A part of what was there.
    pub(crate) share: f64,
    /// In its own unit: caches that are still being filled, one segment of a log.
    pub(crate) floor: f64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// The middle in the second quarter and in the last one.
    pub(crate) middles: (f64, f64),
    /// What it surely rose by.
    pub(crate) rose: f64,
    pub(crate) allowed: f64,
    pub(crate) per_hour: f64,
}

impl Verdict {
    pub(crate) fn grew(&self) -> bool {
        self.rose > self.allowed
    }

    pub(crate) fn line(&self) -> Value {
        let short = |value: f64| (value * 10.0).round() / 10.0;
        json!({
            "second_quarter": short(self.middles.0), "last_quarter": short(self.middles.1), "rose": short(self.rose),
            "allowed": short(self.allowed), "per_hour": short(self.per_hour),
        })
    }
}

/// Returns whether it grew; nothing if there are too few samples to say so.
pub(crate) fn judge(series: &Series, seconds: f64) -> Option<Verdict> {
    let quarter = |n: f64| -> Option<[f64; 3]> {
        let (from, to) = (seconds * (n - 1.0) / 4.0, seconds * n / 4.0);
        let values: Vec<f64> =
            series.samples.iter().filter(|(at, _)| *at >= from && *at <= to).map(|(_, value)| *value).collect();
        (values.len() >= SAMPLES_MIN).then(|| [0.1, 0.5, 0.9].map(|share| at_share(&values, share)))
    };
    let (second, last) = (quarter(2.0)?, quarter(4.0)?);
    let rose = second.iter().zip(last).map(|(before, after)| after - before).fold(f64::INFINITY, f64::min);
    let allowed = (second[1] * series.allowed.share).max(series.allowed.floor);
    Some(Verdict { middles: (second[1], last[1]), rose, allowed, per_hour: rose / (seconds / 2.0) * 3_600.0 })
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const HOUR: f64 = 3_600.0;
    const MEMORY: Allowed = Allowed { share: 0.05, floor: 8.0 };

    /// An hour with a sample every five seconds.
    fn hour(value: impl Fn(f64, &mut SmallRng) -> f64) -> Series {
        let mut random = SmallRng::seed_from_u64(7);
        let samples = (0..720).map(|n| f64::from(n) * 5.0).map(|at| (at, value(at, &mut random))).collect();
        Series { name: "rss_mb".into(), allowed: MEMORY, samples }
    }

    fn grew(series: &Series) -> bool {
        judge(series, HOUR).expect("there are enough samples").grew()
    }

    #[test]
    fn what_is_flat_passes_however_noisy_it_is() {
        assert!(!grew(&hour(|_, random| 150.0 + random.gen_range(-40.0..40.0))));
        // Filled within the first quarter.
        assert!(!grew(&hour(|at, random| 50.0 + 100.0 * (at / 600.0).min(1.0) + random.gen_range(-5.0..5.0))));
        // Large now and then.
        assert!(!grew(&hour(|_, random| if random.gen_bool(0.05) { 900.0 } else { 150.0 })));
        assert!(!grew(&hour(|at, _| 150.0 - at / 60.0)));
    }

    #[test]
    fn what_rises_in_its_peaks_alone_or_between_them_alone_passes() {
        assert!(!grew(&hour(|at, random| if random.gen_bool(0.02 + at / HOUR * 0.3) { 900.0 } else { 150.0 })));
        assert!(!grew(&hour(|at, _| if at % 60.0 < 30.0 { 100.0 + at / HOUR * 60.0 } else { 200.0 })));
    }

    #[test]
    fn a_slow_leak_fails_under_the_same_noise() {
        let leak = hour(|at, random| 150.0 + at / HOUR * 40.0 + random.gen_range(-10.0..10.0));
        assert!(grew(&leak), "{:?}", judge(&leak, HOUR));
        // In steps.
        assert!(grew(&hour(|at, _| 150.0 + (at / 900.0).floor() * 15.0)));
    }

    #[test]
    fn a_saw_passes_and_one_that_rises_with_every_tooth_fails() {
        let tooth = |at: f64, long: f64| at % long / long * 64.0;
        for long in [60.0, 250.0, 420.0, 700.0] {
            assert!(!grew(&hour(|at, _| tooth(at, long))), "teeth of {long} s");
            assert!(grew(&hour(|at, _| tooth(at, long) + at / HOUR * 60.0)), "teeth of {long} s that rise");
        }
    }

    #[test]
    fn a_leak_within_the_floor_of_a_short_run_is_not_told_from_a_cache() {
        let series = hour(|at, _| 150.0 + at / HOUR * 40.0);
        let verdict = judge(&series, 600.0).expect("there are enough samples");
        assert!(!verdict.grew());
        assert!((verdict.per_hour - 40.0).abs() < 1.0, "{verdict:?}");
    }

    #[test]
    fn few_samples_say_nothing() {
        let mut series = hour(|_, _| 1.0);
        series.samples.retain(|(at, _)| *at < HOUR * 0.75);
        assert_eq!(judge(&series, HOUR), None);
    }
}
