//! Making the known tree equal to the real one, name by name: for `reconcile`'s walks, and for
//! operations on what no walk has come by yet.
//!
//! An operation never changes an object before it was *verified*: found in the known tree and
//! compared with the index, or put into the dirty map as a whole. Else the change's own stamp
//! would later hide an edit that was made while nothing was mounted.

use super::nodes::Place;
use super::seen::Seen;
use super::types::Inspected;
use super::{ATTEMPTS_MAX, Backing, broken, errno};
use crate::journal::Operation;
use crate::limits::UNWALKED_MAX;
use crate::model::{FileId, Name, RESERVED_NAME};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// Directories that came into the known tree without what is in them.
#[derive(Default)]
pub(super) struct Unwalked {
    directories: Mutex<HashSet<FileId>>,
    pushed: AtomicU64,
    notify: Arc<Notify>,
}

impl Unwalked {
    pub(super) fn push(&self, id: FileId) {
        // Counted first: who compares counts must not miss one that can be taken already.
        self.pushed.fetch_add(1, Ordering::AcqRel);
        let mut directories = self.directories.lock();
        if directories.len() >= UNWALKED_MAX {
            directories.clear();
            directories.insert(FileId::ROOT);
        } else {
            directories.insert(id);
        }
        drop(directories);
        self.notify.notify_one();
    }
}

/// A lookup of our own, so that an object has one id while we deal with it.
pub(super) struct Visit<'a> {
    pub(super) backing: &'a Backing,
    pub(super) id: FileId,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.backing.forget(self.id, 1);
    }
}

impl Backing {
    /// A walk of the whole tree begins: nothing counts as compared with the index until it is
    /// met again.
    pub fn begin_walk(&self) {
        self.walked.store(false, Ordering::Release);
        self.walk.fetch_add(1, Ordering::AcqRel);
    }

    /// The walk is complete, and nothing is unwalked: known tree = real tree.
    pub fn end_walk(&self) {
        self.walked.store(true, Ordering::Release);
    }

    /// Directories whose entries no walk has seen, to be walked now. The caller owns them: what
    /// it does not walk, it must push again.
    #[must_use]
    pub fn take_unwalked(&self) -> Vec<FileId> {
        let mut taken: Vec<FileId> = self.unwalked.directories.lock().drain().collect();
        taken.sort_unstable();
        taken
    }

    /// Puts a directory (back) among the unwalked.
    pub fn push_unwalked(&self, directory: FileId) {
        self.unwalked.push(directory);
    }

    /// How many directories have come to the unwalked ones since the start.
    #[must_use]
    pub fn discovered(&self) -> u64 {
        self.unwalked.pushed.load(Ordering::Acquire)
    }

    /// Wakes when there is something unwalked.
    #[must_use]
    pub fn unwalked_notify(&self) -> Arc<Notify> {
        Arc::clone(&self.unwalked.notify)
    }

