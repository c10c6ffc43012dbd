//! Problems by code: status, title, what to do. And how refusals become problems.
//!
//! Must stay true: a code never changes its meaning; the codes of the state (`leaseward_state::Refusal`), of the
//! content store and of members keep theirs here. Each has one line that says what to do.

use leaseward_state::propose::NotCommitted;
use leaseward_state::{Refusal, ServerName, SetName, State};

use crate::model::Problem;

/// The codes that the API gives itself. The others come from below as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// LW0101: a name, path, text or number is not allowed.
    Invalid,
    /// LW0103: an unknown key.
    UnknownKey,
    /// LW0104: the body or query cannot be read.
    Unreadable,
    /// LW0106: a path leads out of its tree.
    Path,
    /// LW0107: not supported by this version yet.
    Unsupported,
    /// LW0108: the route does not have this method.
    Method,
    /// LW0109: there is no such route.
    Route,
    /// LW0110: the body is too large.
    TooLarge,
    /// LW0111: the body has another type.
    MediaType,
    /// LW0202: somebody else holds the lease.
    Held,
    /// LW0207: the events asked for are no longer all kept.
    Compacted,
    /// LW0344: no machine could ever run it.
    Nowhere,
    /// LW0345: the loss of a machine could not be carried any more.
    NoSpare,
    /// LW0346: its machine does not say what a server printed.
    Unheard,
    /// LW0401: it is not known who asks.
    WhoAsks,
    /// LW0403: who asks may not.
    MayNot,
    /// LW0404: the object does not exist.
    NotFound,
    /// LW0412: the object has another version.
    Version,
    /// LW0501: nobody leads.
    NoLeader,
    /// LW0502: the outcome is unknown.
    Unknown,
    /// LW0503: too much at once.
    Overloaded,
    /// LW0505: what this node knows is older than asked for.
    Stale,
    /// LW0801: a blob is missing.
    BlobMissing,
    /// LW0802: bytes do not match their name.
    BlobCorrupt,
}

impl Code {
    /// Returns the stable code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "LW0101",
            Self::UnknownKey => "LW0103",
            Self::Unreadable => "LW0104",
            Self::Path => "LW0106",
            Self::Unsupported => "LW0107",
            Self::Method => "LW0108",
            Self::Route => "LW0109",
            Self::TooLarge => "LW0110",
            Self::MediaType => "LW0111",
            Self::Held => "LW0202",
            Self::Compacted => "LW0207",
            Self::Nowhere => "LW0344",
            Self::NoSpare => "LW0345",
            Self::Unheard => "LW0346",
            Self::WhoAsks => "LW0401",
            Self::MayNot => "LW0403",
            Self::NotFound => "LW0404",
            Self::Version => "LW0412",
            Self::NoLeader => "LW0501",
            Self::Unknown => "LW0502",
            Self::Overloaded => "LW0503",
            Self::Stale => "LW0505",
            Self::BlobMissing => "LW0801",
            Self::BlobCorrupt => "LW0802",
        }
    }
}

/// Status, title, whether to try again, what to do.
type Page = (u16, &'static str, bool, &'static str);

/// Returns the page of a code.
fn page(code: &str) -> Page {
    match code {
        "LW0101" => (422, "not allowed", false, "change what the detail names"),
        "LW0102" => (422, "time to live out of range", false, "choose a time to live within the range"),
        "LW0103" => (422, "unknown key", false, "correct the key; GET /v1/openapi.json lists all of them"),
        "LW0104" => (400, "unreadable", false, "send what GET /v1/openapi.json describes"),
        "LW0105" => (429, "a bound is reached", true, "remove what is no longer needed, or use another cluster"),
        "LW0106" => (422, "path leads out", false, "name a path inside the tree, without `.` and `..`"),
        "LW0107" => (422, "not supported yet", false, "leave it out"),
        "LW0108" => (405, "method not allowed", false, "use a method of the Allow header"),
        "LW0109" => (404, "no such route", false, "GET /v1/openapi.json lists all routes"),
        "LW0110" => (413, "body too large", false, "send less at once"),
        "LW0111" => (415, "wrong content type", false, "send Content-Type: application/json"),
        "LW0112" => {
            (422, "no room for more config", false, "keep fewer versions, remove a set, or raise config_bytes_max")
        }
        "LW0202" => (409, "lease is held", true, "ask again with `wait`, or see who has it: leaseward lease get"),
        "LW0203" => (409, "stale token", false, "stop: the lease is no longer yours under this token"),
        "LW0204" => (410, "session is over", false, "stop what ran under it, and open another session"),
        "LW0205" => (409, "lease is delayed", true, "wait: its last holder may still believe in it"),
        "LW0206" => (409, "outdated", true, "look again and decide anew"),
        "LW0207" => (410, "events are compacted", false, "list again, and watch from the list's revision"),
        "LW0344" => (422, "it could run nowhere", false, "change what the machines lack, or force=true"),
        "LW0345" => (422, "no room for the loss of a machine", false, "lower `weight`, add a machine, or force=true"),
        "LW0346" => (504, "the machine does not answer", true, "see how it is: leaseward machine get"),
        "LW0401" => (
            401,
            "not known who asks",
            false,
            "name the file with your token: --token-file FILE or LEASEWARD_TOKEN_FILE",
        ),
        "LW0403" => (403, "not allowed", false, "ask somebody who may, or for another role: leaseward token create"),
        "LW0404" => (404, "not found", false, "check the name"),
        "LW0409" => (412, "exists already", false, "choose another name, or replace it with If-Match"),
        "LW0412" => (412, "version is stale", false, "look at what changed, then try again with the current version"),
        "LW0413" => (409, "in use", false, "do first what the detail says"),
        "LW0501" => (503, "no leader", true, "try again; if it stays so: leaseward status"),
        "LW0502" => (504, "outcome unknown", true, "send it again with the same Idempotency-Key, or look first"),
        "LW0503" => (503, "overloaded", true, "try again after Retry-After"),
        "LW0505" => (503, "older than asked for", true, "ask another node, or allow more with `max_staleness`"),
        "LW0600" | "LW0604" => (500, "storage failed", false, "see the node's log and its disk"),
        "LW0603" => (503, "node is quarantined", true, "ask another node; see the log of this one"),
        "LW0605" => (507, "disk is full", true, "free space on the node's disk"),
        "LW0610" => (409, "quorum would be lost", false, "bring voters back or add one first"),
        "LW0611" => (409, "term is over", true, "look who leads now and try again"),
        "LW0612" => (409, "the feature level is too low", false, "update every node first, then finish the upgrade"),
        "LW0614" => (503, "another cluster answers", true, "name the addresses of the right one"),
        "LW0801" => (422, "content is missing", true, "PUT what is missing to /v1/blobs/{digest}, then try again"),
        "LW0802" => (422, "content does not match its name", false, "send the bytes whose blake3 hash is the name"),
        "LW0804" => (422, "not a legal tree", false, "change the path that the detail names"),
        "LW0806" => (422, "not a manifest", false, "publish with leaseward config publish"),
        "LW0808" => (422, "too large for a set", false, "split the set"),
        "LW0816" => (409, "version was taken back", false, "see why: leaseward explain config/SET"),
        "LW0817" => (409, "a version is not live everywhere", false, "see who has it: leaseward config monitor SET"),
        _ => (500, "failed", false, "see the node's log"),
    }
}

