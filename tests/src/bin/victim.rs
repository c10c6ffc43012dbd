//! A server that tells on itself: it stamps the time and its token into a shared file, about once a millisecond.
//!
//! Must stay true: a stamp is the clock read by a process that executes at that moment, so the file shows exactly who
//! executed when, whatever the cluster believed. The machine's boot clock is one for all its hosts.
//!
//! `stamp FILE [--ignore-term] [--daemon] [--crash-if PATH] [--for MS] [--greet PORT]`, `absent PATH`, `exit CODE`,
//! `clocks`, which says what the product's clocks say.
//! With `--greet` it says on every TCP connection which machine it is on and its token, and then says what it hears.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use leaseward_raft::clock::{Which, read};
use leaseward_tests::stamps::{boot_ns, machine_number};
use tokio::signal::unix::{SignalKind, signal};

/// From one stamp to the next.
const PAUSE: Duration = Duration::from_millis(1);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["absent", path] => ExitCode::from(u8::from(Path::new(path).exists())),
        ["exit", code] => ExitCode::from(code.parse::<u8>().expect("a code")),
        ["clocks"] => {
            let clocks = [Which::Wall, Which::Boot, Which::Monotonic, Which::Raw].map(|which| read(which).as_nanos());
            println!("{}", clocks.map(|clock| clock.to_string()).join(" "));
            ExitCode::SUCCESS
        }
        ["daemon-start", ref rest @ ..] => {
            // The second of two forks: the daemon's parent is gone, and it leads no session.
            rustix::process::setsid().ok();
            leave_behind(again(&[&["stamp"], rest].concat()));
            ExitCode::SUCCESS
        }
        ["stamp", file, ref options @ ..] => stamp(file, options),
        _ => panic!("not understood: {words:?}"),
    }
}

/// What `stamp` should do besides.
#[derive(Default)]
struct Options {
    ignore_term: bool,
    daemon: bool,
    crash_if: Option<PathBuf>,
    lasting: Option<Duration>,
    life: Option<u64>,
    greet: Option<u16>,
}

impl Options {
    fn read(words: &[&str]) -> Self {
        let mut options = Self::default();
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || words.next().expect("a value");
            match word {
                "--ignore-term" => options.ignore_term = true,
                "--daemon" => options.daemon = true,
                "--crash-if" => options.crash_if = Some(PathBuf::from(value())),
                "--for" => options.lasting = Some(Duration::from_millis(value().parse().expect("milliseconds"))),
                "--greet" => options.greet = Some(value().parse().expect("a port")),
                "--life" => options.life = Some(value().parse().expect("a life")),
                _ => panic!("not understood: {word}"),
            }
        }
        options
    }
}

fn stamp(path: &str, words: &[&str]) -> ExitCode {
    let options = Options::read(words);
    let began = boot_ns();
    let life = options.life.unwrap_or(began);
    let token = std::env::var("LEASEWARD_TOKEN").expect("a server is told its token");
    let machine = std::env::var("LEASEWARD_MACHINE").map_or(0, |name| machine_number(&name));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    // Once somebody listens, SIGTERM ends nothing any more.
    let _listening = options.ignore_term.then(|| signal(SignalKind::terminate()).expect("signals can be listened to"));
    let mut file = open(path);
    if let Some(port) = options.greet {
        let machine = std::env::var("LEASEWARD_MACHINE").expect("a server is told its machine");
        greet(port, format!("{machine} {token}\n"));
    }
    if options.daemon {
        let life = life.to_string();
        again(&["daemon-start", path, "--ignore-term", "--life", &life]).status().expect("it starts");
    }
    loop {
        let now = boot_ns();
        let line = format!("{now} {token} {} {life} {machine}\n", std::process::id());
        // One write of one line to the end: writers do not tear each other's.
        file.write_all(line.as_bytes()).expect("a stamp");
        if options.crash_if.as_deref().is_some_and(Path::exists) {
            return ExitCode::FAILURE;
        }
        if options.lasting.is_some_and(|lasting| Duration::from_nanos(now - began) >= lasting) {
            return ExitCode::SUCCESS;
        }
        if !Path::new(path).exists() {
            // The test is over, and nobody was there to end this.
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Serves connections at every address that this machine has or gets.
fn greet(port: u16, words: String) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("nobody else listens");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let words = words.clone();
            std::thread::spawn(move || {
                stream.write_all(words.as_bytes()).ok();
                let mut heard = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut heard) {
                    stream.write_all(&heard[..length]).ok();
                }
            });
        }
    });
}

fn again(arguments: &[&str]) -> Command {
    let me = std::env::current_exe().expect("a program knows where it is");
    let mut child = Command::new(me);
    child.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    child
}

#[expect(clippy::zombie_processes, reason = "a daemon outlives who started it; this process ends at once")]
fn leave_behind(mut daemon: Command) {
    daemon.spawn().expect("it starts");
}

fn open(path: &str) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("the stamps can be written")
}
