//! The agent's socket: found without an address, private to root and the agent's user.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tokio::time::Instant;

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn leaseward(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leaseward"));
    command.env_clear().env("HOME", home).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_agent_of_this_machine_is_found_by_its_socket() {
    let home = tempfile::tempdir().expect("a directory");
    let (socket, settings) = (home.path().join("run/agent.sock"), home.path().join("leaseward.toml"));
    let ports: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let at = |i: usize| ports[i].local_addr().expect("bound");
    let text = format!(
        "[node]\nname = \"solo\"\nlisten = \"{}\"\npeer_listen = \"{}\"\nsocket = \"{}\"\ndata = \"{}\"\n[machine]\nenabled \
         = false\n",
        at(0),
        at(1),
        socket.display(),
        home.path().join("data").display()
    );
    fs::write(&settings, text).expect("written");
    drop(ports);
    // What a dead agent left behind is in nobody's way.
    fs::create_dir_all(socket.parent().expect("it has one")).expect("made");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
    let mut command = leaseward(home.path());
    command.args(["agent", "--config"]).arg(&settings).stderr(Stdio::null());
    let _agent = Agent(command.spawn().expect("it starts"));

    let status = |socket: &Path, more: &[&str]| -> Output {
        let mut command = leaseward(home.path());
        command.env("LEASEWARD_SOCKET", socket).args(["status", "-o", "field=.leader"]).args(more);
        command.output().expect("it starts")
    };
    let begun = Instant::now();
    let found = loop {
        let found = status(&socket, &[]);
        if found.status.success() || begun.elapsed() > Duration::from_secs(30) {
            break found;
        }
    };
    assert_eq!(String::from_utf8_lossy(&found.stdout), "solo\n", "{}", String::from_utf8_lossy(&found.stderr));
    let mode = fs::metadata(&socket).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let named = status(Path::new("/nonexistent"), &["--addr", &format!("unix:{}", socket.display())]);
    assert_eq!(String::from_utf8_lossy(&named.stdout), "solo\n");
    let elsewhere = status(&socket, &["--addr", "127.0.0.1:1"]);
    assert_eq!(elsewhere.status.code(), Some(6), "an address that is named comes first");
}
