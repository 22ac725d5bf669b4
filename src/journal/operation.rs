//! One operation on the real tree, between its begin and its end.

use super::epoch::Epoch;
use super::known::Layers;
use super::saved::Preserve;
use super::sealed::Sealed;
use super::{Journal, Result};
use crate::limits::BLOCK_BYTES;
use crate::model::{Extent, FileId, Name, Stamp};
use std::cell::RefCell;
use std::sync::Arc;

/// An operation: it belongs to the epoch that was open when it began, which cannot be read before
/// the operation ends (is dropped).
///
/// All is called with the locks of the inodes that it changes held: they are taken before
/// [`Journal::begin`], and given back after this is dropped. So the operations on one inode
/// belong to epochs that never go back, and a later one sees all that an earlier one recorded.
///
/// First what is about to change is preserved (`before_…`), then the real operation is done, then
/// what it did is recorded. What fails half-way records what it may have done.
pub struct Operation<'a> {
    journal: &'a Journal,
    epoch: Arc<Epoch>,
    sealed: Option<Arc<Sealed>>,
    // Names that were taken from objects of this epoch.
    unbound: RefCell<Vec<(FileId, Name, FileId)>>,
}

impl Journal {
    /// Begins an operation: pins the open epoch. Waits for nothing.
    pub fn begin(&self) -> Operation<'_> {
        let (epoch, sealed) = {
            let view = self.state.read();
            view.open.pin();
            (Arc::clone(&view.open), view.sealed.clone())
        };
        Operation {
            journal: self,
            epoch,
            sealed,
            unbound: RefCell::default(),
        }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.forget_what_is_gone();
        self.epoch.unpin();
    }
}

