//! An API that answers as it is told, and notes what it was asked.

#![allow(dead_code, reason = "each test uses its part")]

use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Whatever is waited for must come within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// A status and a body.
pub(crate) type Answer = (u16, Vec<u8>);

type Answers = dyn Fn(&str, &str) -> Answer + Send + Sync;

/// The API, and somebody who asks it.
pub(crate) struct Fake {
    pub(crate) home: TempDir,
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: Runtime,
}

#[derive(Clone)]
struct Shared {
    answers: Arc<Answers>,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn answer(State(shared): State<Shared>, method: Method, uri: Uri, _: Bytes) -> (StatusCode, Vec<u8>) {
    shared.asked.lock().expect("no panic").push(format!("{method} {uri}"));
    let (status, body) = (shared.answers)(method.as_str(), &uri.to_string());
    (StatusCode::from_u16(status).expect("a status"), body)
}

impl Fake {
    /// Starts an API that answers a method and a path with its query like this.
    pub(crate) fn start(answers: impl Fn(&str, &str) -> Answer + Send + Sync + 'static) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let asked = Arc::default();
        let shared = Shared { answers: Arc::new(answers), asked: Arc::clone(&asked) };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let router = Router::new().fallback(answer).with_state(shared);
        runtime.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { home: tempfile::tempdir().expect("a directory"), address, asked, _runtime: runtime }
    }

    /// Returns a command that asks it, in a directory of its own.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leaseward"));
        command
            .args(arguments)
            .current_dir(self.home.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.home.path())
            .env("TMPDIR", self.home.path())
            .env("LEASEWARD_ADDR", &self.address)
            // It has no members.
            .env("LEASEWARD_NO_WAIT", "true")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it starts")
    }

    /// Runs a command that must end by itself.
    pub(crate) fn ended(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let pid = Pid::from_child(&child);
        let (tells, told) = channel();
        std::thread::spawn(move || tells.send(child.wait_with_output()));
        let Ok(output) = told.recv_timeout(PATIENCE) else {
            kill_process(pid, Signal::KILL).ok();
            panic!("{arguments:?} never ends");
        };
        output.expect("it is over")
    }

    /// Returns what was asked so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// An answer that says it.
pub(crate) fn ok(body: &Value) -> Answer {
    (200, body.to_string().into_bytes())
}

/// A refusal.
pub(crate) fn refusal(status: u16, code: &str, detail: &str) -> Answer {
    let problem = json!({ "type": "", "code": code, "title": "", "detail": detail, "status": status,
                          "retryable": false, "hint": "" });
    (status, problem.to_string().into_bytes())
}

/// A version of a set.
pub(crate) fn version(set: &str, number: u64) -> Value {
    json!({ "set": set, "version": number, "parent": number.saturating_sub(1), "manifest": "", "files": 1, "bytes": 1,
            "author": "", "message": "", "at": "2026-01-01T00:00:00Z", "revision": "9" })
}

/// A set with so many versions.
pub(crate) fn set(name: &str, head: u64) -> Value {
    json!({ "name": name, "version": head, "newest": version(name, head), "versions_kept": head, "in_sync": 0,
            "members": 0, "policy": {}, "policy_version": 0, "created": "1", "modified": "9" })
}

/// A lease that somebody holds, or that nobody can have yet.
pub(crate) fn lease(name: &str, state: &str) -> Value {
    json!({ "name": name, "state": state, "token": "7", "meta": {}, "waiting": [], "created": "1", "modified": "9" })
}

/// What a command said on stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
