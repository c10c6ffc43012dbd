//! Tokens of people and programs: who may ask what.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use leaseward_state::access::{AccessToken, Role};
use leaseward_state::{Command, TokenName, UnixMillis};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Body, Fresh, Nothing, OptionalBody, Params, Write, name};
use crate::model::{CreateToken, RevokeToken, Token, TokenList};
use crate::page::Page;
use crate::problem::{self, Code};
use crate::routes::ListParams;
use crate::routes::policy::from_now;
use crate::routes::publish::digest;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(create, revoke))
}

fn shown(name: &TokenName, token: &AccessToken) -> Token {
    Token {
        name: name.to_string(),
        roles: token.roles.iter().map(ToString::to_string).collect(),
        until: token.until.map(Into::into),
        over: token.is_over(UnixMillis(leaseward_raft::clock::wall_millis())),
        by: token.by.clone(),
        made: token.made.into(),
    }
}

/// Lists tokens. While there are none, everybody who reaches the API may ask everything.
#[utoipa::path(get, path = "/v1/tokens", params(ListParams), responses((status = 200, body = TokenList)))]
async fn list(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<ListParams>,
) -> Result<At<Json<TokenList>>, Fault> {
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let access = page.state.access();
    let all = access.tokens.iter().filter(|(name, _)| name.as_str().starts_with(&params.prefix));
    let (tokens, next_page) = page.take(&api, all, |(name, _)| name.to_string());
    let items = tokens.into_iter().map(|(name, token)| shown(name, token)).collect();
    Ok(At(page.revision, Json(TokenList { revision: page.revision.into(), on: access.is_on(), items, next_page })))
}

/// Lets somebody ask something. The first token is an administrator's; from then on nobody is answered without one.
#[utoipa::path(
    put, path = "/v1/tokens/{name}", params(("name" = String, Path)), request_body = CreateToken,
    responses((status = 201, body = Token))
)]
async fn create(
    State(api): State<Api>,
    Path(token): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<CreateToken>,
) -> Result<At<(StatusCode, Json<Token>)>, Fault> {
    write.without_condition()?;
    let name: TokenName = name(&token)?;
    let roles = body.roles.iter().map(|role| role.parse::<Role>()).collect::<Result<_, _>>();
    let token = AccessToken {
        hash: digest(&body.secret_hash)?,
        roles: roles.map_err(|refusal| api.refused(&refusal))?,
        until: body.ttl.map(from_now),
        by: body.by.clone(),
        made: UnixMillis(0),
    };
    let command = Command::ChangeToken { name: name.clone(), token: Some(Box::new(token)), by: body.by };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    let state = api.here();
    let found = state.access().tokens.get(&name);
    let found =
        found.ok_or_else(|| problem::of(Code::Unknown, "it was made, and is not here yet, or revoked already"))?;
    Ok(At(revision, (StatusCode::CREATED, Json(shown(&name, found)))))
}

/// Revokes a token. After the last one everybody may ask everything again.
#[utoipa::path(
    delete, path = "/v1/tokens/{name}", params(("name" = String, Path)), request_body = RevokeToken,
    responses((status = 204))
)]
async fn revoke(
    State(api): State<Api>,
    Path(token): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    OptionalBody(body): OptionalBody<RevokeToken>,
) -> Result<At<StatusCode>, Fault> {
    write.without_condition()?;
    let command = Command::ChangeToken { name: name(&token)?, token: None, by: body.by };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    Ok(At(revision, StatusCode::NO_CONTENT))
}
