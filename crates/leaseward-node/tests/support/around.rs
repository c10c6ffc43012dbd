//! Ground to mount on, hooks that write down what they see, and the kernel's mount table.

use std::path::{Path, PathBuf};
use std::process::Command;

use leaseward_state::server::{Hook, HookStep, Mount, ServerSpec};

/// A file system of this test's own, so that nothing of the machine's is touched; gone when dropped, whatever is
/// mounted on it.
pub(crate) struct Ground(PathBuf);

impl Ground {
    pub(crate) fn new(stage: &Path) -> Self {
        let path = stage.join("ground");
        std::fs::create_dir(&path).unwrap();
        run("mount", &["-t", "tmpfs", "ground", path.to_str().unwrap()]);
        run("mount", &["--make-private", path.to_str().unwrap()]);
        Self(path)
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-R", "-l"]).arg(&self.0).output();
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns what is mounted at a place, in order.
pub(crate) fn mounted(at: &str) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at_place = table.lines().filter(|line| line.split(' ').nth(4) == Some(at));
    at_place.map(|line| line.split(" - ").nth(1).unwrap().to_owned()).collect()
}

pub(crate) fn tmpfs(device: &str, at: &str) -> Mount {
    Mount { device: device.into(), at: at.into(), fs_type: "tmpfs".into(), options: vec!["size=1m".into()] }
}

/// A shell script; `$1` is the step.
pub(crate) fn hook(script: &str, timeout_ms: u64) -> Hook {
    Hook { command: ["sh", "-c", script, "hook"].map(str::to_owned).to_vec(), timeout_ms }
}

/// Adds a script at each of these steps.
pub(crate) fn at_steps(spec: &mut ServerSpec, steps: &[HookStep], script: &str) {
    for step in steps {
        spec.hooks.insert(*step, hook(script, 5_000));
    }
}

pub(crate) fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}
