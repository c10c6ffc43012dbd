//! Nodes: who stores the log, who votes, who leads.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use leaseward_raft::net::wire::{Answer, Ask, MemberChange, Purpose};
use leaseward_raft::{NodeId, Standing};
use tokio::task::JoinSet;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Fresh, Nothing, OptionalBody, Params, Write};
use crate::limits::STATUS_WITHIN;
use crate::model::{Duration, Node, NodeList, NodeRole, Transfer};
use crate::page::{Page, number_key};
use crate::problem::{self, Code};
use crate::routes::ListParams;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(promote))
        .routes(routes!(demote))
        .routes(routes!(remove))
        .routes(routes!(transfer))
        .routes(routes!(finish_upgrade))
}

/// Lists nodes, each asked just now.
#[utoipa::path(get, path = "/v1/nodes", params(ListParams), responses((status = 200, body = NodeList)))]
async fn list(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<ListParams>,
) -> Result<At<Json<NodeList>>, Fault> {
    // Membership is not part of the state, so there is nothing newer to wait for.
    let page = Page::open(&api, &fresh.here(), params.limit, params.page.as_deref()).await?;
    let all = nodes(&api).await.into_iter().filter(|node| node.name.starts_with(&params.prefix));
    let (items, next_page) = page.take(&api, all, |node| number_key(node.id));
    Ok(At(page.revision, Json(NodeList { revision: page.revision.into(), items, next_page })))
}

/// Returns every node by ascending ids, each asked at the same time.
pub(crate) async fn nodes(api: &Api) -> Vec<Node> {
    let own = api.replica.status();
    let mut asked = JoinSet::new();
    for id in own.membership.nodes.keys().copied().filter(|id| *id != own.node) {
        let replica = api.replica.clone();
        asked.spawn(async move {
            let begun = Instant::now();
            let answer = replica.ask(id, Purpose::Control, &Ask::Status, STATUS_WITHIN).await;
            match answer {
                Ok(Answer::Status(status)) => Some((id, *status, begun.elapsed())),
                _ => None,
            }
        });
    }
    let mut statuses: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
    statuses.push((own.node, own.clone(), std::time::Duration::ZERO));
    let leader = statuses.iter().find(|(id, ..)| Some(*id) == own.leader).map(|(_, status, _)| status.last_index);
    own.membership
        .nodes
        .iter()
        .map(|(id, info)| {
            let found = statuses.iter().find(|(answered, ..)| answered == id);
            let status = found.map(|(_, status, _)| status);
            Node {
                id: *id,
                name: info.name.clone(),
                role: role(own.leader, &own.membership.voters, *id, info.standing),
                witness: info.standing == Standing::Witness,
                up: status.is_some_and(|status| status.quarantined.is_none()),
                lag: leader.zip(status).map(|(last, status)| last.saturating_sub(status.last_index)),
                applied: status.map(|status| status.applied_index),
                version: status.map(|status| status.version.clone()),
                feature_level: status.map(|status| status.feature_level),
                quarantined: status.and_then(|status| status.quarantined.clone()),
                peer_address: info.peer_address.clone(),
                api_address: info.api_address.clone(),
                answered_in: found.map(|(.., took)| Duration::from(*took)),
            }
        })
        .collect()
}

fn role(leader: Option<NodeId>, voters: &[BTreeSet<NodeId>], id: NodeId, standing: Standing) -> NodeRole {
    // While voters change, a quorum of the old ones and one of the new ones must agree: it is the loss of a node in one of
    // them that may be one too many, so none is counted on that is not in both.
    let votes = !voters.is_empty() && voters.iter().all(|voters| voters.contains(&id));
    match (leader == Some(id), votes, standing) {
        (true, ..) => NodeRole::Leader,
        (_, true, _) => NodeRole::Voter,
        (.., Standing::Learner) => NodeRole::Learner,
        _ => NodeRole::Standby,
    }
}

/// Lets a learner vote, as soon as an odd number of voters comes of it.
#[utoipa::path(post, path = "/v1/nodes/{id}/promote", params(("id" = u64, Path)), responses((status = 204)))]
async fn promote(
    State(api): State<Api>,
    Path(id): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<StatusCode, Fault> {
    change(&api, &write, MemberChange::Promote(node_id(&id)?)).await
}

/// Takes a node's vote away for good.
#[utoipa::path(post, path = "/v1/nodes/{id}/demote", params(("id" = u64, Path)), responses((status = 204)))]
async fn demote(
    State(api): State<Api>,
    Path(id): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<StatusCode, Fault> {
    change(&api, &write, MemberChange::Demote(node_id(&id)?)).await
}

/// Removes a node from the cluster.
#[utoipa::path(delete, path = "/v1/nodes/{id}", params(("id" = u64, Path)), responses((status = 204)))]
async fn remove(
    State(api): State<Api>,
    Path(id): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<StatusCode, Fault> {
    change(&api, &write, MemberChange::Remove(node_id(&id)?)).await
}

/// Hands leadership to another voter.
#[utoipa::path(post, path = "/v1/cluster/transfer-leader", request_body = Transfer, responses((status = 204)))]
async fn transfer(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    OptionalBody(body): OptionalBody<Transfer>,
) -> Result<StatusCode, Fault> {
    change(&api, &write, MemberChange::Transfer(body.to)).await
}

/// Raises the feature level, once every node runs the new release.
#[utoipa::path(post, path = "/v1/cluster/finish-upgrade", responses((status = 204)))]
async fn finish_upgrade(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<StatusCode, Fault> {
    change(&api, &write, MemberChange::FinishUpgrade).await
}

/// Membership is not part of the state, so neither a fence nor a version can guard it.
async fn change(api: &Api, write: &Write, change: MemberChange) -> Result<StatusCode, Fault> {
    write.without_condition()?;
    match api.replica.ask_self(Ask::Members(change)).await {
        Answer::Done => Ok(StatusCode::NO_CONTENT),
        Answer::Failed { code, why } => Err(problem::with_code(&code, why).into()),
        other => Err(problem::with_code("LW0607", format!("an answer that does not fit: {other:?}")).into()),
    }
}

fn node_id(text: &str) -> Result<NodeId, Fault> {
    text.parse().map_err(|_| problem::of(Code::Invalid, "a node's id is a number; GET /v1/nodes lists them").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_votes_with_the_old_voters_or_the_new_ones_only_is_not_counted_on() {
        let role = |voters: &[&[NodeId]], id| {
            let voters: Vec<_> = voters.iter().map(|voters| voters.iter().copied().collect()).collect();
            role(Some(1), &voters, id, Standing::Voter)
        };
        // The first node alone is to become one of three: until it is, nothing is decided without it.
        assert_eq!(role(&[&[1], &[1, 4, 6]], 1), NodeRole::Leader);
        assert_eq!(role(&[&[1], &[1, 4, 6]], 4), NodeRole::Standby);
        assert_eq!(role(&[&[1, 4, 6]], 4), NodeRole::Voter);
        assert_eq!(role(&[], 4), NodeRole::Standby);
    }
}
