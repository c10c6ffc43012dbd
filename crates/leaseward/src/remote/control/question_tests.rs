//! Questions asked of a real shell.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

fn asked(words: &[&str], environment: &[(&str, &str)], noise: &str) -> Answer {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let script = Question { words: words.to_vec(), environment: &environment }.script("n1").expect("good");
    let mut shell = Command::new("sh").arg("-s").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
    shell.stdin.take().expect("piped").write_all(script.as_bytes()).expect("written");
    let output = shell.wait_with_output().expect("it ends");
    let text = [noise.as_bytes(), &output.stdout].concat();
    for size in [1, 7, text.len()] {
        let mut reading = Reading::new("n1");
        let answers: Vec<_> = text.chunks(size).filter_map(|piece| reading.feed(piece).expect("not long")).collect();
        if size == text.len() {
            return answers.first().expect("whole").clone();
        }
        assert!(!answers.is_empty(), "pieces of {size}: {}", reading.noise());
    }
    unreachable!("the last size is the whole");
}

#[test]
fn words_and_values_arrive_as_they_are_through_a_noisy_login() {
    let odd = "it's $HOME `x` \\ \"y\"\n-----LEASEWARD END n2 0-----";
    let answer = asked(
        &["sh", "-c", "printf '%s|%s' \"$1\" \"$ODD\"; cat; exit 3", "sh", odd],
        &[("ODD", odd)],
        "Welcome!\n-----LEASEWARD BEGIN n0-----\nno newline at the end",
    );
    assert_eq!((answer.text.as_str(), answer.exit), (format!("{odd}|{odd}").as_str(), 3));
    assert_eq!(answer.boot_id, leaseward_node::boot_id().expect("/proc"));
}

#[test]
fn a_program_that_is_not_there_is_told_apart_from_silence() {
    assert_eq!(asked(&["/nowhere/control", "status", "x"], &[], "").exit, 127);
    assert_eq!(asked(&[], &[], "").exit, 0);
}

#[test]
fn a_script_that_arrives_cut_off_does_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let trace = dir.path().join("trace");
    let environment = BTreeMap::new();
    let words = vec!["touch", trace.to_str().expect("text")];
    let script = Question { words, environment: &environment }.script("n1").expect("good");
    for cut in 0..script.len() - 2 {
        // A cut every few bytes is enough.
        if cut % 9 != 0 {
            continue;
        }
        let mut shell =
            Command::new("sh").arg("-s").stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a shell");
        shell.stdin.take().expect("piped").write_all(&script.as_bytes()[..cut]).expect("written");
        shell.wait().expect("it ends");
        assert!(!trace.exists(), "cut at {cut}");
    }
}

#[test]
fn names_that_no_shell_takes_are_refused() {
    for name in ["", "1A", "A-B", "A;reboot", "Ä"] {
        let environment = BTreeMap::from([(name.to_owned(), String::new())]);
        assert!(Question { words: vec![], environment: &environment }.script("n").is_err(), "{name:?}");
    }
}

#[test]
fn endless_answers_are_given_up() {
    let mut reading = Reading::new("n1");
    let refused = (0..NOISE_BYTES_MAX).find_map(|_| reading.feed(&[b'x'; 1_000]).err()).expect("refused");
    assert!(refused.starts_with("LW0375"), "{refused}");
}

#[test]
fn the_first_line_of_a_status_counts() {
    let said = |text: &str, exit| state(&Answer { boot_id: String::new(), text: text.into(), exit });
    assert_eq!(said("\nRUNNING:Y:N\nSTOPPED\n", 0), Ok(State::Running));
    assert_eq!(said("starting\n", 0), Ok(State::Starting));
    assert_eq!(said("SHUTDOWN", 0), Ok(State::Stopped));
    assert_eq!(said("FAILED:Y:N", 0), Ok(State::Unwell("FAILED:Y:N".into())));
    for (text, exit) in [("", 0), ("STOPPED", 1), ("no such server", 0), ("sh: control: not found", 127)] {
        let unknown = said(text, exit).expect_err("unknown");
        assert!(unknown.starts_with("LW0374"), "{unknown}");
    }
}
