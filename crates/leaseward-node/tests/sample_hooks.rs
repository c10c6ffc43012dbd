//! The sample hooks of `config/hooks`, run by a real shell with fakes of the programs that they call.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a fake program on the path. Each writes down how it was called.
    fn fake(&self, name: &str, script: &str) -> &Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let (calls, state) = (self.path("calls"), self.path("state"));
        let (calls, state) = (calls.display(), state.display());
        let program = name.rsplit('/').next().unwrap();
        let text = format!("#!/bin/sh\nstate={state}\necho {program} \"$@\" >> {calls}\n{script}\n");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Runs a sample; returns its code and what it called.
    fn run(&self, sample: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, Vec<String>) {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/hooks").join(sample);
        let _ = std::fs::remove_file(self.path("calls"));
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let mut command = Command::new("sh");
        command.arg(sample).args(arguments).env_clear().env("PATH", path);
        command
            .env("LEASEWARD_SERVER", "pay-1")
            .env("LEASEWARD_MOUNTS", "/srv/pay /srv/other")
            .envs(variables.to_vec());
        let code = command.output().unwrap().status.code().unwrap();
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        (code, calls.lines().map(str::to_owned).collect())
    }
}

#[test]
fn postgresql_is_ready_when_it_takes_writes() {
    let bench = Bench::new();
    bench.fake("bin/pg_isready", "[ -e $state ] || { touch $state; exit 1; }").fake("bin/psql", "echo f");
    let (code, calls) = bench.run("postgresql-ready", &["5433", "post_start"], &[("SERVER_IP", "192.0.2.7")]);
    let ready = "pg_isready -q -h 192.0.2.7 -p 5433";
    assert_eq!((code, calls[..2].to_vec()), (0, vec![ready.to_owned(), ready.to_owned()]));
    bench.fake("bin/psql", "echo t").fake("bin/sleep", "");
    let (code, calls) = bench.run("postgresql-ready", &["post_start"], &[]);
    assert_eq!((code, calls[0].as_str()), (6, "pg_isready -q -h 127.0.0.1 -p 5432"));
    std::fs::remove_file(bench.path("bin/psql")).unwrap();
    if !Path::new("/usr/bin/psql").exists() {
        assert_eq!(bench.run("postgresql-ready", &["post_start"], &[]).0, 2);
    }
}

#[test]
fn nfs_is_mounted_from_the_first_that_answers_and_never_forced_off() {
    let bench = Bench::new();
    let table = bench.path("table");
    let at = bench.path("at");
    let variables = [("NFS_MOUNT_TABLE", table.to_str().unwrap()), ("LEASEWARD_MOUNTS", at.to_str().unwrap())];
    let run = |step: &str| bench.run("nfs-mount", &["/export/pay", "nfs1", "nfs2", step], &variables);
    let is_there = |source: &str| std::fs::write(&table, format!("{source} {} nfs rw 0 0\n", at.display())).unwrap();
    std::fs::write(&table, "").unwrap();
    bench.fake("bin/mount", "case $5 in nfs2:*) exit 0 ;; esac; exit 32").fake("bin/umount", "exit 16");
    let (code, calls) = run("mount");
    assert_eq!((code, calls.len()), (0, 2));
    assert!(calls[1].starts_with("mount -t nfs -o vers=4.2,hard,timeo=50 nfs2:/export/pay "), "{calls:?}");
    assert_eq!(run("unmount").0, 4);
    is_there("nfs2:/export/pay");
    assert_eq!((run("mount"), run("unmount").0), ((4, vec![]), 5));
    bench.fake("bin/umount", "");
    let (code, calls) = run("unmount");
    assert_eq!((code, calls), (0, vec![format!("umount {}", at.display())]));
    is_there("tmpfs");
    assert_eq!(run("mount").0, 2);
    std::fs::write(&table, "").unwrap();
    bench.fake("bin/mount", "exit 32");
    assert_eq!(run("mount").0, 1);
}

