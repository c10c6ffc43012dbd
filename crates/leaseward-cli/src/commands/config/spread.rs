//! Waits until a version that was published is live on every member that can be waited for, and tells how far it is.
//!
//! Must stay true: the version is committed and said to be so before anything is waited for; who is not connected, pinned or
//! disabled is not waited for, and is counted; while members move on nobody loses patience.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use leaseward_http::model::{ConfigSet, MemberSync, MemberSyncList, SyncPhase};
use tokio::time::{Instant, sleep_until};

use crate::commands::wait::absent;
use crate::diagnostic::Diagnostic;
use crate::printer::note;
use crate::route::Route;
use crate::session::Session;

/// So many members are told of one by one; of more, only how many are where.
const NAMED_MAX: usize = 20;

/// That a member fetches less than this is not told.
const FETCHES_TOLD_BYTES: u64 = 1 << 20;

/// Members that refused a version are named up to here.
const REFUSALS_NAMED: usize = 5;

/// Members are looked at no more often than this: thousands of them report at once, and each look reads them all.
const LOOKED_AT_EACH: Duration = Duration::from_millis(100);

/// How far a version is.
#[derive(Debug, PartialEq, Eq)]
enum Spread {
    /// Some members do not have it yet.
    GoesOn,
    /// Whoever can be waited for has it.
    Live { members: usize, others: usize },
    /// It was taken back.
    TakenBack(String),
    /// Its rollout stands still.
    Halted(String),
    /// Whoever can be waited for has it or refused it. Who and why, each.
    Refused(Vec<(String, String)>),
}

/// Waits until everybody has a version, unless asked not to.
///
/// # Errors
/// LW0816 and LW0817 if it will not be live everywhere; LW0504 if nothing moves for as long as `--timeout` says.
pub(super) async fn everywhere(session: &Session, set: &str, version: u64) -> Result<(), Diagnostic> {
    if session.global.no_wait {
        return Ok(());
    }
    let (told, moved, spread) = (RefCell::new(Told::default()), Cell::new(false), RefCell::new(Spread::GoesOn));
    let next = Cell::new(Instant::now());
    let look = async || {
        sleep_until(next.get()).await;
        next.set(Instant::now() + LOOKED_AT_EACH);
        let now = spread_of(session, set, version, |members| {
            moved.set(told.borrow_mut().tell(members, version) | moved.get());
        });
        *spread.borrow_mut() = now.await?;
        Ok(*spread.borrow() != Spread::GoesOn)
    };
    let what = format!("{set} v{version} is published, and live on every member");
    loop {
        match session.until(&what, look).await {
            Err(late) if late.code == "LW0504" && moved.replace(false) => {}
            Err(late) if late.code == "LW0504" => {
                return Err(late
                    .hint(format!("leaseward config monitor {set}      see who is late"))
                    .hint(format!("leaseward wait config/{set}=synced@{version} --timeout 10m      go on waiting")));
            }
            done => {
                done?;
                break;
            }
        }
    }
    end(set, version, spread.into_inner())
}

async fn spread_of(
    session: &Session,
    set: &str,
    version: u64,
    tell: impl FnOnce(&[MemberSync]),
) -> Result<Spread, Diagnostic> {
    // First the members: what they are said to have is looked at with what became of it since.
    let members = absent(session.api.list::<MemberSyncList>(Route::set(set)?.then("members")).await)?;
    let found = absent(session.api.get::<ConfigSet>(Route::set(set)?).await)?;
    let (Some(members), Some(found)) = (members, found) else {
        return Ok(Spread::TakenBack("the set was forgotten".into()));
    };
    tell(&members.items);
    Ok(spread(&members, &found, version))
}

