//! Open files: open, read, write, close.

use super::handles::Handle;
use super::seen::Seen;
use super::types::{HandleId, Kind, WriteHow};
use super::{Backing, broken, errno};
use crate::model::{Extent, FileId};
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The flags of the real open. Never `O_DIRECT`, whose rules of alignment the kernel does not
/// know here; never `O_APPEND`, because the kernel says where to write; never write-only, because
/// blocks that a write cuts have to be read.
pub(super) fn backing_flags(flags: i32, read_too: bool) -> OFlags {
    let access = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => OFlags::RDONLY,
        libc::O_WRONLY if !read_too => OFlags::WRONLY,
        _ => OFlags::RDWR,
    };
    let mut wanted = access | OFlags::NONBLOCK | OFlags::NOCTTY;
    if flags & libc::O_SYNC == libc::O_SYNC {
        wanted |= OFlags::SYNC;
    } else if flags & libc::O_DSYNC != 0 {
        wanted |= OFlags::DSYNC;
    }
    wanted
}

fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY)
    )
}

impl Backing {
    /// Opens a file. `O_TRUNC` is done, `O_SYNC` and `O_DSYNC` are honoured.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_file(&self, id: FileId, flags: i32) -> io::Result<HandleId> {
        let wanted = backing_flags(flags, true);
        let opened = match self.open_somehow(id, wanted) {
            Err(error) if is_refused(&error) && flags & libc::O_ACCMODE == libc::O_WRONLY => {
                self.open_somehow(id, backing_flags(flags, false))?
            }
            opened => opened?,
        };
        let handle = self.take_file(id, opened, flags);
        if flags & libc::O_TRUNC != 0 {
            let set = super::SetAttr {
                size: Some(0),
                kill_suidgid: true,
                ..Default::default()
            };
            self.setattr(id, None, &set)
                .inspect_err(|_| self.release(handle))?;
        }
        Ok(handle)
    }

    /// Opens a regular file by one of its names, or by what holds it without one.
    pub(super) fn open_somehow(&self, id: FileId, flags: OFlags) -> io::Result<OwnedFd> {
        if self
            .nodes
            .view(id)
            .is_some_and(|node| node.kind != Kind::File)
        {
            return Err(errno(libc::EINVAL));
        }
        self.open_by_name(id, flags).or_else(|error| {
            if error.raw_os_error() != Some(libc::ESTALE) {
                return Err(error);
            }
            if let Some(file) = self.open_anyway(id, |_| true) {
                return self.reopen(&*file, flags);
            }
            self.reopen(&*self.nodes.kept(id).ok_or(error)?, flags)
        })
    }

    /// Puts an open file into the table.
    pub(super) fn take_file(&self, id: FileId, opened: OwnedFd, flags: i32) -> HandleId {
        let access = flags & libc::O_ACCMODE;
        let readable =
            rustix::fs::fcntl_getfl(&opened).is_ok_and(|flags| !flags.contains(OFlags::WRONLY));
        let handle = self.handles.insert(Handle {
            id,
            file: Arc::new(File::from(opened)),
            readable,
            writable: access != libc::O_RDONLY,
            sync: flags & libc::O_DSYNC != 0,
            stream: None,
        });
        self.nodes.attach(id, handle);
        handle
    }

    /// The file to read or write: the handle's; without one, any that is open, or is cached, or
    /// can be opened.
    pub(super) fn file(
        &self,
        id: FileId,
        handle: Option<HandleId>,
        writable: bool,
    ) -> io::Result<Arc<File>> {
        if let Some(handle) = handle {
            let handle = self.handles.get(handle).ok_or_else(|| errno(libc::EBADF))?;
            if handle.id != id || writable && !handle.writable {
                return Err(errno(libc::EBADF));
            }
            return Ok(Arc::clone(&handle.file));
        }
        let suits = |handle: &Handle| {
            if writable {
                handle.writable
            } else {
                handle.readable
            }
        };
        if let Some(file) = self.open_anyway(id, suits) {
            return Ok(file);
        }
        if let Some(file) = self.descriptors.file(id, writable) {
            return Ok(file);
        }
        let access = if writable {
            libc::O_RDWR
        } else {
            libc::O_RDONLY
        };
        let opened = match self.open_somehow(id, backing_flags(access, true)) {
            Err(error) if writable && is_refused(&error) => {
                // Not cached: it cannot be read from.
                let flags = backing_flags(libc::O_WRONLY, false);
                return Ok(Arc::new(File::from(self.open_somehow(id, flags)?)));
            }
            opened => opened?,
        };
        let file = Arc::new(File::from(opened));
        self.descriptors.put_file(id, &file, writable);
        Ok(file)
    }

    /// The descriptor behind a handle, for reads that the kernel does by itself.
    #[must_use]
    pub fn descriptor(&self, handle: HandleId) -> Option<Arc<File>> {
        self.handles
            .get(handle)
            .map(|handle| Arc::clone(&handle.file))
    }

    /// Reads; fewer bytes than `buffer` has only at the end of the file.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn read(
        &self,
        id: FileId,
        handle: Option<HandleId>,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let file = self.file(id, handle, false)?;
        read_full(&file, offset, buffer)
    }

    /// Writes.
    ///
    /// # Durability
    /// As `--local` says; with `O_SYNC` or `O_DSYNC` always.
    ///
    /// # Errors
    /// Those of pwrite(2); EIO if a sync of this file has failed before, where one is due.
    pub fn write(
        &self,
        id: FileId,
        handle: Option<HandleId>,
        offset: u64,
        data: &[u8],
        how: WriteHow,
    ) -> io::Result<usize> {
        let file = self.file(id, handle, true)?;
        self.settle(id)?;
        let captured = !self.is_excluded(id);
        let extent = Extent::new(offset, data.len() as u64);
        let held = self.locks.lock(&[id]);
        let operation = self.begin();
        if captured {
            operation.before_data(id, extent, self).map_err(broken)?;
        }
        let written = write_full(&file, offset, data);
        if captured {
            // A write that failed may have changed some bytes all the same.
            let changed = written
                .as_ref()
                .map_or(extent.length, |&count| count as u64);
            operation.data(id, Extent::new(offset, changed));
        }
        let dropped = match how.kill_suidgid && self.privileged {
            true => self.drop_privileges(file.as_fd(), None),
            false => Ok(()),
        };
        drop((operation, held));
        let written = written.inspect_err(|error| self.sync_write_failed(id, handle, error))?;
        dropped?;
        self.wrote(id, &file)?;
        Ok(written)
    }

    fn sync_write_failed(&self, id: FileId, handle: Option<HandleId>, error: &io::Error) {
        let syncs = handle
            .and_then(|handle| self.handles.get(handle))
            .is_some_and(|h| h.sync);
        if syncs && error.raw_os_error() == Some(libc::EIO) {
            self.durability.fail(id, error);
        }
    }

    /// The end of a handle of a file or a directory.
    pub fn release(&self, handle: HandleId) {
        let Some(released) = self.handles.remove(handle) else {
            return;
        };
        if self.hold_unlinked && released.stream.is_none() && released.readable {
            // Under no_open a file is created with a handle and used without.
            self.descriptors
                .put_file(released.id, &released.file, released.writable);
        }
        self.nodes.detach(released.id, handle);
    }

    /// Whether something has a writable handle of this file.
    #[must_use]
    pub fn is_open_for_writing(&self, id: FileId) -> bool {
        self.open_anyway(id, |handle| handle.writable).is_some()
    }

    /// How an open file looks now.
    pub(super) fn see_open(&self, file: &File) -> io::Result<Seen> {
        Seen::open(file, self.home)
    }
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Writes all, or as much as can be written if that is anything.
fn write_full(file: &File, offset: u64, data: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match file.write_at(&data[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}
