//! What went wrong, as RFC 9457 has it, with what a program and a person need to go on.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Wide};

/// What went wrong. `code` is stable; `detail` is for people and may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The page of the code.
    #[serde(rename = "type")]
    #[schema(example = "https://leaseward.dev/errors/LW0412")]
    pub page: String,
    /// The code in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, with the facts.
    pub detail: String,
    /// The request, for support and logs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// The stable code.
    #[schema(example = "LW0412")]
    pub code: String,
    /// Whether the same request may succeed later, unchanged.
    pub retryable: bool,
    /// When to try again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The leader that the answering node knows of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The version that the object has, if the request meant another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<u64>,
    /// The token under which the lease is held, if the request meant another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_token: Option<Wide>,
    /// Who holds the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// How long the request waited before it gave up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<Duration>,
    /// Which part of the transaction, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// What to do about it.
    #[serde(default, rename = "do", skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Problem {}
