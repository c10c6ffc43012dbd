//! What the documents claim is held by tests: each test that `docs/explanation` names is there, and no row of the fault
//! matrix or of the guarantees is without one.

use std::fs;
use std::path::Path;

/// The documents whose tables must have a test in each row.
const TABLES: [&str; 2] = ["docs/explanation/faults.md", "docs/explanation/guarantees.md"];

/// Returns what is wrong, in words.
pub(crate) fn problems(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for name in TABLES {
        match fs::read_to_string(root.join(name)) {
            Ok(text) => problems.extend(of_document(name, &text, &|path| fs::read_to_string(root.join(path)).ok())),
            Err(error) => problems.push(format!("{name} cannot be read: {error}")),
        }
    }
    problems
}

fn of_document(name: &str, text: &str, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let tests = tests_in(line);
        let is_row = line.starts_with("| ") && !text.lines().nth(number).is_some_and(|next| next.starts_with("|---"));
        if is_row && tests.is_empty() {
            problems.push(format!("{name}:{number}: a row without a test"));
        }
        for (test, path) in tests {
            match read(path) {
                None => problems.push(format!("{name}:{number}: {path} is not there")),
                Some(source) if !source.contains(&format!("fn {test}(")) => {
                    problems.push(format!("{name}:{number}: {path} has no test {test}"));
                }
                Some(_) => {}
            }
        }
    }
    problems
}

/// Returns the tests that a line links to: name and path.
fn tests_in(line: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((_, link)) = rest.split_once("[`") {
        rest = link;
        let Some((test, target)) = link.split_once("`](../../") else { continue };
        let Some((path, _)) = target.split_once(')') else { continue };
        // The next link may be what was split at.
        if !test.contains('`') && path.ends_with(".rs") {
            found.push((test, path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_test_and_a_test_that_is_not_there_are_found() {
        let read = |path: &str| (path == "tests/a.rs").then(|| "fn there() {}".to_owned());
        let table = "| what | test |\n|---|---|\n| a | [`there`](../../tests/a.rs) |\n| b | by reading |\n\
                     | c | [`gone`](../../tests/a.rs), [`there`](../../tests/b.rs) |\nIn [`x`](y.md) nothing is claimed.\n";
        assert_eq!(
            of_document("d", table, &read),
            ["d:4: a row without a test", "d:5: tests/a.rs has no test gone", "d:5: tests/b.rs is not there",]
        );
    }
}
