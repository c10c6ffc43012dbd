//! Names that operators choose: leases, servers, machines, config sets, access tokens.
//!
//! Must stay true: every name that reaches the state has passed [`check`], so names can stand in paths, URLs,
//! log fields and keys without escaping. A clone of a name shares its text: names stand in keys of persistent maps,
//! whose nodes are copied often. Left out on purpose: case folding; `Pay` and `pay` are two names.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::NAME_BYTES_MAX;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a name: {why}")]
pub struct BadName {
    /// What was given, cut to the longest legal length.
    pub name: String,
    /// The rule it breaks.
    pub why: &'static str,
}

/// Returns whether `name` may name an object.
///
/// # Errors
/// [`BadName`] for an empty or overlong name, a character outside `a-z A-Z 0-9 . _ - /`, a leading or trailing
/// slash, an empty segment, or a segment of `.` or `..` (names become file names on members).
pub fn check(name: &str) -> Result<(), BadName> {
    let refuse = |why| Err(BadName { name: name.chars().take(NAME_BYTES_MAX).collect(), why });
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return refuse("it is longer than 128 bytes");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/')) {
        return refuse("only letters, digits and . _ - / are allowed");
    }
    for segment in name.split('/') {
        match segment {
            "" => return refuse("a part between slashes is empty"),
            "." | ".." => return refuse("`.` and `..` are not parts of a name"),
            _ => {}
        }
    }
    Ok(())
}

/// Returns whether `name` is a legal name without slashes, as machines, servers and config sets need.
///
/// # Errors
/// As [`check`], and for a slash.
pub fn check_flat(name: &str) -> Result<(), BadName> {
    check(name)?;
    if name.contains('/') {
        return Err(BadName { name: name.to_owned(), why: "a slash is not allowed here" });
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Returns the name, if it is legal.
            ///
            /// # Errors
            /// [`BadName`] with the rule it breaks.
            pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
                let name = name.into();
                $check(&name)?;
                Ok(Self(name.into()))
            }

            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// The name of a lease, such as `batch/nightly`. Slashes group leases; `server/…` belongs to servers.
    LeaseName, check);
name_type!(
    /// The name of a server, such as `pay-1`.
    ServerName, check_flat);
name_type!(
    /// The name of a machine, such as `m1`.
    MachineName, check_flat);
name_type!(
    /// The name of a config set, such as `app`.
    SetName, check_flat);
name_type!(
    /// The name of an access token, such as `ci`.
    TokenName, check_flat);

impl ServerName {
    /// Returns the lease that a server's one running copy holds: `server/<name>`.
    #[must_use]
    pub fn lease(&self) -> LeaseName {
        LeaseName(format!("server/{self}").into())
    }
}

impl LeaseName {
    /// Returns the server this lease belongs to, if it is a server's.
    #[must_use]
    pub fn server(&self) -> Option<ServerName> {
        let name = self.0.strip_prefix("server/")?;
        ServerName::new(name).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_or_confuse_are_refused() {
        for bad in ["", "/", "a/", "/a", "a//b", "..", "a/../b", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert!(check(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "batch/nightly", "pay-1", "A.b_c"] {
            assert!(check(good).is_ok(), "{good:?} was refused");
        }
        assert!(check_flat("a/b").is_err());
    }
}
