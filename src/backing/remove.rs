//! Names that go: unlink and rmdir.

use super::inspect::Visit;
use super::nodes::Place;
use super::seen::Seen;
use super::{ATTEMPTS_MAX, Backing, broken, errno};
use crate::model::FileId;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

impl Backing {
    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn unlink(&self, parent: FileId, name: &OsStr) -> io::Result<()> {
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn rmdir(&self, parent: FileId, name: &OsStr) -> io::Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: FileId, name: &OsStr, directories: bool) -> io::Result<()> {
        let name = self.name(parent, name)?;
        self.settle(parent)?;
        let directory = self.directory(parent)?;
        let place: Place = (parent, name);
        for _ in 0..ATTEMPTS_MAX {
            let look = || Seen::entry(&*directory, place.1.as_bytes(), self.home);
            let (id, seen) = self.arrive(&directory, &place)?;
            let _visit = Visit { backing: self, id };
            match (seen.is_directory(), directories) {
                (true, false) => return Err(errno(libc::EISDIR)),
                (false, true) => return Err(errno(libc::ENOTDIR)),
                _ => {}
            }
            if !directories && seen.links() > 1 {
                // The other names' object is recorded, because its ctime changes.
                self.settle(id)?;
            }
            let held = self.locks.lock(&[parent, id]);
            let again = look()?;
            if !again.is_same(&seen) {
                continue;
            }
            self.remove_locked(&place, directory.as_fd(), id, &again)?;
            drop(held);
            return self.name_changed(parent);
        }
        Err(errno(libc::EBUSY))
    }

    fn remove_locked(
        &self,
        place: &Place,
        directory: BorrowedFd<'_>,
        id: FileId,
        seen: &Seen,
    ) -> io::Result<()> {
        let (parent, name) = place;
        let operation = self.begin();
        let parent_excluded = self.is_excluded(*parent);
        let excluded = parent_excluded || self.excludes(*parent, name, seen);
        if !parent_excluded {
            operation.before_attributes(*parent, self).map_err(broken)?;
        }
        let last = seen.is_directory() || seen.links() <= 1;
        if !excluded {
            operation.before_unlink(id, last, self).map_err(broken)?;
        }
        self.keep_removed(id, directory, name.as_bytes(), last);
        let flags = if seen.is_directory() {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        if let Err(error) = rustix::fs::unlinkat(directory, name.as_bytes(), flags) {
            self.nodes.unkeep(id);
            return Err(error.into());
        }
        self.lost_name(id, place, last);
        if !parent_excluded {
            self.cover(&operation, *parent, name)?;
        }
        if !last && !self.is_excluded(id) {
            let still_mirrored = self.is_known(id)?;
            if still_mirrored {
                operation.attributes(id);
            }
            self.nodes.set_excluded(id, !still_mirrored);
        }
        Ok(())
    }

    /// Before the last name goes: what the kernel still knows, and nobody has open by a handle,
    /// stays reachable (a working directory; a file that is open under no_open).
    pub(super) fn keep_removed(
        &self,
        id: FileId,
        directory: BorrowedFd<'_>,
        name: &[u8],
        last: bool,
    ) {
        // One lookup is that of the operation itself.
        let Some(node) = self.nodes.view(id).filter(|node| last && node.lookups > 1) else {
            return;
        };
        if node.kind == super::Kind::Directory {
            if let Ok(descriptor) = self.directory(id) {
                self.nodes.keep(id, descriptor);
            }
        } else if self.hold_unlinked
            && !node.is_open
            && let Ok(descriptor) = self.open_at(directory, name, OFlags::PATH, Mode::empty())
        {
            self.nodes.keep(id, Arc::new(descriptor));
        }
    }

    /// An object has lost a name in the real tree.
    pub(super) fn lost_name(&self, id: FileId, place: &Place, last: bool) {
        self.nodes.remove_place(id, place, last);
        if last {
            self.descriptors.forget(id);
        }
    }
}