fn spread(members: &MemberSyncList, set: &ConfigSet, version: u64) -> Spread {
    if let Some(bad) = set.taken_back.iter().find(|bad| bad.version == version) {
        return Spread::TakenBack(bad.why.clone());
    }
    let rollout = members.rollout.as_ref().filter(|rollout| rollout.version == version);
    if let Some(why) = rollout.and_then(|rollout| rollout.halted.as_ref()) {
        return Spread::Halted(why.clone());
    }
    let (mut live, mut refused, mut others, mut late) = (0, Vec::new(), 0, 0);
    for member in &members.items {
        if member.applied >= version {
            live += 1;
        } else if !is_awaited(member) {
            others += 1;
        } else if let (SyncPhase::Rejected, Some(at)) = (member.phase, member.version)
            && at >= version
        {
            refused.push((member.machine.clone(), member.why.clone().unwrap_or_default()));
        } else {
            late += 1;
        }
    }
    // A rollout decides itself what becomes of those that refused.
    if late > 0 || (!refused.is_empty() && rollout.is_some()) {
        return Spread::GoesOn;
    }
    if refused.is_empty() { Spread::Live { members: live, others } } else { Spread::Refused(refused) }
}

fn is_awaited(member: &MemberSync) -> bool {
    member.connected && !member.pinned && member.phase != SyncPhase::Disabled
}

fn end(set: &str, version: u64, spread: Spread) -> Result<(), Diagnostic> {
    match spread {
        Spread::GoesOn => Ok(()),
        Spread::Live { members, others } => {
            let others = match others {
                0 => String::new(),
                others => format!("; {others} that cannot be waited for get it when they can"),
            };
            let members = match members {
                0 => "no member has it yet".to_owned(),
                1 => "live on 1 member".to_owned(),
                members => format!("live on {members} members"),
            };
            note!("✓ {set} v{version}: {members}{others}");
            Ok(())
        }
        Spread::TakenBack(why) => Err(Diagnostic::new("LW0816", format!("{set} v{version} was taken back"))
            .why(why)
            .hint(format!("leaseward config history {set}      what is live now, and why"))),
        Spread::Halted(why) => Err(Diagnostic::new("LW0817", format!("{set} v{version} stands still on its way"))
            .why(why)
            .hint(format!("leaseward config monitor {set}              see who has it"))
            .hint(format!("leaseward config rollout {set} resume      go on; those that failed are passed over"))
            .hint(format!("leaseward config rollout {set} abort       everybody goes back"))),
        Spread::Refused(who) => {
            let count = who.len();
            let mut whys: Vec<_> =
                who.into_iter().take(REFUSALS_NAMED).map(|(machine, why)| format!("{machine}: {why}")).collect();
            if count > REFUSALS_NAMED {
                whys.push(format!("and {} more", count - REFUSALS_NAMED));
            }
            let members = if count == 1 { "1 member refused it".into() } else { format!("{count} members refused it") };
            Err(Diagnostic::new("LW0817", format!("{set} v{version} is published, and {members}"))
                .why(whys.join("; "))
                .hint(format!(
                    "leaseward config monitor {set}      see who has it; those that refused try again by themselves"
                ))
                .hint(format!("leaseward config history {set}      what to go back to")))
        }
    }
}

/// What was told last.
#[derive(Default)]
struct Told {
    phases: BTreeMap<String, &'static str>,
    counts: String,
    /// Whatever says that members are at work.
    moves: Vec<(u64, Option<u64>)>,
}

impl Told {
    /// Tells what is new, and returns whether anything moved.
    fn tell(&mut self, members: &[MemberSync], version: u64) -> bool {
        let awaited: Vec<&MemberSync> = members.iter().filter(|member| is_awaited(member)).collect();
        let phase = |member: &MemberSync| if member.applied >= version { "applied" } else { member.phase.as_str() };
        if members.len() <= NAMED_MAX {
            for member in &awaited {
                let now = phase(member);
                if self.phases.insert(member.machine.clone(), now) != Some(now) && is_told(member, now) {
                    let why = member.why.as_ref().filter(|_| now == "rejected");
                    note!("  {}  {now}{}", member.machine, why.map_or_else(String::new, |why| format!(": {why}")));
                }
            }
        } else {
            let mut counts = BTreeMap::<&str, usize>::new();
            for member in &awaited {
                *counts.entry(phase(member)).or_default() += 1;
            }
            let counts = counts.iter().map(|(phase, count)| format!("{count} {phase}")).collect::<Vec<_>>().join(", ");
            if counts != self.counts {
                note!("  {counts}");
                self.counts = counts;
            }
        }
        let moves = awaited.iter().map(|member| (member.applied, member.done)).collect();
        std::mem::replace(&mut self.moves, moves) != self.moves
    }
}

