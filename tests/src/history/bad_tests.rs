//! Each checker is shown good histories, which it must let pass, and bad ones, each with one thing wrong.

use std::collections::BTreeSet;

use serde_json::json;

use super::converge::{self, Relapse, Seen};
use super::lease::{self, Additions, Effect, Hold};
use super::linear::{Found, Op, by_revision, search};
use super::once::{self, Request};
use super::sets::{self, In, Out, Part, SetOp, Sets};
use super::watch::{self, Committed, Event, Watched};
use super::{Outcome, Record, op};

fn write(times: (u64, u64), upon: Option<u64>, value: &str, version: u64, revision: u64) -> SetOp {
    let input = In::Write(vec![Part { set: "r".into(), upon }], value.into());
    let output = Some(Out::Versions(vec![version]));
    Op { client: 1, invoke: times.0, ret: Some(times.1), input, output, revision: Some(revision) }
}

fn read(times: (u64, u64), version: u64, value: &str, revision: u64) -> SetOp {
    let output = Some(Out::Newest(version, value.into()));
    Op { client: 2, invoke: times.0, ret: Some(times.1), input: In::Read("r".into()), output, revision: Some(revision) }
}

fn unanswered(mut op: SetOp, revision: Option<u64>) -> SetOp {
    (op.ret, op.output, op.revision) = (None, None, revision);
    op
}

/// Both ways must say the same of a history whose revisions are true.
fn is_linear(ops: &[SetOp]) -> bool {
    let (order, found) = (by_revision::<Sets>(ops), search::<Sets>(ops, 100_000));
    assert_eq!(order.is_ok(), found == Found::Order, "{order:?} and {found:?}");
    order.is_ok()
}

#[test]
fn orders_that_explain_everything_pass() {
    assert!(is_linear(&[]));
    assert!(is_linear(&[write((1, 5), None, "a", 1, 10), read((6, 7), 1, "a", 10), read((2, 3), 0, "", 9)]));
    // Under way at one time: either order will do, and the revisions say which it was.
    assert!(is_linear(&[
        write((1, 9), None, "a", 2, 11),
        write((2, 8), Some(0), "b", 1, 10),
        read((7, 9), 1, "b", 10),
        read((9, 12), 2, "a", 11)
    ]));
    // Nobody was told, and it took effect; or did not.
    let lost = write((1, 2), None, "a", 1, 10);
    assert!(is_linear(&[unanswered(lost.clone(), Some(10)), read((6, 7), 1, "a", 10)]));
    assert!(is_linear(&[unanswered(lost, None), read((6, 7), 0, "", 9)]));
}

#[test]
fn a_stale_read_is_found() {
    assert!(!is_linear(&[write((1, 5), None, "a", 1, 10), read((6, 7), 0, "", 9)]));
}

#[test]
fn a_write_that_was_acknowledged_and_lost_is_found() {
    assert!(!is_linear(&[write((1, 2), None, "a", 1, 10), write((3, 4), None, "b", 1, 11), read((5, 6), 1, "b", 11)]));
}

#[test]
fn two_writes_upon_one_version_are_found() {
    assert!(!is_linear(&[write((1, 9), Some(0), "a", 1, 10), write((2, 8), Some(0), "b", 1, 11)]));
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    assert!(!is_linear(&[write((1, 2), None, "a", 1, 10), read((3, 4), 1, "x", 10)]));
}

#[test]
fn reads_that_go_back_are_found() {
    let two = [write((1, 2), None, "a", 1, 10), write((3, 20), None, "b", 2, 11)];
    assert!(is_linear(&[two.as_slice(), &[read((4, 5), 1, "a", 10), read((6, 7), 2, "b", 11)]].concat()));
    assert!(!is_linear(&[two.as_slice(), &[read((4, 5), 2, "b", 11), read((6, 7), 1, "a", 10)]].concat()));
}

