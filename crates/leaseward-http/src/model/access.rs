//! Tokens of people and programs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Time, Wide};

/// A token. Its secret is nowhere but with its bearer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// What its bearer may ask: `viewer`, `operator`, `publisher:SET`, `holder:PREFIX`, `admin`.
    pub roles: Vec<String>,
    /// When it ends by itself.
    pub until: Option<Time>,
    /// Whether that is over.
    pub over: bool,
    /// Who made it.
    pub by: String,
    /// When.
    pub made: Time,
}

/// Tokens by ascending names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// The revision that the list reflects.
    pub revision: Wide,
    /// Whether anybody has to say who he is: there are tokens.
    pub on: bool,
    /// The tokens.
    pub items: Vec<Token>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}

/// Lets somebody ask something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// The blake3 hash of the secret, in 64 hexadecimal digits. The token is `lwt1.SECRET.NAME`: the secret itself is not sent.
    pub secret_hash: String,
    /// What its bearer may ask: `viewer`, `operator`, `publisher:SET`, `holder:PREFIX`, `admin`.
    pub roles: Vec<String>,
    /// When it ends by itself, from now; never, if not given.
    #[serde(default)]
    pub ttl: Option<Duration>,
    /// Who makes it.
    #[serde(default)]
    pub by: String,
}

/// Who revokes a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeToken {
    /// Who.
    #[serde(default)]
    pub by: String,
}
