//! getattr, setattr, readlink.

use super::owner::{change_mode, change_owner, without_privileges};
use super::seen::Seen;
use super::types::{Attr, HandleId, Kind, SetAttr, SetTime};
use super::{Backing, broken, errno};
use crate::model::{Extent, FileId};
use rustix::fs::{AtFlags, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

impl Backing {
    /// What stat(2) says of an object.
    ///
    /// # Errors
    /// Those of statx(2); ESTALE if it is not there any more.
    pub fn getattr(&self, id: FileId, handle: Option<HandleId>) -> io::Result<Attr> {
        let handle = handle.and_then(|handle| self.handles.get(handle));
        let seen = match handle {
            Some(handle) => Seen::open(&*handle.file, self.home)?,
            None => self.see(id)?,
        };
        Ok(seen.attr(id))
    }

    /// Changes attributes: owner, mode, length, times, in this order.
    ///
    /// # Errors
    /// Those of chown(2), chmod(2), truncate(2), utimensat(2). Some may be changed then.
    pub fn setattr(&self, id: FileId, handle: Option<HandleId>, set: &SetAttr) -> io::Result<Attr> {
        self.settle(id)?;
        let sized = match set.size {
            Some(size) => Some((self.file(id, handle, true)?, size)),
            None => None,
        };
        let object = self.reach(id)?;
        let held = self.locks.lock(&[id]);
        let before = Seen::open(&object, self.home)?;
        let captured = !self.is_excluded(id);
        let operation = self.begin();
        if captured {
            match sized {
                Some((_, size)) => {
                    let changed = between(before.size(), size);
                    operation.before_data(id, changed, self).map_err(broken)?;
                }
                None => operation.before_attributes(id, self).map_err(broken)?,
            }
        }
        let result = self.set(object.as_fd(), sized.as_ref(), &before, set);
        let after = Seen::open(&object, self.home);
        if captured {
            operation.attributes(id);
            if set.mode.or(set.uid).or(set.gid).is_some() {
                // The mode is part of an ACL; another owner takes capabilities away.
                operation.xattrs(id);
            }
            let (old, new) = (
                before.size(),
                after.as_ref().map_or(before.size(), Seen::size),
            );
            if old != new || set.size.is_some() {
                operation.truncated(id, old, new);
            }
        }
        drop((operation, held));
        result?;
        if let Some((file, _)) = sized {
            self.wrote(id, &file)?;
        }
        Ok(after?.attr(id))
    }

    fn set(
        &self,
        object: BorrowedFd<'_>,
        sized: Option<&(Arc<File>, u64)>,
        before: &Seen,
        set: &SetAttr,
    ) -> io::Result<()> {
        if set.uid.is_some() || set.gid.is_some() {
            change_owner(object, set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            change_mode(object, mode)?;
        }
        if let Some((file, size)) = sized {
            rustix::fs::ftruncate(file, *size)?;
            if set.kill_suidgid && set.mode.is_none() {
                self.drop_privileges(object, Some(before.mode()))?;
            }
        } else if set.kill_suidgid
            && set.mode.is_none()
            && (set.uid.is_some() || set.gid.is_some())
            && before.kind() != Kind::Directory
        {
            self.drop_privileges(object, None)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(set.atime),
                last_modification: timespec(set.mtime),
            };
            rustix::fs::utimensat(object, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    /// Removes setuid and setgid as a change by someone without CAP_FSETID does. An ordinary
    /// daemon lacks it too, and the file system has done so by itself.
    pub(super) fn drop_privileges(
        &self,
        object: BorrowedFd<'_>,
        mode: Option<u32>,
    ) -> io::Result<()> {
        let mode = match mode {
            Some(mode) => mode,
            None => Seen::open(object, self.home)?.mode(),
        };
        let left = without_privileges(mode);
        if left != mode {
            change_mode(object, left)
        } else {
            Ok(())
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// Those of readlink(2).
    pub fn readlink(&self, id: FileId) -> io::Result<Vec<u8>> {
        let link = self.open_by_name(id, OFlags::PATH).or_else(|error| {
            let kept = self.nodes.kept(id).ok_or(error)?;
            kept.try_clone()
        })?;
        match rustix::fs::readlinkat(link, "", Vec::new()) {
            Ok(target) => Ok(target.into_bytes()),
            // An empty path: the descriptor stands for no link.
            Err(rustix::io::Errno::NOENT) => Err(errno(libc::EINVAL)),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a change of length touches.
pub(super) fn between(old: u64, new: u64) -> Extent {
    Extent::between(old.min(new), old.max(new))
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        Some(SetTime::At(time)) => Timespec {
            tv_sec: time.secs,
            tv_nsec: i64::from(time.nanos),
        },
    }
}
