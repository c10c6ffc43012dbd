//! The console in a real browser: it shows what the cluster does while it does it, and nothing that is secret.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use leaseward_tests::{Lab, Plan};
use rustix::process::Signal;
use serde_json::json;

use crate::browser::Browser;

/// What the file of each secret says.
const SECRET: &str = "hunter2-and-more";

/// What the pages' own words are for what no small lab shows. True, or what is wrong.
const WORDS: &str = r#"Promise.all([import("/console/words.js"), import("/console/lines.js")]).then(([{ howFar, counts, hidden, quoted }, { lines }]) => {
  const is = (found, wanted) => JSON.stringify(found) === JSON.stringify(wanted) ? [] : [{ found, wanted }];
  const brief = (rows) => rows.map((row) => row && ({ same: " ", minus: "-", plus: "+" }[row.kind] + row.text));
  const far = (member) => howFar({ connected: true, applied: 2, ...member });
  const many = Array.from({ length: 40 }, (_, i) => `line ${i}`);
  const other = [...many.slice(0, 20), "new", ...many.slice(20)];
  const wrong = [
    is(far({ phase: "fetching", version: 3, done: 1 << 20, total: 4 << 20, eta: "2s" }), "v3: 1.0 MiB of 4.0 MiB, 2s left"),
    is(far({ phase: "fetching", version: 3, done: 0, total: 0 }), "v3: 0 B"),
    is(far({ phase: "rejected", version: 3, why: "reload exited 1" }), "v3 · reload exited 1"),
    is(far({ phase: "applied", pinned: true, wanted: 2 }), "kept at v2"),
    is(far({ phase: "applied", pinned: true, pin: { version: 2, by: "ann", why: "licence" } }), "kept at v2 by ann: licence"),
    is(far({ phase: "disabled", pinned: true, pin: { by: "", why: "" } }), "kept as it is"),
    is(far({ phase: "behind", version: 2, running: { what: "check", lasting: "40s", timeout: "1m", command: "nginx -t" } }), "checking for 40s (1m at most): nginx -t"),
    is(counts([{ phase: "applied" }, { phase: "draining" }, { phase: "applied" }]), [["applied", 2], ["draining", 1]]),
    is(brief(lines("a\nb\nc\n", "a\nx\nc\n")), [" a", "-b", "+x", " c"]),
    is(brief(lines("", "a\n")), ["+a"]),
    is(brief(lines(many.join("\n"), other.join("\n"), 1)), [null, " line 19", "+new", " line 20", null]),
    is(hidden({ mode: "644" }, { key: "abc" }), "encrypted: it is not shown"),
    is(quoted("it's"), "'it'\\''s'"),
  ].flat();
  return wrong.length === 0 || JSON.stringify(wrong);
}).catch((error) => String(error))"#;

