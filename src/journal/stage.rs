//! Pre-copy: what an epoch sends before it is sealed.

use super::Journal;
use crate::limits::{BLOCK_BYTES, FRAGMENT_BYTES_MAX};
use crate::model::{Extent, ExtentSet, FileId};

impl Journal {
    /// Takes about `bytes_max` dirty bytes of the open epoch to be sent ahead of its seal. What
    /// is written again meanwhile gets dirty again, so that the epoch converges. Nothing is
    /// taken while an epoch is sealed: the replica's stage is that one's.
    ///
    /// No two of the extents share a block, and none has more than
    /// [`FRAGMENT_BYTES_MAX`] bytes; they may reach past the end of the file. What is not
    /// confirmed with [`Journal::staged`] is dirty again at the seal.
    pub fn take_for_stage(&self, bytes_max: u64) -> Vec<(FileId, Extent)> {
        let view = self.view();
        if view.sealed.is_some() {
            Vec::new()
        } else {
            view.open.take_for_stage(bytes_max)
        }
    }

    /// What was taken is sent, as entry `sequence` of the stage.
    pub fn staged(&self, id: FileId, extent: Extent, sequence: u64) {
        self.view().open.staged(id, extent, sequence);
    }

    /// The replica does not have entry `from` of the stage, nor any later one (0: nothing at
    /// all): what they held is dirty again, as is what was taken and not confirmed.
    ///
    /// If the sealed epoch loses something by it, it cannot be sent as it was sealed, since
    /// nobody preserves what is staged: it is abandoned, and [`Journal::abandon`] is to be
    /// called.
    pub fn lost_stage(&self, from: u64) {
        let _serial = self.serial.lock();
        let view = self.view();
        view.open.lost_stage(from);
        if let Some(sealed) = view.sealed
            && sealed.epoch_map().lost_stage(from)
        {
            sealed.give_up();
        }
    }
}

/// Cuts dirty content into what one fragment each can hold: parts that share a block stay
/// together, as the hash of a block covers all of it. At least `bytes` if there are so many.
pub(super) fn pieces(dirty: &ExtentSet, bytes: u64) -> Vec<Extent> {
    let mut pieces = Vec::new();
    let mut room = bytes;
    let mut parts = dirty.iter().peekable();
    while room > 0
        && let Some(mut extent) = parts.next()
    {
        while let Some(next) = parts.next_if(|next| {
            next.offset / BLOCK_BYTES == extent.end().saturating_sub(1) / BLOCK_BYTES
        }) {
            extent = Extent::between(extent.offset, next.end());
        }
        let (mut start, end) = (extent.offset, extent.end());
        while start < end && room > 0 {
            let cut = (start / FRAGMENT_BYTES_MAX + 1)
                .saturating_mul(FRAGMENT_BYTES_MAX)
                .min(end);
            pieces.push(Extent::between(start, cut));
            room = room.saturating_sub(cut - start);
            start = cut;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_what_is_dirty_and_share_no_block(
            parts in prop::collection::vec((0u64..5 << 20, 1u64..300_000), 1..60),
        ) {
            let dirty: ExtentSet = parts.into_iter().map(|(o, l)| Extent::new(o, l)).collect();
            let all = pieces(&dirty, u64::MAX);
            let mut last_block = None;
            for piece in &all {
                prop_assert!(piece.length <= FRAGMENT_BYTES_MAX && !piece.is_empty());
                prop_assert!(last_block.is_none_or(|last| last < piece.offset / BLOCK_BYTES));
                last_block = Some((piece.end() - 1) / BLOCK_BYTES);
            }
            let covered: ExtentSet = all.into_iter().collect();
            let missing: u64 = dirty.iter()
                .map(|e| e.length - covered.overlaps(e).map(|c| c.length).sum::<u64>()).sum();
            prop_assert_eq!(missing, 0);
            let some = pieces(&dirty, 100_000);
            let bytes: u64 = some.iter().map(|e| e.length).sum();
            prop_assert!(bytes >= 100_000.min(covered.bytes()));
            prop_assert!(bytes <= 100_000 + FRAGMENT_BYTES_MAX);
        }
    }
}
