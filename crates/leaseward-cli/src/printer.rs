//! How every command prints: one table, or the API's own object.
//!
//! Must stay true: data goes to stdout, everything else to stderr; JSON has the same names as the API; colour only on
//! a terminal, and never alone. Nothing that somebody else wrote steers the terminal: messages and names are spelled out
//! everywhere but in JSON and YAML, what files and servers say on a terminal only. Whoever cannot write what was asked for does not
//! end well.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write, stderr, stdout};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::diagnostic::Diagnostic;

/// Prints a line on stderr, as `eprintln!` would. Where nobody reads it, we go on.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::printer::say(format_args!($($text)*))
    };
}
pub(crate) use note;

/// What is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// A table.
    Table,
    /// A table with more columns.
    Wide,
    /// One JSON document.
    Json,
    /// One JSON line per object.
    JsonLines,
    /// YAML.
    Yaml,
    /// Names only.
    Name,
    /// One field, by its path.
    Field(Vec<String>),
}

impl Output {
    /// Returns the output that `-o` names.
    pub(crate) fn parse(text: &str) -> Result<Self, Diagnostic> {
        Ok(match text {
            "table" => Self::Table,
            "wide" => Self::Wide,
            "json" => Self::Json,
            "jsonl" => Self::JsonLines,
            "yaml" => Self::Yaml,
            "name" => Self::Name,
            other => match other.strip_prefix("field=") {
                Some(path) => Self::Field(path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect()),
                None => {
                    return Err(Diagnostic::new("LW0104", format!("-o {other} is not an output"))
                        .hint("use table, wide, json, jsonl, yaml, name or field=.path"));
                }
            },
        })
    }
}

/// A column: its head, and what it shows of an object.
pub(crate) struct Column {
    head: &'static str,
    wide: bool,
    show: fn(&Value) -> String,
}

/// Returns a column of the ordinary table.
pub(crate) fn column(head: &'static str, show: fn(&Value) -> String) -> Column {
    Column { head, wide: false, show }
}

/// Returns a column of the wide table only.
pub(crate) fn wide(head: &'static str, show: fn(&Value) -> String) -> Column {
    Column { head, wide: true, show }
}

