//! Percentiles, in the units that people read.

use std::time::Duration;

use serde_json::{Value, json};

/// Returns count, p50, p99 and maximum of some durations, in microseconds.
pub(crate) fn micros(mut all: Vec<Duration>) -> Value {
    all.sort_unstable();
    let at = |share: f64| {
        let place = ((all.len() as f64 - 1.0) * share).round() as usize;
        all.get(place).map_or(0, |duration| duration.as_micros() as u64)
    };
    json!({ "count": all.len(), "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0) })
}

/// Returns count, minimum, p50, p99 and maximum of some milliseconds.
pub(crate) fn millis(all: &[f64]) -> Value {
    let at = |share: f64| (at_share(all, share) * 100.0).round() / 100.0;
    json!({ "count": all.len(), "min_ms": at(0.0), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0) })
}

/// Returns the value below which this share lies; 0 of nothing.
pub(crate) fn at_share(all: &[f64], share: f64) -> f64 {
    let mut all = all.to_vec();
    all.sort_unstable_by(f64::total_cmp);
    let place = ((all.len() as f64 - 1.0) * share).round() as usize;
    all.get(place).copied().unwrap_or(0.0)
}
