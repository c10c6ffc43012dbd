//! The console in a real browser: it shows what the cluster does while it does it, and nothing that is secret.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use leaseward_tests::{Lab, Plan};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use crate::browser::Browser;

/// What the file of each secret says.
const SECRET: &str = "hunter2-and-more";

/// A check that refuses what somebody calls bad, and says so in several lines.
const CHECK: &str = "check.command=[\"sh\", \"-c\", \"! grep -q bad {tree}/app.conf || { echo first line; echo the second says why; exit 3; }\"]";

/// What the pages' own words are for what no small lab shows. True, or what is wrong.
const WORDS: &str = r#"Promise.all([import("/console/words.js"), import("/console/lines.js"), import("/console/quorum.js")]).then(([{ howFar, counts, hidden, quoted, balancer, since }, { lines, pairs }, { loss }]) => {
  const is = (found, wanted) => JSON.stringify(found) === JSON.stringify(wanted) ? [] : [{ found, wanted }];
  const brief = (rows) => rows.map((row) => row && ({ same: " ", minus: "-", plus: "+" }[row.kind] + row.text));
  const far = (member) => howFar({ connected: true, applied: 2, ...member });
  const brief2 = (found) => found.map((pair) => pair ? pair.map((row) => row?.text ?? "").join("|") : "~");
  const told = (member, drain) => balancer({ connected: true, applied: 2, ...member }, { drain }).word;
  const said = (at, phase) => ({ at, data: { event: "synced", phase } });
  const voters = (all, up) => Array.from({ length: all }, (_, i) => ({ up: i < up }));
  const first = (all, up) => { const asked = voters(all, up); return loss(asked, asked[0]).word; };
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
    is([1, 2, 3].map((up) => first(3, up)), ["no quorum already", "breaks quorum", "safe"]),
    is([2, 3, 4, 5].map((up) => first(5, up)), ["no quorum already", "breaks quorum", "safe", "safe"]),
    is([first(1, 1), first(2, 2), first(3, 0)], ["breaks quorum", "breaks quorum", "does not answer now"]),
    is(brief2(pairs(lines("a\nb\nc\nd\n", "a\nx\nd\n"))), ["a|a", "b|x", "c|", "d|d"]),
    is(brief2(pairs(lines("", "a\n"))), ["|a"]),
    is(brief2(pairs(lines(many.join("\n"), other.join("\n"), 1))), ["~", "line 19|line 19", "|new", "line 20|line 20", "~"]),
    is(told({ phase: "draining" }, "always"), "drain"),
    is(told({ phase: "on_disk", running: { what: "reload" } }, "always"), "drain"),
    is(told({ phase: "on_disk", running: { what: "reload" } }, "first"), "ready"),
    is([told({ applied: 0 }, "first"), told({ applied: 0 }, "never"), told({ connected: false }, "never")], ["drain", "ready", "?"]),
    is(since([said("m", "rejected"), said("b", "applied"), said("c", "rejected"), said("d", "rejected")], "rejected"), "c"),
    is(since([said("a", "applied")], "rejected"), null),
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
    lab.works(&[&["config", "publish", set, "--from", from, "--no-wait"], more].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_shows_sets_members_and_differences_as_they_come_and_no_secret() {
    // Long enough that a stopped agent is only behind for a while.
    let mut lab = Lab::start(Plan { machines: 3, ttl: "5s", ..Plan::default() }).await;
    let Some(mut browser) = Browser::start(&format!("http://{}/", lab.api(0))) else { return };
    browser.until(&lab, &["Overview", "● ok"]).await;
    browser.open("#/config");
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

/// How wide a phone is, in the pixels of pages.
const PHONE: u32 = 390;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_says_how_the_cluster_is_and_what_happened_on_a_phone_too() {
    let mut lab = Lab::start(Plan { machines: 2, ttl: "5s", ..Plan::default() }).await;
    let Some(mut browser) = Browser::start(&format!("http://{}/", lab.api(0))) else { return };
    let well =
        ["Overview", "● ok", "all 3 voters up", "● safe 2 of 3 would answer, 2 are needed", "machines: 2 connected"];
    browser.until(&lab, &well).await;
    let said = lab.status().await.expect("it answers");
    browser.until(&lab, &[said["sentence"].as_str().expect("text"), said["leader"].as_str().expect("text")]).await;
    publish(&lab, "app", &[("a", 0o644, "1")], &["-m", "first"]);
    browser.until(&lab, &["Sync", "2/2", "1 config set", "app v1 published"]).await;

    // A phone shows all of it, one below the other.
    browser.resize(PHONE, 844);
    browser.picture("overview-phone");
    let wider = "[document.documentElement, ...document.querySelectorAll('.scroll')].map((part) => part.scrollWidth).filter((width) => width > 390)";
    assert_eq!(browser.evaluate(wider), json!([]), "nothing is beside the screen");
    assert_eq!(browser.evaluate("innerWidth"), PHONE);
    browser.resize(1280, 720);

    // What a loss does is counted on those that answer.
    lab.kill_voter(2);
    browser
        .until(
            &lab,
            &["1 of 3 voters down, no further loss allowed", "✖ silent", "✖ breaks quorum", "does not answer now"],
        )
        .await;
    browser.picture("overview");
    lab.start_voter(2);
    browser.until(&lab, &well).await;

    // Everything that happened, as it comes.
    browser.open("#/events");
    browser.until(&lab, &["Events live", "app v1 published"]).await;
    publish(&lab, "app", &[("a", 0o644, "2")], &["-m", "second"]);
    browser.until(&lab, &["app v2 published"]).await;
    browser.evaluate("document.querySelector('[data-key=kind-config]').click()");
    browser.evaluate("document.querySelector('[data-key=kind-lease]').click()");
    browser.until_true(&lab, "location.hash === '#/events?kinds=config%2Clease'").await;
    browser.until_true(&lab, "!document.body.innerText.includes('opened')").await;
    browser.until(&lab, &["app v2 published"]).await;
    // Somebody types while the page goes on.
    browser.evaluate("document.querySelector('[data-key=prefix]').focus()");
    browser.types("ap");
    browser.until_true(&lab, "location.hash.endsWith('&prefix=ap')").await;
    publish(&lab, "app", &[("a", 0o644, "3")], &["-m", "third"]);
    browser.until(&lab, &["app v3 published"]).await;
    browser.types("x");
    browser.until(&lab, &["Nothing that is kept is so."]).await;
    browser.until_true(&lab, "document.activeElement.value === 'apx'").await;

    // A window, and back page by page; the address is all there is to it.
    for i in 0..60 {
        let opened =
            lab.call(Method::POST, "/v1/sessions", Some(&json!({ "name": format!("job-{i}"), "ttl": "60s" }))).await;
        let (_, session) = opened.expect("it answers");
        let ended =
            lab.call(Method::DELETE, &format!("/v1/sessions/{}", session["id"].as_str().expect("an id")), None).await;
        assert_eq!(ended.expect("it answers").0, 204);
    }
    browser.open("#/events?kinds=session&since=2020-01-01T00:00:00Z");
    browser.until(&lab, &["Events live", "job-59", "← older"]).await;
    browser.evaluate("document.querySelector('[data-key=older]').click()");
    browser.until(&lab, &["Events of the past", "job-0", "newest →"]).await;
    assert!(!browser.text().contains("job-59"));
    browser.ask("Page.reload", &json!({}));
    browser.until(&lab, &["Events of the past", "job-0"]).await;
    browser.evaluate("document.querySelector('[data-key=newest]').click()");
    browser.until(&lab, &["Events live", "job-59"]).await;
    browser.open("#/events?until=2001-01-01T00:00:00Z");
    browser.until(&lab, &["Events of the past", "Nothing that is kept is so."]).await;
    browser.open("#/events?since=yesterday");
    browser.until(&lab, &["Nothing to show: LW0101"]).await;
    browser.complaints.retain(|complaint| !complaint.contains("status of 422"));
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_tells_all_of_a_member_and_of_what_goes_on_and_is_steered_by_keyboard() {
    let lab = Lab::start(Plan { machines: 3, ttl: "5s", ..Plan::default() }).await;
    let Some(mut browser) = Browser::start(&format!("http://{}/console/#/config", lab.api(0))) else { return };
    lab.works(&["config", "policy", "app", CHECK, "rollout.canaries=1", "rollout.bake=1s", "drain=first"]);
    publish(&lab, "app", &[("app.conf", 0o644, "one = 1\ntwo = 2\n")], &["-m", "first"]);
    browser.until(&lab, &["v1", "3/3"]).await;
    assert_eq!(browser.evaluate("document.getElementById('running').hidden"), true, "nothing goes on");

    // One member refuses a version: its rollout stands still, below every page.
    publish(&lab, "app", &[("app.conf", 0o644, "one = 1\ntwo = bad\n")], &["-m", "second"]);
    browser.until(&lab, &["Going on", "✖ halted config/app v2: 1 of 3"]).await;
    browser.open("#/overview");
    browser.until(&lab, &["Overview", "✖ halted config/app v2"]).await;
    browser.evaluate("document.querySelector('[data-key=rollout-app]').click()");
    browser.until(&lab, &["config/app v2", "✖ rejected 1"]).await;
    let refused = browser.evaluate("document.querySelector('td [data-key^=member-]').textContent");
    let refused = refused.as_str().expect("those that need somebody come first").to_owned();
    browser.evaluate("document.querySelector('td [data-key^=member-]').click()");
    let sync = format!("leaseward config sync app --machine {refused}");
    let shown = [
        "✖ rejected",
        "first line",
        "the second says why",
        "since",
        "ready drain = first",
        "maint",
        &sync,
        "check: sh -c",
    ];
    browser.until(&lab, &[&[format!("config/app on {refused}").as_str()], &shown[..]].concat()).await;
    browser.picture("member");
    let why = browser.evaluate("document.querySelector('[data-why]').textContent").to_string();
    assert!(why.contains("it exited with 3: first line | the second says why"), "{why}");
    lab.works(&["config", "pin", "app", "--machine", &refused, "--as-is", "-m", "spare parts"]);
    browser.until(&lab, &["– disabled", "as it is, this member", "spare parts", "leaseward config unpin app"]).await;
    browser.open("#/config/app/m9");
    browser.until(&lab, &["m9 is no member of this set"]).await;

    // What somebody asked for and is not so yet stands there too, with its steps.
    let file = lab.dir().join("only.toml");
    fs::write(&file, "command = [\"sleep\", \"100000\"]\ncandidates = [\"m1\"]\n").expect("written");
    lab.works(&["server", "apply", "-f", file.to_str().expect("text")]);
    lab.works(&["machine", "drain", "m1", "-m", "firmware", "--no-wait"]);
    browser.until(&lab, &["Going on", "◐ drain machine/m1"]).await;
    browser.evaluate("document.querySelector('[data-key^=operation-]').click()");
    browser.until(&lab, &["drain machine/m1", "◐ goes on not yet: m1 runs no server", "firmware"]).await;
    browser.picture("operation");
    lab.works(&["machine", "resume", "m1"]);
    browser.until(&lab, &["– superseded"]).await;
    browser.until_true(&lab, "!document.querySelector('[data-key^=operation-]')").await;

    // Both versions of a file side by side, which stands in the address.
    browser.open("#/config/app/diff/1/2");
    browser.until(&lab, &["- two = 2", "+ two = bad"]).await;
    browser.evaluate("document.querySelector('[data-key=view-split]').click()");
    let beside = "[...document.querySelectorAll('tr')].some((row) => row.innerText.includes('- two = 2') && row.innerText.includes('+ two = bad'))";
    browser.until_true(&lab, beside).await;
    assert_eq!(browser.evaluate("location.hash"), "#/config/app/diff/1/2?view=split");
    browser.ask("Page.reload", &json!({}));
    browser.until_true(&lab, beside).await;
    browser.picture("side-by-side");

    // Without a mouse.
    for (letter, page) in [("e", "#/events"), ("o", "#/overview"), ("s", "#/config")] {
        browser.key("g");
        browser.key(letter);
        browser.until_true(&lab, &format!("location.hash === '{page}'")).await;
    }
    browser.until(&lab, &["Config sets", "app"]).await;
    browser.key("/");
    browser.until_true(&lab, "document.activeElement.matches('[data-filter]')").await;
    browser.types("go");
    browser
        .until_true(&lab, "location.hash === '#/config?q=go' && !document.querySelector('[data-key=set-app]')")
        .await;
    browser.key("g");
    browser.key("o");
    browser.until_true(&lab, "location.hash === '#/config?q=gogo'").await;
    browser.key("Escape");
    browser.key("?");
    browser.until(&lab, &["Keys", "config sets", "done typing"]).await;
    assert_eq!(browser.evaluate("document.getElementById('help').open"), true);
    assert_eq!(browser.evaluate(WORDS), json!(true), "words");
    assert_eq!(browser.complaints, Vec::<String>::new());
}
