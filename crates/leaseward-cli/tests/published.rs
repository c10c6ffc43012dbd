//! What is published is what was meant.

mod fake;

use std::fs;

use serde_json::json;

use crate::fake::{Fake, ok, refusal, set, stderr, version};

/// An API with version 3 of `app`, of one file, that takes what comes.
fn taking() -> Fake {
    Fake::start(|_, path| match path.split('?').next().unwrap_or_default() {
        "/v1/configs/app" => ok(&set("app", 3)),
        "/v1/blobs/missing" => ok(&json!({ "digests": [] })),
        "/v1/configs/app/publish" | "/v1/configs/new/publish" => ok(&version("app", 4)),
        "/v1/configs/app/policy" => ok(&json!({})),
        _ => refusal(404, "LW0404", "it does not exist"),
    })
}

fn published(fake: &Fake) -> usize {
    fake.asked().iter().filter(|asked| asked.ends_with("/publish")).count()
}

#[test]
fn nothing_takes_the_place_of_something_only_if_that_was_meant() {
    let fake = taking();
    fs::create_dir_all(fake.home.path().join("tree/empty")).expect("made");
    let asked = fake.run(&["config", "publish", "app", "--from", "tree"]);
    assert_eq!((asked.status.code(), published(&fake)), (Some(2), 0), "{}", stderr(&asked));
    assert!(stderr(&asked).contains("--yes"), "{}", stderr(&asked));
    // Nobody loses anything.
    for line in [["app", "--yes"], ["new", "--timeout=9s"]] {
        let done = fake.run(&["config", "publish", line[0], "--from", "tree", line[1]]);
        assert!(done.status.success(), "{}", stderr(&done));
    }
    assert_eq!(published(&fake), 2);
    fs::write(fake.home.path().join("tree/a"), "a").expect("written");
    assert!(fake.run(&["config", "publish", "app", "--from", "tree"]).status.success());
}

#[test]
fn a_tar_file_that_was_cut_off_is_not_published() {
    let fake = taking();
    let whole = fake.home.path().join("whole.tar");
    let mut archive = tar::Builder::new(fs::File::create(&whole).expect("made"));
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o644);
    archive.append_data(&mut header, "a", b"hi".as_slice()).expect("written");
    archive.into_inner().expect("written");
    let bytes = fs::read(&whole).expect("readable");
    fs::write(fake.home.path().join("cut.tar"), &bytes[..1024]).expect("written");
    fs::write(fake.home.path().join("none.tar"), "").expect("written");
    for tar in ["cut.tar", "none.tar"] {
        let refused = fake.run(&["config", "publish", "app", "--tar", tar, "--yes"]);
        assert_eq!((refused.status.code(), published(&fake)), (Some(1), 0), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("error LW0804"), "{}", stderr(&refused));
    }
    let done = fake.run(&["config", "publish", "app", "--tar", "whole.tar"]);
    assert!(done.status.success(), "{}", stderr(&done));
}

#[test]
fn a_set_beside_another_one_is_published_or_refused_never_left_out() {
    let fake = taking();
    for dir in ["tree", "other"] {
        fs::create_dir(fake.home.path().join(dir)).expect("made");
        fs::write(fake.home.path().join(dir).join("a"), dir).expect("written");
    }
    for beside in [
        ["--tar", "whole.tar", "--also", "new=other"],
        ["--from-member", "m1", "--also", "new=other"],
        ["--from", "tree", "--also", "app=other"],
    ] {
        let refused = fake.run(&[&["config", "publish", "app"], beside.as_slice()].concat());
        assert_eq!(refused.status.code(), Some(2), "{beside:?}: {}", stderr(&refused));
    }
    let twice =
        fake.run(&["config", "publish", "app", "--from", "tree", "--also", "new=other", "--also", "new@1=tree"]);
    assert_eq!(twice.status.code(), Some(2), "{}", stderr(&twice));
    assert_eq!(fake.asked(), [""; 0]);
}
