//! How others read an object as it is now: the journal when it preserves (under the object's
//! lock), the planner when it reads an epoch (without locks; it patches what it read with what
//! the journal preserved).

use super::files::read_full;
use super::types::Kind;
use super::{Backing, errno};
use crate::disk::{Place, Snapshot, look_fully};
use crate::journal::Preserve;
use crate::model::{Extent, FileId};
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// How often something is looked for that is not where it should be.
const FIND_ATTEMPTS: usize = 8;

impl Backing {
    /// Opens a regular file for reading, by any name that it is known under or by what has it
    /// open.
    ///
    /// # Errors
    /// ESTALE if it is nowhere any more; else those of open(2).
    pub fn open_object(&self, id: FileId) -> io::Result<File> {
        patiently(|| self.open_now(id))
    }

    fn open_now(&self, id: FileId) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME;
        let opened = match self.open_by_name(id, flags) {
            // Only the owner may keep the time of access as it is.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.open_by_name(id, flags - OFlags::NOATIME)
            }
            opened => opened,
        };
        match opened {
            Ok(opened) => Ok(File::from(opened)),
            Err(error) => match self.open_anyway(id, |handle| handle.readable) {
                Some(file) => file.try_clone(),
                None => {
                    let kept = self.nodes.kept(id).ok_or(error)?;
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                    Ok(File::from(self.reopen(&*kept, flags)?))
                }
            },
        }
    }

    /// The state of an object, extended attributes included.
    ///
    /// # Errors
    /// ESTALE if it is nowhere any more; else those of the calls.
    pub fn snapshot(&self, id: FileId) -> io::Result<Snapshot> {
        let object = patiently(|| self.reach(id))?;
        look_fully(Place::Open(object.as_fd()))
    }

    fn file_to_preserve(&self, id: FileId) -> io::Result<Arc<File>> {
        if let Some(node) = self.nodes.view(id)
            && node.kind != Kind::File
        {
            return Err(errno(libc::EINVAL));
        }
        if let Some(file) = self.open_anyway(id, |handle| handle.readable) {
            return Ok(file);
        }
        if let Some(file) = self.descriptors.file(id, false) {
            return Ok(file);
        }
        Ok(Arc::new(self.open_object(id)?))
    }
}

/// Without locks, an object is nowhere for an instant while it, or a directory above it, is
/// renamed.
fn patiently<T>(find: impl Fn() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..FIND_ATTEMPTS {
        match find() {
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => std::thread::yield_now(),
            found => return found,
        }
    }
    find()
}

impl Preserve for Backing {
    fn read_at(&self, id: FileId, extent: Extent, buffer: &mut Vec<u8>) -> io::Result<()> {
        let file = self.file_to_preserve(id)?;
        let length = usize::try_from(extent.length).map_err(|_| errno(libc::EFBIG))?;
        buffer.clear();
        buffer.resize(length, 0);
        let read = read_full(&file, extent.offset, buffer)?;
        buffer.truncate(read);
        Ok(())
    }

    fn stat(&self, id: FileId) -> io::Result<Snapshot> {
        self.snapshot(id)
    }

    fn descriptor(&self, id: FileId) -> io::Result<OwnedFd> {
        self.file_to_preserve(id)?.as_fd().try_clone_to_owned()
    }
}
