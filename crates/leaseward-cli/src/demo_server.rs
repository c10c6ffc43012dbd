//! The server that `leaseward dev` runs: a page that says where it runs, under which token, and what its config set
//! says. A process like any other; it knows nothing of the cluster but its environment.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use axum::Router;
use axum::extract::State;
use axum::response::Html;
use axum::routing::get;

use crate::printer::note;

/// Serves until it is told to stop. Arguments: the address, and the directory of the config set, in which `{machine}`
/// stands for the machine's name.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let [address, files] = arguments.as_slice() else {
        note!("demo-server ADDRESS FILES");
        return ExitCode::from(2);
    };
    let machine = std::env::var("LEASEWARD_MACHINE").unwrap_or_default();
    let files = PathBuf::from(files.to_string_lossy().replace("{machine}", &machine));
    let Ok(address) = address.to_string_lossy().parse::<SocketAddr>() else {
        note!("{} is no address", address.display());
        return ExitCode::from(2);
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return ExitCode::from(1);
    };
    match runtime.block_on(serve(address, files)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note!("{address}: {error}");
            ExitCode::from(1)
        }
    }
}

async fn serve(address: SocketAddr, files: PathBuf) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let router = Router::new().route("/", get(page)).route("/healthz", get(|| async { "ok" })).with_state(files);
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            term.recv().await;
        })
        .await
}

async fn page(State(files): State<PathBuf>) -> Html<String> {
    Html(render(&files))
}

fn render(files: &Path) -> String {
    let say = |name: &str| std::env::var(name).unwrap_or_else(|_| "?".into());
    // The tree switches as a whole; what is read here is one version.
    let greeting = std::fs::read_to_string(files.join("greeting.txt")).unwrap_or_else(|_| "no config yet".into());
    format!(
        "<!doctype html><title>hello</title>\n<h1>hello from {}, token {}</h1>\n<p>config set <b>demo</b>: {}</p>\n",
        say("LEASEWARD_MACHINE"),
        say("LEASEWARD_TOKEN"),
        greeting.trim()
    )
}
