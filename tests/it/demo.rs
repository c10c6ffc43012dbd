//! The README's first command, as a newcomer runs it.

use std::process::{Command, Stdio};
use std::time::Duration;

use std::io::{BufRead, BufReader};

use leaseward_tests::{binary, signal};
use rustix::process::Signal;

/// Starts the demo, reads all it says, and looks that nothing of it lives on.
#[test]
fn dev_tells_its_story_and_leaves_nothing_behind() {
    let home = tempfile::tempdir().expect("a directory");
    let mut child = Command::new(binary())
        .args(["dev", "--exit-after-demo"])
        .env("HOME", home.path())
        .env_remove("XDG_CONFIG_HOME")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let stdout = child.stdout.take().expect("piped");
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            send.send(line).ok();
        }
    });
    let first = lines.recv_timeout(Duration::from_secs(1)).expect("the first line comes within a second");
    let dir = first.rsplit(' ').next().expect("it names its directory").to_owned();
    assert!(first.contains("state in"), "{first}");
    let mut said = vec![first];
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(60)) {
        said.push(line);
    }
    let output = child.wait_with_output().expect("it ends");
    let said = said.join("\n");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "3 voters",
        "config set `demo` v1 published",
        "server `hello` on m",
        "The demo now kills m",
        "not renewed in time",
        "out of service for",
        "`demo` v2 published",
        "says: \"config set demo: version two\"",
        "is back and has `demo` v2 (version two)",
    ] {
        assert!(said.contains(part), "it never said {part:?}:\n{said}");
    }
    assert!(!std::path::Path::new(&dir).exists(), "{dir} is still there");
    assert_eq!(processes_of(&dir), 0, "processes of the demo live on");
}

/// Returns how many processes were started for this directory.
fn processes_of(dir: &str) -> usize {
    std::fs::read_dir("/proc")
        .expect("readable")
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(dir))
        .count()
}

/// An operator changes her mind as soon as she sees the first line.
#[test]
fn an_interrupt_at_the_first_line_leaves_no_directory_behind() {
    for _ in 0..3 {
        let home = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(binary())
            .args(["dev", "--no-demo"])
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            .env_remove("XDG_CONFIG_HOME")
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut first).expect("it speaks");
        signal(child.id(), Signal::INT);
        child.wait().expect("it ends");
        let left: Vec<_> = std::fs::read_dir(home.path())
            .expect("readable")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("leaseward-dev-"))
            .collect();
        assert!(left.is_empty(), "{left:?} after {first}");
    }
}

/// An operator plays with a cluster and presses Ctrl-C.
#[test]
fn an_interrupt_leaves_no_process_behind() {
    let home = tempfile::tempdir().expect("a directory");
    let keep = home.path().join("kept");
    let mut child = Command::new(binary())
        .args(["dev", "--no-demo", "--keep", &keep.display().to_string()])
        .env("HOME", home.path())
        .env_remove("XDG_CONFIG_HOME")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let stdout = child.stdout.take().expect("piped");
    let said: Vec<String> = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.contains("Ctrl-C stops"))
        .collect();
    assert!(said.iter().any(|line| line.contains("3 machines")), "{said:?}");
    let dir = keep.canonicalize().expect("it exists").display().to_string();
    assert_eq!(processes_of(&dir), 7, "three voters, three machines, and the one that started them");
    signal(child.id(), Signal::INT);
    assert!(child.wait().expect("it ends").success());
    assert_eq!(processes_of(&dir), 0, "processes live on");
    assert!(keep.join("n1").is_dir(), "what was to be kept is kept");
}
