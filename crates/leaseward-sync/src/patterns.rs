//! Paths that programs write themselves inside a set's directory.
//!
//! Must stay true: `*` and `?` stay within one part of a path, `**` does not; a directory that matches is ignored with
//! all below it.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Result};

/// Patterns of ignored paths.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    set: GlobSet,
    empty: bool,
}

impl Patterns {
    /// Reads patterns such as `cache/**`, `*.pid`.
    ///
    /// # Errors
    /// [`Error::Unusable`] for what is no pattern.
    pub fn new(patterns: &[String]) -> Result<Self> {
        let mut builder = GlobSetBuilder::new();
        for pattern in patterns {
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            builder.add(
                glob.map_err(|error| {
                    Error::unusable(format!("`{pattern}` as a pattern to ignore"), error.to_string())
                })?,
            );
        }
        let set = builder.build().map_err(|error| Error::unusable("`ignore`", error.to_string()))?;
        Ok(Self { empty: set.is_empty(), set })
    }

    /// Returns whether nothing is ignored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.empty || self.set.is_empty()
    }

    /// Returns whether a path, or a directory above it, is ignored.
    #[must_use]
    pub fn ignores(&self, path: &str) -> bool {
        if self.is_empty() {
            return false;
        }
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        ends.into_iter().any(|end| self.set.is_match(&path[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stays_within_its_part_and_takes_everything_below() {
        let patterns: Vec<String> = ["*.pid", "cache", "run/**", "log/?.txt"].map(str::to_owned).into();
        let patterns = Patterns::new(&patterns).unwrap();
        for ignored in ["app.pid", "cache", "cache/a/b", "run/x/y.sock", "log/1.txt"] {
            assert!(patterns.ignores(ignored), "{ignored}");
        }
        for kept in ["sub/app.pid", "caches", "run", "log/12.txt", "app.conf"] {
            assert!(!patterns.ignores(kept), "{kept}");
        }
        assert!(Patterns::new(&["a[".into()]).is_err());
        assert!(!Patterns::default().ignores("x"));
    }
}
