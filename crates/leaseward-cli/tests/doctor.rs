//! `leaseward doctor` on this machine: as whoever runs the tests and, as root, also as an ordinary user.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use tokio::time::Instant;

/// Whatever is waited for must come within this.
const PATIENCE: Duration = Duration::from_secs(120);

/// The user that stands for everybody without privileges.
const NOBODY: u32 = 65_534;

/// Victims keep both of a small machine's processors busy: one story at a time.
static STORY: Mutex<()> = Mutex::new(());

/// A copy of the program that everybody may run: by its path whoever runs it is found.
struct Stage {
    dir: tempfile::TempDir,
    user: Option<u32>,
}

impl Stage {
    fn new(user: Option<u32>) -> Self {
        let dir = tempfile::Builder::new().prefix("lw").tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
        fs::copy(env!("CARGO_BIN_EXE_leaseward"), dir.path().join("leaseward")).expect("copied");
        let data = dir.path().join("data");
        fs::create_dir(&data).expect("made");
        std::os::unix::fs::chown(&data, user, user).expect("given");
        Self { dir, user }
    }

    fn exe(&self) -> PathBuf {
        self.dir.path().join("leaseward")
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn start(&self, line: &str) -> Child {
        let mut command = Command::new(self.exe());
        command.args(line.split(' ')).args(["--data".as_ref(), self.data().as_os_str()]);
        command.env_clear().env("HOME", self.data()).current_dir("/").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command.spawn().expect("it starts")
    }

    fn run(&self, line: &str) -> Output {
        let output = self.start(line).wait_with_output().expect("it ends");
        assert_eq!(fs::read_dir(self.data()).expect("there").count(), 0, "{line} leaves files");
        output
    }

    /// Returns who runs the program now, by command line.
    fn running(&self) -> Vec<String> {
        running(&self.exe())
    }
}

fn running(exe: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("mounted").flatten();
    let ours = processes.filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|found| found == exe));
    ours.map(|entry| String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default()).into_owned())
        .collect()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a story as the tests' own user and, as root, as an ordinary one.
fn as_each(story: impl Fn(&Stage, bool)) {
    let _alone = STORY.lock().unwrap_or_else(PoisonError::into_inner);
    if geteuid().is_root() {
        story(&Stage::new(None), true);
        story(&Stage::new(Some(NOBODY)), false);
    } else {
        println!("LEFT OUT: what root gets");
        story(&Stage::new(None), false);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the level that this user gets here, by what the checks say.
fn has_namespaces(stage: &Stage) -> bool {
    let output = stage.run("doctor -o json");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let items = said["items"].as_array().expect("a list").clone();
    items.iter().any(|item| item["name"] == "namespaces" && item["state"] != "failed")
}

#[test]
fn each_check_has_a_state_a_fact_and_advice_where_something_is_wrong() {
    as_each(|stage, root| {
        let output = stage.run("doctor -o json");
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let items = said["items"].as_array().expect("a list");
        let state = |name: &str| {
            let item = items.iter().find(|item| item["name"] == name);
            item.unwrap_or_else(|| panic!("no {name} in {said}"))["state"].as_str().expect("a word").to_owned()
        };
        for name in
            ["data", "fdatasync", "space", "namespaces", "cgroup", "open files", "network fence", "watchdog", "fence"]
        {
            assert!(["ok", "warning", "failed"].contains(&state(name).as_str()), "{name}: {said}");
        }
        assert_eq!((state("clocks"), state("data")), ("ok".into(), "ok".into()), "{said}");
        for item in items {
            assert!(item["fact"].as_str().is_some_and(|fact| !fact.is_empty()), "{item}");
            assert_eq!(item["state"] == "ok", item["advice"] == "", "{item}");
        }
        if !root {
            assert_eq!((state("mlock"), state("network fence")), ("warning".into(), "warning".into()), "{said}");
        }
        let failed = items.iter().any(|item| item["state"] == "failed");
        assert_eq!(output.status.code(), Some(i32::from(failed)), "{said}");
        assert_eq!(said["healthy"], !failed);
        let table = stage.run("doctor");
        assert!(text(&table.stdout).starts_with("CHECK"), "{}", text(&table.stdout));
        assert!(stage.running().is_empty());
    });
}

#[test]
fn the_fence_holds_against_every_attack_and_leaves_no_process() {
    as_each(|stage, root| {
        let output = stage.run("doctor --fence --trials 1 -o json");
        assert_eq!(stage.running(), Vec::<String>::new());
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&said), ["cells", "level", "network_fence", "suspend", "watchdog", "why_not_next"]);
        let (fence, dog) = (&said["network_fence"], &said["watchdog"]);
        assert!(dog["measured"] == false && dog["fact"].as_str().expect("text").contains("--watchdog"), "{said}");
        let why = said["suspend"]["left_out"].as_str().expect("nobody asked for it").to_owned();
        assert_eq!(said["suspend"]["measured"], false);
        let reasons = ["no suspend", "nothing would wake", "cannot be written", "--suspend", "no server can be fenced"];
        assert!(reasons.iter().any(|reason| why.contains(reason)), "{why}");
        if !has_namespaces(stage) {
            println!("LEFT OUT: this user gets no namespaces here");
            assert_eq!((said["level"].as_str(), output.status.code()), (Some("F0"), Some(1)));
            return;
        }
        let cells = said["cells"].as_array().expect("a list");
        let left_out = text(&output.stderr).lines().filter(|line| line.starts_with("left out: ")).count();
        assert_eq!(cells.len() + left_out, 11, "{said} {}", text(&output.stderr));
        for cell in cells {
            assert_eq!(keys(cell), ["attack", "epsilon_max_ms", "epsilon_p50_ms", "survivors", "trials"]);
            assert_eq!((&cell["trials"], &cell["survivors"]), (&1.into(), &0.into()), "{cell}");
            assert!(cell["epsilon_max_ms"].as_f64().is_some_and(|ms| ms <= 2_000.0), "{cell}");
        }
        let level = said["level"].as_str().expect("a level");
        if root && has_nft() {
            assert_eq!(
                (&fence["measured"], &fence["trials"], &fence["survivors"]),
                (&true.into(), &1.into(), &0.into())
            );
            assert!(["F1", "F2", "F3"].contains(&level), "{said}");
        } else {
            assert_eq!(fence["measured"], false);
            let why = fence["left_out"].as_str().expect("a reason");
            assert!(root || why.contains("run as root"), "{why}");
            assert!(level == "F1" || (root && level == "F2"), "{said}");
        }
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    });
}

