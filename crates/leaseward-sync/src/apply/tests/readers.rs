//! What a program sees that opens the directory once while versions flip.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

const FILES: usize = 20;

/// What one look at the tree saw.
#[derive(Debug, PartialEq)]
enum Seen {
    One(String),
    Torn,
    /// The version that was opened is gone already; the reader opens again.
    Missing,
}

/// Opens the directory once and reads every file through it.
fn look(target: &Path) -> Seen {
    let Ok(dir) = Dir::open(target) else { return Seen::Missing };
    let mut seen: Option<String> = None;
    for i in 0..FILES {
        let mut text = String::new();
        let Ok(mut file) = dir.file(format!("f{i}")) else { return Seen::Missing };
        file.read_to_string(&mut text).unwrap();
        if seen.as_ref().is_some_and(|seen| *seen != text) {
            return Seen::Torn;
        }
        seen = Some(text);
    }
    Seen::One(seen.unwrap())
}

fn version(n: usize) -> Published {
    let names: Vec<String> = (0..FILES).map(|i| format!("f{i}")).collect();
    let text = n.to_string();
    Published::new(&names.iter().map(|name| (name.as_str(), text.as_str())).collect::<Vec<_>>())
}

#[test]
fn a_reader_that_opens_the_directory_once_sees_one_version() {
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &version(1)).unwrap();
    let (done, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                match look(&machine.dirs.target) {
                    Seen::One(_) => looks.fetch_add(1, Ordering::Relaxed),
                    Seen::Missing => 0,
                    Seen::Torn => panic!("two versions in one look"),
                };
            }
        });
        for n in 2..=201 {
            put(&mut applier, n as u64, &version(n)).unwrap();
            assert_eq!(look(&machine.dirs.target), Seen::One(n.to_string()));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(looks.load(Ordering::Relaxed) > 200, "the reader hardly ran");
}

#[test]
fn the_look_has_teeth_it_catches_a_writer_that_renames_file_by_file() {
    let temp = tempfile::tempdir().unwrap();
    let target = temp.path().join("app");
    fs::create_dir(&target).unwrap();
    let flip = |n: usize| {
        for i in 0..FILES {
            fs::write(temp.path().join("tmp"), n.to_string()).unwrap();
            fs::rename(temp.path().join("tmp"), target.join(format!("f{i}"))).unwrap();
        }
    };
    flip(0);
    let torn = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..1_000_000 {
                if look(&target) == Seen::Torn {
                    torn.store(true, Ordering::Relaxed);
                    return;
                }
            }
        });
        (1..100_000).take_while(|_| !torn.load(Ordering::Relaxed)).for_each(flip);
    });
    assert!(torn.load(Ordering::Relaxed), "a torn tree was not noticed");
}
