//! Who may ask what: tokens of people and programs, each with roles.
//!
//! Must stay true: nobody's place counts, only his roles; what is stored of a token is the hash of its secret; while there is
//! any token, one of them is an administrator's. Without any token everybody may ask everything.
//! Left out on purpose: which request needs what (`leaseward-http/access.rs`), and times: whether a token is over says the
//! wall clock of whoever is asked.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::Digest;
use crate::limits::{ACCESS_TOKENS_MAX, ROLES_MAX, TEXT_BYTES_MAX};
use crate::name::{LeaseName, SetName, TokenName, check};
use crate::refusal::Refusal;
use crate::token::UnixMillis;

/// What somebody may ask. Grows at the end only: it is stored by position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Look at everything but backups.
    Viewer,
    /// Everything that does not decide who is in the cluster, and who may do what.
    Operator,
    /// Change what this config set contains: its name, or the beginning of names and `*`.
    Publisher(String),
    /// Take, renew and give back leases whose names begin so.
    Holder(String),
    /// Everything.
    Admin,
}

/// What a request needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Any role.
    Look,
    /// To change what a config set contains.
    Publish(SetName),
    /// To put content that no version names yet.
    PublishSome,
    /// To take or give back a lease.
    Hold(LeaseName),
    /// To open or renew a session.
    HoldSome,
    /// To change how things are kept and where they run.
    Operate,
    /// To decide who is in the cluster, and who may do what.
    Administer,
}

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessToken {
    /// The blake3 hash of its secret.
    pub hash: Digest,
    /// What its bearer may ask.
    pub roles: Vec<Role>,
    /// When it ends, by wall clock; `None`: when somebody revokes it.
    pub until: Option<UnixMillis>,
    /// Who made it.
    pub by: String,
    /// When, by the wall clock of the leader.
    pub made: UnixMillis,
}

/// All tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// By name.
    pub tokens: BTreeMap<TokenName, AccessToken>,
}

/// The lease under which a set is edited.
pub const EDIT_LEASES: &str = "config-edit/";

impl Role {
    /// Returns whether it is enough for that.
    #[must_use]
    pub fn may(&self, need: &Need) -> bool {
        match (self, need) {
            (Self::Admin, _) | (_, Need::Look) => true,
            (Self::Operator, need) => *need != Need::Administer,
            (Self::Publisher(sets), Need::Publish(set)) => covers(sets, set),
            // Who edits a set holds a lease meanwhile.
            (Self::Publisher(sets), Need::Hold(lease)) => {
                let set = lease.as_str().strip_prefix(EDIT_LEASES).and_then(|set| SetName::new(set).ok());
                set.is_some_and(|set| covers(sets, &set))
            }
            (Self::Publisher(_), need) => matches!(need, Need::PublishSome | Need::HoldSome),
            (Self::Holder(prefix), Need::Hold(lease)) => lease.as_str().starts_with(prefix.as_str()),
            (Self::Holder(_), need) => *need == Need::HoldSome,
            (Self::Viewer, _) => false,
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        let named = match self {
            Self::Publisher(sets) => {
                SetName::new(sets.strip_suffix('*').map_or(sets.clone(), |most| format!("{most}x"))).err()
            }
            Self::Holder(prefix) => check(&format!("{prefix}x")).err(),
            Self::Viewer | Self::Operator | Self::Admin => None,
        };
        named.map_or(Ok(()), |bad| Err(Refusal::Invalid(format!("the role {self}: {bad}"))))
    }
}

fn covers(sets: &str, set: &SetName) -> bool {
    match sets.strip_suffix('*') {
        Some(beginning) => set.as_str().starts_with(beginning),
        None => sets == set.as_str(),
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Viewer => f.write_str("viewer"),
            Self::Operator => f.write_str("operator"),
            Self::Publisher(sets) => write!(f, "publisher:{sets}"),
            Self::Holder(prefix) => write!(f, "holder:{prefix}"),
            Self::Admin => f.write_str("admin"),
        }
    }
}

impl FromStr for Role {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let role = match text.split_once(':') {
            None if text == "viewer" => Self::Viewer,
            None if text == "operator" => Self::Operator,
            None if text == "admin" => Self::Admin,
            Some(("publisher", sets)) => Self::Publisher(sets.to_owned()),
            Some(("holder", prefix)) => Self::Holder(prefix.to_owned()),
            _ => {
                let roles = "viewer, operator, publisher:SET, holder:PREFIX or admin";
                return Err(Refusal::Invalid(format!("a role is {roles}, not `{text}`")));
            }
        };
        role.check().map(|()| role)
    }
}

impl AccessToken {
    /// Returns whether one of its roles is enough for that.
    #[must_use]
    pub fn may(&self, need: &Need) -> bool {
        self.roles.iter().any(|role| role.may(need))
    }

    /// Returns whether it is over at `now`.
    #[must_use]
    pub fn is_over(&self, now: UnixMillis) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    fn is_admin(&self) -> bool {
        self.roles.contains(&Role::Admin)
    }

    fn check(&self) -> Result<(), Refusal> {
        if self.roles.is_empty() || self.roles.len() > ROLES_MAX {
            return Err(Refusal::Invalid(format!("a token has 1 to {ROLES_MAX} roles")));
        }
        if self.by.len() > TEXT_BYTES_MAX {
            return Err(Refusal::Invalid(format!("`by` has at most {TEXT_BYTES_MAX} bytes")));
        }
        self.roles.iter().try_for_each(Role::check)
    }
}

