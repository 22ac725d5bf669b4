//! Extended attributes, POSIX ACLs among them.

use super::owner::change_mode;
use super::reach::proc_path;
use super::seen::Seen;
use super::{Backing, broken, errno};
use crate::limits::XATTR_BYTES_MAX;
use crate::model::FileId;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The longest list of names that the kernel gives (`XATTR_LIST_MAX`).
const LIST_BYTES_MAX: usize = 64 * 1024;

/// Tried first.
const USUAL_BYTES: usize = 256;

impl Backing {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// Those of getxattr(2); ENODATA if there is none of that name.
    pub fn getxattr(&self, id: FileId, name: &OsStr) -> io::Result<Vec<u8>> {
        let object = self.reach(id)?;
        let object = object.as_fd();
        sized(XATTR_BYTES_MAX, |buffer| {
            match rustix::fs::fgetxattr(object, name, &mut *buffer) {
                Err(Errno::BADF) => rustix::fs::getxattr(proc_path(object), name, buffer),
                got => got,
            }
        })
    }

    /// The names of the extended attributes, each with a NUL behind it.
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn listxattr(&self, id: FileId) -> io::Result<Vec<u8>> {
        let object = self.reach(id)?;
        let object = object.as_fd();
        sized(LIST_BYTES_MAX, |buffer| {
            match rustix::fs::flistxattr(object, &mut *buffer) {
                Err(Errno::BADF) => rustix::fs::listxattr(proc_path(object), buffer),
                listed => listed,
            }
        })
    }

    /// Sets an extended attribute. `kill_sgid` (FUSE_SETXATTR_ACL_KILL_SGID): the caller sets an
    /// ACL of a file whose group is not theirs, and may not keep its setgid bit.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn setxattr(
        &self,
        id: FileId,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        kill_sgid: bool,
    ) -> io::Result<()> {
        let flags = u32::try_from(flags).map_err(|_| errno(libc::EINVAL))?;
        let flags = XattrFlags::from_bits_retain(flags);
        self.change_xattr(id, kill_sgid, |object| {
            match rustix::fs::fsetxattr(object, name, value, flags) {
                Err(Errno::BADF) => rustix::fs::setxattr(proc_path(object), name, value, flags),
                set => set,
            }
        })
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// Those of removexattr(2).
    pub fn removexattr(&self, id: FileId, name: &OsStr) -> io::Result<()> {
        self.change_xattr(id, false, |object| {
            match rustix::fs::fremovexattr(object, name) {
                Err(Errno::BADF) => rustix::fs::removexattr(proc_path(object), name),
                removed => removed,
            }
        })
    }

    fn change_xattr(
        &self,
        id: FileId,
        kill_sgid: bool,
        change: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> io::Result<()> {
        self.settle(id)?;
        let object = self.reach(id)?;
        let object = object.as_fd();
        let _held = self.locks.lock(&[id]);
        let captured = !self.is_excluded(id);
        let operation = self.begin();
        if captured {
            operation.before_attributes(id, self).map_err(broken)?;
        }
        change(object)?;
        if captured {
            operation.xattrs(id);
            // An access ACL is the mode, too.
            operation.attributes(id);
        }
        if kill_sgid {
            let mode = Seen::open(object, self.home)?.mode();
            if mode & libc::S_ISGID != 0 {
                change_mode(object, mode & !libc::S_ISGID)?;
            }
        }
        Ok(())
    }
}

/// Calls with a buffer that is usually enough, then with the largest one.
fn sized(
    bytes_max: usize,
    call: impl Fn(&mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; USUAL_BYTES];
    let length = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(bytes_max, 0);
            call(&mut buffer)?
        }
        called => called?,
    };
    buffer.truncate(length);
    Ok(buffer)
}