fn publish(lab: &Lab, set: &str, files: &[(&str, u32, &str)], more: &[&str]) {
    let from = lab.dir().join(format!("from-{set}"));
    fs::remove_dir_all(&from).ok();
    for (path, mode, content) in files {
        let path = from.join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("permitted");
    }
    let from = from.to_str().expect("text");
    lab.works(&[&["config", "publish", set, "--from", from], more].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_shows_sets_members_and_differences_as_they_come_and_no_secret() {
    // Long enough that a stopped agent is only behind for a while.
    let mut lab = Lab::start(Plan { machines: 3, ttl: "5s", ..Plan::default() }).await;
    let Some(mut browser) = Browser::start(&format!("http://{}/", lab.api(0))) else { return };
    browser.until(&lab, &["Config sets", "There is none yet"]).await;

    let markup = "<img src=x onerror=alert(1)>";
    let first = ("limits.toml", 0o644, "a = 1\nb = 1\nmax_sessions = 500\n");
    publish(&lab, "app", &[first, ("own.key", 0o600, SECRET)], &["-m", markup]);
    browser.until(&lab, &["app", "v1", markup, "3/3"]).await;
    browser.picture("sets");

    // A page that is open hears of all that follows by itself.
    browser.open("#/config/app");
    browser.until(&lab, &["config/app v1", "● applied 3", "m1", "m2", "m3", "all of it"]).await;
    lab.works(&["config", "policy", "app", "drift=report"]);
    lab.signal_agent(2, Signal::STOP);
    let second = ("limits.toml", 0o644, "a = 1\nb = 1\nmax_sessions = 800\n");
    publish(&lab, "app", &[second, ("own.key", 0o600, "hunter2-changed")], &["-m", "raise the limit"]);
    let seen = browser.until(&lab, &["config/app v2", "● applied 2", "○ behind 1", "raise the limit", "from v1"]).await;
    assert!(!seen.contains("drifted"), "{seen}");
    fs::write(lab.set_dir(1, "app").join("limits.toml"), "max_sessions = 9\n").expect("written");
    browser.until(&lab, &["≠ drifted 1", "limits.toml (content", "leaseward config sync app"]).await;
    browser.until(&lab, &["its agent is not connected"]).await;
    browser.picture("members");
    lab.signal_agent(2, Signal::CONT);
    lab.works(&["config", "sync", "app", "--machine", "m2"]);
    browser.until(&lab, &["● applied 3"]).await;
    // Somebody follows a link by keyboard.
    browser.evaluate("document.querySelector('[data-key=\"parent-2\"]').click()");

    let seen = browser.until(&lab, &["v1 → v2", "2 paths differ", "leaseward config rollback app --to 1"]).await;
    for shown in ["- max_sessions = 500", "+ max_sessions = 800", "only its owner may read it"] {
        assert!(seen.contains(shown), "{shown} in:\n{seen}");
    }
    assert!(!seen.contains("hunter2"), "{seen}");
    browser.picture("difference");

    let key = lab.dir().join("vault.key");
    let fingerprint = lab.works(&["config", "key", key.to_str().expect("text"), "--create"]);
    lab.works(&["config", "policy", "vault", &format!("key=\"{}\"", fingerprint.trim())]);
    publish(&lab, "vault", &[("db.conf", 0o644, SECRET)], &["--key", key.to_str().expect("text")]);
    browser.open("#/config/vault/diff/0/1");
    browser.until(&lab, &["db.conf", "encrypted: it is not shown"]).await;
    // Nor does a mode that lets everybody read it give it away, nor a set that names no key any more.
    lab.works(&["config", "policy", "vault", "key="]);
    lab.works(&["config", "put", "vault", "db.conf", "--mode", "644"]);
    browser.open("#/config/vault/diff/0/2");
    let seen = browser.until(&lab, &["db.conf", "encrypted: it is not shown"]).await;
    assert!(!seen.contains("LWSEC") && !seen.contains("hunter2"), "{seen}");
    assert_eq!(browser.evaluate("document.querySelectorAll('img, iframe').length"), 0, "names are never markup");
    let html = browser.evaluate("document.documentElement.outerHTML").to_string();
    assert!(!html.contains("hunter2"), "{html}");
    assert_eq!(browser.evaluate(WORDS), json!(true), "words");

    // It hears what moves, and is told when its voter is gone and is back; a cluster at rest is asked nothing.
    browser.open("#/config/app");
    browser.until(&lab, &["config/app v2", "● applied 3"]).await;
    let began = browser.requests.len();
    lab.kill_voter(0);
    browser.until(&lab, &["✖ ", "config/app v2"]).await;
    lab.start_voter(0);
    let from = lab.dir().join("from-app");
    fs::write(from.join("limits.toml"), "max_sessions = 900\n").expect("written");
    lab.works(&["config", "publish", "app", "--from", from.to_str().expect("text"), "-m", "again"]);
    browser.until(&lab, &["config/app v3", "● applied 3", "n1 · revision"]).await;
    assert!(browser.requests[began..].iter().any(|url| url.contains("revisions=")), "{:?}", browser.requests);
    let before = &browser.requests[..began];
    assert_eq!(before.iter().filter(|url| url.contains("revisions=")).count(), 1, "one connection: {before:?}");
    browser.until_it_writes_the_time_and_asks_nothing(&lab).await;

    // What happened stands with the set; who has no token is asked for one, and the page goes on with it.
    browser.open("#/config/app");
    browser.until(&lab, &["What happened", "app on m2: ", "leaseward events --for config/app"]).await;
    let token = |name: &str| lab.dir().join(format!("{name}.token"));
    let (root, eye) = (token("root"), token("eye"));
    let path = |file: &Path| file.to_str().expect("text").to_owned();
    lab.works(&["token", "create", "root", "--role", "admin", "--to", &path(&root)]);
    lab.works(&["--token-file", &path(&root), "token", "create", "eye", "--role", "viewer", "--to", &path(&eye)]);
    browser.open("#/config");
    browser.until(&lab, &["Who asks?", "leaseward token create NAME --role viewer"]).await;
    let secret = fs::read_to_string(&eye).expect("it is there");
    browser.evaluate(&format!("document.getElementById('token').value = {}", json!(secret.trim())));
    browser.evaluate("document.querySelector('main button').click()");
    browser.until(&lab, &["Config sets", "vault"]).await;
    // A browser notes each refusal; nothing else went wrong.
    browser
        .complaints
        .retain(|complaint| !["status of 401", "net::ERR_"].iter().any(|known| complaint.contains(known)));
    assert_eq!(browser.complaints, Vec::<String>::new());
}
