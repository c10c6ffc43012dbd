//! Lists and stories that do not fit into one answer.

mod fake;

use serde_json::{Value, json};

use crate::fake::{Answer, Fake, ok, refusal, stderr};

/// Returns the value of a word in a query.
fn asked_for<'a>(path: &'a str, word: &str) -> Option<&'a str> {
    let query = path.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == word).map(|(_, value)| value))
}

/// A page of a list that is given two at a time.
fn paged(path: &str, all: &[Value], rest: &Value) -> Answer {
    let from: usize = asked_for(path, "page").map_or(0, |page| page.parse().expect("a page that was named"));
    let mut page = rest.clone();
    page["items"] = all.iter().skip(from).take(2).cloned().collect();
    page["next_page"] = if from + 2 < all.len() { json!((from + 2).to_string()) } else { Value::Null };
    ok(&page)
}

/// A cluster in which a set has five members; the last one is not so far.
fn members(applied: u64) -> Fake {
    let member = move |i: u64| {
        let (phase, applied) = if i == 5 { ("fetching", applied) } else { ("applied", 2) };
        let phase = if applied == 2 { "applied" } else { phase };
        json!({ "machine": format!("m{i}"), "connected": true, "applied": applied, "phase": phase, "at": null })
    };
    Fake::start(move |_, path| match path.split('?').next().unwrap_or_default() {
        "/v1/cluster" => ok(&json!({ "revision": "7" })),
        "/v1/configs/x/members" => {
            let all: Vec<Value> = (1..=5).map(member).collect();
            paged(path, &all, &json!({ "revision": "7", "version": 2, "programs": [] }))
        }
        "/v1/configs/x" => ok(&json!({
            "name": "x", "version": 2, "newest": null, "versions_kept": 2, "in_sync": 4, "members": 5, "policy": {},
            "policy_version": 0, "taken_back": [], "created": "1", "modified": "7",
        })),
        "/v1/events" => ok(&json!({ "revision": "7", "compacted": "0", "items": [] })),
        _ => refusal(404, "LW0404", "it does not exist"),
    })
}

#[test]
fn a_list_has_what_is_on_all_of_its_pages() {
    let shown = members(1).run(&["config", "monitor", "x"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains("m5"), "{text}{}", stderr(&shown));
    let shown = members(1).run(&["config", "monitor", "x", "-o", "json"]);
    let list: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!((list["items"].as_array().map(Vec::len), &list["next_page"]), (Some(5), &Value::Null));
}

#[test]
fn a_barrier_waits_for_whoever_is_on_the_last_page() {
    let late = members(1).run(&["wait", "config/x=synced", "--timeout", "1s"]);
    assert_eq!(late.status.code(), Some(7), "{}", stderr(&late));
    let all = members(2).run(&["wait", "config/x=synced", "--timeout", "60s"]);
    assert!(all.status.success(), "{}", stderr(&all));
}

/// A cluster that began a new life at revision 900,000 and keeps nothing from before; with `restless`, it keeps nothing at all.
fn restored(restless: bool) -> Fake {
    const ANEW: u64 = 900_000;
    Fake::start(move |_, path| match path.split('?').next().unwrap_or_default() {
        "/v1/cluster" => ok(&json!({ "revision": (ANEW + 5_000).to_string() })),
        "/v1/events" => match asked_for(path, "after").map(|after| after.parse::<u64>().expect("a number")) {
            Some(after) if restless || after < ANEW => refusal(410, "LW0207", "these events are gone"),
            _ => {
                let event = json!({ "revision": (ANEW + 1).to_string(), "part": 0, "at": "2026-01-01T00:00:00Z",
                                    "kind": "lease", "subject": "x", "text": "x is free", "data": {} });
                let (revision, compacted) = ((ANEW + 5_000).to_string(), ANEW.to_string());
                ok(&json!({ "revision": revision, "compacted": compacted, "items": [event] }))
            }
        },
        _ => refusal(404, "LW0404", "it does not exist"),
    })
}

#[test]
fn what_happened_is_told_from_the_oldest_that_is_kept() {
    let fake = restored(false);
    for line in [["events", "--timeout=9s"], ["events", "--after=5"]] {
        let told = fake.ended(&line);
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.status.success() && text.contains("x is free"), "{text}{}", stderr(&told));
    }
}

#[test]
fn where_nothing_is_kept_long_enough_to_be_told_it_ends_and_says_so() {
    let fake = restored(true);
    let told = fake.ended(&["events"]);
    assert!(stderr(&told).contains("error LW0207"), "{}", stderr(&told));
    assert!(fake.asked().len() < 20, "{:?}", fake.asked());
}
