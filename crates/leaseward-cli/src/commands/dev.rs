//! `leaseward dev`: a cluster of processes on this machine, and a failover to look at.
//!
//! Must stay true: everything is the real thing, started as an operator would start it; whatever way this process
//! ends, nothing that it started lives on for longer than a lease.

/// Prints a line. Whoever reads it may have gone away; that must not keep us from cleaning up.
macro_rules! show {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*).ok();
    }};
}

mod cluster;
mod story;

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::cluster::DevCluster;
use crate::args::DevArguments;
use crate::diagnostic::Diagnostic;
use crate::target::{Context, Contexts};

/// Runs until the demo or the operator ends it.
pub(crate) async fn run(arguments: DevArguments) -> Result<(), Diagnostic> {
    let began = Instant::now();
    // Before anything is said or made, so that an interrupt leaves nothing behind however early it comes.
    let interrupted = interrupted();
    let (dir, keep) = match arguments.keep.clone() {
        Some(dir) => (dir, true),
        None => (std::env::temp_dir().join(format!("leaseward-dev-{}", std::process::id())), false),
    };
    let nodes = arguments.nodes;
    show!("leaseward dev: {nodes} voters and {nodes} machines, a process each; state in {}", dir.display());
    let mut cluster = DevCluster::new(dir, nodes, arguments.port)?;
    let told = tokio::select! {
        told = tell(&mut cluster, &arguments, began) => told,
        () = interrupted => {
            show!("stopping …");
            Ok(())
        }
    };
    cluster.stop().await;
    forget_context();
    if !keep {
        cluster.remove();
    }
    told
}

async fn tell(cluster: &mut DevCluster, arguments: &DevArguments, began: Instant) -> Result<(), Diagnostic> {
    cluster.start(began).await?;
    write_context(cluster.apis())?;
    show!("  API http://{}       CLI   export LEASEWARD_CONTEXT=dev", cluster.apis()[0]);
    if !arguments.no_demo {
        story::tell(cluster, began).await?;
    }
    if arguments.exit_after_demo {
        return Ok(());
    }
    let what = if arguments.keep.is_some() { "keeps" } else { "deletes" };
    show!("\nCtrl-C stops everything and {what} {}.", cluster.dir().display());
    std::future::pending::<()>().await;
    Ok(())
}

/// Listens from now on, and returns what waits for an interrupt.
fn interrupted() -> impl Future<Output = ()> {
    let mut term = signal(SignalKind::terminate()).expect("signals can be listened to");
    let mut int = signal(SignalKind::interrupt()).expect("signals can be listened to");
    async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}

fn write_context(api: Vec<String>) -> Result<(), Diagnostic> {
    let mut contexts = Contexts::load()?;
    contexts.contexts.insert("dev".into(), Context { api, token_file: None });
    contexts.save()
}

fn forget_context() {
    if let Ok(mut contexts) = Contexts::load() {
        contexts.contexts.remove("dev");
        contexts.save().ok();
    }
}

/// Returns the path of our own program.
fn program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("leaseward"))
}
