//! Looks at the cluster from the host of the clients while things are broken.
//!
//! Must stay true: nobody waits for a host that does not answer, neither the fault that looks nor any other: all hosts are asked at
//! a time, on a thread of its own, and each has a moment.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Client;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::hosts::{CLIENT, Hosts};

/// A host that does not answer within this is not seen. More than the slowest lines take there and back, twice.
const LOOK_WITHIN: Duration = Duration::from_millis(1_500);

type Question = (String, oneshot::Sender<Vec<(usize, String)>>);

/// Whoever looks.
pub(super) struct Eye {
    asked: mpsc::UnboundedSender<Question>,
}

impl Eye {
    /// Opens it; it closes when it is dropped.
    pub(super) fn open(hosts: &Hosts) -> Self {
        let (asked, mut questions) = mpsc::unbounded_channel::<Question>();
        let apis = hosts.all_apis();
        hosts.network().spawn(CLIENT, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let http = Client::builder().no_proxy().timeout(LOOK_WITHIN).build().expect("a plain client");
                while let Some((path, answer)) = questions.recv().await {
                    let (http, apis) = (http.clone(), apis.clone());
                    tokio::spawn(async move { answer.send(ask_all(&http, &apis, &path).await).ok() });
                }
            });
        });
        Self { asked }
    }

    /// Returns the page that each host shows that answers.
    pub(super) async fn pages(&self, path: &str) -> Vec<(usize, String)> {
        let (answer, told) = oneshot::channel();
        self.asked.send((path.to_owned(), answer)).ok();
        told.await.unwrap_or_default()
    }

    /// Returns what each host says that answers.
    pub(super) async fn ask(&self, path: &str) -> Vec<(usize, Value)> {
        let pages = self.pages(path).await.into_iter();
        pages.filter_map(|(host, page)| Some((host, serde_json::from_str(&page).ok()?))).collect()
    }

    /// Returns the cluster's status, as the one sees it who leads; else as somebody does who knows a leader.
    pub(super) async fn cluster(&self, names: &[&'static str]) -> Option<Value> {
        let shown = self.ask("/v1/cluster").await;
        let leads = |(host, cluster): &&(usize, Value)| cluster["leader"] == names[*host];
        let known =
            shown.iter().find(leads).or_else(|| shown.iter().find(|(_, cluster)| cluster["leader"].is_string()));
        known.map(|(_, cluster)| cluster.clone())
    }
}

async fn ask_all(http: &Client, apis: &[SocketAddr], path: &str) -> Vec<(usize, String)> {
    let mut asked = JoinSet::new();
    for (host, api) in apis.iter().enumerate() {
        let question = http.get(format!("http://{api}{path}")).send();
        asked.spawn(async move {
            let answer = question.await.ok()?.error_for_status().ok()?;
            Some((host, answer.text().await.ok()?))
        });
    }
    let mut shown: Vec<(usize, String)> = asked.join_all().await.into_iter().flatten().collect();
    shown.sort_by_key(|(host, _)| *host);
    shown
}
