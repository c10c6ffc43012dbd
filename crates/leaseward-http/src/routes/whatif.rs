//! What would move where if machines died now.

use axum::Json;
use axum::extract::State;
use leaseward_failover::foresee::foresee_deaths;
use leaseward_state::MachineName;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Fresh, Params, name, not_found};
use crate::foreseen::prediction;
use crate::model::Prediction;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(deaths))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WhatIfParams {
    /// The machines that would die, with commas.
    down: String,
}

/// Says what would move where, and how long it would take, if these machines died now without a word. Nothing is done:
/// the same plan that the master follows is tried on a copy of the state.
#[utoipa::path(get, path = "/v1/whatif", params(WhatIfParams), responses((status = 200, body = Prediction)))]
async fn deaths(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<WhatIfParams>,
) -> Result<At<Json<Prediction>>, Fault> {
    let state = api.read(&fresh).await?;
    let mut machines = Vec::new();
    for word in params.down.split(',').map(str::trim) {
        let machine: MachineName = name(word)?;
        state.machine(&machine).ok_or_else(|| not_found("machine", &machine))?;
        machines.push(machine);
    }
    let names: Vec<_> = machines.iter().map(ToString::to_string).collect();
    let event = format!("{} down", names.join(", "));
    Ok(At(state.revision(), Json(prediction(&state, event, &foresee_deaths(&state, &machines)))))
}
