//! Which blocks the index cannot speak for.

use crate::limits::{BLOCK_BYTES, FILE_EXTENTS_MAX};
use crate::model::{Entry, Extent, ExtentSet, FileId};
use std::collections::HashMap;

/// The blocks that entries have touched which the index has not taken in: those of the stage,
/// and those of the sealed epoch until it is committed.
///
/// A fragment's hash may be of more than its bytes (a write beside them that is not yet marked
/// dirty can be read already), so what a touched block holds at the replica is taken for unknown.
/// Past its bound the set gets coarser, which ships more and is never wrong.
#[derive(Debug, Default)]
pub(super) struct Held {
    open: HashMap<FileId, Touched>,
    sealed: HashMap<FileId, Touched>,
}

#[derive(Debug)]
struct Touched {
    // Whole blocks.
    blocks: ExtentSet,
    // From here on the file may have been cut off.
    cut: u64,
}

impl Held {
    /// Takes note of an entry that is on its way.
    pub(super) fn observe(&mut self, entry: &Entry) {
        match entry {
            Entry::Fragment(fragment) => {
                let touched = self.open.entry(fragment.file).or_default();
                touched
                    .blocks
                    .insert(fragment.extent.rounded_out(BLOCK_BYTES));
                touched.bound();
            }
            Entry::Object { id, object } if object.fixed.is_file() => {
                let touched = self.open.entry(*id).or_default();
                touched.cut = touched.cut.min(object.size / BLOCK_BYTES * BLOCK_BYTES);
            }
            _ => {}
        }
    }

    /// Whether the index speaks for a block.
    pub(super) fn is_known(&self, file: FileId, block: u64) -> bool {
        let extent = Extent::new(block.saturating_mul(BLOCK_BYTES), BLOCK_BYTES);
        let is_known = |touched: &Touched| {
            extent.offset < touched.cut && touched.blocks.overlaps(extent).next().is_none()
        };
        [&self.open, &self.sealed]
            .iter()
            .all(|files| files.get(&file).is_none_or(is_known))
    }

    /// Behind the last byte that fragments may have given a file.
    pub(super) fn end(&self, file: FileId) -> u64 {
        let files = [&self.open, &self.sealed];
        let ends = files
            .iter()
            .filter_map(|files| files.get(&file)?.blocks.iter().last());
        ends.map(Extent::end).max().unwrap_or(0)
    }

    /// Whether entries of the stage have touched a file.
    pub(super) fn has_staged(&self, file: FileId) -> bool {
        self.open.contains_key(&file)
    }

    /// The stage is complete, another begins.
    pub(super) fn sealed(&mut self) {
        let stage = std::mem::take(&mut self.open);
        merge(&mut self.sealed, stage);
    }

    pub(super) fn committed(&mut self) {
        self.sealed.clear();
    }

    pub(super) fn abandoned(&mut self) {
        let sealed = std::mem::take(&mut self.sealed);
        merge(&mut self.open, sealed);
    }
}

impl Default for Touched {
    fn default() -> Touched {
        Touched {
            blocks: ExtentSet::default(),
            cut: u64::MAX,
        }
    }
}

impl Touched {
    fn bound(&mut self) {
        // Joining is costly one by one.
        if self.blocks.len() > 2 * FILE_EXTENTS_MAX {
            self.blocks.coarsen(FILE_EXTENTS_MAX);
        }
    }
}

fn merge(into: &mut HashMap<FileId, Touched>, from: HashMap<FileId, Touched>) {
    if into.is_empty() {
        *into = from;
        return;
    }
    for (file, from) in from {
        let touched = into.entry(file).or_default();
        from.blocks
            .iter()
            .for_each(|extent| touched.blocks.insert(extent));
        touched.cut = touched.cut.min(from.cut);
        touched.bound();
    }
}
