//! What one epoch knows about one object.

use crate::model::{Extent, ExtentSet, FileId, Timestamp};
use std::collections::BTreeMap;

/// The changes to one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    /// It was born in this epoch, or in one that was folded into it.
    pub new: bool,
    /// That one may have reached the replica all the same, and with it the index.
    pub uncertain: bool,
    /// The index may still know it as it was before the sealed epoch takes it away.
    pub revived: bool,
    /// Owner, mode, times or size.
    pub attributes: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// Content that the replica does not have. May reach past the end of the file.
    pub dirty: ExtentSet,
    /// Content that was sent ahead of the seal.
    pub staged: Staged,
    /// Its inode and birth, when it was found or made.
    pub place: Option<(u64, Timestamp)>,
    /// What its name held before: most likely an older version of it.
    pub replaced: Option<FileId>,
}

impl Change {
    /// Adds what an older, abandoned epoch knew. Final states need no order: what is dirty is
    /// read again anyway.
    ///
    /// `uncertain`: its commit may have been sent.
    pub fn fold(&mut self, older: &Change, uncertain: bool) {
        self.new |= older.new;
        self.revived |= older.revived;
        self.uncertain |= older.uncertain || (older.new && uncertain);
        self.attributes |= older.attributes;
        self.xattrs |= older.xattrs;
        older
            .dirty
            .iter()
            .for_each(|extent| self.dirty.insert(extent));
        let newer = std::mem::replace(&mut self.staged, older.staged.clone());
        self.staged.extend(&newer);
        self.place = self.place.or(older.place);
        self.replaced = self.replaced.or(older.replaced);
    }

    /// The end of the last extent that it knows of.
    pub fn end(&self) -> u64 {
        let dirty = self.dirty.iter().last().map_or(0, Extent::end);
        let staged = self.staged.iter().next_back().map_or(0, Extent::end);
        dirty.max(staged)
    }
}

/// Extents that may be in the replica's stage, with the sequence number of the entry that took
/// them there. An extent may be staged and dirty: it was written again since.
#[derive(Clone, Debug, Default)]
pub(super) struct Staged {
    extents: BTreeMap<u64, Sent>,
}

/// How an extent was sent: parts of it with the lowest number, maybe, and all that counts of it
/// not after the highest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sent {
    end: u64,
    lowest: u64,
    highest: u64,
}

/// The sequence number of what was taken for the stage but not yet sent.
pub(super) const PENDING: u64 = u64::MAX;

impl Staged {
    /// Adds an extent, which is newer than what it overlaps.
    pub fn insert(&mut self, extent: Extent, sequence: u64) {
        let sent = Sent {
            end: extent.end(),
            lowest: sequence,
            highest: sequence,
        };
        self.put(extent, sent);
    }

    /// Adds what another one has.
    pub fn extend(&mut self, newer: &Staged) {
        newer
            .extents
            .iter()
            .for_each(|(&at, &sent)| self.put(Extent::between(at, sent.end), sent));
    }

    fn put(&mut self, extent: Extent, mut sent: Sent) {
        if extent.is_empty() {
            return;
        }
        let (start, end) = (extent.offset, extent.end());
        let from = match self.extents.range(..start).next_back() {
            Some((&before, before_sent)) if before_sent.end > start => before,
            _ => start,
        };
        let hit: Vec<(u64, Sent)> = self
            .extents
            .range(from..end)
            .map(|(&s, &e)| (s, e))
            .collect();
        for (at, old) in hit {
            self.extents.remove(&at);
            sent.lowest = sent.lowest.min(old.lowest);
            if at < start {
                self.extents.insert(at, Sent { end: start, ..old });
            }
            if old.end > end {
                self.extents.insert(end, old);
            }
        }
        self.extents.insert(start, sent);
    }

    /// Returns what was sent as entry `from` or later, or not yet at all, and removes what
    /// certainly was.
    pub fn take_from(&mut self, from: u64) -> Vec<Extent> {
        let mut taken = Vec::new();
        self.extents.retain(|&start, sent| {
            if sent.highest < from {
                return true;
            }
            taken.push(Extent::between(start, sent.end));
            sent.highest = from.saturating_sub(1);
            sent.lowest < from
        });
        taken
    }

    /// What was taken and not confirmed. It may have been sent all the same.
    pub fn pending(&self) -> Vec<Extent> {
        let pending = self
            .extents
            .iter()
            .filter(|(_, sent)| sent.highest == PENDING);
        pending
            .map(|(&start, sent)| Extent::between(start, sent.end))
            .collect()
    }

    /// Joins neighbours until there are at most `max`. The gap between them is clean or dirty;
    /// it stays that.
    pub fn coarsen(&mut self, max: usize) {
        while self.extents.len() > max.max(1) {
            let mut joined = BTreeMap::new();
            let mut rest = self.extents.iter();
            while let Some((&start, &sent)) = rest.next() {
                let both = rest.next().map_or(sent, |(_, next)| Sent {
                    end: next.end,
                    lowest: sent.lowest.min(next.lowest),
                    highest: sent.highest.max(next.highest),
                });
                joined.insert(start, both);
            }
            self.extents = joined;
        }
    }

    /// The extents in order of their offsets.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Extent> + '_ {
        self.extents
            .iter()
            .map(|(&start, sent)| Extent::between(start, sent.end))
    }

    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers(set: &ExtentSet, extent: Extent) -> bool {
        set.overlaps(extent).map(|part| part.length).sum::<u64>() == extent.length
    }

    proptest! {
        #[test]
        fn the_newest_sequence_of_each_byte_counts(
            steps in prop::collection::vec((0u64..100, 1u64..30), 1..30),
            from in 0u64..30,
            max in 1usize..5,
        ) {
            let mut staged = Staged::default();
            let mut bytes = [None; 140];
            for (sequence, (offset, length)) in steps.into_iter().enumerate() {
                let sequence = sequence as u64;
                staged.insert(Extent::new(offset, length), sequence);
                for byte in &mut bytes[offset as usize..(offset + length) as usize] {
                    let (first, _) = byte.unwrap_or((sequence, sequence));
                    *byte = Some((first, sequence));
                }
            }
            let mut seen = [None; 140];
            for (&start, sent) in &staged.extents {
                for byte in start..sent.end {
                    prop_assert_eq!(seen[byte as usize], None);
                    seen[byte as usize] = Some(sent.highest);
                }
            }
            prop_assert_eq!(seen, bytes.map(|byte| byte.map(|(_, last)| last)));
            let mut coarse = staged.clone();
            coarse.coarsen(max);
            prop_assert!(coarse.extents.len() <= max);
            let lost: ExtentSet = coarse.take_from(from).into_iter().collect();
            let kept: ExtentSet = coarse.iter().collect();
            for extent in staged.take_from(from) {
                prop_assert!(covers(&lost, extent), "what is lost is dirty again");
            }
            for (at, byte) in bytes.into_iter().enumerate() {
                let still = byte.is_some_and(|(first, _)| first < from);
                prop_assert!(!still || covers(&kept, Extent::new(at as u64, 1)), "not all is lost");
            }
            prop_assert!(coarse.take_from(from).is_empty());
        }
    }
}