/// Returns the text of a field by its path; `-` if there is none.
pub(crate) fn field(value: &Value, path: &str) -> String {
    let mut at = value;
    for part in path.split('.') {
        at = &at[part];
    }
    text(at)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(map) if map.is_empty() => "-".into(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// Prints a list: the document as it came, or its items.
pub(crate) fn list(output: &Output, document: &impl Serialize, columns: &[Column]) -> Result<(), Diagnostic> {
    let document = to_value(document);
    let empty = Vec::new();
    let items = document["items"].as_array().unwrap_or(&empty);
    match output {
        Output::Table | Output::Wide => print_table(items, columns, *output == Output::Wide),
        Output::JsonLines => items.iter().for_each(|item| document_line(&item.to_string())),
        Output::Name => items.iter().for_each(|item| content_line(&name(item))),
        Output::Field(path) => items.iter().for_each(|item| content_line(&at_path(item, path))),
        Output::Json | Output::Yaml => document_as(output, &document),
    }
    Ok(())
}

/// Prints one object.
pub(crate) fn object(output: &Output, object: &impl Serialize, columns: &[Column]) -> Result<(), Diagnostic> {
    let object = to_value(object);
    match output {
        Output::Table | Output::Wide => print_table(std::slice::from_ref(&object), columns, *output == Output::Wide),
        Output::JsonLines => document_line(&object.to_string()),
        Output::Name => content_line(&name(&object)),
        Output::Field(path) => content_line(&at_path(&object, path)),
        Output::Json | Output::Yaml => document_as(output, &object),
    }
    Ok(())
}

fn document_as(output: &Output, document: &Value) {
    if *output == Output::Yaml {
        document_line(yaml(document, 0).trim_end());
    } else {
        document_line(&serde_json::to_string_pretty(document).expect("a value can be written"));
    }
}

fn to_value(document: &impl Serialize) -> Value {
    serde_json::to_value(document).expect("our own objects can be written")
}

fn name(item: &Value) -> String {
    ["name", "id", "version", "machine", "path"]
        .iter()
        .find(|key| !item[**key].is_null())
        .map_or_else(String::new, |key| text(&item[*key]))
}

fn at_path(item: &Value, path: &[String]) -> String {
    let mut at = item;
    for part in path {
        at = match part.parse::<usize>() {
            Ok(index) if at.is_array() => &at[index],
            _ => &at[part.as_str()],
        };
    }
    match at {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn print_table(items: &[Value], columns: &[Column], all: bool) {
    let shown: Vec<&Column> = columns.iter().filter(|column| all || !column.wide).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(shown.iter().map(|column| column.head));
    for item in items {
        table.add_row(shown.iter().map(|column| (column.show)(item)));
    }
    for printed in table.to_string().lines() {
        line(printed.trim_end().strip_prefix(' ').unwrap_or(printed));
    }
}

/// The exit code of whoever's reader has gone away: what the shell says of a program that SIGPIPE ended. Never a success, for
/// what was not said may be that something differs.
const NOBODY_READS: i32 = 141;

/// Returns a text with everything spelled out that would steer a terminal, or turn the order of what stands there.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let steers = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match steers(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Prints a line on stdout.
pub(crate) fn line(text: &str) {
    document_line(&visible(text));
}

/// Prints a line of a document that programs read, as it is.
pub(crate) fn document_line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

/// Prints a line that somebody else wrote.
pub(crate) fn content_line(text: &str) {
    content(format!("{text}\n").as_bytes());
}

/// Prints what somebody else wrote: byte for byte, unless a terminal shows it.
pub(crate) fn content(bytes: &[u8]) {
    written(try_content(bytes));
}

/// As [`content`], for whoever has something to save when it fails.
pub(crate) fn try_content(bytes: &[u8]) -> io::Result<()> {
    if stdout().is_terminal() {
        return write(visible(&String::from_utf8_lossy(bytes)).as_bytes());
    }
    write(bytes)
}

/// Writes bytes on stdout as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    written(write(bytes));
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = stdout();
    out.write_all(bytes)?;
    out.flush()
}

/// Returns what it is that standard output cannot be written to.
pub(crate) fn unwritten(error: &io::Error) -> Diagnostic {
    let full = error.kind() == io::ErrorKind::StorageFull;
    Diagnostic::new(if full { "LW0605" } else { "LW0600" }, format!("standard output: {error}"))
}

/// Ends us where nobody hears what is asked for: quietly if a reader has gone away.
fn written(done: io::Result<()>) {
    let Err(error) = done else { return };
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(NOBODY_READS);
    }
    let diagnostic = unwritten(&error);
    note!("{diagnostic}");
    std::process::exit(diagnostic.exit_code().into());
}

/// What [`note`] does.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    writeln!(stderr(), "{}", visible(&text.to_string())).ok();
}

/// Prints a question on stderr; the answer is typed behind it.
pub(crate) fn ask(question: &str) {
    write!(stderr(), "{}", visible(question)).ok();
}

/// Returns a value as YAML.
fn yaml(value: &Value, depth: usize) -> String {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => map
            .iter()
            .map(|(key, value)| match value {
                Value::Object(inner) if !inner.is_empty() => format!("{pad}{key}:\n{}", yaml(value, depth + 1)),
                Value::Array(items) if !items.is_empty() => format!("{pad}{key}:\n{}", yaml(value, depth)),
                other => format!("{pad}{key}: {}\n", scalar(other)),
            })
            .collect(),
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| match item {
                Value::Object(map) if !map.is_empty() => {
                    let inner = yaml(item, depth + 1);
                    format!("{pad}- {}", inner.trim_start())
                }
                other => format!("{pad}- {}\n", scalar(other)),
            })
            .collect(),
        other => format!("{pad}{}\n", scalar(other)),
    }
}

/// JSON's scalars are YAML's too; strings stay quoted, so that no word turns into a truth value.
fn scalar(value: &Value) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_keeps_strings_strings() {
        let value = json!({"name": "no", "list": [{"a": 1, "b": []}, "x"], "empty": {}, "nested": {"k": null}});
        expect![[r#"
            empty: {}
            list:
            - a: 1
              b: []
            - "x"
            name: "no"
            nested:
              k: null
        "#]]
        .assert_eq(&yaml(&value, 0));
    }

    #[test]
    fn what_would_steer_a_terminal_is_spelled_out() {
        expect![[r"a\u{1b}[2J\u{7}\r\u{9b}1m\u{202e}b"]].assert_eq(&visible("a\x1b[2J\x07\r\u{9b}1m\u{202e}b"));
        let plain = "● ä\tb\nc — ✓";
        assert!(matches!(visible(plain), Cow::Borrowed(text) if text == plain));
    }

    #[test]
    fn a_field_is_found_by_its_path() {
        let value = json!({"a": {"b": ["x", "y"]}, "n": 7});
        let path = |text: &str| match Output::parse(text) {
            Ok(Output::Field(path)) => at_path(&value, &path),
            other => panic!("{other:?}"),
        };
        assert_eq!(path("field=.a.b.1"), "y");
        assert_eq!(path("field=.n"), "7");
        assert!(Output::parse("xml").is_err());
    }
}
