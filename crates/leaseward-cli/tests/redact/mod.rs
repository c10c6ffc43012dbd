//! Takes out of a command's output what differs from run to run: times, ports, numbers that count entries, hashes.

use serde_json::{Map, Value};

/// Fields whose numbers count entries, terms or processes.
const COUNTERS: [&str; 17] = [
    "token",
    "session",
    "id",
    "lag",
    "applied",
    "created",
    "modified",
    "revision",
    "leases_revision",
    "compacted",
    "term",
    "pid",
    "last_token",
    "known",
    "since_revision",
    "current_token",
    "part",
];

/// Columns of tables with the same.
const COLUMNS: [&str; 7] = ["TOKEN", "SESSION", "ID", "LAG", "APPLIED", "LEFT", "ANSWERED IN"];

/// Words before a number that counts such things.
const BEFORE: [&str; 7] = ["token", "session", "revision", "process", "term", "pid", "(pid"];

/// Redacts a sentence, keeping its spaces.
pub(crate) fn prose(text: &str) -> String {
    let mut out = String::new();
    let mut before = String::new();
    for piece in text.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end();
        let (core, end) = word.split_at(word.trim_end_matches([',', '.', ';', ')', '"', ':', '/']).len());
        let shown = if BEFORE.contains(&before.as_str()) && is_number(core) { "<n>".into() } else { token(core) };
        out.push_str(&shown);
        out.push_str(end);
        out.push_str(&piece[word.len()..]);
        if !word.is_empty() {
            word.clone_into(&mut before);
        }
    }
    out
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A measured time below ten seconds; configured ones are whole seconds or longer.
fn is_short_time(word: &str) -> bool {
    word.strip_suffix("ms").is_some_and(|digits| is_number(digits) && digits.len() <= 4)
}

fn token(word: &str) -> String {
    let hex = |length: usize| word.len() == length && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let clock = word.len() == 12 && word.as_bytes()[2] == b':' && word.as_bytes()[8] == b'.';
    if word.len() == 24 && word.ends_with('Z') && word.as_bytes()[10] == b'T' {
        "<time>".into()
    } else if clock {
        "<clock>".into()
    } else if is_short_time(word) {
        "<ms>".into()
    } else if hex(64) || hex(32) {
        "<hash>".into()
    } else if word.strip_prefix("/v1/nodes/").is_some_and(is_number) {
        "/v1/nodes/<n>".into()
    } else if word == env!("CARGO_PKG_VERSION") {
        "<version>".into()
    } else if let Some(number) = word.strip_suffix("ms").filter(|number| is_number(number)) {
        if number.len() < 3 { word.into() } else { "<ms>".into() }
    } else if let Some((start, rest)) = word.split_once("127.0.0.1:") {
        let port = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        format!("{start}127.0.0.1:<port>{}", token(port))
    } else if let Some((user, host)) = word.split_once('@')
        && host == rustix::system::uname().nodename().to_string_lossy()
    {
        format!("{user}@<host>")
    } else {
        word.into()
    }
}

/// Redacts a table by its columns; what is none is prose. Cells stand two spaces apart, as widths differ too.
pub(crate) fn table(text: &str) -> String {
    let mut heads: Vec<&str> = Vec::new();
    let mut out = String::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let is_head = cells.len() > 1
            && cells.iter().all(|cell| !cell.chars().any(char::is_lowercase))
            && cells[0].chars().all(|c| c.is_ascii_uppercase());
        let shown = if is_head {
            heads = cells;
            heads.join("  ")
        } else if !heads.is_empty() && cells.len() == heads.len() {
            let cell = |(head, cell): (&&str, &&str)| match *head {
                head if COLUMNS.contains(&head) && *cell != "-" => "<n>".into(),
                "WORST CASE" | "FENCE" => format!("<{}>", head.to_lowercase()),
                _ => prose(cell),
            };
            heads.iter().zip(&cells).map(cell).collect::<Vec<String>>().join("  ")
        } else {
            heads.clear();
            prose(line)
        };
        out.push_str(shown.trim_end());
        out.push('\n');
    }
    out
}

/// Redacts JSON, or YAML as the printer writes it: one scalar on a line, written as in JSON.
///
/// `counted`: the versions of these objects count entries.
pub(crate) fn document(form: &str, text: &str, counted: bool) -> String {
    if form == "json" {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        return serde_json::to_string_pretty(&redact("", value, counted)).expect("a value can be written");
    }
    let line = |line: &str| match line.split_once(": ") {
        Some((start, value)) => {
            let key = start.trim_start_matches([' ', '-']);
            let value: Value = serde_json::from_str(value).unwrap_or_else(|error| panic!("{error}: {line}"));
            format!("{start}: {}\n", redact(key, value, counted))
        }
        None => match line.split_once("- ").map(|(pad, value)| (pad, serde_json::from_str::<Value>(value))) {
            Some((pad, Ok(value))) => format!("{pad}- {}\n", redact("", value, counted)),
            _ => format!("{line}\n"),
        },
    };
    text.lines().map(line).collect()
}

fn redact(key: &str, value: Value, counted: bool) -> Value {
    match value {
        _ if key == "events" => "<varies>".into(),
        _ if key == "version" && counted => "<n>".into(),
        Value::Object(map) => Value::Object(
            map.into_iter().map(|(key, value)| (key.clone(), redact(&key, value, counted))).collect::<Map<_, _>>(),
        ),
        Value::Array(items) => items.into_iter().map(|item| redact(key, item, counted)).collect(),
        Value::Null | Value::Bool(_) => value,
        _ if COUNTERS.contains(&key) => "<n>".into(),
        _ if key == "fence" || key == "worst_case" || key == "answered_in" || key == "remaining" => "<varies>".into(),
        Value::String(text) => prose(&text).into(),
        number => number,
    }
}