#[test]
fn haproxy_is_drained_until_no_session_is_left() {
    let bench = Bench::new();
    bench.fake("bin/sleep", "").fake(
        "bin/socat",
        "read -r line; echo asked $line >> $(dirname $state)/calls
         case $line in 'show stat') if [ -e $state ]; then now=0; else now=3; touch $state; fi
             echo pay,FRONTEND,,,9,; echo pay,pay-1,0,0,$now,7 ;; esac",
    );
    let run = |step: &str| bench.run("haproxy-drain", &["/run/admin.sock", "pay/pay-1", step], &[]);
    let (code, calls) = run("pre_stop");
    let asked: Vec<_> = calls.iter().filter_map(|call| call.strip_prefix("asked ")).collect();
    assert_eq!((code, asked), (0, vec!["set server pay/pay-1 state drain", "show stat", "show stat"]));
    let (code, calls) = run("post_start");
    assert_eq!((code, calls.last().unwrap().as_str()), (0, "asked set server pay/pay-1 state ready"));
    bench.fake("bin/socat", "exit 1");
    assert_eq!(run("pre_stop").0, 1);
}

#[test]
fn ipmi_fences_only_once_the_power_is_off() {
    let bench = Bench::new();
    let run = || bench.run("fence-ipmi", &["bmc-b", "fence"], &[("IPMI_PASSWORD", "secret"), ("IPMI_TRIES", "3")]);
    bench.fake("bin/sleep", "").fake(
        "bin/ipmitool",
        "[ \"$IPMI_PASSWORD\" = secret ] || exit 9
         case \"$*\" in *off) touch $state ;; *) [ -e $state ] && echo Chassis Power is off || echo Chassis Power is on ;;
         esac",
    );
    let (code, calls) = run();
    assert_eq!((code, calls.len()), (0, 3));
    assert!(calls.iter().all(|call| !call.contains("secret")), "{calls:?}");
    assert_eq!(run().1.len(), 1, "it is off already");
    bench.fake("bin/ipmitool", "case \"$*\" in *off) ;; *) echo Chassis Power is on ;; esac");
    assert_eq!(run().0, 1);
    bench.fake(
        "bin/ipmitool",
        "case \"$*\" in *off) touch $state.ordered ;; *) [ -e $state.ordered ] && exit 1; echo is on ;; esac",
    );
    assert_eq!(run().0, 6);
    bench.fake("bin/ipmitool", "echo invalid password; exit 1");
    assert_eq!(run().0, 3);
}

#[test]
fn an_ocf_agent_is_started_looked_at_and_stopped() {
    let bench = Bench::new();
    let root = bench.path("ocf");
    bench.fake(
        "ocf/resource.d/test/Fake",
        "[ \"$OCF_RESKEY_size\" = '1 GiB' ] && [ \"$OCF_RESOURCE_INSTANCE\" = pay-1 ] || exit 6
         case $1 in
             start) touch $state ;;
             stop) [ -e $state ] || exit 7; rm $state ;;
             monitor) [ -e $state ] || exit 7 ;;
             validate-all) exit 5 ;;
         esac",
    );
    let run = |agent: &str, step: &str, size: &str| {
        let (code, calls) = bench.run("ocf", &[agent, size, step], &[("OCF_ROOT", root.to_str().unwrap())]);
        (code, calls.iter().filter_map(|call| call.strip_prefix("Fake ")).collect::<Vec<_>>().join(" "))
    };
    let (good, said) = ("size=1 GiB", |code, calls: &str| (code, calls.to_owned()));
    assert_eq!(run("test:Fake", "post_start", good), said(1, "monitor"));
    assert_eq!(run("test:Fake", "pre_start", good), said(0, "monitor start"));
    assert_eq!(run("test:Fake", "pre_start", good), said(4, "monitor"), "started twice");
    assert_eq!(run("test:Fake", "post_start", good), said(0, "monitor"));
    assert_eq!(run("test:Fake", "post_stop", good), said(0, "stop"));
    assert_eq!(run("test:Fake", "post_stop", good), said(4, "stop"));
    assert_eq!(run("test:Fake", "prepare", good), said(2, "validate-all"));
    assert_eq!(run("test:Fake", "pre_start", "size=2"), said(3, "monitor start"));
    assert_eq!(run("test:None", "pre_start", good).0, 2);
}
