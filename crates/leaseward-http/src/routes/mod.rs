//! The routes, one file for each noun.

pub(crate) mod adopt;
pub(crate) mod backup;
pub(crate) mod blobs;
pub(crate) mod changes;
pub(crate) mod cluster;
pub(crate) mod configs;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod health;
pub(crate) mod keeping;
pub(crate) mod leases;
pub(crate) mod machines;
pub(crate) mod nodes;
pub(crate) mod operations;
pub(crate) mod policy;
mod printed;
pub(crate) mod publish;
pub(crate) mod servers;
pub(crate) mod sessions;
pub(crate) mod tokens;
pub(crate) mod transaction;
pub(crate) mod whatif;

use serde::Deserialize;
use utoipa::IntoParams;

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// Only names that begin so.
    #[serde(default)]
    prefix: String,
    /// Objects on a page, 200 if not given, at most 1000.
    #[serde(default)]
    limit: Option<u32>,
    /// The `next_page` of the page before.
    #[serde(default)]
    page: Option<String>,
}