#[test]
fn half_a_transaction_is_found() {
    let parts = ["r", "s"].map(|set| Part { set: set.into(), upon: Some(0) }).to_vec();
    let output = Some(Out::Versions(vec![1, 1]));
    let both = |value: &str| In::Write(parts.clone(), value.to_owned());
    let both = Op { client: 1, invoke: 1, ret: Some(2), input: both("a"), output, revision: Some(10) };
    let other = |version, value: &str| {
        let output = Some(Out::Newest(version, value.to_owned()));
        Op { client: 3, invoke: 5, ret: Some(6), input: In::Read("s".into()), output, revision: Some(10) }
    };
    assert!(is_linear(&[both.clone(), read((3, 4), 1, "a", 10), other(1, "a")]));
    assert!(!is_linear(&[both, read((3, 4), 1, "a", 10), other(0, "")]));
}

#[test]
fn revisions_that_contradict_the_clock_or_each_other_are_found() {
    let late = [write((1, 2), None, "a", 2, 11), write((3, 4), None, "b", 1, 10)];
    assert!(by_revision::<Sets>(&late).expect_err("wrong").contains("against the clock"));
    let same = [write((1, 9), None, "a", 1, 10), write((2, 8), None, "b", 2, 10)];
    assert!(by_revision::<Sets>(&same).expect_err("wrong").contains("two writes"));
    let mut none = write((1, 2), None, "a", 1, 10);
    none.revision = None;
    assert!(by_revision::<Sets>(&[none]).expect_err("wrong").contains("without a revision"));
}

#[test]
fn a_search_that_takes_too_long_says_so() {
    let many: Vec<SetOp> = (0..12).map(|i| unanswered(write((1, 2), None, &i.to_string(), 1, 1), None)).collect();
    assert_eq!(search::<Sets>(&[many, vec![read((5, 6), 9, "x", 9)]].concat(), 500), Found::Unknown);
}

#[test]
fn unjust_refusals_are_found() {
    let wrote = |client, times: (u64, u64), value: &str, version: u64, revision| {
        Record::begun(op::WRITE, client, "c", "r", times.0)
            .asking(json!({ "sets": [{ "set": "r" }], "value": value }))
            .done(times.1, json!({ "versions": [version] }))
            .at(Some(revision))
    };
    let refused = |times: (u64, u64), upon: u64, current: u64| {
        Record::begun(op::WRITE, 9, "c", "r", times.0)
            .asking(json!({ "sets": [{ "set": "r", "upon": upon }], "value": "never" }))
            .failed(times.1, json!({ "current": current }))
    };
    let written = [wrote(1, (1, 2), "a", 1, 10), wrote(1, (11, 14), "b", 2, 12)];
    let found = |refused: Record| sets::check(&[&written[..], &[refused]].concat(), &[]).len();
    assert_eq!(found(refused((3, 4), 0, 1)), 0);
    assert_eq!(found(refused((12, 13), 1, 2)), 0, "under way at that time");
    assert_eq!(found(refused((3, 4), 1, 1)), 1, "it had that version");
    assert_eq!(found(refused((20, 21), 0, 1)), 1, "that was over");
    assert_eq!(found(refused((3, 4), 1, 2)), 1, "that was still to come");
    let there = Event { revision: 12, part: 0, set: "r".into(), version: 2, value: "never".into() };
    assert_eq!(
        sets::check(&[written[0].clone(), refused((3, 4), 0, 1)], &[there]).len(),
        2,
        "refused, and there: against the order, too"
    );
}

fn hold(owner: &str, token: u64, from: u64, to: u64) -> Hold {
    Hold { lease: "l".into(), owner: owner.into(), place: owner.into(), token, from, to }
}

#[test]
fn holders_one_after_the_other_pass() {
    let other = Hold { lease: "m".into(), ..hold("b", 1, 0, 99) };
    let holds = [hold("b", 5, 11, 20), hold("a", 4, 0, 10), hold("a", 4, 2, 6), other];
    assert_eq!(
        (lease::overlaps(&holds), lease::tokens_fall(&holds), lease::overlap_ns(&holds[..2])),
        (vec![], vec![], 0)
    );
}

#[test]
fn two_holders_are_found() {
    let found = |holds: &[Hold]| lease::overlaps(holds).len();
    assert_eq!(found(&[hold("a", 4, 0, 10), hold("b", 5, 10, 20)]), 1, "at one moment");
    assert_eq!(found(&[hold("a", 4, 0, 100), hold("b", 5, 10, 20)]), 1, "within");
    assert_eq!(found(&[hold("a", 4, 0, 100), hold("a", 4, 5, 6), hold("b", 5, 50, 60)]), 1, "not only the last one");
    assert_eq!(found(&[hold("a", 4, 0, 10), hold("a", 5, 9, 20)]), 1, "one owner under two tokens is two");
    assert_eq!(lease::overlap_ns(&[hold("a", 4, 0, 10), hold("b", 5, 7, 20)]), 3);
}

