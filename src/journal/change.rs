//! What one epoch knows about one object.

use crate::model::{Extent, ExtentSet, FileId};
use std::collections::BTreeMap;

/// The changes to one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    /// The replica has never heard of it.
    pub new: bool,
    /// Owner, mode, times or size.
    pub attributes: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// Content that the replica does not have. May reach past the end of the file.
    pub dirty: ExtentSet,
    /// Content that was sent ahead of the seal.
    pub staged: Staged,
    /// What its name held before: most likely an older version of it.
    pub replaced: Option<FileId>,
}

impl Change {
    /// Adds what an older, abandoned epoch knew. Final states need no order: what is dirty is
    /// read again anyway.
    pub fn fold(&mut self, older: &Change) {
        self.new |= older.new;
        self.attributes |= older.attributes;
        self.xattrs |= older.xattrs;
        older
            .dirty
            .iter()
            .for_each(|extent| self.dirty.insert(extent));
        let mut staged = older.staged.clone();
        self.staged
            .iter()
            .for_each(|(extent, sequence)| staged.insert(extent, sequence));
        self.staged = staged;
        self.replaced = self.replaced.or(older.replaced);
    }

    /// The end of the last extent that it knows of.
    pub fn end(&self) -> u64 {
        let dirty = self.dirty.iter().last().map_or(0, Extent::end);
        let staged = self
            .staged
            .iter()
            .last()
            .map_or(0, |(extent, _)| extent.end());
        dirty.max(staged)
    }
}

/// Extents that are in the replica's stage, with the sequence number of the entry that took them
/// there. An extent may be staged and dirty: it was written again since.
#[derive(Clone, Debug, Default)]
pub(super) struct Staged {
    // offset -> (end, sequence)
    extents: BTreeMap<u64, (u64, u64)>,
}

/// The sequence number of what was taken for the stage but not yet sent.
pub(super) const PENDING: u64 = u64::MAX;

impl Staged {
    /// Adds an extent; it overrides what it overlaps.
    pub fn insert(&mut self, extent: Extent, sequence: u64) {
        if extent.is_empty() {
            return;
        }
        let (start, end) = (extent.offset, extent.end());
        let from = match self.extents.range(..start).next_back() {
            Some((&before, &(before_end, _))) if before_end > start => before,
            _ => start,
        };
        let hit: Vec<_> = self
            .extents
            .range(from..end)
            .map(|(&s, &(e, n))| (s, e, n))
            .collect();
        for (s, e, n) in hit {
            self.extents.remove(&s);
            if s < start {
                self.extents.insert(s, (start, n));
            }
            if e > end {
                self.extents.insert(end, (e, n));
            }
        }
        self.extents.insert(start, (end, sequence));
    }

    /// Removes and returns what was sent as entry `from` or later, or not yet at all.
    pub fn take_from(&mut self, from: u64) -> Vec<Extent> {
        let mut taken = Vec::new();
        self.extents.retain(|&start, &mut (end, sequence)| {
            let lost = sequence >= from;
            if lost {
                taken.push(Extent::between(start, end));
            }
            !lost
        });
        taken
    }

    /// Joins neighbours until there are at most `max`. What joins counts as sent with the later
    /// of the two, so that more is sent again after a loss, never less. The gap between them is
    /// clean or dirty; it stays that.
    pub fn coarsen(&mut self, max: usize) {
        while self.extents.len() > max.max(1) {
            let mut joined = BTreeMap::new();
            let mut rest = self.extents.iter();
            while let Some((&start, &(end, sequence))) = rest.next() {
                match rest.next() {
                    Some((_, &(e, n))) => joined.insert(start, (e, sequence.max(n))),
                    None => joined.insert(start, (end, sequence)),
                };
            }
            self.extents = joined;
        }
    }

    /// Extents and their sequence numbers, in order of their offsets.
    pub fn iter(&self) -> impl Iterator<Item = (Extent, u64)> + '_ {
        self.extents
            .iter()
            .map(|(&start, &(end, n))| (Extent::between(start, end), n))
    }

    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
                for byte in offset..offset + length {
                    bytes[byte as usize] = Some(sequence);
                }
            }
            let mut seen = [None; 140];
            for (extent, sequence) in staged.iter() {
                for byte in extent.offset..extent.end() {
                    prop_assert_eq!(seen[byte as usize], None);
                    seen[byte as usize] = Some(sequence);
                }
            }
            prop_assert_eq!(seen, bytes);
            let mut coarse = staged.clone();
            coarse.coarsen(max);
            prop_assert!(coarse.iter().count() <= max);
            let lost: ExtentSet = coarse.take_from(from).into_iter().collect();
            let exact: ExtentSet = staged.take_from(from).into_iter().collect();
            for extent in exact.iter() {
                prop_assert_eq!(lost.overlaps(extent).map(|e| e.length).sum::<u64>(), extent.length);
            }
        }
    }
}
