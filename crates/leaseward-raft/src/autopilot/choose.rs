//! Who should vote, on values: no clock, no network.
//!
//! Must stay true: the number of voters is odd whenever autopilot touches it; a change is made only if a majority of
//! those who vote afterwards is heard now; the leader votes; who votes well goes on voting.

use std::collections::BTreeSet;

use crate::types::{NodeId, Standing};

/// How well a node is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It answers.
    Well,
    /// Not just now.
    NotNow,
    /// Nothing listens where it was: it may be starting anew. Whoever is ready takes its place.
    Gone,
    /// For so long that it is lost, or it is proven dead: the others go on without it.
    Lost,
}

/// A node, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) standing: Standing,
    pub(super) votes: bool,
    pub(super) heard: Heard,
    /// It answers steadily and has everything: the log and the content.
    pub(super) ready: bool,
    /// Whose place it takes, because that one's disk is gone.
    pub(super) replaces: Option<NodeId>,
}

/// Between these the number of voters stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) min: usize,
    pub(super) max: usize,
}

/// Who votes from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) voters: BTreeSet<NodeId>,
    /// This node has taken the place of that one, which is forgotten.
    pub(super) settled: Option<(NodeId, NodeId)>,
    pub(super) why: String,
}

/// Returns who should vote, if others do now. `calm`: nobody is to be replaced for being silent.
pub(super) fn choose(seats: &[Seat], leader: NodeId, bounds: Bounds, calm: bool) -> Option<Choice> {
    let voters: BTreeSet<NodeId> = seats.iter().filter(|seat| seat.votes).map(|seat| seat.id).collect();
    if let Some(choice) = take_over(seats, &voters) {
        return Some(choice);
    }
    let absent = |seat: &Seat, gone: bool| match seat.heard {
        Heard::Well | Heard::NotNow => false,
        Heard::Gone => gone && !calm,
        Heard::Lost => !calm,
    };
    // Whoever is only gone loses its place to one who is ready, or keeps it.
    let without_gone = pick(seats, leader, bounds, |seat| absent(seat, true));
    let with_gone = pick(seats, leader, bounds, |seat| absent(seat, false));
    let chosen = if without_gone.len() >= with_gone.len() { without_gone } else { with_gone };
    let shrinks_too_far = chosen.len() < voters.len() && chosen.len() < bounds.min;
    let heard = |id: &NodeId| seats.iter().any(|seat| seat.id == *id && seat.heard == Heard::Well);
    if chosen == voters || shrinks_too_far || chosen.iter().filter(|id| heard(id)).count() * 2 <= chosen.len() {
        return None;
    }
    let why = reason(seats, &voters, &chosen);
    Some(Choice { voters: chosen, settled: None, why })
}

/// A node that stands in for another one, whose disk is gone, does so as soon as it is ready.
fn take_over(seats: &[Seat], voters: &BTreeSet<NodeId>) -> Option<Choice> {
    let (seat, old) = seats.iter().find_map(|seat| Some((seat, seat.replaces.filter(|_| seat.ready)?)))?;
    let mut after = voters.clone();
    if after.remove(&old) && seat.standing != Standing::Learner {
        after.insert(seat.id);
    }
    let why = format!("{} comes back with a new disk", seat.name);
    (!after.is_empty()).then_some(Choice { voters: after, settled: Some((seat.id, old)), why })
}

fn pick(seats: &[Seat], leader: NodeId, bounds: Bounds, absent: impl Fn(&Seat) -> bool) -> BTreeSet<NodeId> {
    let fit = |seat: &&Seat| {
        let can = if seat.votes { !absent(seat) } else { seat.ready && seat.replaces.is_none() };
        can && seat.standing != Standing::Learner
    };
    let mut fit: Vec<&Seat> = seats.iter().filter(fit).collect();
    fit.sort_by_key(|seat| (seat.id != leader, !seat.votes, seat.standing == Standing::Witness, seat.id));
    let most = fit.len().min(bounds.max);
    let odd = if most.is_multiple_of(2) { most.saturating_sub(1) } else { most };
    fit.into_iter().take(odd).map(|seat| seat.id).collect()
}

