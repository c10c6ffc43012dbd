//! Values that are text in JSON: durations, times, 64-bit numbers.
//!
//! Must stay true: each reads what it writes.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// A duration as people write it: `250ms`, `3s`, `10m`, `1h30m`, `2d`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, example = "3s", pattern = "^([0-9]+(ms|s|m|h|d))+$")]
pub struct Duration(u64);

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write a whole number and ms, s, m, h or d, such as 250ms or 3s")]
pub struct BadDuration(pub String);

/// Units by falling length, with their milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Duration {
    /// Returns the duration of so many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns it in milliseconds.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0
    }
}

impl From<std::time::Duration> for Duration {
    fn from(duration: std::time::Duration) -> Self {
        Self(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        Self::from_millis(duration.0)
    }
}

impl fmt::Display for Duration {
    /// In the largest unit that divides it, so that what is read is what was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let (unit, millis) =
            UNITS.iter().find(|(_, millis)| self.0.is_multiple_of(*millis)).expect("1 divides everything");
        write!(f, "{}{unit}", self.0 / millis)
    }
}

impl FromStr for Duration {
    type Err = BadDuration;

    fn from_str(text: &str) -> Result<Self, BadDuration> {
        let bad = || BadDuration(text.chars().take(64).collect());
        let mut rest = text.trim();
        let mut total = 0_u64;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let (_, millis) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters]).ok_or_else(bad)?;
            total = number.checked_mul(*millis).and_then(|part| total.checked_add(part)).ok_or_else(bad)?;
            rest = &rest[letters..];
        }
        Ok(Self(total))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

/// A moment, as RFC 3339 in UTC with milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-11-21T14:02:03.121Z")]
pub struct Time(i64);

impl Time {
    /// Returns the moment so many milliseconds after 1970.
    #[must_use]
    pub fn from_unix_millis(millis: u64) -> Self {
        Self(i64::try_from(millis).unwrap_or(i64::MAX))
    }

    /// Returns the milliseconds since 1970.
    #[must_use]
    pub fn unix_millis(self) -> i64 {
        self.0
    }
}

impl From<Time> for leaseward_state::UnixMillis {
    fn from(time: Time) -> Self {
        Self(u64::try_from(time.0).unwrap_or(0))
    }
}

impl From<leaseward_state::UnixMillis> for Time {
    fn from(millis: leaseward_state::UnixMillis) -> Self {
        Self::from_unix_millis(millis.0)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", Timestamp::from_millisecond(self.0).unwrap_or(Timestamp::MAX))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: Timestamp = text.parse().map_err(|_| Error::custom(format!("`{text}` is not an RFC 3339 time")))?;
        Ok(Self(time.as_millisecond()))
    }
}

/// A 64-bit number that is a string in JSON: a token, a revision, a session. A plain number is read, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, example = "4711", pattern = "^[0-9]+$")]
pub struct Wide(pub u64);

impl fmt::Display for Wide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Wide {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl Serialize for Wide {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Wide {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl Visitor<'_> for Read {
            type Value = Wide;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit number in a string")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Wide, E> {
                Ok(Wide(number))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Wide, E> {
                u64::try_from(number).map(Wide).map_err(E::custom)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Wide, E> {
                text.parse().map_err(|_| E::custom(format!("`{text}` is not a 64-bit number")))
            }
        }

        deserializer.deserialize_any(Read)
    }
}

macro_rules! wide {
    ($($type:ident),*) => {
        $(impl From<leaseward_state::$type> for Wide {
            fn from(number: leaseward_state::$type) -> Self {
                Self(number.0)
            }
        }

        impl From<Wide> for leaseward_state::$type {
            fn from(number: Wide) -> Self {
                Self(number.0)
            }
        })*
    };
}

wide!(Revision, SessionId, FencingToken);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_what_they_write() {
        for (text, millis, written) in [
            ("3s", 3_000, "3s"),
            ("250ms", 250, "250ms"),
            ("90s", 90_000, "90s"),
            ("1h30m", 5_400_000, "90m"),
            ("0s", 0, "0s"),
            ("2d", 172_800_000, "2d"),
        ] {
            let read: Duration = text.parse().unwrap();
            assert_eq!((read.millis(), read.to_string().as_str()), (millis, written));
        }
        for bad in ["", "3", "s", "-3s", "1.5s", "3 s", "3x", "99999999999999999999s", "300000000000d"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn times_are_rfc_3339_and_numbers_keep_all_their_bits() {
        let time = Time::from_unix_millis(1_795_269_723_121);
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2026-11-21T14:02:03.121Z\"");
        assert_eq!(serde_json::from_str::<Time>("\"2026-11-21T14:02:03.121Z\"").unwrap(), time);
        assert_eq!(serde_json::to_string(&Wide(u64::MAX)).unwrap(), "\"18446744073709551615\"");
        assert_eq!(serde_json::from_str::<Wide>("\"18446744073709551615\"").unwrap(), Wide(u64::MAX));
        assert_eq!(serde_json::from_str::<Wide>("7").unwrap(), Wide(7));
        assert!(serde_json::from_str::<Wide>("\"-7\"").is_err());
    }
}
