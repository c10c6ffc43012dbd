//! Linearizability: is there one order of all operations, within their times, that explains every answer?
//!
//! Two ways. [`by_revision`] takes the order from the revisions that the system itself reports, and then only has to look
//! whether it keeps to the clock and explains the answers: nearly linear in time, and sound whatever the system says, as an
//! order that passes is a proof. [`search`] knows no revisions and tries orders (Wing and Gong, with Lowe's memory of what
//! was tried); it takes exponential time where many operations are under way at once, so it has a budget.
//!
//! Must stay true: an operation without a known outcome may take effect at any time after its question, or never.

use std::collections::HashSet;
use std::hash::Hash;

/// What the operations are made on.
pub trait Model {
    /// What is asked.
    type In: Clone;
    /// What is answered.
    type Out: Clone;
    /// What is remembered.
    type State: Clone + Eq + Hash;

    /// Returns what there is before the first operation.
    fn first() -> Self::State;

    /// Returns what there is after an operation; `None` if this answer cannot be given then. Without an answer any would
    /// do.
    fn step(state: &Self::State, input: &Self::In, output: Option<&Self::Out>) -> Option<Self::State>;

    /// Returns whether the operation changes nothing.
    fn is_read(input: &Self::In) -> bool;
}

/// An operation.
#[derive(Debug, Clone)]
pub struct Op<I, O> {
    /// Who.
    pub client: u32,
    /// When it was asked.
    pub invoke: u64,
    /// When it was answered; `None`: nobody was told how it ended.
    pub ret: Option<u64>,
    /// What was asked.
    pub input: I,
    /// What was answered, or is known of the outcome from elsewhere.
    pub output: Option<O>,
    /// Its place in the order, as the system says: a write's own entry, the newest entry that a read saw.
    pub revision: Option<u64>,
}

impl<I, O> Op<I, O> {
    /// Until when it may have taken effect.
    fn until(&self) -> u64 {
        self.ret.unwrap_or(u64::MAX)
    }
}

/// Checks the order that the revisions say. Operations without an answer and without a revision never took effect.
///
/// # Errors
/// What contradicts it.
pub fn by_revision<M: Model>(ops: &[Op<M::In, M::Out>]) -> Result<(), String> {
    if let Some(op) = ops.iter().find(|op| op.ret.is_some() && op.revision.is_none()) {
        return Err(format!("client {} was answered without a revision, at {}", op.client, op.until()));
    }
    let mut order: Vec<_> = ops.iter().filter_map(|op| Some((op.revision?, op))).collect();
    // A read that saw a revision comes after the write that made it; reads of one revision by their questions.
    order.sort_by_key(|(revision, op)| (*revision, M::is_read(&op.input), op.invoke));
    let mut state = M::first();
    // The latest question so far: whoever comes later in the order must not have had its answer before that.
    let mut latest = 0;
    let mut last_write = None;
    for (revision, op) in order {
        if !M::is_read(&op.input) && last_write.replace(revision) == Some(revision) {
            return Err(format!("two writes at revision {revision}"));
        }
        if op.until() < latest {
            return Err(format!(
                "revision {revision} runs against the clock: client {} had its answer at {}, and what the revisions order \
                 before it was only asked at {latest}",
                op.client,
                op.until()
            ));
        }
        latest = latest.max(op.invoke);
        state = M::step(&state, &op.input, op.output.as_ref()).ok_or_else(|| {
            format!(
                "client {} was answered at revision {revision} what nothing explains, asked at {}",
                op.client, op.invoke
            )
        })?;
    }
    Ok(())
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// An order that explains everything.
    Order,
    /// There is none; at most so many of the operations can be explained together.
    None {
        /// How many.
        longest: usize,
    },
    /// The budget was used up.
    Unknown,
}

/// Searches an order, in at most `budget` configurations.
pub fn search<M: Model>(ops: &[Op<M::In, M::Out>], budget: u64) -> Found {
    let mut times: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * ops.len());
    for (i, op) in ops.iter().enumerate() {
        // At one moment questions come before answers: that allows most.
        times.extend([(op.invoke, false, i), (op.until(), true, i)]);
    }
    times.sort_unstable();
    let mut list = Links::new(&times, ops.len());
    let needed = ops.iter().filter(|op| op.ret.is_some()).count();
    let (mut done, mut longest, mut visited) = (0, 0, 0);
    let (mut state, mut taken) = (M::first(), 0_u128);
    let mut tried: HashSet<(u128, M::State)> = HashSet::new();
    let mut stack: Vec<(usize, M::State)> = Vec::new();
    let mut at = list.first();
    while done < needed {
        let question = (at != 0).then(|| times[at - 1]).filter(|(_, is_answer, _)| !is_answer);
        let Some((_, _, i)) = question else {
            // An answer that stands before the next question, or the end: what was taken last was wrong.
            let Some((i, before)) = stack.pop() else { return Found::None { longest } };
            state = before;
            taken ^= mark(i);
            done -= usize::from(ops[i].ret.is_some());
            list.put_back(i);
            at = list.after(i);
            continue;
        };
        let op = &ops[i];
        let next = M::step(&state, &op.input, op.output.as_ref());
        // Without an answer and without an effect it need not be taken here.
        let next = next.filter(|next| op.ret.is_some() || *next != state);
        if let Some(next) = next
            && tried.insert((taken ^ mark(i), next.clone()))
        {
            visited += 1;
            if visited > budget {
                return Found::Unknown;
            }
            taken ^= mark(i);
            stack.push((i, std::mem::replace(&mut state, next)));
            longest = longest.max(stack.len());
            done += usize::from(op.ret.is_some());
            list.take_out(i);
            at = list.first();
        } else {
            at = list.next[at];
        }
    }
    Found::Order
}

/// Questions and answers in the order of their times, some of them taken out. Place 0 is before the first.
struct Links {
    next: Vec<usize>,
    previous: Vec<usize>,
    question: Vec<usize>,
    answer: Vec<usize>,
}

impl Links {
    fn new(times: &[(u64, bool, usize)], ops: usize) -> Self {
        let places = times.len() + 1;
        let next = (1..=places).map(|place| if place == places { 0 } else { place }).collect();
        let previous = (0..places).map(|place| place.saturating_sub(1)).collect();
        let (mut question, mut answer) = (vec![0; ops], vec![0; ops]);
        for (i, (_, is_answer, op)) in times.iter().enumerate() {
            if *is_answer { answer[*op] = i + 1 } else { question[*op] = i + 1 }
        }
        Self { next, previous, question, answer }
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    fn after(&self, op: usize) -> usize {
        self.next[self.question[op]]
    }

    fn take_out(&mut self, op: usize) {
        for place in [self.question[op], self.answer[op]] {
            let (previous, next) = (self.previous[place], self.next[place]);
            self.next[previous] = next;
            if next != 0 {
                self.previous[next] = previous;
            }
        }
    }

    /// Undoes the last [`Links::take_out`].
    fn put_back(&mut self, op: usize) {
        for place in [self.answer[op], self.question[op]] {
            let (previous, next) = (self.previous[place], self.next[place]);
            self.next[previous] = place;
            if next != 0 {
                self.previous[next] = place;
            }
        }
    }
}

/// Stands for one operation in the sum that stands for a set of them.
fn mark(op: usize) -> u128 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let seed = (op as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (u128::from(mix(seed)) << 64) | u128::from(mix(seed ^ 0x6a09_e667_f3bc_c908))
}
