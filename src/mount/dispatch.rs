//! What the kernel asks, decoded, done by [`Backing`] and answered. Nothing is decided here that a
//! test without a kernel would miss, apart from what the kernel may keep in its caches.

use super::RemoteWait;
use super::convert::{
    decode_time, file_attr, handle_of, kind_of, may_keep_setgid, negative_entry, node,
};
use super::errno::errno_of;
use super::reply::{GENERATION, TTL, answer, reply_empty, reply_entry, reply_xattr};
use crate::backing::{Backing, Caller, SetAttr, WriteHow};
use crate::limits::{BACKGROUND_REQUESTS_MAX, COPY_BYTES_MAX, REQUEST_BYTES_MAX};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// What the kernel is asked to do, if it can. Not among them: locks (they are then the kernel's,
/// and a blocked one can be interrupted), ATOMIC_O_TRUNC (a truncation must arrive as SETATTR),
/// the writeback cache (it would reorder writes of different files).
const WANTED: &[InitFlags] = &[
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
];

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) struct Dispatch {
    pub(super) backing: Arc<Backing>,
    pub(super) remote: Arc<dyn RemoteWait>,
    /// OPEN is answered ENOSYS: the kernel then opens by itself.
    pub(super) no_open: bool,
    /// Whether a close has something to do (`--local close`).
    pub(super) flush: bool,
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

impl Dispatch {
    fn open_flags(&self) -> FopenFlags {
        let flags = FopenFlags::FOPEN_KEEP_CACHE;
        if self.flush {
            flags
        } else {
            flags | FopenFlags::FOPEN_NOFLUSH
        }
    }

    /// Answers a synchronisation when the replica is as far as `--remote` promises.
    fn after_remote(&self, reply: ReplyEmpty, local: io::Result<()>) {
        answer!(reply, local, () => self.remote.after_fsync(Box::new(move |result| match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(Errno::from_i32(errno.raw_os_error())),
        })))
    }
}

