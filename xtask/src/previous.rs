//! The binary of an earlier commit, for `cargo xtask chaos --from-commit HEAD~1`: agents begin with it and are upgraded.
//!
//! Must stay true: it is built from that very commit, in a tree of its own below `target/previous`; the tree that one works in is left
//! alone. What it depends on is built once; a commit that was built is not built again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds a commit of this repository, if that is not done yet. Returns its binary, and what went wrong in words.
pub(crate) fn binary(root: &Path, target: &Path, commit: &str, profile: &str) -> Result<PathBuf, String> {
    let hash = git(root, &["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{commit}^{{commit}}")])
        .map_err(|_| format!("there is no commit `{commit}` here; of a shallow clone: `git fetch --unshallow`"))?;
    let home = target.join("previous");
    let built = home.join(format!("leaseward-{profile}-{hash}"));
    if built.is_file() {
        return Ok(built);
    }
    println!("== build {hash} ({profile})");
    let tree = home.join("tree");
    check_out(root, &tree, &hash)?;
    let out = home.join("build");
    let mut cargo = Command::new("cargo");
    // It has a toolchain file of its own.
    cargo.env_remove("RUSTUP_TOOLCHAIN").env("CARGO_TARGET_DIR", &out).current_dir(&tree);
    cargo.args(["build", "--locked", "-p", "leaseward-cli", "--bin", "leaseward"]);
    if profile == "release" {
        cargo.arg("--release");
    }
    if !cargo.status().is_ok_and(|status| status.success()) {
        return Err(format!("{hash} could not be built"));
    }
    // Under another name first: who finds it under its own finds all of it.
    let half = home.join("leaseward-half");
    fs::copy(out.join(profile).join("leaseward"), &half)
        .and_then(|_| fs::rename(&half, &built))
        .map_err(|error| format!("keep {}: {error}", built.display()))?;
    Ok(built)
}

/// Brings the tree to a commit. Files that are the same in both stay, with their times, so that cargo builds only what changed.
fn check_out(root: &Path, tree: &Path, hash: &str) -> Result<(), String> {
    // One that went with `cargo clean`.
    git(root, &["worktree", "prune"])?;
    if tree.join(".git").exists() {
        return git(tree, &["checkout", "--quiet", "--force", "--detach", hash]).map(drop);
    }
    let tree = tree.display().to_string();
    git(root, &["worktree", "add", "--quiet", "--force", "--detach", &tree, hash]).map(drop)
}

fn git(dir: &Path, words: &[&str]) -> Result<String, String> {
    let output = Command::new("git").args(words).current_dir(dir).output().map_err(|error| format!("git: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("git {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(dir: &Path, text: &str) -> String {
        fs::write(dir.join("file"), text).expect("written");
        git(dir, &["add", "file"]).expect("added");
        let me = ["-c", "user.name=a", "-c", "user.email=a@a.example"];
        git(dir, &[&me[..], &["commit", "--quiet", "-m", text]].concat()).expect("a commit");
        git(dir, &["rev-parse", "HEAD"]).expect("it has a name")
    }

    #[test]
    fn the_tree_is_that_of_the_commit_each_time_and_ours_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("leaseward-previous-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        git(&dir, &["init", "--quiet"]).expect("a repository");
        let (first, second) = (commit(&dir, "first"), commit(&dir, "second"));
        let tree = dir.join("target/previous/tree");
        let text = |tree: &Path| fs::read_to_string(tree.join("file")).unwrap_or_default();
        for (hash, wanted) in [(&first, "first"), (&second, "second"), (&first, "first")] {
            check_out(&dir, &tree, hash).expect("checked out");
            assert_eq!(text(&tree), wanted);
            assert_eq!(text(&dir), "second");
        }
        // As after `cargo clean`.
        fs::remove_dir_all(dir.join("target")).expect("removed");
        check_out(&dir, &tree, &first).expect("checked out");
        assert_eq!(text(&tree), "first");

        let unknown = binary(&dir, &dir.join("target"), "nobody", "debug").expect_err("nobody made it");
        assert!(unknown.contains("no commit `nobody`"), "{unknown}");
        // What was built before is not built again: here nothing could be.
        let built = dir.join(format!("target/previous/leaseward-debug-{first}"));
        fs::write(&built, "").expect("written");
        assert_eq!(binary(&dir, &dir.join("target"), "HEAD~1", "debug"), Ok(built));
        fs::remove_dir_all(&dir).ok();
    }
}
