//! A sealed epoch, as the planner reads it and as later operations preserve it.

use super::Result;
use super::epoch::Epoch;
use super::known::{Known, Layers};
use super::saved::{Preserve, Saved, touched_blocks};
use crate::disk::Snapshot;
use crate::model::{EpochId, Extent, ExtentSet, FileId, Name, Timestamp};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// How far a chain of files that replaced each other within one epoch is followed.
const REPLACED_STEPS_MAX: usize = 16;

/// What an epoch changes of an object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChangeView {
    /// The replica has never heard of it: everything about it is a change.
    pub new: bool,
    /// Owner, mode, times or size may have changed.
    pub attributes: bool,
    /// Extended attributes may have changed.
    pub xattrs: bool,
    /// Content that may differ from what the replica holds or was sent ahead; may reach past the
    /// end of the file.
    pub dirty: Vec<Extent>,
    /// Content that may be in the replica's stage. What is dirty too was changed since: it must be
    /// sent again even if it equals what the index has.
    pub staged: Vec<Extent>,
    /// What its name held before this epoch, most likely an older version of it.
    pub replaced: Option<FileId>,
}

/// An immutable epoch: the changes up to the instant of its seal, and the content and attributes
/// of that instant, until [`Sealed::is_abandoned`].
///
/// The reader reads an object as it is now and then looks at what was saved of it, in this
/// order; see [`Sealed::patch_saved`], [`Sealed::saved_stat`] and [`Sealed::saved_descriptor`].
pub struct Sealed {
    pub(super) epoch: Arc<Epoch>,
    pub(super) id: EpochId,
    pub(super) consistent: bool,
    pub(super) sealed_at: Timestamp,
    pub(super) index: Arc<dyn Known>,
    pub(super) saved: Saved,
}

impl Sealed {
    /// Its id.
    pub fn epoch(&self) -> EpochId {
        self.id
    }

    /// The generation of changes that it holds, with all before; see
    /// [`super::Journal::mark`].
    pub fn generation(&self) -> u64 {
        self.epoch.generation
    }

    /// Whether the tree existed as it is after it. False for a part of a first sync.
    pub fn is_consistent(&self) -> bool {
        self.consistent
    }

    /// When it was sealed, by the clock on the wall.
    pub fn sealed_at(&self) -> Timestamp {
        self.sealed_at
    }

    /// The objects that it may change, sorted.
    pub fn objects(&self) -> Vec<FileId> {
        self.epoch.object_ids()
    }

    /// What it may change of an object.
    pub fn change(&self, id: FileId) -> Option<ChangeView> {
        let mut view = self.epoch.with(id, |change| ChangeView {
            new: change.new,
            attributes: change.attributes,
            xattrs: change.xattrs,
            dirty: change.dirty.iter().collect(),
            staged: change.staged.iter().collect(),
            replaced: change.replaced,
        })?;
        // After a fold it can be one that was born in this epoch, too; the replica has only what
        // that one replaced.
        for _ in 0..REPLACED_STEPS_MAX {
            let Some(replaced) = view.replaced else { break };
            let older = self
                .epoch
                .with(replaced, |change| change.new.then_some(change.replaced));
            let Some(older) = older.flatten() else { break };
            view.replaced = older.filter(|&older| older != id);
        }
        Some(view)
    }

    /// What names hold in it, where it may be a change; sorted.
    pub fn bindings(&self) -> Vec<(FileId, Name, Option<FileId>)> {
        self.epoch.bindings()
    }

    /// Whether the object cannot be reached from the root at the seal: it is not in this epoch's
    /// tree, and nothing about it is to be sent. One that was new is then never heard of; one
    /// that the replica has goes with its last name, and takes what is in it with it.
    ///
    /// # Errors
    /// When the index cannot be read, which must still be in the state before this epoch.
    pub fn is_orphan(&self, id: FileId) -> Result<bool> {
        Ok(!self.tree().is_reachable(id)?)
    }

    /// Up to `max` names of an object at the seal.
    ///
    /// # Errors
    /// As [`Sealed::is_orphan`].
    pub fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>> {
        self.tree().links(id, max)
    }

