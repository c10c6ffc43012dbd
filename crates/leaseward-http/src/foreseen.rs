//! What would come of something, in the words of the API.

use leaseward_failover::foresee::Foreseen;
use leaseward_state::State;

use crate::model::{Duration, Predicted, Prediction};

/// Returns a look ahead as the API shows it.
pub(crate) fn prediction(state: &State, event: String, foreseen: &[Foreseen]) -> Prediction {
    let servers: Vec<Predicted> = foreseen.iter().map(predicted).collect();
    let out = foreseen.iter().filter(|one| one.to.is_none() && one.why_not.is_some()).count();
    let moved = foreseen.iter().filter(|one| one.from.is_some() && one.to.is_some() && one.from != one.to).count();
    let longest = foreseen.iter().filter(|one| one.to.is_some()).filter_map(Foreseen::gap_ms).max();
    let sentence = match (servers.len(), longest) {
        (0, _) => "no server would change".to_owned(),
        (all, longest) => {
            let gap =
                longest.map_or_else(String::new, |ms| format!("; the longest break {}", Duration::from_millis(ms)));
            let noun = if all == 1 { "server" } else { "servers" };
            format!("{all} {noun} would change: {moved} would move, {out} would run nowhere{gap}")
        }
    };
    Prediction { revision: state.revision().into(), event, sentence, servers }
}

fn predicted(foreseen: &Foreseen) -> Predicted {
    let Foreseen { server, from, to, wait_ms, start_ms, why_not } = foreseen;
    let (wait, start) = (wait_ms.map(Duration::from_millis), start_ms.map(Duration::from_millis));
    let way = match (from, to) {
        (Some(from), Some(to)) if from == to => format!("{server} is started anew on {to}"),
        (Some(from), Some(to)) => format!("{server} moves from {from} to {to}"),
        (None, Some(to)) => format!("{server} starts on {to}"),
        (Some(from), None) => format!("{server} stops on {from}"),
        (None, None) => format!("{server} stays where it is: nowhere"),
    };
    let time = match (to, wait, start) {
        (None, ..) => String::new(),
        (Some(_), None, _) => ", once somebody confirms that its machine is dead".to_owned(),
        (Some(_), Some(wait), Some(start)) => format!(", out of service {wait} at most, and {start} to start"),
        (Some(_), Some(wait), None) => format!(", out of service {wait} at most, and its start, which was never seen"),
    };
    let why = why_not.as_ref().map_or_else(String::new, |why| format!(" and runs nowhere: {why}"));
    Predicted {
        server: server.to_string(),
        from: from.as_ref().map(ToString::to_string),
        to: to.as_ref().map(ToString::to_string),
        wait,
        start,
        why_not: why_not.clone(),
        sentence: format!("{way}{time}{why}"),
    }
}
