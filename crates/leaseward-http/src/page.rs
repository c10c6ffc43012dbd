//! Lists by pages, all of one revision.
//!
//! Must stay true: a page that is asked for here shows the state of the first page. Where that is no longer kept, or
//! on another node, the page goes on with a newer state and still says the first page's revision: whoever watches
//! from there misses nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use leaseward_state::{Revision, State};
use tokio::time::Instant;

use crate::answer::Fault;
use crate::api::Api;
use crate::ask::{AsOf, Fresh};
use crate::limits::{LISTS_KEPT, PAGE_MAX, PAGE_USUAL};
use crate::problem::{self, Code};

/// States of lists that somebody began, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Lists(VecDeque<(Arc<State>, Option<Instant>)>);

impl Lists {
    fn keep(&mut self, state: &Arc<State>, as_of: Option<Instant>) {
        if self.find(state.revision()).is_none() {
            self.0.push_back((Arc::clone(state), as_of));
            if self.0.len() > LISTS_KEPT {
                self.0.pop_front();
            }
        }
    }

    fn find(&self, revision: Revision) -> Option<(Arc<State>, Option<Instant>)> {
        self.0.iter().find(|(state, _)| state.revision() == revision).cloned()
    }
}

/// A page of a list, as it was asked for.
#[derive(Debug)]
pub(crate) struct Page {
    /// What to list.
    pub(crate) state: Arc<State>,
    /// The revision of the first page.
    pub(crate) revision: Revision,
    /// When that was the newest state.
    as_of: Option<Instant>,
    /// Go on after this key.
    after: Option<String>,
    limit: usize,
}

impl Page {
    /// Returns the page that was asked for.
    pub(crate) async fn open(api: &Api, fresh: &Fresh, limit: Option<u32>, page: Option<&str>) -> Result<Self, Fault> {
        let limit = limit.map_or(PAGE_USUAL, |limit| limit as usize);
        if limit == 0 || limit > PAGE_MAX {
            return Err(problem::of(Code::Invalid, format!("`limit` is 1 to {PAGE_MAX}")).into());
        }
        let Some(page) = page else {
            let state = api.read(fresh).await?;
            return Ok(Self { revision: state.revision(), state, as_of: fresh.as_of(), after: None, limit });
        };
        let (revision, after) = unseal(page)
            .ok_or_else(|| Fault::from(problem::of(Code::Invalid, "`page` is not a `next_page` of this API")))?;
        let kept = api.shared.lists.lock().expect("no holder of this lock panics").find(revision);
        let state = match kept {
            Some((state, as_of)) => {
                fresh.allows(as_of)?;
                fresh.note(AsOf::Moment(as_of));
                state
            }
            None => api.read(fresh).await?,
        };
        Ok(Self { state, revision, as_of: fresh.as_of(), after: Some(after), limit })
    }

    /// Takes the page out of all that `all` yields, ascending by `key`, and returns it with the next page's name.
    pub(crate) fn take<T>(
        &self,
        api: &Api,
        all: impl Iterator<Item = T>,
        key: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<String>) {
        let after = self.after.as_deref();
        let mut items: Vec<T> = all
            .skip_while(|item| after.is_some_and(|after| key(item).as_str() <= after))
            .take(self.limit + 1)
            .collect();
        if items.len() <= self.limit {
            return (items, None);
        }
        items.truncate(self.limit);
        api.shared.lists.lock().expect("no holder of this lock panics").keep(&self.state, self.as_of);
        let next = items.last().map(|last| seal(self.revision, &key(last)));
        (items, next)
    }
}

/// Opaque to clients: hexadecimal, so that it needs no escaping.
fn seal(revision: Revision, key: &str) -> String {
    format!("{revision}:{key}").bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn unseal(page: &str) -> Option<(Revision, String)> {
    if page.len() > 1024 || !page.is_ascii() || !page.len().is_multiple_of(2) {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        (0..page.len()).step_by(2).map(|i| u8::from_str_radix(&page[i..i + 2], 16).ok()).collect();
    let text = String::from_utf8(bytes?).ok()?;
    let (revision, key) = text.split_once(':')?;
    Some((Revision(revision.parse().ok()?), key.to_owned()))
}

/// Returns a key of a number that sorts as the number does.
pub(crate) fn number_key(number: u64) -> String {
    format!("{number:020}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_comes_back_and_nonsense_does_not() {
        assert_eq!(unseal(&seal(Revision(7), "batch/a:b")), Some((Revision(7), "batch/a:b".into())));
        for bad in ["", "7", "zz", "ää", "3a"] {
            assert_eq!(unseal(bad), None, "{bad:?}");
        }
    }
}