impl Filesystem for Dispatch {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for &flag in WANTED {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel cannot do this");
            }
        }
        // Each of these answers the nearest value that it would take.
        if let Err(nearest) = config.set_max_write(REQUEST_BYTES_MAX) {
            config.set_max_write(nearest).ok();
        }
        if let Err(nearest) = config.set_max_readahead(REQUEST_BYTES_MAX) {
            config.set_max_readahead(nearest).ok();
        }
        config.set_max_background(BACKGROUND_REQUESTS_MAX).ok();
        Ok(())
    }

    fn destroy(&mut self) {
        self.backing.forget_all();
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.backing.lookup(node(parent), name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                reply.entry(&TTL, &negative_entry(), GENERATION);
            }
            result => reply_entry(reply, result),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.backing.forget(node(ino), lookups);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let result = self.backing.getattr(node(ino), fh.and_then(handle_of));
        answer!(reply, result, attr => reply.attr(&TTL, &file_attr(&attr)))
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // fuser does not pass FATTR_KILL_SUIDGID on; the kernel sets it for a truncation by
        // anybody without CAP_FSETID.
        let kill_suidgid = size.is_some() && request.uid() != 0;
        let (atime, mtime) = (atime.map(decode_time), mtime.map(decode_time));
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            kill_suidgid,
        };
        let result = self
            .backing
            .setattr(node(ino), fh.and_then(handle_of), &set);
        answer!(reply, result, attr => reply.attr(&TTL, &file_attr(&attr)))
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(reply, self.backing.readlink(node(ino)), target => reply.data(&target))
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (who, parent) = (caller(request), node(parent));
        let result = self
            .backing
            .mknod(who, parent, name, mode, umask, u64::from(rdev));
        reply_entry(reply, result);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        reply_entry(
            reply,
            self.backing
                .mkdir(caller(request), node(parent), name, mode, umask),
        );
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.backing.unlink(node(parent), name));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.backing.rmdir(node(parent), name));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (who, target) = (caller(request), target.as_os_str());
        reply_entry(reply, self.backing.symlink(who, node(parent), name, target));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (node(parent), node(new_parent));
        reply_empty(
            reply,
            self.backing.rename(from, name, to, new_name, flags.bits()),
        );
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply_entry(
            reply,
            self.backing.link(node(ino), node(new_parent), new_name),
        );
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            return reply.error(Errno::ENOSYS);
        }
        let result = self.backing.open_file(node(ino), flags.0);
        answer!(reply, result, handle => reply.opened(FileHandle(handle.0), self.open_flags()))
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let result = self
            .backing
            .create(caller(request), node(parent), name, mode, umask, flags);
        answer!(reply, result, (attr, handle) => {
            let mut fh = FileHandle(handle.0);
            if self.no_open {
                // No RELEASE will come for it.
                self.backing.release(handle);
                fh = FileHandle(0);
            }
            reply.created(&TTL, &file_attr(&attr), GENERATION, fh, self.open_flags());
        })
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if size > REQUEST_BYTES_MAX {
            // A shorter answer would be taken for the end of the file.
            return reply.error(Errno::EINVAL);
        }
        let size = size as usize;
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let result = self
                .backing
                .read(node(ino), handle_of(fh), offset, &mut buffer[..size]);
            answer!(reply, result, length => reply.data(&buffer[..length]))
        });
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // O_SYNC and O_DSYNC need nothing here: the kernel sends an FSYNC behind such a write.
        let kill_suidgid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let how = WriteHow { kill_suidgid };
        let result = self
            .backing
            .write(node(ino), handle_of(fh), offset, data, how);
        answer!(reply, result, length => reply.written(u32::try_from(length).unwrap_or(u32::MAX)))
    }

    fn flush(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if !self.flush {
            return reply.error(Errno::ENOSYS);
        }
        reply_empty(reply, self.backing.flush(node(ino), handle_of(fh)));
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(handle) = handle_of(fh) {
            self.backing.release(handle);
        }
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let local = self.backing.fsync(node(ino), handle_of(fh), data_only);
        self.after_remote(reply, local);
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        let result = self.backing.open_directory(node(ino));
        answer!(reply, result, handle => reply.opened(FileHandle(handle.0), keep))
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(handle) = handle_of(fh) else {
            return reply.error(Errno::EBADF);
        };
        let result = self
            .backing
            .read_directory(node(ino), handle, offset, false, &mut |entry| {
                let name = super::convert::os_str(entry.name);
                !reply.add(INodeNo(entry.id.0), entry.next, kind_of(entry.kind), name)
            });
        answer!(reply, result, () => reply.ok())
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Some(handle) = handle_of(fh) else {
            return reply.error(Errno::EBADF);
        };
        let result = self
            .backing
            .read_directory(node(ino), handle, offset, true, &mut |entry| {
                let name = super::convert::os_str(entry.name);
                let attr = match (&entry.attr, entry.name) {
                    (Some(attr), _) => file_attr(attr),
                    // The kernel takes nothing but name and number of these two.
                    (None, b"." | b"..") => super::convert::bare_attr(entry.id, entry.kind),
                    // It is gone by now; with a node id but no lookup the count would be wrong.
                    (None, _) => return true,
                };
                !reply.add(attr.ino, entry.next, name, &TTL, &attr, GENERATION)
            });
        answer!(reply, result, () => reply.ok())
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        if let Some(handle) = handle_of(fh) {
            self.backing.release(handle);
        }
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let local = self.backing.fsync(node(ino), handle_of(fh), data_only);
        self.after_remote(reply, local);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        answer!(reply, self.backing.statfs(), space => reply.statfs(
            space.blocks,
            space.free,
            space.available,
            space.files,
            space.files_free,
            space.block_bytes,
            space.name_bytes_max,
            space.fragment_bytes,
        ))
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let id = node(ino);
        let kill_sgid = name == "system.posix_acl_access"
            && self
                .backing
                .getattr(id, None)
                .is_ok_and(|attr| !may_keep_setgid(request, &attr));
        reply_empty(
            reply,
            self.backing.setxattr(id, name, value, flags, kill_sgid),
        );
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        reply_xattr(reply, size, self.backing.getxattr(node(ino), name));
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.backing.listxattr(node(ino)));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.backing.removexattr(node(ino), name));
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let result = self
            .backing
            .fallocate(node(ino), handle_of(fh), mode, offset, length);
        reply_empty(reply, result);
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let result = self.backing.lseek(node(ino), handle_of(fh), offset, whence);
        answer!(reply, result, found => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)))
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        length: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = (node(ino_in), handle_of(fh_in), offset_in);
        let to = (node(ino_out), handle_of(fh_out), offset_out);
        let length = length.min(COPY_BYTES_MAX);
        let result = self.backing.copy_file_range(from, to, length, flags.bits());
        answer!(reply, result, copied => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)))
    }

    // What follows is the kernel's own business: an answer of ENOSYS leaves it there.

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _request: &Request, _ino: INodeNo, _size: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