impl Operation<'_> {
    // Before.

    /// Before bytes of a file change in any way, or its size does (then the extent is all that
    /// lies between the two sizes): makes the intent durable where the index knows the file
    /// (invariant I5), and preserves what a sealed epoch owns (I2).
    ///
    /// # Errors
    /// None today. A state disk that does not take the intent stops nobody's work, since no
    /// failure of the mirror may become an errno (I9); see [`Journal::degraded`].
    pub fn before_data(&self, id: FileId, extent: Extent, preserve: &dyn Preserve) -> Result<()> {
        self.journal.intend(id, &self.epoch, self.sealed.as_deref());
        if let Some(sealed) = &self.sealed {
            sealed.preserve_data(id, extent, preserve);
        }
        Ok(())
    }

    /// Before attributes or extended attributes of an object change in any way: those of a
    /// directory do whenever one of its names does, and those of an object whenever it gets or
    /// loses a name.
    ///
    /// # Errors
    /// None today.
    pub fn before_attributes(&self, id: FileId, preserve: &dyn Preserve) -> Result<()> {
        if let Some(sealed) = &self.sealed {
            sealed.preserve_attributes(id, preserve);
        }
        Ok(())
    }

    /// Before an object loses a name; `last_name`: its last one.
    ///
    /// # Errors
    /// None today.
    pub fn before_unlink(
        &self,
        id: FileId,
        last_name: bool,
        preserve: &dyn Preserve,
    ) -> Result<()> {
        let Some(sealed) = &self.sealed else {
            if last_name {
                self.offer_base(id, preserve);
            }
            return Ok(());
        };
        if last_name {
            sealed.preserve_file(id, preserve);
            self.offer_base(id, preserve);
        } else {
            sealed.preserve_attributes(id, preserve);
        }
        Ok(())
    }

    /// Keeps a file that is as the replica will hold it when this epoch is planned.
    fn offer_base(&self, id: FileId, preserve: &dyn Preserve) {
        let max = self.journal.limits.base_descriptors_max;
        let clean = self.epoch.with(id, |change| {
            !change.new && change.dirty.is_empty() && change.staged.is_empty()
        });
        if clean == Some(false) || !self.epoch.bases.lock().wanted(max) {
            return;
        }
        if let Ok(descriptor) = preserve.descriptor(id) {
            // Closed without the lock: it may be the last hold on what it was.
            let gone = self.epoch.bases.lock().offer(id, descriptor, max);
            drop(gone);
        }
    }

    // After.

    /// Bytes of a file may have changed; with them its times and its size.
    pub fn data(&self, id: FileId, extent: Extent) {
        self.epoch.change(id, |change| {
            change.attributes = true;
            change.dirty.insert(extent);
        });
        self.drop_base(id);
        self.recorded();
    }

    /// The size of a file changed. What lies between the sizes is dirty, and what is left of the
    /// block that was cut, since the hash of a block covers all of it.
    pub fn truncated(&self, id: FileId, old_size: u64, new_size: u64) {
        let start = if new_size < old_size {
            new_size / BLOCK_BYTES * BLOCK_BYTES
        } else {
            old_size
        };
        self.data(id, Extent::between(start, old_size.max(new_size)));
    }

    /// Owner, mode or times of an object may have changed.
    pub fn attributes(&self, id: FileId) {
        self.epoch.change(id, |change| change.attributes = true);
        self.recorded();
    }

    /// Extended attributes of an object may have changed. (An ACL changes the mode, too.)
    pub fn xattrs(&self, id: FileId) {
        self.epoch.change(id, |change| change.xattrs = true);
        self.recorded();
    }

    /// Everything about an object may differ from what the replica holds.
    pub fn compare(&self, id: FileId, size: u64) {
        self.whole(id, size, false);
    }

    /// An object with a fresh id. Its content becomes dirty by [`Operation::data`]: it was born
    /// empty. `links`: how many names it has on the disk.
    pub fn created(&self, id: FileId, stamp: &Stamp, links: u32) {
        if links > 1 && stamp.inode != 0 {
            self.epoch.note_inode(stamp.inode, id);
        }
        self.epoch.change(id, |change| {
            change.place = Some((stamp.inode, stamp.birth));
            change.new = true;
            change.attributes = true;
            change.xattrs = true;
        });
        self.recorded();
    }

    /// An object has got another name, recorded or not (it may be one that is not mirrored): from
    /// now on it may be met under a name that nobody knows, and is known by its inode.
    pub fn linked(&self, id: FileId, inode: u64) {
        if inode != 0 {
            self.epoch.note_inode(inode, id);
        }
    }

    /// An object that the known tree lacks was found, with `size` bytes of content. Everything
    /// about it is dirty. If it has several names, [`Operation::created`] says so first.
    pub fn discovered(&self, id: FileId, stamp: &Stamp, size: u64) {
        let sealed = self.sealed.as_deref();
        // The sealed epoch takes it from the replica: it comes anew, with all that is in it.
        let taken = sealed.is_some_and(|sealed| sealed.removes(id)) || self.epoch.may_have_lost(id);
        let known = sealed.is_some_and(|sealed| sealed.epoch.is_born(id))
            || self.journal.index.size(id).is_ok_and(|size| size.is_some());
        if taken {
            self.epoch.revive(id);
        }
        let place = Some((stamp.inode, stamp.birth));
        self.epoch.change(id, |change| change.place = place);
        self.whole(id, size, taken || !known);
    }

    fn whole(&self, id: FileId, size: u64, new: bool) {
        // The replica may hold more than there is now. It is cut at the end of the epoch only,
        // so if the file grows until then, what was there must not come back.
        let indexed = self.journal.index.size(id).ok().flatten().unwrap_or(0);
        let sealed = self.sealed.as_ref();
        let sealed = sealed.and_then(|sealed| sealed.epoch.with(id, |change| change.end()));
        let end = size.max(indexed).max(sealed.unwrap_or(0));
        self.epoch.change(id, |change| {
            change.new |= new;
            change.attributes = true;
            change.xattrs = true;
            // So may what was staged.
            let end = end.max(change.end());
            change.dirty.insert(Extent::between(0, end));
        });
        self.drop_base(id);
        self.recorded();
    }

    /// A name holds an object now, whatever it held before. The directory's times changed.
    pub fn bind(&self, parent: FileId, name: &Name, id: FileId) {
        let replaced = self.replaced(parent, name, id);
        let before = self.epoch.bind(parent, name, Some(id));
        self.note_unbound(
            parent,
            name,
            before.flatten().filter(|&before| before != id),
        );
        if let Some(replaced) = replaced {
            self.epoch
                .change(id, |change| change.replaced = Some(replaced));
            self.epoch.bases.lock().used();
        }
        self.attributes(parent);
    }

    /// A name holds nothing now. The directory's times changed.
    pub fn unbind(&self, parent: FileId, name: &Name) {
        let before = self.epoch.bind(parent, name, None);
        self.note_unbound(parent, name, before.flatten());
        self.attributes(parent);
    }

    /// A directory was found elsewhere than where the known tree has it: it is not there any
    /// more. The attributes of `parent` are none of it; that may be gone itself, and is compared
    /// when a walk comes by.
    pub fn unbind_stale(&self, parent: FileId, name: &Name) {
        let before = self.epoch.bind(parent, name, None);
        self.note_unbound(parent, name, before.flatten());
        self.recorded();
    }

    fn note_unbound(&self, parent: FileId, name: &Name, before: Option<FileId>) {
        if let Some(id) = before {
            self.unbound.borrow_mut().push((parent, name.clone(), id));
        }
    }

    fn drop_base(&self, id: FileId) {
        let gone = self.epoch.bases.lock().remove(id);
        drop(gone);
    }

    fn recorded(&self) {
        if self.epoch.recorded(|| self.journal.nanos()) {
            self.journal.poke();
        }
    }

    /// What the replica holds where a new object is about to take a name.
    fn replaced(&self, parent: FileId, name: &Name, id: FileId) -> Option<FileId> {
        let before = match self.epoch.child(parent, name) {
            Some(Some(holder)) => self
                .epoch
                .with(holder, |change| change.new.then_some(change.replaced))
                .flatten()
                .unwrap_or(Some(holder))?,
            // Nothing in this epoch, or nothing any more: what there was before it.
            Some(None) | None if self.epoch.is_new(parent) => return None,
            Some(None) | None => self.below().child(parent, name).ok().flatten()?,
        };
        let layers = self.below();
        let new = || {
            self.epoch.is_born(id)
                || !(layers.is_new(id) || layers.index.size(id).is_ok_and(|size| size.is_some()))
        };
        (before != id && new()).then_some(before)
    }

    /// The tree before this epoch.
    fn below(&self) -> Layers<'_> {
        let sealed = self.sealed.as_ref().map(|sealed| sealed.epoch_map());
        Layers {
            overlays: [sealed, None],
            index: &*self.journal.index,
        }
    }

    /// What was born and is gone in one epoch leaves nothing in its maps. Only here, since a
    /// rename may take the old name away before it gives the new one.
    ///
    /// Not while an epoch is sealed: it could be folded into this one, and then a name that holds
    /// nothing here hides one that held something there.
    fn forget_what_is_gone(&self) {
        let unbound = self.unbound.take();
        if unbound.is_empty() || self.sealed.is_some() {
            return;
        }
        for (parent, name, id) in unbound {
            if self.epoch.is_new(id) && !self.epoch.has_link(id) {
                self.epoch.forget(id);
            }
            if self.epoch.child(parent, &name) == Some(None)
                && (self.epoch.is_new(parent)
                    || matches!(self.below().child(parent, &name), Ok(None)))
            {
                self.epoch.forget_empty(parent, &name);
            }
        }
    }
}
