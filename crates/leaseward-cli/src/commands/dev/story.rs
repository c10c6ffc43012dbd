//! The demo: a server runs, its machine dies, it comes back elsewhere, and the config catches up.

use std::fs;
use std::path::Path;
use std::time::Duration;

use leaseward_http::model::{MemberSyncList, Server, ServerFile, ServerPhase, SyncPhase};
use reqwest::Method;
use tokio::time::{Instant, sleep};

use super::cluster::DevCluster;
use super::program;
use crate::api::Api;
use crate::diagnostic::Diagnostic;
use crate::publish::{Prepared, Tree};

/// Each step of the story must come true within this.
const STEP_WITHIN: Duration = Duration::from_secs(30);

/// Tells the story.
pub(super) async fn tell(cluster: &mut DevCluster, began: Instant) -> Result<(), Diagnostic> {
    let api = cluster.api();
    let address = cluster.server_address();
    let source = cluster.dir().join("demo");
    let v1 = publish(&api, &source, "version one").await?;
    show!("✓ config set `demo` v{v1} published                             {:.1} s", began.elapsed().as_secs_f64());
    define_server(cluster, &api).await?;
    let server = until(&api, "`hello` runs", |server| server.phase == ServerPhase::Running).await?;
    let home = server.machine.clone().unwrap_or_default();
    show!(
        "✓ server `hello` on {home}, address {address}, fencing token {}        {:.1} s",
        token(&server),
        began.elapsed().as_secs_f64()
    );
    show!("  GET http://{address} says: {}", first_line(&get(address).await?));

    show!("\nThe demo now kills {home}. Watch the server come back:");
    let before = revision(&api).await?;
    let killed_at = leaseward_raft::clock::wall_millis();
    let killed = Instant::now();
    cluster.kill_machine(&home)?;
    say(Duration::ZERO, &home, "agent and server `hello` stopped (SIGKILL)");
    let server = until(&api, "`hello` runs again", |server| {
        server.phase == ServerPhase::Running && server.machine.as_deref() != Some(home.as_str())
    })
    .await?;
    let page = get(address).await?;
    let out_of_service = killed.elapsed();
    let new_home = server.machine.clone().unwrap_or_default();
    phases(&api, before, killed_at, &new_home).await?;
    say(out_of_service, &new_home, "`hello` answers: 200 OK");
    show!(
        "✓ out of service for {:.1} s. GET http://{address} now says: {}",
        out_of_service.as_secs_f64(),
        first_line(&page)
    );
    catch_up(cluster, &api, &source, &home).await
}

/// Publishes while the machine is down, then brings it back.
async fn catch_up(cluster: &mut DevCluster, api: &Api, source: &Path, home: &str) -> Result<(), Diagnostic> {
    let published = Instant::now();
    let v2 = publish(api, source, "version two").await?;
    let members = synced(api, v2, |members| {
        members.items.iter().filter(|member| member.connected).all(|member| is_at(member, v2))
    })
    .await?;
    let took = published.elapsed().as_millis();
    let on: Vec<_> =
        members.items.iter().filter(|member| is_at(member, v2)).map(|member| member.machine.as_str()).collect();
    show!(
        "✓ config set `demo` v{v2} published: on {} after {took} ms; {home} is behind (down) and will catch up",
        on.join(" and ")
    );
    show!("  the page says: {}", last_line(&get(cluster.server_address()).await?));
    let back = Instant::now();
    cluster.start_machine(home)?;
    synced(api, v2, |members| {
        members.items.iter().any(|member| member.machine == home && member.connected && is_at(member, v2))
    })
    .await?;
    let greeting = fs::read_to_string(cluster.sets_of(home).join("demo").join("greeting.txt")).unwrap_or_default();
    show!(
        "✓ {home} is back and has `demo` v{v2} ({}) after {:.1} s; `hello` stays where it is",
        greeting.trim(),
        back.elapsed().as_secs_f64()
    );
    Ok(())
}

fn is_at(member: &leaseward_http::model::MemberSync, version: u64) -> bool {
    member.phase == SyncPhase::Applied && member.applied == version
}

