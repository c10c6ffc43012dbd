//! A machine that is reached by ssh: a real sshd of the current user, with a noisy login. It is on loopback, or in a
//! network namespace of its own with a cable to another one, in which ssh runs.
//!
//! Must stay true: it uses nothing of the user's own (keys, known hosts, configuration), and everything that it started
//! is dead when it is dropped.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use leaseward_tests::hosts::network::Network;
use leaseward_tests::{Lab, binary, eventually, free_port, is_root, signal};
use rustix::process::Signal;
use tempfile::TempDir;

/// Time to live of its session.
pub(super) const TTL_MS: u64 = 3_000;

/// The machine and where ssh runs, as hosts of a network.
const FAR: &str = "far";
const NEAR: &str = "near";

/// The machine, and the near ends that manage it.
pub(super) struct Host {
    dir: TempDir,
    sshd: Child,
    /// One after the other, as they were started.
    near: Vec<Near>,
    /// Where it is reached.
    address: String,
    port: u16,
    network: Option<Network>,
}

/// A near end, by the name of its files.
struct Near {
    name: String,
    process: Child,
}

/// Returns whether the current user has a login shell. Whoever is in no file here may be known elsewhere.
fn may_log_in() -> bool {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let me = rustix::process::getuid().as_raw().to_string();
    let mine = users.lines().find(|line| line.split(':').nth(2) == Some(me.as_str()));
    mine.is_none_or(|line| !line.ends_with("/nologin") && !line.ends_with("/false"))
}

impl Host {
    /// Starts sshd on loopback. Says so where there is none.
    pub(super) async fn start() -> Option<Self> {
        Self::on(None).await
    }

    /// Starts sshd on a host of its own, with a cable that can be cut. Says so without root.
    pub(super) async fn with_a_cable() -> Option<Self> {
        if !is_root() {
            println!("left out: needs root");
            return None;
        }
        Self::on(Some(Network::new())).await
    }

