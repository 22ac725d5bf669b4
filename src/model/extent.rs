//! Byte ranges of a file, and bounded sets of them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `length` bytes from `offset`. The end never overflows for what the kernel can send.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl Extent {
    /// An extent.
    #[must_use]
    pub fn new(offset: u64, length: u64) -> Extent {
        Extent { offset, length }
    }

    /// From `start` to before `end`; empty if there is nothing between.
    #[must_use]
    pub fn between(start: u64, end: u64) -> Extent {
        Extent {
            offset: start,
            length: end.saturating_sub(start),
        }
    }

    /// The first byte behind it.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.length == 0
    }

    /// What both hold.
    #[must_use]
    pub fn intersection(self, other: Extent) -> Extent {
        Extent::between(self.offset.max(other.offset), self.end().min(other.end()))
    }

    /// The smallest extent of whole units of `unit` bytes that holds it.
    #[must_use]
    pub fn rounded_out(self, unit: u64) -> Extent {
        let start = self.offset / unit * unit;
        Extent::between(start, self.end().div_ceil(unit).saturating_mul(unit))
    }
}

/// A set of bytes as disjoint extents that do not touch, in order. With a bound it gets coarser
/// (the closest extents are joined), never smaller than what was put in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExtentSet {
    // offset -> end
    extents: BTreeMap<u64, u64>,
    bytes: u64,
}

impl ExtentSet {
    /// Adds the bytes of `extent`.
    pub fn insert(&mut self, extent: Extent) {
        if extent.is_empty() {
            return;
        }
        let (mut start, mut end) = (extent.offset, extent.end());
        if let Some((&before, &before_end)) = self.extents.range(..start).next_back()
            && before_end >= start
        {
            start = before;
        }
        while let Some((&next, &next_end)) = self.extents.range(start..=end).next() {
            self.extents.remove(&next);
            self.bytes -= next_end - next;
            end = end.max(next_end);
        }
        self.extents.insert(start, end);
        self.bytes += end - start;
    }

    /// Removes the bytes of `extent`.
    pub fn remove(&mut self, extent: Extent) {
        if extent.is_empty() {
            return;
        }
        let (start, end) = (extent.offset, extent.end());
        let from = match self.extents.range(..start).next_back() {
            Some((&before, &before_end)) if before_end > start => before,
            _ => start,
        };
        let hit: Vec<(u64, u64)> = self
            .extents
            .range(from..end)
            .map(|(&s, &e)| (s, e))
            .collect();
        for (s, e) in hit {
            self.extents.remove(&s);
            self.bytes -= e - s;
            for rest in [
                Extent::between(s, start.min(e)),
                Extent::between(end.max(s), e),
            ] {
                if !rest.is_empty() {
                    self.extents.insert(rest.offset, rest.end());
                    self.bytes += rest.length;
                }
            }
        }
    }

    /// Joins the closest neighbours until there are at most `max` extents (at least one).
    pub fn coarsen(&mut self, max: usize) {
        while self.extents.len() > max.max(1) {
            let gaps = self.extents.iter().zip(self.extents.iter().skip(1));
            let Some((_, start, end)) = gaps.map(|((&s, &e), (&s2, &e2))| (s2 - e, s, e2)).min()
            else {
                return;
            };
            self.insert(Extent::between(start, end));
        }
    }

    /// The extents in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents
            .iter()
            .map(|(&start, &end)| Extent::between(start, end))
    }

    /// The parts of `extent` that are in the set, in order.
    pub fn overlaps(&self, extent: Extent) -> impl Iterator<Item = Extent> + '_ {
        let from = match self.extents.range(..extent.offset).next_back() {
            Some((&before, &end)) if end > extent.offset => before,
            _ => extent.offset,
        };
        self.extents
            .range(from..extent.end().max(from))
            .map(move |(&start, &end)| Extent::between(start, end).intersection(extent))
            .filter(|part| !part.is_empty())
    }

    /// How many bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many extents it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<T: IntoIterator<Item = Extent>>(extents: T) -> ExtentSet {
        let mut set = ExtentSet::default();
        extents.into_iter().for_each(|extent| set.insert(extent));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_holds_what_a_bitmap_holds(
            steps in prop::collection::vec((any::<bool>(), 0u64..120, 0u64..40), 0..60),
            probe in (0u64..120, 0u64..60),
        ) {
            let mut set = ExtentSet::default();
            let mut bitmap = [false; 200];
            for (add, offset, length) in steps {
                let extent = Extent::new(offset, length);
                if add { set.insert(extent) } else { set.remove(extent) }
                for byte in offset..offset + length {
                    bitmap[usize::try_from(byte).expect("small")] = add;
                }
            }
            let mut seen = [false; 200];
            let mut last_end = None;
            for extent in set.iter() {
                prop_assert!(last_end.is_none_or(|end| end < extent.offset));
                last_end = Some(extent.end());
                for byte in extent.offset..extent.end() {
                    seen[usize::try_from(byte).expect("small")] = true;
                }
            }
            prop_assert_eq!(seen, bitmap);
            prop_assert_eq!(set.bytes() as usize, bitmap.iter().filter(|held| **held).count());
            let part = Extent::new(probe.0, probe.1);
            let overlap: u64 = set.overlaps(part).map(|extent| extent.length).sum();
            let held = (part.offset..part.end())
                .filter(|byte| bitmap[usize::try_from(*byte).expect("small")]).count();
            prop_assert_eq!(overlap as usize, held);
            let mut coarse = set.clone();
            coarse.coarsen(3);
            prop_assert!(coarse.len() <= 3);
            prop_assert!(set.iter().all(|extent| coarse.overlaps(extent).map(|e| e.length).sum::<u64>() == extent.length));
        }
    }
}
