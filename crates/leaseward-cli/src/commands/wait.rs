//! `leaseward wait`: a barrier for scripts.
//!
//! Must stay true: nobody is let through for content that was taken back; what can come true no more fails at once.

use leaseward_http::model::{
    ClusterStatus, ConfigSet, ConfigVersion, ConfigVersionList, Health, Lease, LeaseState, MemberSyncList, Server,
    SyncPhase,
};

use crate::commands::operation;
use crate::diagnostic::Diagnostic;
use crate::route::Route;
use crate::session::Session;

pub(crate) async fn run(session: &Session, condition: &str) -> Result<(), Diagnostic> {
    if let Some(id) = condition.strip_prefix("op/") {
        let id = id.parse().map_err(|_| {
            Diagnostic::new("LW0104", format!("`{condition}` is not an operation"))
                .hint("op/57, as --no-wait prints it")
        })?;
        return operation::follow(session, id).await;
    }
    let bad = || {
        Diagnostic::new("LW0104", format!("`{condition}` is not a condition"))
            .hint("server/NAME=running, config/SET=synced[@VERSION], lease/NAME=free, lease/NAME=held, cluster=healthy, op/ID")
    };
    let (object, state) = condition.split_once('=').ok_or_else(bad)?;
    let (kind, name) = object.split_once('/').unwrap_or((object, ""));
    if kind == "config" {
        let version = asked_version(state).ok_or_else(bad)?;
        return session.until(condition, || is_synced(session, name, version)).await;
    }
    let route = match (kind, state) {
        ("server", _) => Route::server(name)?,
        ("lease", "free" | "held") => Route::lease(name)?,
        ("cluster", "healthy") => Route::from("/v1/cluster"),
        _ => return Err(bad()),
    };
    session.until(condition, || holds(session, &route, kind, state)).await
}

async fn holds(session: &Session, route: &Route, kind: &str, state: &str) -> Result<bool, Diagnostic> {
    let api = &session.api;
    match kind {
        "server" => {
            let server = absent(api.get::<Server>(route).await)?;
            Ok(server.is_some_and(|server| server.phase.as_str() == state))
        }
        "lease" => {
            let lease = absent(api.get::<Lease>(route).await)?;
            // While its delay runs it is neither: nobody has it, and nobody can.
            Ok(if state == "held" {
                lease.is_some_and(|lease| lease.state == LeaseState::Held)
            } else {
                lease.is_none()
            })
        }
        _ => Ok(api.get::<ClusterStatus>(route).await?.health == Health::Ok),
    }
}

/// Returns which version is waited for, `Some(None)` for whichever is the newest; `None` if the words are no condition.
fn asked_version(state: &str) -> Option<Option<u64>> {
    match state.strip_prefix("synced")? {
        "" => Some(None),
        version => {
            let version = version.strip_prefix('@')?;
            version.strip_prefix('v').unwrap_or(version).parse().ok().map(Some)
        }
    }
}

async fn is_synced(session: &Session, name: &str, asked: Option<u64>) -> Result<bool, Diagnostic> {
    let api = &session.api;
    // First the members: what they are said to have is looked at with what became of it since.
    let members = absent(api.list::<MemberSyncList>(Route::set(name)?.then("members")).await)?;
    let (Some(members), Some(set)) = (members, absent(api.get::<ConfigSet>(Route::set(name)?).await)?) else {
        return Ok(false);
    };
    let versions = match asked {
        Some(_) => api.list::<ConfigVersionList>(Route::set(name)?.then("versions")).await?.items,
        None => Vec::new(),
    };
    if let Some((version, why)) = taken_back(&set, &versions, asked) {
        let newest = set.version;
        return Err(Diagnostic::new("LW0816", format!("{name} v{version} was taken back"))
            .why(why)
            .hint(format!("leaseward config history {name}            what is live now, and why"))
            .hint(format!("leaseward wait config/{name}=synced@{newest}      wait for what came back")));
    }
    Ok(is_live(&members, asked))
}