async fn define_server(cluster: &DevCluster, api: &Api) -> Result<(), Diagnostic> {
    let files = cluster.sets_of("{machine}").join("demo");
    let address = cluster.server_address();
    let command =
        [program().display().to_string(), "demo-server".into(), address.to_string(), files.display().to_string()];
    let text = format!(
        "command = {}\nconfig = [\"demo\"]\nstart_timeout = \"20s\"\nstop_grace = \"2s\"\n\
         [check]\ntype = \"http\"\nurl = \"http://{address}/healthz\"\ninterval = \"250ms\"\ntimeout = \"1s\"\nmisses = 3\n",
        serde_json::to_string(&command).expect("texts can be written"),
    );
    let spec = ServerFile::from_toml(&text)
        .map_err(|problem| Diagnostic::new(&problem.code, format!("the demo's server: {}", problem.detail)))?;
    api.call::<Server>(Method::PUT, "/v1/servers/hello", Some(&spec)).await.map(drop)
}

/// Publishes a greeting as the next version of the set.
async fn publish(api: &Api, source: &Path, greeting: &str) -> Result<u64, Diagnostic> {
    let failed = |error: std::io::Error| Diagnostic::new("LW0600", error.to_string());
    fs::create_dir_all(source).map_err(failed)?;
    fs::write(source.join("greeting.txt"), format!("{greeting}\n")).map_err(failed)?;
    let mut prepared = Prepared::of(api, Tree::of(source, false).await?).await?;
    prepared.send(api).await?;
    Ok(prepared.commit(api, "demo", None, "dev".into(), greeting.to_owned()).await?.version)
}

async fn until(api: &Api, what: &str, holds: impl Fn(&Server) -> bool) -> Result<Server, Diagnostic> {
    let deadline = Instant::now() + STEP_WITHIN;
    loop {
        if let Ok(server) = api.get::<Server>("/v1/servers/hello").await
            && holds(&server)
        {
            return Ok(server);
        }
        if Instant::now() > deadline {
            return Err(Diagnostic::new("LW0504", format!("not within {STEP_WITHIN:?}: {what}")));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn synced(
    api: &Api,
    version: u64,
    holds: impl Fn(&MemberSyncList) -> bool,
) -> Result<MemberSyncList, Diagnostic> {
    let deadline = Instant::now() + STEP_WITHIN;
    loop {
        if let Ok(members) = api.list::<MemberSyncList>("/v1/configs/demo/members").await
            && members.version == version
            && holds(&members)
        {
            return Ok(members);
        }
        if Instant::now() > deadline {
            return Err(Diagnostic::new(
                "LW0504",
                format!("not within {STEP_WITHIN:?}: members have version {version}"),
            ));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn revision(api: &Api) -> Result<u64, Diagnostic> {
    let status: leaseward_http::model::ClusterStatus = api.get("/v1/cluster").await?;
    Ok(status.revision.0)
}

/// Prints what the ledger says of the failover, on one time line with what was seen here.
async fn phases(api: &Api, after: u64, killed_at: u64, new_home: &str) -> Result<(), Diagnostic> {
    for event in api.events_after(after, Duration::ZERO).await?.items {
        let mine = event.kind == "session" || event.subject == "hello" || event.subject == "server/hello";
        let at = u64::try_from(event.at.unix_millis()).unwrap_or(0).saturating_sub(killed_at);
        if mine {
            let who = match event.kind.as_str() {
                "server" if event.text.contains("tarting") || event.text.contains("unning") => new_home,
                _ => "leader",
            };
            say(Duration::from_millis(at), who, &event.text);
        }
    }
    Ok(())
}

fn say(at: Duration, who: &str, what: &str) {
    show!("  {:06.3}  {who:<8} {what}", at.as_secs_f64());
}

fn token(server: &Server) -> String {
    server.token.map_or_else(|| "-".into(), |token| token.to_string())
}

async fn get(address: std::net::SocketAddr) -> Result<String, Diagnostic> {
    let failed = |error: reqwest::Error| Diagnostic::new("LW0501", format!("http://{address}: {error}"));
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().map_err(failed)?;
    http.get(format!("http://{address}/")).send().await.map_err(failed)?.text().await.map_err(failed)
}

fn first_line(page: &str) -> String {
    plain(page.lines().find(|line| line.contains("<h1>")).unwrap_or(page))
}

fn last_line(page: &str) -> String {
    plain(page.lines().last().unwrap_or(page))
}

/// Returns the text of a line of HTML.
fn plain(html: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for c in html.chars() {
        match c {
            '<' => inside = true,
            '>' => inside = false,
            c if !inside => text.push(c),
            _ => {}
        }
    }
    format!("\"{}\"", text.trim())
}
