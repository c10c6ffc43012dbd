//! Durations as people write them: `250ms`, `3s`, `5m`, `2h`, `1d`.

use std::time::Duration;

/// Returns the duration that `text` says.
///
/// # Errors
/// A sentence that says what is expected.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(format!("`{text}` is not a duration such as 250ms, 3s, 5m, 2h or 1d")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a duration such as 250ms or 3s"))?;
    Duration::try_from_secs_f64(number * factor).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_needed_and_understood() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7_200)));
        for bad in ["", "5", "s", "5x", "-1s"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
