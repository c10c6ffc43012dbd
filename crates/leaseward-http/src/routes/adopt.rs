//! What stands on a member's disk becomes the next version of a set, changed by hand or not.
//!
//! Must stay true: a version that somebody published since is never overwritten.

use axum::extract::{Path, State};
use axum::response::Response;
use leaseward_state::{MachineName, Refusal, SetName};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Body, Nothing, Params, Write, name};
use crate::model::{AdoptFiles, ConfigVersion};
use crate::problem;
use crate::routes::publish::{again, commit, content};

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(adopt))
}

/// Publishes what stands on a member's disk now.
#[utoipa::path(
    post, path = "/v1/configs/{set}/adopt", params(("set" = String, Path)), request_body = AdoptFiles,
    responses((status = 201, body = ConfigVersion))
)]
async fn adopt(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<AdoptFiles>,
) -> Result<At<Response>, Fault> {
    let (set, machine): (SetName, MachineName) = (name(&set)?, name(&body.machine)?);
    // As new as the caller's last write.
    let state = api.read_now().await?;
    if let Some(answer) = again(&api, &write, &state, &set) {
        return answer;
    }
    if let (Some(expected), Some(found)) = (write.version().or(body.parent), state.set(&set))
        && expected != found.head
    {
        // Nobody's disk is read for what is refused anyway.
        let (kind, name) = ("config".to_owned(), set.to_string());
        let refusal = Refusal::Version { kind, name, expected, current: found.head };
        return Err(problem::of_refusal(&refusal, &state).into());
    }
    // What this node knew before the disk was read: a version since then is a conflict.
    let head = state.set(&set).map_or(0, |found| found.head);
    let named = api.content.adopt(set.clone(), machine.clone()).await.map_err(content)?;
    let parent = write.version().or(body.parent).unwrap_or(head);
    let message = if body.message.is_empty() { format!("as it stands on {machine}") } else { body.message };
    // Somebody else's version since would be lost: that is a conflict.
    commit(&api, &write, &set, Some(parent), named, body.author, message).await
}
