//! First-in, first-out lists of slots from whose middle a slot can be taken at once.
//!
//! All lists of one kind share an array of links, indexed by slot; a slot is in at most one of them.
//! The array grows with the table and is never reallocated for a packet once the table has been full.

use super::{Slot, Tick};

const NONE: Slot = Slot::MAX;

/// One list; its members are linked in a [`SlotLinks`].
#[derive(Debug, Clone, Copy)]
pub struct SlotList {
    first: Slot,
    last: Slot,
}

impl Default for SlotList {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: Slot,
    next: Slot,
    since: Tick,
    is_listed: bool,
}

const UNLISTED: Link = Link {
    previous: NONE,
    next: NONE,
    since: Tick(0),
    is_listed: false,
};

/// The links of the members of all lists of one kind.
#[derive(Debug, Default)]
pub struct SlotLinks {
    links: Vec<Link>,
}

impl SlotLinks {
    /// Adds a slot at the end of a list, if it is in none yet.
    pub fn add(&mut self, list: &mut SlotList, slot: Slot, now: Tick) {
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, UNLISTED);
        }
        if self.links[index].is_listed {
            return;
        }
        self.links[index] = Link {
            previous: list.last,
            next: NONE,
            since: now,
            is_listed: true,
        };
        match list.last {
            NONE => list.first = slot,
            last => self.links[last as usize].next = slot,
        }
        list.last = slot;
    }

    /// Takes a slot out of `list`, if it is in a list at all; which must be this one.
    pub fn remove(&mut self, list: &mut SlotList, slot: Slot) {
        let Some(link) = self.links.get_mut(slot as usize) else {
            return;
        };
        let Link {
            previous,
            next,
            is_listed,
            ..
        } = std::mem::replace(link, UNLISTED);
        if !is_listed {
            return;
        }
        match previous {
            NONE => list.first = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NONE => list.last = previous,
            next => self.links[next as usize].previous = previous,
        }
    }

    /// The slot that has been in a list for longest, and since when.
    pub fn oldest(&self, list: &SlotList) -> Option<(Slot, Tick)> {
        let link = self.links.get(list.first as usize)?;
        Some((list.first, link.since))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Two lists with common links and two plain queues take the same steps.
        #[test]
        fn lists_agree_with_plain_queues(
            steps in prop::collection::vec((any::<bool>(), 0..2_usize, 0..20_u32), 1..200),
        ) {
            let mut links = SlotLinks::default();
            let mut lists = [SlotList::default(); 2];
            let mut models = [Vec::new(), Vec::new()];
            for (now, (adds, which, slot)) in (0..).zip(steps) {
                if adds {
                    links.add(&mut lists[which], slot, Tick(now));
                    if !models.iter().flatten().any(|(s, _)| *s == slot) {
                        models[which].push((slot, Tick(now)));
                    }
                } else if !models[1 - which].iter().any(|(s, _)| *s == slot) {
                    links.remove(&mut lists[which], slot);
                    models[which].retain(|(s, _)| *s != slot);
                }
                for (list, model) in lists.iter().zip(&models) {
                    prop_assert_eq!(links.oldest(list), model.first().copied());
                }
            }
        }
    }
}
