//! Several operations under one revision, all or none.

use axum::Json;
use axum::extract::State;
use leaseward_state::command::{self, Acquire};
use leaseward_state::server;
use leaseward_state::{Command, Reply};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::{Api, Base};
use crate::ask::{Body, Nothing, Params, Write, name};
use crate::model::{Change, Condition, Duration, Outcome, Transaction, TransactionResult, Wanted};
use crate::problem::{self, Code};
use crate::routes::publish::{checked, digest, sealed};

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(transaction))
}

/// Does all of these operations, or none, if every condition holds.
#[utoipa::path(
    post, path = "/v1/transaction", request_body = Transaction, responses((status = 200, body = TransactionResult))
)]
async fn transaction(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<Transaction>,
) -> Result<At<Json<TransactionResult>>, Fault> {
    write.without_version()?;
    if body.operations.is_empty() {
        return Err(problem::of(Code::Invalid, "`operations` is empty").into());
    }
    let conditions = body.conditions.iter().map(condition).collect::<Result<_, _>>()?;
    let mut commands = Vec::with_capacity(body.operations.len());
    for operation in body.operations {
        commands.push(command(&api, operation).await?);
    }
    let command = Command::Atomic { conditions, commands };
    let (revision, reply) = api.commit(&write, 0, Vec::new(), command).await?;
    let Reply::Atomic(replies) = reply else {
        return Err(problem::with_code("LW0607", "a transaction without answers").into());
    };
    let outcomes = replies.into_iter().map(outcome).collect();
    Ok(At(revision, Json(TransactionResult { revision: revision.into(), outcomes })))
}

fn condition(condition: &Condition) -> Result<command::Condition, Fault> {
    Ok(match condition {
        Condition::Fence { lease, token } => command::Condition::Fence { lease: name(lease)?, token: (*token).into() },
        Condition::LeaseFree { lease } => command::Condition::LeaseFree(name(lease)?),
        Condition::ServerVersion { server, version } => command::Condition::Server(name(server)?, *version),
        Condition::ConfigVersion { set, version } => command::Condition::Set(name(set)?, *version),
    })
}

async fn command(api: &Api, operation: Change) -> Result<Command, Fault> {
    Ok(match operation {
        Change::PutServer { server, spec, if_version } => {
            Command::PutServer { server: name(&server)?, spec: Box::new(spec.to_spec()?), if_version }
        }
        Change::RemoveServer { server } => Command::RemoveServer { server: name(&server)?, if_version: None },
        Change::SetWanted { server, wanted } => Command::SetWanted {
            server: name(&server)?,
            wanted: match wanted {
                Wanted::Running => server::Wanted::Running,
                Wanted::Stopped => server::Wanted::Stopped,
            },
        },
        Change::Acquire { lease, session, holder, lock_delay, meta } => Command::Acquire(Acquire {
            lease: name(&lease)?,
            session: session.into(),
            holder,
            wait: false,
            priority: 0,
            lock_delay_ms: lock_delay.map_or(0, Duration::millis),
            meta,
        }),
        Change::Release { lease, token } => Command::Release { lease: name(&lease)?, token: token.into() },
        Change::Publish { set, parent, manifest, author, message } => {
            // Many deltas would not fit one entry.
            let (set, manifest) = (name(&set)?, digest(&manifest)?);
            sealed(api, &*api.read_now().await?, &set, manifest).await?;
            let publish = checked(api, set, parent, manifest, Base::Whole).await?;
            Command::Publish { sets: vec![publish], author, message }
        }
    })
}

fn outcome(reply: Reply) -> Outcome {
    match reply {
        Reply::Version(version) => Outcome { version: Some(version), token: None },
        Reply::Versions(versions) => Outcome { version: versions.first().map(|(_, version)| *version), token: None },
        Reply::Granted { grant, .. } => Outcome { version: None, token: Some(grant.token.into()) },
        _ => Outcome::default(),
    }
}
