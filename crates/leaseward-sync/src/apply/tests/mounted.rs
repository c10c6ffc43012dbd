//! Stories of file systems that are mounted inside a set's directory, or in a tree beside it.

use super::*;
use crate::mounts::testing::Mount;

fn ignoring(applier: &mut Applier) {
    applier.keep(Patterns::new(&["data".to_owned()]).unwrap(), None);
}

/// Mounts something at `relative` of the machine, with a file in it.
fn mounted(machine: &Machine, relative: &str) -> Option<(Mount, PathBuf)> {
    let file = machine.temp.path().join(relative).join("deep/precious");
    let mount = Mount::at(&machine.temp.path().join(relative))?;
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::write(&file, "precious").unwrap();
    Some((mount, file))
}

#[test]
fn a_directory_in_which_something_is_mounted_is_not_switched() {
    let machine = Machine::new();
    let mut applier = machine.open();
    ignoring(&mut applier);
    put(&mut applier, 1, &Published::new(&[("a", "1")])).unwrap();
    let two = Published::new(&[("a", "2")]);
    let at = machine.path("data");
    let Some((mount, file)) = mounted(&machine, "etc/app/data") else { return };
    let error = put(&mut applier, 2, &two).unwrap_err();
    assert!(error.code() == "LW0805" && error.is_retryable(), "{error}");
    assert!(error.to_string().starts_with(at.canonicalize().unwrap().to_str().unwrap()), "{error}");
    assert_eq!(
        (fs::read_to_string(&file).unwrap().as_str(), machine.siblings().as_slice()),
        ("precious", &["app".to_owned()][..])
    );
    drop(mount);
    put(&mut applier, 2, &two).unwrap();
    // Mounted once the version stands beside the live one: nothing is moved, either.
    applier.stage(3, &Published::new(&[]).manifest, &mut |_| panic!("it has no files")).unwrap();
    let Some((mount, file)) = mounted(&machine, "etc/app/data") else { return };
    assert_eq!(applier.switch().unwrap_err().code(), "LW0805");
    assert_eq!(
        (fs::read_to_string(&file).unwrap().as_str(), fs::read_to_string(machine.path("a")).unwrap().as_str()),
        ("precious", "2")
    );
    assert_eq!(applier.live().unwrap().version, 2);
    drop(mount);
    put(&mut applier, 3, &Published::new(&[])).unwrap();
}

#[test]
fn what_is_mounted_in_a_tree_that_is_to_go_outlives_it() {
    for name in ["prev", "gone", "next"] {
        let machine = Machine::new();
        let mut applier = machine.open();
        put(&mut applier, 1, &Published::new(&[("a", "1")])).unwrap();
        put(&mut applier, 2, &Published::new(&[("a", "2")])).unwrap();
        drop(applier);
        let Some((mount, file)) = mounted(&machine, &format!("etc/.app.leaseward-{name}/data")) else { return };
        let outcome =
            Applier::open(&machine.dirs).and_then(|mut applier| put(&mut applier, 3, &Published::new(&[("a", "3")])));
        assert_eq!(outcome.unwrap_err().code(), "LW0805", "{name}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious", "{name}");
        assert_eq!(fs::read_to_string(machine.path("a")).unwrap(), "2", "{name}");
        let beside = Dir::open(&machine.temp.path().join("etc")).unwrap();
        assert_eq!(beside.remove_tree(format!(".app.leaseward-{name}")).unwrap_err().code(), "LW0805", "{name}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious", "{name}");
        drop(mount);
        put(&mut machine.open(), 3, &Published::new(&[("a", "3")])).unwrap();
    }
}
