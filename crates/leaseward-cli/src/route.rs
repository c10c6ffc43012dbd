//! Paths of the API, made of what was typed.
//!
//! Must stay true: what was typed stays within its segment or its value, whatever stands in it, and a name that no object can
//! have is refused before anybody is asked: `..` would lead to another object, and no escaping helps. So no text that was
//! put together elsewhere is a path; only one that stands in the source is.

use std::fmt::{Display, Write};
use std::str::FromStr;

use leaseward_state::config::check_path;
use leaseward_state::{BadName, LeaseName, MachineName, ServerName, SetName, TokenName};

use crate::diagnostic::Diagnostic;

/// A path of the API, with what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route(String);

impl From<&'static str> for Route {
    fn from(path: &'static str) -> Self {
        Self(path.to_owned())
    }
}

impl From<&Self> for Route {
    fn from(route: &Self) -> Self {
        route.clone()
    }
}

impl Route {
    /// Returns the path of a config set.
    pub(crate) fn set(name: &str) -> Result<Self, Diagnostic> {
        Self::named::<SetName>("/v1/configs", name)
    }

    /// Returns the path of a file of a set's version.
    pub(crate) fn file(set: &str, version: u64, path: &str) -> Result<Self, Diagnostic> {
        let route = Self::set(set)?.then("versions").then(version).then("files");
        check_path(path).map_err(|bad| Diagnostic::new("LW0106", bad.to_string()))?;
        Ok(path.split('/').fold(route, Self::then))
    }

    /// Returns the path of a lease.
    pub(crate) fn lease(name: &str) -> Result<Self, Diagnostic> {
        Self::named::<LeaseName>("/v1/leases", name)
    }

    /// Returns the path of a machine.
    pub(crate) fn machine(name: &str) -> Result<Self, Diagnostic> {
        Self::named::<MachineName>("/v1/machines", name)
    }

    /// Returns the path of a server.
    pub(crate) fn server(name: &str) -> Result<Self, Diagnostic> {
        Self::named::<ServerName>("/v1/servers", name)
    }

    /// Returns the path of an access token.
    pub(crate) fn token(name: &str) -> Result<Self, Diagnostic> {
        Self::named::<TokenName>("/v1/tokens", name)
    }

    /// Returns the path of the explanation of an object, such as `server/pay-1`.
    pub(crate) fn explanation(object: &str) -> Result<Self, Diagnostic> {
        leaseward_state::name::check(object).map_err(|bad| refused(&bad))?;
        Ok(object.split('/').fold(Self::from("/v1/explain"), Self::then))
    }

    /// Returns a path as somebody typed all of it.
    pub(crate) fn typed(path: &str) -> Result<Self, Diagnostic> {
        if !path.starts_with('/') {
            return Err(Diagnostic::new("LW0104", format!("`{path}` is no path of the API")).hint("such as /v1/leases"));
        }
        Ok(Self(path.to_owned()))
    }

    fn named<T: FromStr<Err = BadName>>(above: &'static str, name: &str) -> Result<Self, Diagnostic> {
        name.parse::<T>().map_err(|bad| refused(&bad))?;
        Ok(name.split('/').fold(Self::from(above), Self::then))
    }

    /// Returns the path with one more segment.
    pub(crate) fn then(mut self, segment: impl Display) -> Self {
        self.0.push('/');
        self.push(&segment.to_string());
        self
    }

    /// Asks it with a value.
    pub(crate) fn with(mut self, key: &'static str, value: impl Display) -> Self {
        self.0.push(if self.0.contains('?') { '&' } else { '?' });
        self.0.push_str(key);
        self.0.push('=');
        self.push(&value.to_string());
        self
    }

    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => self.0.push(char::from(byte)),
                byte => write!(self.0, "%{byte:02X}").expect("a text grows"),
            }
        }
    }

    /// Returns the path as it is sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn refused(bad: &BadName) -> Diagnostic {
    Diagnostic::new("LW0101", bad.to_string())
        .hint("letters, digits and . _ - make a name; / is for the names of leases alone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_stays_within_its_segment() {
        let file = |path| Route::file("app", 3, path).map(|route| route.0).map_err(|error| error.code);
        let at = |path: &str| Ok(format!("/v1/configs/app/versions/3/files/{path}"));
        assert_eq!(file("conf#1"), at("conf%231"));
        assert_eq!(file("a b/x%41?c=d"), at("a%20b/x%2541%3Fc%3Dd"));
        assert_eq!(file("ä\n"), at("%C3%A4%0A"));
        assert_eq!(Route::lease("batch/nightly").expect("a name").0, "/v1/leases/batch/nightly");
        assert_eq!(Route::from("/v1/leases").with("prefix", "a&b").with("x", 1).0, "/v1/leases?prefix=a%26b&x=1");
        for bad in ["..", "a/../b", "", "/a", "a//b"] {
            assert_eq!(file(bad), Err("LW0106".into()), "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_no_object_can_have_is_refused() {
        for bad in ["A#x", "../configs/gone", "a/b", "", "..", "a?b", "a%2e", "a b"] {
            for route in [Route::set(bad), Route::machine(bad), Route::server(bad), Route::token(bad)] {
                assert_eq!(route.map_err(|error| error.code), Err("LW0101".into()), "{bad:?}");
            }
        }
        for bad in ["../cluster", "a#b", "a/../../cluster", ""] {
            assert_eq!(Route::lease(bad).map_err(|error| error.code), Err("LW0101".into()), "{bad:?}");
            assert_eq!(Route::explanation(bad).map_err(|error| error.code), Err("LW0101".into()), "{bad:?}");
        }
        assert!(Route::typed("v1/leases").is_err() && Route::typed("@elsewhere/").is_err());
    }
}
