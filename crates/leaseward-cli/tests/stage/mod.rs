//! A throwaway cluster of `leaseward dev`, with something of everything in it.

#![allow(dead_code, reason = "each test uses its part")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;

/// Whatever is waited for must come within this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const PAY: &str = "candidates = [\"m1\", \"m2\"]\ncommand = [\"sh\", \"-c\", \"echo hello; exec sleep 100000\"]\n";

/// What is there before anything is asked, whatever was done before. What is so already fails quietly.
const FURNISH: &str = r#"
leaseward node promote n3
leaseward node transfer-leader --to n1
leaseward maintenance off
leaseward machine resume m2
leaseward server resume pay-1
test -e app.key || leaseward config key app.key --create
leaseward config unpin app
leaseward config unpin app --machine m3
test "$(leaseward config policy app -o field=.drift)" = report || leaseward config policy app drift=report rollout.canaries=0
test "$(leaseward config history app -o field=.version | head -1)" = 2 || {
    leaseward config rm app
    leaseward config publish app --from ./etc/app -m first
    leaseward config publish app --from ./etc/app -m second
}
leaseward lease acquire batch/nightly --holder ops --ttl 1h
leaseward server apply -f pay-1.toml
leaseward server start pay-1
test "$(leaseward server get pay-1 -o field=.machine)" = m1 || leaseward server move pay-1 --to m1
leaseward wait config/app=synced
leaseward wait cluster=healthy
"#;

/// The cluster, and where somebody sits who uses it.
pub(crate) struct Stage {
    home: TempDir,
    dev: Child,
    state: String,
    contexts: String,
}

fn work(home: &Path) -> PathBuf {
    home.join("work")
}

fn shell(home: &Path, line: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_leaseward"));
    let bin = binary.parent().expect("it is in a directory");
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .current_dir(work(home))
        .env_clear()
        .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()))
        .env("HOME", home)
        .env("USER", "ops")
        .env("EDITOR", "echo '# edited' >>")
        .env("LEASEWARD_YES", "true")
        .env("LEASEWARD_TIMEOUT", "30s")
        .env("LEASEWARD_CONTEXT", "dev")
        .env("LEASEWARD_CONFIG", "leaseward.toml")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Returns a child's first line that is it, which must come in time; the rest is read and thrown away.
fn first_line(stdout: impl Read + Send + 'static, is_it: impl Fn(&str) -> bool + Send + 'static) -> Option<String> {
    let (send, found) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if is_it(&line) {
                send.send(line).ok();
            }
        }
    });
    found.recv_timeout(PATIENCE).ok()
}

fn interrupt(child: &mut Child) {
    if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
        kill_process(pid, Signal::INT).ok();
    }
    let begun = Instant::now();
    while child.try_wait().ok().flatten().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().ok();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Stage {
    /// Starts the cluster.
    pub(crate) fn start() -> Self {
        let home = tempfile::Builder::new().prefix("lw").tempdir().expect("a directory");
        let work = work(home.path());
        let put = |path: &str, text: &str| {
            let path = work.join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(&path, text).expect("written");
            path
        };
        put("pay-1.toml", PAY);
        put("etc/app/limits.toml", "max_sessions = 500\n");
        let script = put("nightly.sh", "#!/bin/sh\necho nightly under token $LEASEWARD_TOKEN\n");
        fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("executable");
        let ports: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let at = |i: usize| ports[i].local_addr().expect("bound");
        put(
            "leaseward.toml",
            &format!(
                "[node]\nname = \"solo\"\nlisten = \"{}\"\npeer_listen = \"{}\"\ndata = \"{}\"\n[machine]\nenabled = \
                 false\n",
                at(0),
                at(1),
                work.join("solo").display()
            ),
        );
        drop(ports);
        let mut dev = shell(home.path(), "exec leaseward dev --no-demo").spawn().expect("it starts");
        let stdout = dev.stdout.take().expect("piped");
        let (send, said) = channel();
        let up = first_line(stdout, move |line| {
            send.send(line.to_owned()).ok();
            line.contains("LEASEWARD_CONTEXT=dev")
        });
        let said: Vec<String> = said.try_iter().collect();
        assert!(up.is_some(), "the cluster is not up: {said:?}");
        let state = said[0].rsplit(' ').next().expect("it says where its state is").to_owned();
        // The settings of `solo` stand for those of m1, as far as servers' output goes.
        let solo = work.join("solo/agent");
        fs::create_dir_all(&solo).expect("made");
        std::os::unix::fs::symlink(format!("{state}/m1/agent/log"), solo.join("log")).expect("linked");
        let contexts = fs::read_to_string(home.path().join(".config/leaseward/contexts.toml")).expect("it wrote it");
        Self { home, dev, state, contexts }
    }

    /// Runs a line as somebody would type it.
    pub(crate) fn run(&self, line: &str) -> Output {
        let limited = format!("exec timeout {} sh -c '{}'", PATIENCE.as_secs(), line.replace('\'', "'\\''"));
        shell(self.home.path(), &limited).output().expect("it starts")
    }

    /// Makes everything as it was in the beginning.
    pub(crate) fn furnish(&self) {
        fs::write(self.home.path().join(".config/leaseward/contexts.toml"), &self.contexts).expect("written");
        let done = self.run(FURNISH);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Runs a line that never ends until it has said these words, whatever it says before.
    ///
    /// # Errors
    /// What it said, if not those words.
    pub(crate) fn begin(&self, line: &str, words: &'static str) -> Result<(), Vec<String>> {
        let mut child = shell(self.home.path(), &format!("exec 2>&1; exec {line}")).spawn().expect("it starts");
        let (send, said) = channel();
        let found = first_line(child.stdout.take().expect("piped"), move |line| {
            send.send(line.to_owned()).ok();
            line.contains(words)
        });
        let early = child.try_wait().expect("a child");
        interrupt(&mut child);
        if found.is_some() && early.is_none() { Ok(()) } else { Err(said.try_iter().collect()) }
    }

    /// Kills a machine's agent, and waits until the cluster knows.
    pub(crate) fn lose_machine(&self, name: &str) {
        let settings = format!("{}/{name}.toml", self.state);
        for entry in fs::read_dir("/proc").expect("readable").filter_map(Result::ok) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
            if String::from_utf8_lossy(&line).contains(&settings)
                && let Some(pid) = pid
            {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        let line = format!("until [ \"$(leaseward machine get {name} -o field=.connected)\" = false ]; do :; done");
        assert!(self.run(&line).status.success(), "{name} lives on");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        interrupt(&mut self.dev);
    }
}
