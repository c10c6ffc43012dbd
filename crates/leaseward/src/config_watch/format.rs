//! How a config file is read: by the ending of its name.
//!
//! Must stay true: what cannot be read is said in one line, with the place, for whoever looks at the monitor.

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Toml,
    Json,
}

impl Format {
    /// Returns the format of a file by its name.
    ///
    /// # Errors
    /// [`Error::Config`] with LW0101, which says the known ones.
    pub(crate) fn of(file: &str) -> Result<Self> {
        let name = file.rsplit('/').next().unwrap_or_default();
        match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("toml") => Ok(Self::Toml),
            Some("json") => Ok(Self::Json),
            _ => Err(Error::Config {
                code: "LW0101",
                why: format!("`{file}`: nobody here can read it; files that end in .toml and .json are known"),
            }),
        }
    }

    /// Returns what a file says, or in one line why it says nothing.
    pub(crate) fn read<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| format!("it is not UTF-8: {error}"))?;
        match self {
            Self::Toml => toml::from_str(text).map_err(|error| {
                let place = error.span().map_or_else(String::new, |span| place(text, span.start));
                one_line(&format!("{}{place}", error.message()))
            }),
            Self::Json => serde_json::from_str(text).map_err(|error| one_line(&error.to_string())),
        }
    }
}

/// Says where in a text a byte stands, as serde_json does.
fn place(text: &str, at: usize) -> String {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    format!(" at line {line} column {column}")
}

/// A reason stands in a table.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        max: u32,
    }

    #[test]
    fn a_file_is_read_by_its_ending() {
        let read = |file: &str, text: &str| Format::of(file).unwrap().read::<Limits>(text.as_bytes()).unwrap();
        assert_eq!(read("limits.toml", "max = 5\n"), Limits { max: 5 });
        assert_eq!(read("conf.d/limits.json", r#"{"max": 6}"#), Limits { max: 6 });
        for unknown in ["limits.yaml", "limits", "toml", "conf.toml/limits", "a.TOML", ""] {
            let error = Format::of(unknown).unwrap_err();
            assert_eq!(error.code(), "LW0101");
            assert!(error.to_string().contains(".toml and .json"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_in_one_line() {
        let cases: [(&str, &[u8], &str); 8] = [
            ("a.toml", b"# a note\nmax = \"many\"\n", "invalid type: string \"many\", expected u32 at line 2 column 7"),
            ("a.toml", b"max = \n", "string values must be quoted, expected literal string at line 1 column 7"),
            ("a.toml", b"min = 1\n", "unknown field `min`, expected `max` at line 1 column 1"),
            ("a.toml", b"\"two\\nlines\" = 1\n", "unknown field `two lines`, expected `max` at line 1 column 1"),
            ("a.toml", b"max = \xff\n", "it is not UTF-8: invalid utf-8 sequence of 1 bytes from index 6"),
            ("a.json", b"{\"max\": -1}", "invalid value: integer `-1`, expected u32 at line 1 column 10"),
            ("a.json", b"{\"max\": 1", "EOF while parsing an object at line 1 column 9"),
            ("a.json", b"", "EOF while parsing a value at line 1 column 0"),
        ];
        let read = |(file, bytes, _)| Format::of(file).unwrap().read::<Limits>(bytes).unwrap_err();
        assert_eq!(cases.map(read), cases.map(|(_, _, why)| why));
    }
}
