//! Turns a decoder's complaint into a problem that says what was probably meant.
//!
//! Must stay true: an unknown key is LW0103 and names the key that is nearest, if one is near.

use crate::model::Problem;
use crate::problem::{self, Code};

/// Returns the problem for what serde says about some JSON or TOML. `otherwise` is the code of what is neither an
/// unknown key nor an unknown word.
#[must_use]
pub fn problem(message: &str, otherwise: Code) -> Problem {
    let (message, place) = match message.rsplit_once(" at line ") {
        Some((message, place)) => (message, format!(" at line {place}")),
        None => (message, String::new()),
    };
    if let Some((key, known)) = unknown(message, "unknown field ") {
        return problem::of(Code::UnknownKey, format!("unknown key `{key}`{}{place}", meant(key, &known)));
    }
    if let Some((word, known)) = unknown(message, "unknown variant ") {
        let all = known.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
        return problem::of(otherwise, format!("`{word}` is not one of {all}{}{place}", meant(word, &known)));
    }
    problem::of(otherwise, format!("{}{place}", message.trim()))
}

/// Returns the problem for a word that is not one of those that are known.
#[must_use]
pub fn unknown_word(what: &str, word: &str, known: &[&str]) -> Problem {
    let word: String = word.chars().take(64).collect();
    problem::of(Code::Invalid, format!("`{word}` is no {what}; there are {}{}", known.join(", "), meant(&word, known)))
}

/// Takes `unknown field `x`, expected one of `a`, `b`` apart.
fn unknown<'a>(message: &'a str, start: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = message.trim().strip_prefix(start)?.strip_prefix('`')?;
    let (word, rest) = rest.split_once('`')?;
    Some((word, rest.split('`').skip(1).step_by(2).collect()))
}

fn meant(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(near) => format!(": did you mean `{near}`?"),
        None if known.is_empty() => String::new(),
        None => format!(": there are {}", known.join(", ")),
    }
}

/// Returns the known word that differs least, if it differs in at most a third of its letters.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    known
        .iter()
        .map(|known| (distance(word, known), *known))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Returns how many letters must be added, dropped, replaced or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_suggested_and_a_far_one_is_not() {
        let known = ["holder", "session", "ttl", "wait", "lock_delay"];
        assert_eq!(nearest("hodler", &known), Some("holder"));
        assert_eq!(nearest("tl", &known), Some("ttl"));
        assert_eq!(nearest("lockdelay", &known), Some("lock_delay"));
        assert_eq!(nearest("colour", &known), None);
        let problem = problem("unknown field `xyzzy`, expected `ttl` or `wait` at line 3 column 2", Code::Invalid);
        assert_eq!(problem.detail, "unknown key `xyzzy`: there are ttl, wait at line 3 column 2");
    }
}