    async fn on(mut network: Option<Network>) -> Option<Self> {
        let places = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"];
        let Some(sshd) = places.into_iter().find(|path| Path::new(path).is_file()) else {
            println!("left out: needs sshd");
            return None;
        };
        if !may_log_in() {
            println!("left out: needs a user who may log in");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("lwh").tempdir().expect("a directory");
        let mut address = "127.0.0.1".to_owned();
        if let Some(network) = &mut network {
            for name in [NEAR, FAR] {
                let own = dir.path().join(format!("own-{name}"));
                fs::create_dir(&own).expect("a directory");
                network.add(name, &own, &own, None);
            }
            address = network.v4(2).to_string();
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        for key in ["host_key", "key"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]).status();
            assert!(made.expect("ssh-keygen starts").success());
        }
        let port = free_port();
        let public = fs::read_to_string(path("host_key.pub")).expect("a key");
        fs::write(path("known_hosts"), format!("[{address}]:{port} {public}")).expect("written");
        fs::copy(path("key.pub"), path("authorized_keys")).expect("copied");
        let text = format!(
            "Port {port}\nListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nForceCommand {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n",
            path("host_key"),
            path("authorized_keys"),
            path("login"),
        );
        fs::write(path("sshd_config"), text).expect("written");
        if is_root() {
            fs::create_dir_all("/run/sshd").expect("a directory");
        }
        let log = File::create(path("sshd.log")).expect("a log");
        let mut command = match &network {
            Some(network) => network.command(FAR, Path::new(sshd)),
            None => Command::new(sshd),
        };
        let sshd = command
            .args(["-D", "-e", "-f", &path("sshd_config")])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd starts");
        let host = Self { dir, sshd, near: Vec::new(), address, port, network };
        let connects = || std::net::TcpStream::connect((host.address.as_str(), port)).is_ok();
        let listens = || host.network.as_ref().map_or_else(connects, |network| network.within(NEAR, connects));
        eventually("sshd listens", async || listens()).await;
        Some(host)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sets what is run after a noisy login, whatever is asked for.
    pub(super) fn login(&self, command: &str) {
        let closed = self.path("closed");
        let script = format!(
            "#!/bin/sh\n[ -e {closed} ] && exit 1\necho 'Welcome to this machine!'\necho '-----LEASEWARD STREAM'\n\
             echo 'a complaint' >&2\nprintf 'no newline: '\n{command}\n",
            closed = closed.display()
        );
        let (new, login) = (self.path("login.new"), self.path("login"));
        fs::write(&new, script).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("set");
        fs::rename(new, login).expect("renamed");
    }

    /// Our program is on it.
    pub(super) fn with_our_program(&self) {
        let data = self.path("data");
        let text = format!(
            "[node]\ndata = \"{}\"\n[timing]\nlease_ttl = \"{TTL_MS}ms\"\n[machine]\nrun_dir = \"{}\"\n",
            data.display(),
            self.path("run").display(),
        );
        let config = self.path("far.toml");
        fs::write(&config, text).expect("written");
        self.login(&format!("exec {} remote agent --config {}", binary().display(), config.display()));
    }

    /// A control script is on it, and a shell.
    pub(super) fn with_control_script(&self) {
        let dir = self.path("control");
        self.login(&format!("export CONTROL_DIR={}\nexec sh -c \"$SSH_ORIGINAL_COMMAND\"", dir.display()));
    }

    /// Starts the near end, with more lines about the machine.
    pub(super) fn manage(&mut self, lab: &Lab, lines: &str) {
        self.manage_as("near", lab, lines);
    }

    /// Starts a near end whose data and log have this name.
    pub(super) fn manage_as(&mut self, name: &str, lab: &Lab, lines: &str) {
        let join: Vec<String> = (0..3).map(|voter| format!("\"{}\"", lab.peer(voter))).collect();
        let option = |name: &str, file: &str| format!("\"-o\", \"{name}={}\"", self.path(file).display());
        let text = format!(
            "join = [{}]\ndata = \"{}\"\n[log]\nformat = \"text\"\nlevel = \"info\"\n[[remote]]\nmachine = \"far\"\n\
             destination = \"{}\"\noptions = [\"-F\", \"none\", \"-p\", \"{}\", {}, {}]\n{lines}\n",
            join.join(", "),
            self.path(name).display(),
            self.address,
            self.port,
            option("IdentityFile", "key"),
            option("UserKnownHostsFile", "known_hosts"),
        );
        let config = self.path(&format!("{name}.toml"));
        fs::write(&config, text).expect("written");
        let log = File::options().create(true).append(true).open(self.path(&format!("{name}.log"))).expect("a log");
        let mut command = Command::new(binary());
        if let Some(network) = &self.network {
            command.env("PATH", self.programs(network));
        }
        let process = command
            .args(["remote", "run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("it starts");
        self.near.push(Near { name: name.to_owned(), process });
    }

    /// Returns a path on which `ssh` is the system's, run where the cable begins.
    fn programs(&self, network: &Network) -> String {
        let dir = self.path("bin");
        fs::create_dir_all(&dir).expect("a directory");
        let path = std::env::var("PATH").expect("a path");
        let entering = network.command(NEAR, Path::new("env"));
        let words = entering.get_args().map(|word| word.to_str().expect("text"));
        let words: Vec<&str> = [entering.get_program().to_str().expect("text")].into_iter().chain(words).collect();
        let (script, ssh) = (format!("#!/bin/sh\nexec {} PATH={path} ssh \"$@\"\n", words.join(" ")), dir.join("ssh"));
        fs::write(&ssh, script).expect("written");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("set");
        format!("{}:{path}", dir.display())
    }

    /// Cuts the cable between ssh and the machine, or mends it. Without one it panics.
    pub(super) fn set_cable(&self, plugged: bool) {
        self.network.as_ref().expect("it has a cable").set_cable(FAR, plugged);
    }

    /// Returns whether the first near end lives.
    pub(super) fn near_lives(&mut self) -> bool {
        self.near.first_mut().is_some_and(|near| matches!(near.process.try_wait(), Ok(None)))
    }

    /// Kills the first near end.
    pub(super) fn kill_near(&mut self) {
        if !self.near.is_empty() {
            let mut near = self.near.remove(0);
            near.process.kill().ok();
            near.process.wait().ok();
        }
    }

    /// Returns what the near end said.
    pub(super) fn said(&self) -> String {
        self.said_by("near")
    }

    /// Returns what the near end of this name said.
    pub(super) fn said_by(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Sends a signal to every ssh of the first near end.
    pub(super) fn signal_ssh(&self, what: Signal) {
        let near = self.near.first().expect("it runs").process.id();
        let mut found = 0;
        for task in fs::read_dir(format!("/proc/{near}/task")).expect("it lives").flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                signal(child.parse().expect("a number"), what);
                found += 1;
            }
        }
        assert!(found > 0, "there is no ssh");
    }

    /// No login succeeds from now on.
    pub(super) fn close(&self) {
        fs::write(self.path("closed"), "").expect("written");
    }

    /// Logins succeed again.
    pub(super) fn open(&self) {
        fs::remove_file(self.path("closed")).expect("removed");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.near.iter().for_each(|near| println!("--- {}\n{}", near.name, self.said_by(&near.name)));
            println!("--- sshd\n{}", fs::read_to_string(self.path("sshd.log")).unwrap_or_default());
        }
        while !self.near.is_empty() {
            self.kill_near();
        }
        for shim in leaseward_node::live_shims(&self.path("run")) {
            signal(shim, Signal::KILL);
        }
        self.sshd.kill().ok();
        self.sshd.wait().ok();
    }
}
