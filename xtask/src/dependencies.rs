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
        Some(metadata) => judge(&metadata),
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
        let metadata = |name: &str, licence: &str| json!({ "packages": [{ "name": name, "source": "registry", "license": licence, "dependencies": [] }] });
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
}
