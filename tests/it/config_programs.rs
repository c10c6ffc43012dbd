//! Config sets and the real programs that read them: a load balancer and its backends, and nginx.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_tests::{Lab, PATIENCE, eventually, free_port, is_root};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::config::{all_at, lab, members, published};
/// A web server that says which version of its config it runs, and reads it again when it is told: its whole life is one
/// directory of a config set.
struct Backend {
    stop: tokio::task::JoinHandle<()>,
}

impl Backend {
    async fn start(port: u16, target: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port of its own");
        let stop = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let target = target.clone();
                tokio::spawn(async move {
                    let mut asked = [0; 2048];
                    // Whatever is asked, the answer is the same; a request takes its time.
                    let Ok(1..) = stream.read(&mut asked).await else { return };
                    sleep(Duration::from_millis(5)).await;
                    let body = fs::read_to_string(target.join("page")).unwrap_or_else(|_| "no config".into());
                    let status = if body == "no config" { "500 Internal Server Error" } else { "200 OK" };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(answer.as_bytes()).await.ok();
                    stream.shutdown().await.ok();
                });
            }
        });
        Self { stop }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

/// A program that ends with this value, and everything that it started: the workers of a dead nginx go on.
struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> Self {
        use std::os::unix::process::CommandExt as _;
        Self(command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
        self.0.wait().ok();
    }
}

fn haproxy() -> Option<PathBuf> {
    let known = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"].map(PathBuf::from);
    known.into_iter().find(|path| path.is_file())
}

async fn page(port: u16) -> Option<String> {
    asked(port).await.ok()
}

/// Returns what is answered, or why nothing good is.
async fn asked(port: u16) -> Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(failed)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.map_err(failed)?;
    let mut answer = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.map_err(|_| "no answer".to_owned())?.map_err(failed)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(format!("{answer:?}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_a_version_goes_round_behind_a_real_load_balancer() {
    let Some(haproxy) = haproxy() else {
        println!("left out: haproxy is not installed");
        return;
    };
    let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
    let settings: Vec<String> = ports
        .iter()
        .map(|(service, checks)| format!("readiness = \"127.0.0.1:{checks}\"\nsession_ports = [{service}]"))
        .collect();
    let lab = lab(&settings).await;
    // The reload breaks the service for a moment: whoever is not drained is seen.
    let reload =
        "mv $LEASEWARD_TARGET/page $LEASEWARD_TARGET/gone; sleep 0.1; mv $LEASEWARD_TARGET/gone $LEASEWARD_TARGET/page";
    lab.works(&[
        "config",
        "policy",
        "web",
        "drain=always",
        "drain_wait=20s",
        "rollout.max_unavailable=1",
        &format!("reload.command=[\"sh\", \"-c\", \"{reload}\"]"),
    ]);
    published(&lab, "web", &[("page", "v1")]);
    lab.until("everybody serves the first", async |lab| members(lab, "web").await, all_at("applied", 1, 3)).await;
    let mut backends = Vec::new();
    for (machine, (service, _)) in ports.iter().enumerate() {
        backends.push(Backend::start(*service, lab.set_dir(machine, "web")).await);
    }
    let front = free_port();
    let servers: String = ports
        .iter()
        .enumerate()
        .map(|(i, (service, checks))| {
            format!("  server m{} 127.0.0.1:{service} check agent-check agent-port {checks} agent-inter 200ms inter 500ms\n", i + 1)
        })
        .collect();
    let text = format!(
        "global\n  log stderr local0 err\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 10s\n  timeout server 10s\n\
         listen web\n  bind 127.0.0.1:{front}\n  balance roundrobin\n  retries 0\n{servers}"
    );
    let file = lab.dir().join("haproxy.cfg");
    fs::write(&file, text).expect("written");
    let _haproxy = Program::start(Command::new(haproxy).args(["-db", "-f"]).arg(&file));
    eventually("the load balancer serves", async || page(front).await.as_deref() == Some("v1")).await;

    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let failed = Arc::new(Mutex::new(Vec::new()));
    let began = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (stop, failed, served) = (Arc::clone(&stop), Arc::clone(&failed), Arc::clone(&served));
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match asked(front).await {
                    Ok(_) => drop(served.fetch_add(1, Ordering::Relaxed)),
                    Err(why) => failed.lock().expect("no panic").push((began.elapsed(), why)),
                }
                // Each connection keeps a port for a minute: as fast as it goes they run out where the rollouts are slow.
                sleep(Duration::from_millis(10)).await;
            }
        }));
    }
    for version in 2..=3 {
        assert_eq!(published(&lab, "web", &[("page", &format!("v{version}"))]), version);
        lab.until("it went round", async |lab| members(lab, "web").await, all_at("applied", version, 3)).await;
    }
    eventually("everybody says the newest", async || page(front).await.as_deref() == Some("v3")).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("it ends");
    }
    let (served, failed) = (served.load(Ordering::Relaxed), std::mem::take(&mut *failed.lock().expect("no panic")));
    println!("{served} requests served, {} failed, during two rollouts of three members", failed.len());
    let (count, first) = (failed.len(), failed.iter().take(3).collect::<Vec<_>>());
    assert_eq!(count, 0, "requests failed within {:?}, {served} were served: {first:?}", began.elapsed());
    assert!(served > 200, "there was no load: {served}");
    let events = lab.list_at(0, "/v1/events?kinds=config&prefix=web").await.unwrap_or_default();
    let drained = events.iter().filter(|event| event["data"]["phase"] == "draining").count();
    assert!(drained >= 6, "each member left its load balancer for each version: {drained}");
}