    /// Compares one name of the real tree with the known tree and the index, and records what
    /// differs. `None`: the name holds nothing that is mirrored (any more).
    ///
    /// # Errors
    /// Those of the file system; EIO if the journal or the index fails.
    pub fn inspect(&self, parent: FileId, name: &Name) -> io::Result<Option<Inspected>> {
        if parent == FileId::ROOT && name.as_bytes() == RESERVED_NAME.as_bytes() {
            return Ok(None);
        }
        for _ in 0..ATTEMPTS_MAX {
            let directory = self.directory(parent)?;
            let look = || match Seen::entry(&*directory, name.as_bytes(), self.home) {
                Ok(seen) => Ok(Some(seen)),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
                Err(error) => Err(error),
            };
            let place = (parent, name.clone());
            let (id, seen) = match self.arrive(&directory, &place) {
                Ok(arrived) => arrived,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    let _held = self.locks.lock(&[parent]);
                    if look()?.is_none() {
                        self.unbind_missing(parent, name)?;
                        return Ok(None);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let _visit = Visit { backing: self, id };
            let stale = self.stale_place(&place, id, &seen)?;
            let elsewhere = stale.as_ref().map_or(parent, |(elsewhere, _)| *elsewhere);
            let _held = self.locks.lock(&[parent, id, elsewhere]);
            if let Some(again) = look()?
                && again.is_same(&seen)
                && self.stale_place(&place, id, &seen)? == stale
            {
                return self.inspect_seen(&place, stale.as_ref(), id, &again);
            }
        }
        Err(errno(libc::EBUSY))
    }

    /// Compares the root directory itself (not what is in it) with the index.
    ///
    /// # Errors
    /// As [`Backing::inspect`].
    pub fn inspect_root(&self) -> io::Result<Inspected> {
        let id = FileId::ROOT;
        let _held = self.locks.lock(&[id]);
        let seen = Seen::open(&*self.root, self.home)?;
        let suspect = !self.is_unchanged(id, &seen)?;
        if suspect {
            self.begin().compare(id, 0);
        }
        self.nodes.set_verified(id, self.walk_number());
        Ok(Inspected {
            id,
            is_directory: true,
            was_new: false,
            suspect,
        })
    }

    /// Puts an object of the known tree into the dirty map as a whole, whatever its stamp says:
    /// its content may have changed without a trace. `false` if it is gone.
    ///
    /// # Errors
    /// As [`Backing::inspect`].
    pub fn inspect_object(&self, id: FileId) -> io::Result<bool> {
        let _held = self.locks.lock(&[id]);
        let seen = match self.see(id) {
            Ok(seen) => seen,
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if !self.is_excluded(id) {
            self.begin().compare(id, seen.size());
        }
        Ok(true)
    }

    /// Where else the known tree has a directory. It has one name only, so it was moved while
    /// nothing was mounted; no epoch may be sealed that has it in both places.
    fn stale_place(&self, place: &Place, id: FileId, seen: &Seen) -> io::Result<Option<Place>> {
        if !seen.is_directory() {
            return Ok(None);
        }
        let known = self.journal.known_links(id, 2).map_err(broken)?;
        Ok(known.into_iter().find(|other| other != place))
    }

    fn unbind_missing(&self, parent: FileId, name: &Name) -> io::Result<()> {
        if let Some(id) = self.journal.known_child(parent, name).map_err(broken)? {
            let operation = self.begin();
            operation.before_attributes(parent, self).map_err(broken)?;
            operation.unbind(parent, name);
            self.nodes.remove_place(id, &(parent, name.clone()), false);
        }
        Ok(())
    }

    fn inspect_seen(
        &self,
        place: &Place,
        stale: Option<&Place>,
        id: FileId,
        seen: &Seen,
    ) -> io::Result<Option<Inspected>> {
        let (parent, name) = place;
        let operation = self.begin();
        let known = self.journal.known_child(*parent, name).map_err(broken)?;
        if self.excludes(*parent, name, seen) {
            if known.is_some() {
                operation.before_attributes(*parent, self).map_err(broken)?;
                operation.unbind(*parent, name);
            }
            return Ok(None);
        }
        self.nodes.set_excluded(id, false);
        let walk = self.walk_number();
        let verified = self
            .nodes
            .view(id)
            .is_some_and(|node| node.verified == walk);
        let was_new = known != Some(id);
        let mut suspect = false;
        // A walk comes from above: the directory is known.
        if was_new && !self.is_known(id)? {
            self.discover(&operation, id, seen)?;
            suspect = true;
        } else if !verified && !self.is_unchanged(id, seen)? {
            operation.compare(id, seen.size());
            suspect = true;
        }
        if was_new {
            operation.before_attributes(*parent, self).map_err(broken)?;
            operation.bind(*parent, name, id);
        }
        if let Some(stale) = stale {
            operation.unbind_stale(stale.0, &stale.1);
            self.nodes.remove_place(id, stale, false);
        }
        self.nodes.set_verified(id, walk);
        Ok(Some(Inspected {
            id,
            is_directory: seen.is_directory(),
            was_new,
            suspect,
        }))
    }

    /// Everything about an object that the known tree lacks is dirty.
    pub(super) fn discover(
        &self,
        operation: &Operation<'_>,
        id: FileId,
        seen: &Seen,
    ) -> io::Result<()> {
        // Its other names are found by its inode; unless the index has it, which has that too.
        let many = !seen.is_directory() && seen.links() > 1 && seen.at_home;
        if many && !self.journal.known_object(id).map_err(broken)? {
            operation.created(id, &seen.stamp, seen.links());
        }
        operation.discovered(id, &seen.stamp, seen.size());
        Ok(())
    }

    /// Whether an object is in the known tree. What only has names in a directory that was moved
    /// out of the tree is not: what is in there goes with it.
    pub(super) fn is_known(&self, id: FileId) -> io::Result<bool> {
        let settled = self.exclude.is_empty() && self.is_walked();
        let walk = self.walk_number();
        // Verified once, it can leave the tree only over a border, and there is none.
        if settled
            && self
                .nodes
                .view(id)
                .is_some_and(|node| node.verified == walk)
        {
            return Ok(true);
        }
        self.journal.is_reachable(id).map_err(broken)
    }

    /// Whether the index proves that nothing has touched an object. One that is not in the index
    /// is new in this or the sealed epoch, which has all of it.
    fn is_unchanged(&self, id: FileId, seen: &Seen) -> io::Result<bool> {
        let Some(record) = self.index.object(id).map_err(broken)? else {
            return Ok(true);
        };
        Ok(record.stamp == seen.stamp
            && record.stamp.ctime != crate::model::Timestamp::default()
            && record.object.size == seen.size()
            && record.object.attributes.mtime == seen.mtime())
    }

    /// As [`Backing::is_known`], for a name that it is likely known under.
    fn is_known_as(&self, id: FileId, parent: FileId, name: &Name) -> io::Result<bool> {
        let walk = self.walk_number();
        let verified = |id| {
            self.nodes
                .view(id)
                .is_some_and(|node| node.verified == walk)
        };
        if self.exclude.is_empty() && (parent == FileId::ROOT || verified(parent)) {
            return Ok(self.journal.known_child(parent, name).map_err(broken)? == Some(id));
        }
        self.is_known(id)
    }

    /// Verifies an object that is going to be changed, and the directories above it. Called
    /// without locks.
    pub(super) fn settle(&self, id: FileId) -> io::Result<()> {
        let walk = self.walk_number();
        let mut way: Vec<Place> = Vec::new();
        let mut at = id;
        while at != FileId::ROOT {
            let Some(node) = self.nodes.view(at) else {
                break;
            };
            if node.excluded || node.verified == walk {
                break;
            }
            let Some((parent, name)) = self.nodes.place(at) else {
                break;
            };
            if self.is_walked() && self.is_known_as(at, parent, &name)? {
                self.nodes.set_verified(at, walk);
                break;
            }
            way.push((parent, name));
            at = parent;
        }
        for (parent, name) in way.into_iter().rev() {
            match self.inspect(parent, &name) {
                Ok(Some(found)) if found.is_directory && found.was_new => {
                    self.unwalked.push(found.id);
                }
                // The operation itself will say what is wrong.
                Err(error) if is_gone(&error) => return Ok(()),
                inspected => drop(inspected?),
            }
        }
        Ok(())
    }
}

/// Whether an error says that the object is not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESTALE | libc::ENOTDIR)
    )
}