#[test]
fn tokens_that_fall_are_found() {
    let found = |holds: &[Hold]| lease::tokens_fall(holds).len();
    assert_eq!(found(&[hold("a", 5, 0, 10), hold("b", 4, 11, 20)]), 1, "back by one");
    assert_eq!(found(&[hold("a", 5, 0, 10), hold("b", 5, 11, 20)]), 1, "given twice");
    assert_eq!(found(&[hold("a", 4, 0, 1), hold("b", 6, 2, 3), hold("c", 5, 4, 5)]), 1, "back later");
}

#[test]
fn a_restart_in_place_keeps_the_token_and_is_still_alone() {
    let life = |owner: &str, place: &str, from, to| Hold { place: place.into(), ..hold(owner, 5, from, to) };
    let [once, again] = [life("first", "h2", 0, 10), life("second", "h2", 11, 20)];
    assert_eq!(lease::tokens_fall(&[once.clone(), again.clone()]).len(), 0);
    assert_eq!(lease::tokens_fall(&[once.clone(), Hold { place: "h3".into(), ..again.clone() }]).len(), 1, "elsewhere");
    assert_eq!(lease::overlaps(&[once, Hold { from: 9, ..again }]).len(), 1, "both at a time");
}

#[test]
fn a_resource_that_takes_old_tokens_is_found() {
    let effect = |resource: &str, token, at| Effect { resource: resource.into(), token, at };
    assert_eq!(lease::taken_late(&[effect("s", 2, 2), effect("s", 1, 1), effect("t", 1, 3)]).len(), 0);
    assert_eq!(lease::taken_late(&[effect("s", 1, 1), effect("s", 2, 2), effect("s", 1, 3)]).len(), 1);
    assert_eq!(lease::taken_late(&[effect("s", 3, 1), effect("s", 2, 2), effect("s", 1, 3)]).len(), 2);
    assert_eq!(lease::taken_late(&[effect("s", 3, 5), effect("s", 2, 9)]).len(), 1);
}

#[test]
fn sets_that_lose_or_invent_are_found() {
    let set = |ok: &[u64], failed: &[u64], unknown: &[u64], last: &[u64]| {
        let of = |some: &[u64]| some.iter().copied().collect::<BTreeSet<_>>();
        let added = Additions { ok: of(ok), failed: of(failed), unknown: of(unknown), last: last.to_vec() };
        lease::set_is_wrong("s", &added).len()
    };
    assert_eq!(set(&[1, 2], &[3], &[4, 5], &[2, 1, 4]), 0);
    assert_eq!(set(&[1, 2], &[], &[], &[1]), 1, "lost");
    assert_eq!(set(&[1], &[2], &[], &[1, 2]), 1, "refused, and there");
    assert_eq!(set(&[1], &[], &[], &[1, 7]), 1, "never asked for");
    assert_eq!(set(&[1], &[], &[], &[1, 1]), 1, "twice");
}

fn event(revision: u64, version: u64, value: &str) -> Event {
    Event { revision, part: 0, set: "r".into(), version, value: value.into() }
}

#[test]
fn effects_that_clients_were_not_told_are_found() {
    let ledger = [event(10, 1, "a"), event(11, 2, "b"), event(12, 3, "b")];
    let found = |value: &str, outcome, version| {
        once::check(&[Request { value: value.into(), outcome, version }], &ledger).len()
    };
    assert_eq!((found("a", Outcome::Ok, Some(1)), found("a", Outcome::Unknown, None)), (0, 0));
    assert_eq!((found("x", Outcome::Failed, None), found("x", Outcome::Unknown, None)), (0, 0));
    assert_eq!(found("b", Outcome::Ok, Some(2)), 1, "twice");
    assert_eq!(found("b", Outcome::Unknown, None), 1, "twice, and nobody was told");
    assert_eq!(found("x", Outcome::Ok, Some(4)), 1, "never");
    assert_eq!(found("a", Outcome::Ok, Some(2)), 1, "another version");
    assert_eq!(found("a", Outcome::Failed, None), 1, "refused, and done");
}

