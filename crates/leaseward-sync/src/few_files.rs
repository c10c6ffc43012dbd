//! Runs a test again as a process of its own that may not have many files open: the limit is for all threads of one.

use std::process::Command;

/// Tells the process that it is the one with the limit.
const MARK: &str = "LEASEWARD_TEST_FEW_FILES";

/// Returns whether this process may have no more than `most` files open. If not, runs the test `name` in one that may not,
/// which must pass.
pub(crate) fn are_allowed(most: usize, name: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let script = format!("ulimit -n {most} && exec \"$0\" --exact \"$1\" --nocapture --test-threads=1");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(std::env::current_exe().expect("it runs")).arg(name).env(MARK, "1");
    let output = command.output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "no test is called {name}: {said}");
    false
}
