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
