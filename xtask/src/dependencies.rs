//! The walls between crates, and what may come from outside.
//!
//! Must stay true: arrows only point down and siblings never import one another; the pure floor depends on nothing that
//! knows a clock or a socket; nothing in the default build needs cmake, OpenSSL or a foreign licence.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Each of our crates with the ones that it may import.
const FLOORS: &[(&str, &[&str])] = &[
    ("leaseward-state", &[]),
    ("leaseward-raft", &["leaseward-state"]),
    ("leaseward-failover", &["leaseward-state"]),
    ("leaseward-node", &["leaseward-state"]),
    ("leaseward-sync", &["leaseward-state"]),
    ("leaseward", &["leaseward-state", "leaseward-raft", "leaseward-failover", "leaseward-node", "leaseward-sync"]),
    ("leaseward-http", &["leaseward", "leaseward-state", "leaseward-raft", "leaseward-failover", "leaseward-sync"]),
    (
        "leaseward-cli",
        &[
            "leaseward",
            "leaseward-http",
            "leaseward-state",
            "leaseward-raft",
            "leaseward-failover",
            "leaseward-node",
            "leaseward-sync",
        ],
    ),
    ("xtask", &[]),
];

/// What the pure floor may import from outside.
const PURE: &[&str] = &["imbl", "serde", "thiserror"];

/// Packages that must not be in the build, and why.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "a fresh Debian with gcc must do"),
    ("aws-lc-sys", "a fresh Debian with gcc must do"),
    ("cmake", "a fresh Debian with gcc must do"),
    ("serde_yaml", "unsound and unmaintained"),
    ("async-std", "unmaintained"),
];

/// Where packages may come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Licences that may be in the binary.
const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "CC0-1.0",
    "MPL-2.0",
    "MPL-2.0+",
    "BSL-1.0",
    "0BSD",
    "Unlicense",
    "MIT-0",
];

/// Returns what is wrong, in words.
pub(crate) fn problems(root: &Path) -> Vec<String> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output();
    let metadata: Option<Value> = output
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| serde_json::from_slice(&output.stdout).ok());
    match metadata {
        Some(metadata) => {
            // For people: each costs time and bytes, none is wrong.
            println!("packages that stand twice: {}", twice(&metadata).join(", "));
            judge(&metadata)
        }
        None => vec!["cargo metadata --locked fails: is Cargo.lock up to date?".into()],
    }
}

fn judge(metadata: &Value) -> Vec<String> {
    let none = Vec::new();
    let mut problems = Vec::new();
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    for package in metadata["packages"].as_array().unwrap_or(&none) {
        let name = package["name"].as_str().unwrap_or_default();
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            problems.push(format!("{name} is in the build: {why}"));
        }
        let ours = package["source"].is_null();
        if !ours && !package["source"].as_str().is_some_and(|source| source.starts_with(CRATES_IO)) {
            problems.push(format!("{name} comes from {}, not from crates.io", package["source"]));
        }
        if !ours && !is_allowed(package["license"].as_str().unwrap_or_default()) {
            problems.push(format!("{name} has the licence {}", package["license"]));
        }
        let Some(allowed) = floors.get(name).filter(|_| ours) else { continue };
        for dependency in package["dependencies"].as_array().unwrap_or(&none) {
            let kind = dependency["kind"].as_str().unwrap_or("normal");
            let imported = dependency["name"].as_str().unwrap_or_default();
            let ours = imported.starts_with("leaseward");
            if kind == "normal" && ours && !allowed.contains(&imported) {
                problems.push(format!("{name} imports {imported}: arrows only point down, and siblings never meet"));
            }
            if kind == "normal" && name == "leaseward-state" && !PURE.contains(&imported) {
                problems.push(format!("leaseward-state imports {imported}: it is pure"));
            }
        }
    }
    problems
}

/// Returns the packages of which there is more than one version, by name.
fn twice(metadata: &Value) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (name, version) = (package["name"].as_str(), package["version"].as_str());
        versions.entry(name.unwrap_or_default()).or_default().insert(version.unwrap_or_default());
    }
    let several = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
    several.map(|(name, versions)| format!("{name} {}", Vec::from_iter(versions).join(" and "))).collect()
}

/// Returns whether a licence expression can be met with allowed licences.
fn is_allowed(expression: &str) -> bool {
    let allowed: BTreeSet<&str> = LICENCES.iter().copied().collect();
    let any_of = |part: &str| {
        part.split(" OR ").any(|one| {
            one.trim_matches(|c: char| "() ".contains(c)).split(" AND ").all(|one| {
                allowed.contains(one.trim_matches(|c: char| "() ".contains(c)).trim_end_matches(" WITH LLVM-exception"))
            })
        })
    };
    let expression = expression.replace('/', " OR ");
    expression.split(") AND (").all(any_of) || expression.split(" AND ").all(any_of)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, imports: &[&str]) -> Value {
        let dependencies: Vec<_> = imports.iter().map(|name| json!({ "name": name, "kind": null })).collect();
        json!({ "packages": [{ "name": name, "source": null, "license": null, "dependencies": dependencies }] })
    }

    #[test]
    fn an_arrow_to_a_sibling_or_upwards_is_found() {
        assert_eq!(judge(&package("leaseward-raft", &["leaseward-state", "tokio"])), Vec::<String>::new());
        assert_eq!(judge(&package("leaseward-raft", &["leaseward-sync"])).len(), 1);
        assert_eq!(judge(&package("leaseward-state", &["leaseward"])).len(), 2);
        assert_eq!(judge(&package("leaseward-state", &["tokio"])).len(), 1);
    }

    #[test]
    fn a_banned_package_and_a_strange_licence_are_found() {
        let metadata = |name: &str, licence: &str| json!({ "packages": [{ "name": name, "source": CRATES_IO, "license": licence, "dependencies": [] }] });
        assert_eq!(judge(&metadata("openssl-sys", "MIT")).len(), 1);
        assert_eq!(judge(&metadata("x", "GPL-3.0")).len(), 1);
        for good in [
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(judge(&metadata("x", good)), Vec::<String>::new(), "{good}");
        }
    }

    #[test]
    fn a_package_from_elsewhere_is_found() {
        let source = "git+https://example.org/x";
        let package = json!({ "name": "x", "source": source, "license": "MIT", "dependencies": [] });
        assert_eq!(judge(&json!({ "packages": [package] })).len(), 1);
    }

    #[test]
    fn packages_that_stand_twice_are_named() {
        let of = |name: &str, version: &str| json!({ "name": name, "version": version });
        let metadata = json!({ "packages": [of("a", "1.0.0"), of("b", "1.0.0"), of("a", "2.0.0")] });
        assert_eq!(twice(&metadata), ["a 1.0.0 and 2.0.0"]);
    }
}