fn watched(who: &str, after: u64, until: u64, events: &[Event]) -> Watched {
    Watched { who: who.into(), after, until, events: events.to_vec() }
}

#[test]
fn watchers_that_miss_or_repeat_are_found() {
    let (a, b, c) = (event(10, 1, "a"), event(11, 2, "b"), event(14, 3, "c"));
    let whole = watched("w", 0, 20, &[a.clone(), b.clone(), c.clone()]);
    let found = |other: Watched| watch::check(&[whole.clone(), other], &[]).len();
    assert_eq!(found(watched("v", 10, 12, std::slice::from_ref(&b))), 0, "from here to there");
    assert_eq!(found(watched("v", 0, 20, &[a.clone(), c.clone()])), 1, "missing in the middle");
    assert_eq!(found(watched("v", 0, 14, &[a.clone(), b.clone()])), 1, "missing at the end");
    assert_eq!(found(watched("v", 0, 12, &[a.clone(), b.clone(), b.clone()])), 1, "twice");
    assert_eq!(found(watched("v", 0, 12, &[b.clone(), a.clone()])), 1, "out of order");
    assert_eq!(found(watched("v", 10, 12, &[a.clone(), b])), 1, "what it had already");
    assert_eq!(
        found(watched("v", 0, 10, &[event(10, 1, "x")])),
        4,
        "told otherwise: one version twice, and each misses the other's"
    );
    let committed = |version| Committed { revision: 12, set: "r".into(), version };
    assert_eq!(watch::check(&[watched("w", 11, 20, &[])], &[committed(2)]).len(), 1, "acknowledged, and nobody told");
    assert_eq!(watch::check(&[watched("w", 11, 20, &[event(12, 2, "b")])], &[committed(2)]).len(), 0);
    let back = watched("w", 0, 20, &[event(10, 2, "a"), event(11, 1, "b")]);
    assert_eq!(watch::check(&[back], &[]).len(), 1, "versions that fall");
}

#[test]
fn members_that_tear_fall_back_or_stay_behind_are_found() {
    let ledger = [event(10, 1, "a"), event(11, 2, "b"), event(12, 3, "c")];
    let seen = |at, values: &[&str]| Seen {
        member: "m".into(),
        set: "r".into(),
        at,
        values: values.iter().map(ToString::to_string).collect(),
    };
    let members = ["m".to_owned()];
    let found = |seen: &[Seen]| converge::check(seen, &ledger, &[], &members, Some("r")).len();
    assert_eq!(found(&[seen(1, &["a"]), seen(2, &["a"]), seen(3, &["c"])]), 0, "one may be left out");
    assert_eq!(found(&[seen(1, &["a"]), seen(2, &["a", "b"]), seen(3, &["c"])]), 1, "torn");
    assert_eq!(found(&[seen(1, &[]), seen(3, &["c"])]), 1, "nothing at all");
    assert_eq!(found(&[seen(1, &["b"]), seen(2, &["a"]), seen(3, &["c"])]), 1, "back");
    assert_eq!(found(&[seen(1, &["x"]), seen(3, &["c"])]), 1, "of nobody");
    assert_eq!(found(&[seen(1, &["b"])]), 1, "behind");
    assert_eq!(
        converge::check(&[seen(1, &["b"])], &ledger, &[], &members, None).len(),
        0,
        "which it may be, meanwhile"
    );
    // A disk that went back takes everything on it along, then and there, and whole.
    let relapse = |member: &str, from, to| Relapse { member: member.into(), from, to };
    let back = [seen(1, &["b"]), seen(5, &["a"]), seen(9, &["c"])];
    let found = |relapse| converge::check(&back, &ledger, &[relapse], &members, Some("r")).len();
    assert_eq!(found(relapse("m", 4, 6)), 0);
    assert_eq!(found(relapse("m", 6, 8)), 1, "at another time");
    assert_eq!(found(relapse("other", 4, 6)), 1, "another disk");
    let torn = [seen(1, &["b"]), seen(5, &["a", "b"]), seen(9, &["c"])];
    assert_eq!(converge::check(&torn, &ledger, &[relapse("m", 4, 6)], &members, Some("r")).len(), 1);
}