/// Returns a problem of the API's own.
#[must_use]
pub fn of(code: Code, detail: impl Into<String>) -> Problem {
    with_code(code.as_str(), detail)
}

/// Returns the problem of a code from below.
#[must_use]
pub fn with_code(code: &str, detail: impl Into<String>) -> Problem {
    let (status, title, retryable, hint) = page(code);
    Problem {
        page: format!("https://leaseward.dev/errors/{code}"),
        title: title.to_owned(),
        status,
        detail: detail.into(),
        instance: String::new(),
        code: code.to_owned(),
        retryable,
        retry_after_ms: matches!(status, 429 | 503 | 507).then_some(1_000),
        leader: None,
        current_version: None,
        current_token: None,
        holder: None,
        waited: None,
        part: None,
        hint: hint.to_owned(),
    }
}

/// Returns the problem for a refusal, with what `state` knows now.
#[must_use]
pub fn of_refusal(refusal: &Refusal, state: &State) -> Problem {
    let mut problem = with_code(refusal.code(), refusal.to_string());
    match refusal {
        Refusal::Part { part, refusal } => {
            problem = of_refusal(refusal, state);
            problem.part = Some(*part);
        }
        Refusal::Version { kind, name, current, expected } => {
            problem.current_version = Some(*current);
            if kind == "config" && *expected < *current {
                problem.hint = format!(
                    "see what changed: leaseward config diff {name} {expected} {current}; then try again upon v{current}"
                );
            }
            if let Some(newest) =
                (kind == "config").then(|| state.set(&SetName::new(name.as_str()).ok()?)?.newest()).flatten()
            {
                problem.detail =
                    format!("{refusal}: {} published v{} (\"{}\")", newest.author, newest.number, newest.message);
            }
        }
        Refusal::Exists { kind, name } if kind == "server" => {
            let server = ServerName::new(name.as_str()).ok();
            problem.current_version = server.and_then(|name| state.server(&name)).map(|server| server.version);
        }
        Refusal::StaleToken { current, .. } => problem.current_token = current.map(Into::into),
        Refusal::Held { holder, token, .. } => {
            problem.holder = Some(holder.clone());
            problem.current_token = Some((*token).into());
        }
        _ => {}
    }
    problem
}

/// Returns the problem for an entry that has no answer.
#[must_use]
pub fn of_not_committed(error: &NotCommitted) -> Problem {
    match error {
        NotCommitted::NoLeader => of(Code::NoLeader, error.to_string()),
        NotCommitted::Unknown => of(Code::Unknown, error.to_string()),
        // The proposer names the code where it has one.
        NotCommitted::Overloaded(why) => match why.split_once(": ") {
            Some(("LW0105", why)) => of(Code::TooLarge, why),
            Some((code, why)) if code.starts_with("LW") => with_code(code, why),
            _ => of(Code::Overloaded, why.as_str()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_rfc_9457_has_it() {
        let problem = of(Code::NoLeader, "the cluster has no leader that answers");
        expect_test::expect![[r#"
            {
              "type": "https://leaseward.dev/errors/LW0501",
              "title": "no leader",
              "status": 503,
              "detail": "the cluster has no leader that answers",
              "code": "LW0501",
              "retryable": true,
              "retry_after_ms": 1000,
              "do": "try again; if it stays so: leaseward status"
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&problem).unwrap());
    }

    #[test]
    fn every_refusal_of_the_proposer_has_its_status() {
        let overloaded = |why: &str| of_not_committed(&NotCommitted::Overloaded(why.into()));
        assert_eq!(overloaded("the queue is full").status, 503);
        assert_eq!(overloaded("LW0605: the leader's disk is nearly full").code, "LW0605");
        assert_eq!(overloaded("LW0105: a command has at most 1 bytes").status, 413);
        assert_eq!(of_not_committed(&NotCommitted::Unknown).status, 504);
    }
}