impl Access {
    /// Returns whether anybody has to say who he is.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Returns the tokens with one more, or with one less.
    ///
    /// # Errors
    /// [`Refusal`]: what is not allowed, exists, does not exist, or would leave tokens without an administrator.
    pub fn with(&self, name: &TokenName, token: Option<&AccessToken>) -> Result<Self, Refusal> {
        let (kind, mut next) = (|| "token".to_owned(), self.clone());
        match token {
            Some(token) => {
                token.check()?;
                if self.tokens.contains_key(name) {
                    return Err(Refusal::Exists { kind: kind(), name: name.to_string() });
                }
                if self.tokens.len() >= ACCESS_TOKENS_MAX {
                    return Err(Refusal::TooMany { what: "tokens".into(), max: ACCESS_TOKENS_MAX as u64 });
                }
                next.tokens.insert(name.clone(), token.clone());
            }
            None => {
                next.tokens.remove(name).ok_or_else(|| Refusal::NotFound { kind: kind(), name: name.to_string() })?;
            }
        }
        // One that ends by itself would leave the rest without anybody who may make another one.
        let ruled = next.tokens.values().any(|token| token.is_admin() && token.until.is_none());
        match (ruled || !next.is_on(), token) {
            (true, _) => Ok(next),
            (false, Some(_)) => {
                let why = "the first token is an administrator's that does not end by itself: with it, nobody may do anything without one";
                Err(Refusal::Invalid(why.into()))
            }
            (false, None) => {
                let why = "no other administrator's token stays that does not end by itself".to_owned();
                Err(Refusal::InUse { kind: kind(), name: name.to_string(), why })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str) -> SetName {
        SetName::new(name).unwrap()
    }

    fn lease(name: &str) -> LeaseName {
        LeaseName::new(name).unwrap()
    }

    fn needs() -> Vec<(&'static str, Need)> {
        vec![
            ("look", Need::Look),
            ("publish app", Need::Publish(set("app"))),
            ("publish web", Need::Publish(set("web"))),
            ("content", Need::PublishSome),
            ("edit app", Need::Hold(lease("config-edit/app"))),
            ("edit web", Need::Hold(lease("config-edit/web"))),
            ("hold batch/a", Need::Hold(lease("batch/a"))),
            ("sessions", Need::HoldSome),
            ("operate", Need::Operate),
            ("administer", Need::Administer),
        ]
    }

    #[test]
    fn each_role_may_do_this_and_nothing_else() {
        let may = |role: &str| -> Vec<&str> {
            let role: Role = role.parse().unwrap();
            needs().into_iter().filter(|(_, need)| role.may(need)).map(|(word, _)| word).collect()
        };
        assert_eq!(may("viewer"), ["look"]);
        assert_eq!(may("publisher:app"), ["look", "publish app", "content", "edit app", "sessions"]);
        assert_eq!(may("publisher:a*"), may("publisher:app"));
        assert_eq!(may("publisher:ap"), ["look", "content", "sessions"], "a name is not the beginning of names");
        assert_eq!(may("holder:batch/"), ["look", "hold batch/a", "sessions"]);
        let all: Vec<&str> = needs().into_iter().map(|(word, _)| word).collect();
        assert_eq!(may("operator"), all[..all.len() - 1]);
        assert_eq!(may("admin"), all);
    }

    #[test]
    fn roles_are_read_as_they_are_written() {
        for text in
            ["viewer", "operator", "publisher:app", "publisher:a*", "publisher:*", "holder:batch/", "holder:", "admin"]
        {
            assert_eq!(text.parse::<Role>().unwrap().to_string(), text);
        }
        for bad in ["", "root", "publisher", "publisher:", "publisher:a/b", "publisher:a*b", "holder:a b", "admin:x"] {
            assert!(bad.parse::<Role>().is_err(), "{bad:?}");
        }
    }

    fn token(roles: &[&str], until: Option<u64>) -> AccessToken {
        let roles = roles.iter().map(|role| role.parse().unwrap()).collect();
        AccessToken { hash: Digest([1; 32]), roles, until: until.map(UnixMillis), by: "op".into(), made: UnixMillis(1) }
    }

    #[test]
    fn while_there_is_a_token_there_is_an_administrator() {
        let name = |text: &str| TokenName::new(text).unwrap();
        let none = Access::default();
        assert!(!none.is_on());
        for first in [token(&["operator"], None), token(&["admin"], Some(9))] {
            assert!(matches!(none.with(&name("x"), Some(&first)), Err(Refusal::Invalid(_))));
        }
        let one = none.with(&name("root"), Some(&token(&["admin"], None))).unwrap();
        let two = one.with(&name("ci"), Some(&token(&["publisher:app", "viewer"], Some(9)))).unwrap();
        assert!(matches!(two.with(&name("ci"), Some(&token(&["viewer"], None))), Err(Refusal::Exists { .. })));
        assert!(matches!(two.with(&name("root"), None), Err(Refusal::InUse { .. })));
        assert!(matches!(two.with(&name("nobody"), None), Err(Refusal::NotFound { .. })));
        assert_eq!(two.with(&name("ci"), None).unwrap(), one);
        assert_eq!(
            one.with(&name("root"), None).unwrap(),
            none,
            "the last one may go: then everybody may ask everything"
        );
        assert!(
            !token(&["viewer"], Some(9)).is_over(UnixMillis(8)) && token(&["viewer"], Some(9)).is_over(UnixMillis(9))
        );
    }
}