fn nginx() -> Option<PathBuf> {
    Some(PathBuf::from("/usr/sbin/nginx")).filter(|path| path.is_file())
}

#[tokio::test]
async fn a_config_that_nginx_refuses_never_reaches_it_and_a_good_one_is_reloaded() {
    let Some(nginx) = nginx().filter(|_| is_root()) else {
        println!("left out: nginx is not installed, or this is not root");
        return;
    };
    let lab = lab(&[String::new()]).await;
    let (port, run_dir) = (free_port(), lab.dir().join("nginx"));
    fs::create_dir(&run_dir).expect("a directory");
    let conf = |body: &str| {
        format!(
            "daemon off;\nerror_log stderr;\npid {run}/pid;\nevents {{}}\nhttp {{ access_log off; client_body_temp_path {run}/b; \
             proxy_temp_path {run}/p; fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u; scgi_temp_path {run}/s; \
             server {{ listen 127.0.0.1:{port}; location / {{ {body} }} }} }}\n",
            run = run_dir.display()
        )
    };
    let live = lab.set_dir(0, "nginx").join("nginx.conf");
    // At its own place: what is checked is not live yet.
    let check = format!("check.command=[\"{}\", \"-t\", \"-c\", \"{}\"]", nginx.display(), live.display());
    published(&lab, "nginx", &[("nginx.conf", &conf("return 200 one;"))]);
    lab.until("it is there", async |lab| members(lab, "nginx").await, all_at("applied", 1, 1)).await;
    let nginx_runs = Program::start(Command::new(&nginx).arg("-c").arg(&live));
    eventually("it serves the first", async || page(port).await.as_deref() == Some("one")).await;
    let reload =
        format!("reload.command=[\"{}\", \"-c\", \"{}\", \"-s\", \"reload\"]", nginx.display(), live.display());
    lab.works(&["config", "policy", "nginx", &check, &reload]);
    published(&lab, "nginx", &[("nginx.conf", &conf("return 200 two;"))]);
    // An old worker answers until it has ended.
    let master = nginx_runs.0.id();
    let workers = format!("/proc/{master}/task/{master}/children");
    let settled = async || {
        let alone = fs::read_to_string(&workers).is_ok_and(|pids| pids.split_whitespace().count() == 1);
        alone && page(port).await.as_deref() == Some("two")
    };
    eventually("it serves the second", settled).await;
    published(&lab, "nginx", &[("nginx.conf", &conf("retrun 200 three;"))]);
    let refused = async |lab: &Lab| Some(members(lab, "nginx").await?["m1"].clone());
    lab.until("it is refused", refused, ("rejected".into(), 2)).await;
    let (_, monitor, _) = lab.run(&["config", "monitor", "nginx"]);
    assert!(monitor.contains("unknown directive \"retrun\""), "{monitor}");
    assert_eq!(page(port).await.as_deref(), Some("two"));
    published(&lab, "nginx", &[("nginx.conf", &conf("return 200 four;"))]);
    eventually("the next good one is served", async || page(port).await.as_deref() == Some("four")).await;
}