/// Returns whether it is worth a line: not what is over at the next look.
fn is_told(member: &MemberSync, phase: &str) -> bool {
    match phase {
        "behind" | "on_disk" => false,
        "fetching" => member.total.is_some_and(|total| total >= FETCHES_TOLD_BYTES),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(members: &[Value], set: Value, rollout: Option<Value>) -> Spread {
        let items: Vec<Value> = members
            .iter()
            .enumerate()
            .map(|(i, member)| {
                let mut all = json!({ "machine": format!("m{i}"), "connected": true, "applied": 1, "phase": "behind", "at": null });
                all.as_object_mut().unwrap().extend(member.as_object().unwrap().clone());
                all
            })
            .collect();
        let list = json!({ "revision": "9", "version": 2, "items": items, "rollout": rollout, "next_page": null });
        let mut all = json!({
            "name": "app", "version": 2, "newest": null, "versions_kept": 2, "in_sync": 0, "members": 1, "policy": {},
            "policy_version": 0, "taken_back": [], "created": "1", "modified": "7",
        });
        all.as_object_mut().unwrap().extend(set.as_object().unwrap().clone());
        spread(&serde_json::from_value(list).unwrap(), &serde_json::from_value(all).unwrap(), 2)
    }

    #[test]
    fn it_is_live_once_whoever_can_be_waited_for_has_it() {
        let has = json!({ "applied": 2, "phase": "applied" });
        let late = json!({});
        let live = |members, others| Spread::Live { members, others };
        assert_eq!(of(&[], json!({}), None), live(0, 0));
        assert_eq!(of(&[has.clone(), late.clone()], json!({}), None), Spread::GoesOn);
        for other in [json!({ "connected": false }), json!({ "pinned": true }), json!({ "phase": "disabled" })] {
            assert_eq!(of(&[has.clone(), other], json!({}), None), live(1, 1));
        }
        // Changed by hand since, or published again since.
        let drifted = json!({ "applied": 2, "phase": "drifted" });
        let newer = json!({ "applied": 3, "phase": "fetching" });
        assert_eq!(of(&[drifted, newer], json!({}), None), live(2, 0));
    }

    #[test]
    fn what_will_not_be_live_is_not_waited_for() {
        let has = json!({ "applied": 2, "phase": "applied" });
        let refused = json!({ "phase": "rejected", "version": 2, "why": "check exited 1" });
        let why = || Spread::Refused(vec![("m1".into(), "check exited 1".into())]);
        assert_eq!(of(&[has.clone(), refused.clone()], json!({}), None), why());
        assert_eq!(of(&[has.clone(), refused.clone(), json!({})], json!({}), None), Spread::GoesOn);
        // It refused what was before.
        let before = json!({ "phase": "rejected", "version": 1, "why": "check exited 1" });
        assert_eq!(of(&[has.clone(), before], json!({}), None), Spread::GoesOn);
        let rollout = |version: u64, halted: Option<&str>| {
            Some(json!({
                "version": version, "base": 1, "released": [], "failed": [], "members": 2, "halted": halted,
                "stepped": "2026-01-01T00:00:00Z",
            }))
        };
        assert_eq!(of(&[has.clone(), refused.clone()], json!({}), rollout(2, None)), Spread::GoesOn);
        assert_eq!(
            of(std::slice::from_ref(&has), json!({}), rollout(2, Some("m1 failed"))),
            Spread::Halted("m1 failed".into())
        );
        assert_eq!(of(&[has.clone(), refused], json!({}), rollout(3, Some("m1 failed"))), why());
        let taken_back = json!({ "version": 3, "taken_back": [{ "version": 2, "why": "m1 refused it" }] });
        assert_eq!(of(&[has], taken_back, None), Spread::TakenBack("m1 refused it".into()));
    }
}
