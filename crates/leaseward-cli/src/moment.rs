//! Moments as people write them: so long ago (`10m`), or a time (`2026-11-21T14:02:00Z`).

use leaseward_http::model::Time;

use crate::duration;

/// Returns the moment that `text` says, by this machine's clock.
///
/// # Errors
/// A sentence that says what is expected.
pub(crate) fn parse(text: &str) -> Result<Time, String> {
    before(leaseward_raft::clock::wall_millis(), text.trim())
}

fn before(now_ms: u64, text: &str) -> Result<Time, String> {
    if let Ok(ago) = duration::parse(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(Time::from_unix_millis(now_ms.saturating_sub(ago)));
    }
    serde_json::from_value(text.into())
        .map_err(|_| format!("`{text}` is neither so long ago, such as 10m, nor a time such as 2026-11-21T14:02:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_long_ago_or_a_time() {
        let day = 86_400_000;
        assert_eq!(before(day, "1h").unwrap().to_string(), "1970-01-01T23:00:00.000Z");
        assert_eq!(before(day, "9d").unwrap().to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(before(0, "2026-11-21T15:02:00+01:00").unwrap().to_string(), "2026-11-21T14:02:00.000Z");
        for bad in ["", "10", "yesterday", "2026-11-21"] {
            assert!(before(day, bad).unwrap_err().contains("such as 10m"), "{bad:?}");
        }
    }
}