fn reason(seats: &[Seat], before: &BTreeSet<NodeId>, after: &BTreeSet<NodeId>) -> String {
    let names = |is: &dyn Fn(&Seat) -> bool| {
        let names: Vec<&str> = seats.iter().filter(|seat| is(seat)).map(|seat| seat.name.as_str()).collect();
        names.join(" and ")
    };
    let left = |seat: &Seat| before.contains(&seat.id) && !after.contains(&seat.id);
    let away = |seat: &Seat| matches!(seat.heard, Heard::Gone | Heard::Lost);
    let may_not = names(&|seat| left(seat) && seat.standing == Standing::Learner);
    let lost = names(&|seat| left(seat) && away(seat));
    let came = names(&|seat| after.contains(&seat.id) && !before.contains(&seat.id));
    match (may_not.is_empty(), lost.is_empty(), came.is_empty()) {
        (false, ..) => format!("no vote any more for {may_not}"),
        (_, false, false) => format!("no word from {lost}, replaced by {came}"),
        (_, false, true) => format!("no word from {lost}, and nobody to replace it"),
        (_, true, false) => format!("a vote for {came}"),
        (_, true, true) => format!("an odd number of voters without {}", names(&left)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USUAL: Bounds = Bounds { min: 1, max: 5 };

    /// `3`: votes and is heard; `3s`: a standby that is ready; `3?`: not just now; `3g`: gone; `3x`: lost;
    /// a `w` at the end makes it a witness, an `l` a learner, and `b` a standby that is not ready.
    fn seats(text: &str) -> Vec<Seat> {
        text.split(' ')
            .map(|word| {
                let has = |sign: char| word.contains(sign);
                Seat {
                    id: word.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number"),
                    name: format!("n{}", word.trim_end_matches(|c: char| !c.is_ascii_digit())),
                    standing: match (has('w'), has('l')) {
                        (true, _) => Standing::Witness,
                        (_, true) => Standing::Learner,
                        _ => Standing::Voter,
                    },
                    votes: !has('s') && !has('b'),
                    heard: match (has('?'), has('g'), has('x')) {
                        (true, ..) => Heard::NotNow,
                        (_, true, _) => Heard::Gone,
                        (.., true) => Heard::Lost,
                        _ => Heard::Well,
                    },
                    ready: has('s'),
                    replaces: None,
                }
            })
            .collect()
    }

    fn says(text: &str, bounds: Bounds) -> String {
        match choose(&seats(text), 1, bounds, false) {
            None => "as it is".into(),
            Some(choice) => {
                let voters: Vec<_> = choice.voters.iter().map(ToString::to_string).collect();
                format!("{}: {}", voters.join(" "), choice.why)
            }
        }
    }

    #[test]
    fn the_number_of_voters_is_odd_and_the_lost_are_replaced() {
        for (seen, expected) in [
            ("1", "as it is"),
            ("1 2s", "as it is"),
            ("1 2s 3b", "as it is"),
            ("1 2s 3s", "1 2 3: a vote for n2 and n3"),
            ("1 2s 3s 4s", "1 2 3: a vote for n2 and n3"),
            ("1 2 3 4s", "as it is"),
            ("1 2 3 4s 5s", "1 2 3 4 5: a vote for n4 and n5"),
            ("1 2 3 4 5 6s 7s", "as it is"),
            ("1 2", "1: an odd number of voters without n2"),
            ("1 2 3 4", "1 2 3: an odd number of voters without n4"),
            ("1 2 3?", "as it is"),
            ("1 2 3? 4s", "as it is"),
            ("1 2 3g", "as it is"),
            ("1 2 3g 4s", "1 2 4: no word from n3, replaced by n4"),
            ("1 2 3x 4s", "1 2 4: no word from n3, replaced by n4"),
            ("1 2 3x 4b", "1: no word from n3, and nobody to replace it"),
            ("1 2 3x", "1: no word from n3, and nobody to replace it"),
            ("1 2 3 4x 5", "1 2 3: no word from n4, and nobody to replace it"),
            ("1 2 3 4x 5x", "1 2 3: no word from n4 and n5, and nobody to replace it"),
            ("1 2 3l", "1: no vote any more for n3"),
            ("1 2s 3sl", "as it is"),
        ] {
            assert_eq!(says(seen, USUAL), expected, "{seen}");
        }
    }

    #[test]
    fn a_witness_votes_only_if_it_makes_the_number_odd() {
        assert_eq!(says("1 2s 3sw", USUAL), "1 2 3: a vote for n2 and n3");
        assert_eq!(says("1 2s 3sw 4s", USUAL), "1 2 4: a vote for n2 and n4");
        assert_eq!(says("1 2 3w 4s", USUAL), "as it is", "who votes well goes on");
        assert_eq!(says("1 2x 3w 4s", USUAL), "1 3 4: no word from n2, replaced by n4");
    }

    #[test]
    fn a_change_needs_a_majority_that_is_heard_and_stays_within_its_bounds() {
        assert_eq!(says("1 2? 3? 4x 5x", USUAL), "as it is", "one of three is heard");
        assert_eq!(says("1 2 3x", Bounds { min: 3, max: 5 }), "as it is");
        assert_eq!(says("1 2 3x 4s", Bounds { min: 3, max: 5 }), "1 2 4: no word from n3, replaced by n4");
        assert_eq!(says("1 2 3 4s 5s", Bounds { min: 1, max: 3 }), "as it is");
        assert_eq!(says("1 2 3 4 5", Bounds { min: 1, max: 3 }), "1 2 3: an odd number of voters without n4 and n5");
    }

    #[test]
    fn in_maintenance_nobody_is_replaced_and_new_ones_still_come_in() {
        let calm = |text: &str| choose(&seats(text), 1, USUAL, true).map(|choice| choice.voters);
        assert_eq!(calm("1 2 3x 4s"), None);
        assert_eq!(calm("1 2s 3s"), Some(BTreeSet::from([1, 2, 3])));
    }

    #[test]
    fn who_comes_back_with_a_new_disk_takes_its_own_place_at_once() {
        let mut seen = seats("1 2 3? 4s");
        seen[3].replaces = Some(3);
        let choice = choose(&seen, 1, USUAL, false).expect("it does");
        assert_eq!((choice.voters, choice.settled), (BTreeSet::from([1, 2, 4]), Some((4, 3))));
        seen[3].ready = false;
        assert_eq!(choose(&seen, 1, USUAL, false), None, "not before it has everything");
    }

    /// Five nodes, lost one after another in any order that spares the leader, shrink to one.
    #[test]
    fn five_nodes_that_are_lost_one_by_one_shrink_to_one() {
        let mut seen = seats("1 2 3 4 5");
        for (lost, expected) in [(5, 3), (3, 3), (4, 1), (2, 1)] {
            seen[lost - 1].heard = Heard::Lost;
            seen[lost - 1].ready = false;
            for _ in 0..3 {
                if let Some(choice) = choose(&seen, 1, USUAL, false) {
                    for seat in &mut seen {
                        seat.votes = choice.voters.contains(&seat.id);
                        seat.ready = !seat.votes && seat.heard == Heard::Well;
                    }
                }
            }
            let voters = seen.iter().filter(|seat| seat.votes).count();
            assert_eq!(voters, expected, "after the loss of n{lost}");
            assert!(seen.iter().all(|seat| !seat.votes || seat.heard == Heard::Well), "nobody who is lost votes");
        }
    }

    fn any_seat(id: NodeId) -> impl Strategy<Value = Seat> {
        let heard = prop_oneof![Just(Heard::Well), Just(Heard::NotNow), Just(Heard::Gone), Just(Heard::Lost)];
        let standing = prop_oneof![Just(Standing::Voter), Just(Standing::Witness), Just(Standing::Learner)];
        (heard, standing, any::<bool>(), any::<bool>()).prop_map(move |(heard, standing, votes, ready)| Seat {
            id,
            name: format!("n{id}"),
            standing,
            votes,
            heard,
            ready: ready && !votes && heard == Heard::Well,
            replaces: None,
        })
    }

    proptest! {
        #[test]
        fn whatever_it_sees_it_keeps_its_rules_and_comes_to_rest(
            mut seats in (2..9_u64).prop_flat_map(|n| (2..=n).map(any_seat).collect::<Vec<_>>()),
            max in 0..4_usize, calm: bool,
        ) {
            seats.push(Seat {
                id: 1, name: "n1".into(), standing: Standing::Voter, votes: true, heard: Heard::Well, ready: false,
                replaces: None,
            });
            let bounds = Bounds { min: 1, max: max * 2 + 1 };
            if let Some(choice) = choose(&seats, 1, bounds, calm) {
                let of = |id: &NodeId| seats.iter().find(|seat| seat.id == *id).expect("it is a node");
                prop_assert!(choice.voters.len() % 2 == 1 && choice.voters.len() <= bounds.max);
                prop_assert!(choice.voters.contains(&1));
                prop_assert!(choice.voters.iter().all(|id| of(id).votes || of(id).ready));
                prop_assert!(choice.voters.iter().all(|id| of(id).standing != Standing::Learner));
                let heard = choice.voters.iter().filter(|id| of(id).heard == Heard::Well).count();
                prop_assert!(heard * 2 > choice.voters.len());
                for seat in &mut seats {
                    seat.ready = !seat.votes && seat.ready || seat.votes && seat.heard == Heard::Well;
                    seat.votes = choice.voters.contains(&seat.id);
                    seat.ready &= !seat.votes;
                }
                prop_assert_eq!(choose(&seats, 1, bounds, calm), None, "it comes to rest");
            }
        }
    }
}
