//! Looks at the source tree: what the compiler and clippy do not say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A file that tells more than one story.
const LINES_MAX: usize = 650;

/// Words that name a library, the folder in which they may stand, and the file in which they may.
const PLACES: &[(&str, &str)] = &[
    ("sled", "crates/leaseward-raft/src/sled_store.rs"),
    ("bincode", "crates/leaseward-raft/src/codec.rs"),
    ("openraft", "crates/leaseward-raft/"),
];

/// Returns what is wrong, in words.
pub(crate) fn problems(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let mut codes = BTreeSet::new();
    for dir in ["crates", "tests", "benches", "xtask"] {
        for path in sources(&root.join(dir)) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            problems.extend(of_file(&name, &text));
            if name.contains("/src/") && !name.starts_with("xtask") {
                codes.extend(codes_in(&text));
            }
        }
    }
    problems.extend(without_page(root, &codes));
    problems
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    // Ascending names, so that the report is the same everywhere.
    found.sort();
    found
}

fn of_file(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    // This file is full of the words that it looks for.
    if name.ends_with("xtask/src/tidy.rs") {
        return problems;
    }
    if !text.starts_with("//!") {
        problems.push(format!("{name} does not open with `//!`: what is it for?"));
    }
    if text.lines().count() > LINES_MAX {
        problems.push(format!("{name} has more than {LINES_MAX} lines: it tells more than one story"));
    }
    for (word, place) in PLACES {
        let named = text.lines().any(|line| names(line, word));
        if named && !name.starts_with(place) {
            problems.push(format!("{name} names `{word}`, which belongs to {place}"));
        }
    }
    for (word, why) in [
        ("#[ignore", "a test that does not run is no test"),
        ("todo!(", "make the real thing"),
        ("unimplemented!(", "make the real thing"),
    ] {
        if text.contains(word) {
            problems.push(format!("{name} holds `{word}`: {why}"));
        }
    }
    if name.starts_with("crates/leaseward-state/src") && (text.contains("HashMap") || text.contains("tokio::")) {
        problems.push(format!("{name} names a HashMap or tokio: the state is pure"));
    }
    problems
}

/// Returns whether a line of code names a crate: in a path, or in a `use` of its own.
fn names(line: &str, word: &str) -> bool {
    let line = line.trim_start();
    if line.starts_with("//") {
        return false;
    }
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        let is_used = after.starts_with("::") || (before.trim_end().ends_with("use") && !after.starts_with(is_part));
        is_used && !before.ends_with(is_part)
    })
}

/// Returns the codes that have no page.
fn without_page(root: &Path, codes: &BTreeSet<String>) -> Vec<String> {
    // No error of a released build: tests of deaths have it.
    let codes = codes.iter().filter(|code| *code != "LW0000");
    let missing = codes.filter(|code| !root.join("docs/errors").join(format!("{code}.md")).is_file());
    missing.map(|code| format!("{code} has no page: docs/errors/{code}.md")).collect()
}

/// Returns the error codes that a text names.
fn codes_in(text: &str) -> BTreeSet<String> {
    let bytes = text.as_bytes();
    let mut codes = BTreeSet::new();
    for (at, _) in text.match_indices("LW") {
        if let Some(code) = bytes.get(at..at + 6)
            && code[2..].iter().all(u8::is_ascii_digit)
        {
            codes.insert(String::from_utf8_lossy(code).into_owned());
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str, text: &str) -> usize {
        of_file(name, text).len()
    }

    #[test]
    fn each_rule_finds_its_breach() {
        let good = "//! What it is for.\n";
        assert_eq!(count("crates/x/src/a.rs", good), 0);
        assert_eq!(count("crates/x/src/a.rs", "fn f() {}\n"), 1, "no opening");
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}{}", "\n".repeat(LINES_MAX))), 1, "too long");
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}use sled::Db;\n")), 1, "sled elsewhere");
        assert_eq!(count("crates/leaseward-raft/src/sled_store.rs", &format!("{good}use sled::Db;\n")), 0);
        assert_eq!(count("crates/leaseward/src/a.rs", &format!("{good}use openraft::Raft;\n")), 1);
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}    let x = bincode::serialize(&y);\n")), 1);
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}// as bincode::serialize does\n")), 0, "a comment may");
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}use leaseward_raft::sled_store::SledStore;\n")), 0);
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}use sled as s;\n")), 1);
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}#[ignore]\n")), 1);
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}#[ignore = \"slow\"]\n")), 1);
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}fn f() {{ todo!() }}\n")), 1);
        assert_eq!(count("crates/x/src/a.rs", &format!("{good}fn f() {{ unimplemented!() }}\n")), 1);
        assert_eq!(count("crates/leaseward-state/src/a.rs", &format!("{good}use tokio::time;\n")), 1);
        assert_eq!(count("crates/leaseward-state/src/a.rs", &format!("{good}use std::collections::HashMap;\n")), 1);
    }

    #[test]
    fn codes_are_found() {
        let found: Vec<_> = codes_in("\"LW0412\" and LW0203, not LWxxxx or LW12").into_iter().collect();
        assert_eq!(found, ["LW0203", "LW0412"]);
    }

    #[test]
    fn a_code_without_a_page_is_found() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
        let codes = codes_in("LW0203 LW9999 LW0000");
        assert_eq!(without_page(root, &codes), ["LW9999 has no page: docs/errors/LW9999.md"]);
    }

    #[test]
    fn this_tree_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
        assert_eq!(problems(root), Vec::<String>::new());
    }
}