    fn tree(&self) -> Layers<'_> {
        Layers {
            overlays: [Some(&self.epoch), None],
            index: &*self.index,
        }
    }

    /// The state of an object at the seal, if it was changed since. To be asked after the object
    /// was looked at.
    pub fn saved_stat(&self, id: FileId) -> Option<Snapshot> {
        self.saved.snapshot(id)
    }

    /// A file that was unlinked since the seal. To be asked when its name is not there any more;
    /// what is read from it must be patched as well.
    pub fn saved_descriptor(&self, id: FileId) -> Option<File> {
        self.saved.descriptor(id)
    }

    /// Overwrites `bytes`, which were read from `extent` before this call, with what was saved
    /// of it. A file that is now shorter must have been read as zeros.
    ///
    /// # Errors
    /// When saved bytes cannot be read back; the epoch is to be abandoned.
    pub fn patch_saved(&self, id: FileId, extent: Extent, bytes: &mut [u8]) -> io::Result<()> {
        let length = usize::try_from(extent.length)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.saved.patch(id, extent.offset, &mut bytes[..length])
    }

    /// Whether anything of an extent was saved. To be asked after it was looked at.
    pub fn has_saved(&self, id: FileId, extent: Extent) -> bool {
        self.saved.has(id, extent)
    }

    /// The content of a file that this epoch removes, most likely as the replica holds it. Only
    /// what has the hash that the index has may be used.
    pub fn delta_base(&self, id: FileId) -> Option<File> {
        self.epoch.bases.lock().get(id)
    }

    /// An extent was read and patched, and will not be read again: it need not be preserved.
    /// `Extent::new(0, u64::MAX)` for a file that is done with.
    pub fn read_done(&self, id: FileId, extent: Extent) {
        self.saved.read_done(id, extent);
    }

    /// Everything was read: from now on nothing is preserved, and the epoch cannot be lost any
    /// more. False: it is abandoned, and what was read of it may be wrong. Must be asked before
    /// its commit is sent.
    #[must_use]
    pub fn finish_reading(&self) -> bool {
        self.saved.finish()
    }

    /// Whether what it owned could not be preserved: it must not be committed. The next thing to
    /// do is [`super::Journal::abandon`].
    pub fn is_abandoned(&self) -> bool {
        self.saved.is_lost()
    }

    pub(super) fn give_up(&self) {
        self.saved.lose();
    }

    pub(super) fn epoch_map(&self) -> &Epoch {
        &self.epoch
    }

    // What operations of the next epoch do before they change something.

    /// As [`Sealed::is_orphan`]; what cannot be told is taken for there.
    pub(super) fn removes(&self, id: FileId) -> bool {
        self.is_orphan(id).unwrap_or(false)
    }

    /// Saves the attributes of an object that this epoch changes.
    pub(super) fn preserve_attributes(&self, id: FileId, preserve: &dyn Preserve) {
        if !self.saved.is_reading()
            || self.epoch.with(id, |_| ()).is_none()
            || self.saved.has_snapshot(id)
        {
            return;
        }
        match preserve.stat(id) {
            Ok(snapshot) => self.saved.keep_snapshot(id, snapshot),
            Err(error) => {
                tracing::warn!(%id, %error, "a sealed object cannot be looked at: epoch abandoned");
                self.saved.lose();
            }
        }
    }

    /// Saves the bytes of an extent that this epoch changes, in whole blocks.
    pub(super) fn preserve_data(&self, id: FileId, extent: Extent, preserve: &dyn Preserve) {
        self.preserve_attributes(id, preserve);
        let gone = self.epoch.bases.lock().remove(id);
        drop(gone);
        if !self.saved.is_reading() {
            return;
        }
        let dirty = self
            .epoch
            .with(id, |change| touched_blocks(&change.dirty, extent));
        let Some(dirty) = dirty else { return };
        let wanted = self.saved.uncovered(id, dirty);
        if !wanted.is_empty() {
            self.saved.save(id, &wanted, preserve);
        }
    }

    /// Keeps a file that loses its last name, if content of it is still to be read.
    pub(super) fn preserve_file(&self, id: FileId, preserve: &dyn Preserve) {
        self.preserve_attributes(id, preserve);
        if !self.saved.is_reading() || self.saved.has_descriptor(id) {
            return;
        }
        let all = Extent::new(0, u64::MAX);
        let dirty: Option<ExtentSet> = self
            .epoch
            .with(id, |change| touched_blocks(&change.dirty, all));
        let unread = dirty.map(|dirty| self.saved.uncovered(id, dirty));
        if unread.is_none_or(|unread| unread.is_empty()) {
            return;
        }
        match preserve.descriptor(id) {
            Ok(descriptor) => self.saved.keep_descriptor(id, descriptor),
            Err(error) => {
                tracing::warn!(%id, %error, "a sealed file cannot be kept: epoch abandoned");
                self.saved.lose();
            }
        }
    }
}