/// Returns the version that will not be live any more although it is waited for, and why.
fn taken_back(set: &ConfigSet, versions: &[ConfigVersion], asked: Option<u64>) -> Option<(u64, String)> {
    let version = match asked {
        Some(version) => version,
        // Where the newest version is there only to take the one before it back, that one is what was published.
        None => set.newest.as_ref()?.parent,
    };
    if let Some(bad) = set.taken_back.iter().find(|bad| bad.version == version) {
        return Some((version, bad.why.clone()));
    }
    // What somebody brought back by a version of his own is what is wanted now, unless another one is waited for.
    asked?;
    let content = &versions.iter().find(|known| known.version == version)?.manifest;
    let older = |later: &&ConfigVersion| {
        let is_same = |known: &ConfigVersion| known.version < version && known.manifest == later.manifest;
        later.version > version && later.manifest != *content && versions.iter().any(is_same)
    };
    let back = versions.iter().find(older)?;
    Some((
        version,
        format!("{} published v{}, which is what was there before: {}", back.author, back.version, back.message),
    ))
}

/// Returns whether every member that can be waited for has the version. Those that are gone catch up when they come back, and
/// pinned ones when they are let go.
fn is_live(members: &MemberSyncList, asked: Option<u64>) -> bool {
    let mut live = members.items.iter().filter(|member| member.connected && !member.pinned).peekable();
    live.peek().is_some()
        && live.all(|member| {
            member.phase == SyncPhase::Applied
                && asked.map_or(member.applied == members.version, |asked| member.applied >= asked)
        })
}

pub(crate) fn absent<T>(answer: Result<T, Diagnostic>) -> Result<Option<T>, Diagnostic> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code == "LW0404" => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Returns a set whose versions have these contents, from v1 on, and of which these were taken back.
    fn set(contents: &[&str], bad: &[u64]) -> (ConfigSet, Vec<ConfigVersion>) {
        let version = |(i, content): (usize, &&str)| {
            json!({
                "set": "app", "version": i + 1, "parent": i, "manifest": content, "files": 1, "bytes": 1,
                "author": "ann", "message": "m", "at": "2026-01-01T00:00:00Z", "revision": "7",
            })
        };
        let versions: Vec<Value> = contents.iter().enumerate().map(version).rev().collect();
        let bad: Vec<Value> = bad.iter().map(|bad| json!({ "version": bad, "why": "m1 refused it" })).collect();
        let set = json!({
            "name": "app", "version": contents.len(), "newest": versions.first(), "versions_kept": contents.len(),
            "in_sync": 0, "members": 0, "policy": {}, "policy_version": 0, "taken_back": bad, "created": "1",
            "modified": "7",
        });
        (serde_json::from_value(set).unwrap(), serde_json::from_value(versions.into()).unwrap())
    }

    fn back(contents: &[&str], bad: &[u64], asked: Option<u64>) -> Option<u64> {
        let (set, versions) = set(contents, bad);
        taken_back(&set, &versions, asked).map(|(version, _)| version)
    }

    #[test]
    fn what_was_taken_back_lets_nobody_through() {
        // v3 is what took v2 back.
        for (asked, failed) in [(None, Some(2)), (Some(2), Some(2)), (Some(3), None), (Some(1), None), (Some(4), None)]
        {
            assert_eq!(back(&["a", "b", "a"], &[2], asked), failed, "{asked:?}");
        }
        // Published since.
        assert_eq!(back(&["a", "b", "a", "c"], &[2], None), None);
        // Somebody brought back what was there before: that is what is wanted now.
        assert_eq!(back(&["a", "b", "a"], &[], None), None);
        assert_eq!(back(&["a", "b", "a"], &[], Some(2)), Some(2));
        // Published upon it, or the same again.
        assert_eq!(back(&["a", "b", "c"], &[], Some(2)), None);
        assert_eq!(back(&["a", "b", "b"], &[], Some(2)), None);
        assert_eq!(back(&["a", "b", "a", "a"], &[], Some(3)), None);
        assert_eq!(back(&[], &[], None), None);
    }

    #[test]
    fn a_version_is_named_with_or_without_v() {
        assert_eq!(asked_version("synced"), Some(None));
        assert_eq!([asked_version("synced@7"), asked_version("synced@v7")], [Some(Some(7)); 2]);
        for bad in ["live", "synced@", "synced7", "synced@x", "synced@-1"] {
            assert_eq!(asked_version(bad), None, "{bad}");
        }
    }
}