fn has_nft() -> bool {
    ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].iter().any(|path| Path::new(path).exists())
}

#[test]
fn a_watchdog_is_looked_at_and_never_measured() {
    as_each(|stage, _| {
        let file = stage.dir.path().join("dog");
        fs::write(&file, "").expect("written");
        std::os::unix::fs::chown(&file, stage.user, stage.user).expect("given");
        let settings = stage.dir.path().join("agent.toml");
        fs::write(&settings, format!("[machine]\nwatchdog = {file:?}\n")).expect("written");
        for line in [format!("doctor --watchdog {}", file.display()), format!("doctor --config {}", settings.display())]
        {
            let table = text(&stage.run(&line).stdout);
            let dog = table.lines().find(|line| line.starts_with("watchdog")).expect("a line").to_owned();
            assert!(dog.contains("ok") && dog.contains("not measured") && dog.contains("no device"), "{table}");
        }
        assert_eq!(fs::read(&file).expect("there"), b"", "it was petted");
        let output = stage.run("doctor --watchdog /dev/null -o json");
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let items = said["items"].as_array().expect("a list");
        let dog = items.iter().find(|item| item["name"] == "watchdog").expect("an item");
        assert_eq!((dog["state"].as_str(), output.status.code()), (Some("failed"), Some(1)), "{dog}");
    });
}

#[test]
fn a_plan_is_told_and_a_budget_ends_it_with_a_result_of_each_attack() {
    as_each(|stage, _| {
        if !has_namespaces(stage) {
            println!("LEFT OUT: this user gets no namespaces here");
            return;
        }
        let output = stage.run("doctor --fence --trials 1000 --budget 12s -o json");
        let (said, errors): (Value, _) = (serde_json::from_slice(&output.stdout).expect("JSON"), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "fewer than asked: {errors}");
        assert!(errors.contains(" attacks, 1000 trials of each: about "), "{errors}");
        assert!(errors.contains("the budget is over"), "{errors}");
        let trials: Vec<u64> =
            said["cells"].as_array().expect("a list").iter().filter_map(|cell| cell["trials"].as_u64()).collect();
        let (least, most) = (trials.iter().min().expect("a cell"), trials.iter().max().expect("a cell"));
        assert!(most - least <= 4 && *most < 1_000, "the cells do not grow together: {trials:?}");
        assert_eq!(stage.running(), Vec::<String>::new());
    });
}

#[test]
fn interrupted_or_killed_it_leaves_no_process() {
    as_each(|stage, _| {
        if !has_namespaces(stage) {
            println!("LEFT OUT: this user gets no namespaces here");
            return;
        }
        for how in [Signal::INT, Signal::KILL] {
            let mut doctor = stage.start("doctor --fence --trials 1000");
            wait_for("victims", || stage.running().iter().any(|line| line.contains("attack\0part\0")));
            kill_process(Pid::from_raw(doctor.id().cast_signed()).expect("a process"), how).expect("sent");
            let code = doctor.wait().expect("it ends").code();
            if how == Signal::INT {
                assert_eq!(code, Some(130));
                assert_eq!(stage.running(), Vec::<String>::new());
                assert_eq!(fs::read_dir(stage.data()).expect("there").count(), 0, "it leaves files");
                let mut said = String::new();
                doctor.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
                assert!(said.contains("LW0341"), "{said}");
            }
            // Nobody was left to clean up; but every server had a deadline.
            wait_for("the last process", || stage.running().is_empty());
        }
    });
}
