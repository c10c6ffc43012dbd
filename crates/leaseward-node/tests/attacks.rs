//! The fence under attack: whatever is killed or stopped, nothing of a server runs after its deadline.
//!
//! Every cell starts servers that resist (threads, children, daemons, daemons that fork on and on), attacks agent,
//! shim and init, and reads from the victims' stamps when their last instruction ran. As an ordinary user what needs
//! root is left out, and says so; as root everything runs, also as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use leaseward_node::BootInstant;
use leaseward_node::attack::{Arena, Cell, Fault, MATRIX, PACKETS, PACKETS_UNFENCED, verdict};
use leaseward_state::server::FenceLevel;
use rustix::process::Signal;
use support::{NOBODY, PATIENCE, Stage, alone, is_root, open, signal, wait_for_end};

/// Makes a shim that only its own loop ends.
const MUTANT: &str = "--mutant-without-kernel-timer";

/// Servers in one cell. `leaseward doctor --fence --trials 100` runs more of them.
const TRIALS: usize = 20;

fn matrix(level: &str, user: Option<u32>, epsilon_max: Duration) {
    let stage = Stage::new(user);
    let arena = Arena::new(stage.lab(), stage.path().to_owned(), user).unwrap();
    let mut worst = f64::MIN;
    for attack in &MATRIX {
        let trials = match arena.cell(attack, TRIALS, &AtomicBool::new(false)) {
            Ok(trials) => trials,
            Err(Fault::LeftOut(why)) => {
                println!("LEFT OUT: {level}, {}: {why}", attack.name);
                continue;
            }
            Err(fault) => panic!("{level}, {}: {fault}", attack.name),
        };
        assert!(trials.iter().all(|trial| trial.real_time == (level == "F2")), "real-time class of the shim");
        let cell = Cell::of(attack.name, &trials);
        println!("{level}: {cell:?}");
        assert_eq!(cell.survivors, 0, "{level}: {cell:?}");
        worst = worst.max(cell.epsilon_max_ms);
    }
    println!("{level}: worst epsilon {worst:.2} ms of {} ms allowed", epsilon_max.as_millis());
    assert!(worst <= epsilon_max.as_secs_f64() * 1e3, "{level}: an instruction ran {worst} ms after its deadline");
    assert_eq!(std::fs::read_dir(stage.path()).unwrap().count(), 1, "only the lab itself stays");
}

#[test]
fn as_root_nothing_survives_its_deadline_by_a_tenth_of_a_second() {
    let _alone = alone();
    if !is_root() {
        println!("LEFT OUT: level F2 needs root");
        return;
    }
    matrix("F2", None, Duration::from_millis(100));
}

#[test]
fn as_an_ordinary_user_nothing_survives_its_deadline_by_two_seconds() {
    let _alone = alone();
    let user = is_root().then_some(NOBODY);
    let level = Stage::new(user).play(&["level"]).line();
    if level == "F0" {
        println!("LEFT OUT: level F1 needs user namespaces for ordinary users; this machine grants none");
        return;
    }
    matrix("F1", user, Duration::from_secs(2));
}

#[test]
fn a_shim_without_the_kernels_timer_lets_its_server_survive() {
    let _alone = alone();
    if !cfg!(debug_assertions) {
        println!("LEFT OUT: the mutant exists in debug builds only");
        return;
    }
    // The same attacks as above must notice: a stopped guard guards nothing.
    let stage = Stage::new(None);
    let mut player =
        stage.play(&["attack", "agent", stage.path().to_str().unwrap(), "1", "400", "1000", "full", MUTANT]);
    player.wait_until_ready();
    stage.stamps_of_all(0);
    signal(player.pid(), Signal::STOP);
    let status = stage.ask_shim("pay-0");
    let process = open(status.init);
    signal(status.shim, Signal::STOP);
    let after = status.deadline.saturating_since(BootInstant::now()) + Duration::from_millis(200);
    assert_eq!(wait_for_end(&process, after), None, "the mutant's server ended at its deadline all the same");
    assert!(stage.survivors(0) >= 3);
    // And going on, it ends by its own loop.
    signal(status.shim, Signal::CONT);
    wait_for_end(&process, PATIENCE).expect("the mutant's own guard");
    assert_eq!(stage.survivors(0), 0);
    player.kill();

    // So do those who run the matrix; and they leave nobody behind.
    let stage = Stage::new(None);
    let arena = Arena::new(stage.lab(), stage.path().to_owned(), None).unwrap().with_shim_argument(MUTANT);
    let attack = MATRIX.iter().find(|attack| attack.name == "agent stopped, shim stopped").unwrap();
    let cell = Cell::of(attack.name, &arena.cell(attack, 1, &AtomicBool::new(false)).unwrap());
    assert!(cell.survivors >= 3, "{cell:?}");
    assert_eq!(verdict(FenceLevel::F2, &[cell]).level, FenceLevel::F0);
    let exe = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == stage.lab());
    let running =
        std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| exe(&entry.file_name().to_string_lossy()));
    assert_eq!(running.count(), 0, "somebody is left");
}

/// Every address at which packets are sent, and the ways through each: out, in, and whether it is answered for.
const WAYS: usize = 2 * 3;

#[test]
fn no_packet_of_a_fenced_address_crosses_after_its_deadline() {
    let _alone = alone();
    let stage = Stage::new(None);
    let arena = Arena::new(stage.lab(), stage.path().to_owned(), None).unwrap();
    let attack = |attack, trials| arena.cell(attack, trials, &AtomicBool::new(false));
    let trials = match attack(&PACKETS, TRIALS) {
        Ok(trials) => trials,
        Err(Fault::LeftOut(why)) => {
            println!("LEFT OUT: level F3: {why}");
            assert!(!is_root() || why.contains("nft") || why.contains("ip"), "{why}");
            return;
        }
        Err(fault) => panic!("{fault}"),
    };
    let cell = Cell::of(PACKETS.name, &trials);
    println!("F3: {cell:?}");
    let earned = verdict(FenceLevel::F2, &[]).with_packets(Ok(&cell));
    assert_eq!((cell.survivors, earned.level), (0, FenceLevel::F3), "{cell:?} {earned:?}");

    // The same attack must notice where nothing stops them.
    let cell = Cell::of(PACKETS.name, &attack(&PACKETS_UNFENCED, 1).unwrap());
    assert_eq!(cell.survivors, WAYS, "{cell:?}");
    assert_eq!(verdict(FenceLevel::F2, &[]).with_packets(Ok(&cell)).level, FenceLevel::F2);
}
