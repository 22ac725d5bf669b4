//! What goes in and out of [`super::Backing`]: plain data, close to FUSE's own words.

use crate::model::{FileId, Timestamp};
use std::time::Duration;

/// When a change reaches the local disk (`--local`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Local {
    /// Before it is answered: fdatasync after each write, fsync of the directory after each
    /// change of a name.
    Always,
    /// Before `close` is answered.
    Close,
    /// At most this much later.
    Interval(Duration),
    /// When the kernel's own flusher gets to it.
    Os,
}

/// Who asks: the owner of what is created, if the daemon is privileged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The key of an open file or directory; FUSE's `fh`. Never 0, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HandleId(pub u64);

/// The kind of an object: what FUSE and `readdir` call its type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
}

/// What `stat` says of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// FUSE's node id and `st_ino`. The generation is always 0: ids are never reused.
    pub id: FileId,
    /// Its kind.
    pub kind: Kind,
    /// Permission bits, setuid, setgid, sticky: at most `0o7777`.
    pub mode: u32,
    /// Names (hard links).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `dev_t` of a device; its low 32 bits are what FUSE takes.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of I/O in bytes.
    pub block_bytes: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last modification.
    pub mtime: Timestamp,
    /// Last change.
    pub ctime: Timestamp,
    /// Birth; zero if the file system has none.
    pub birth: Timestamp,
}

/// A time that `setattr` sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// This.
    At(Timestamp),
    /// The clock's (`UTIME_NOW`).
    Now,
}

/// What `setattr` changes; `None`: not that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits, setuid, setgid, sticky; other bits are ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of a regular file.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
    /// `FATTR_KILL_SUIDGID`: the caller may not keep setuid and setgid over this change
    /// (HANDLE_KILLPRIV_V2). A change of owner or group removes them always, as POSIX wants.
    pub kill_suidgid: bool,
}

/// How a write came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteHow {
    /// `FUSE_WRITE_KILL_SUIDGID`: setuid and setgid are to be removed.
    pub kill_suidgid: bool,
}

/// An entry of a directory, as `readdir` gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryEntry<'a> {
    /// `st_ino` to show.
    pub id: FileId,
    /// Where the next `readdir` goes on.
    pub next: u64,
    /// Its kind.
    pub kind: Kind,
    /// Its name; `.` and `..` among them.
    pub name: &'a [u8],
    /// Its attributes, for `readdirplus`; never for `.` and `..`. With them the entry counts as
    /// one lookup of `id`, if the callee says that it took the entry.
    pub attr: Option<Attr>,
}

/// What `statvfs` says of the file system under the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Size in units of `fragment_bytes`.
    pub blocks: u64,
    /// Free units.
    pub free: u64,
    /// Free units for users other than root.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Preferred size of I/O in bytes.
    pub block_bytes: u32,
    /// Unit of the counts in bytes.
    pub fragment_bytes: u32,
    /// The longest name in bytes.
    pub name_bytes_max: u32,
}

/// What one name of the real tree turned out to be; see [`super::Backing::inspect`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inspected {
    /// The object the name holds.
    pub id: FileId,
    /// Whether it is a directory, to be walked.
    pub is_directory: bool,
    /// Whether the known tree had not had it under this name.
    pub was_new: bool,
    /// Whether its content or attributes were put into the dirty map to be compared.
    pub suspect: bool,
}

/// Numbers for the status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Objects that the kernel knows.
    pub nodes: usize,
    /// Open files and directories.
    pub handles: usize,
    /// Cached descriptors of directories and files.
    pub cached_descriptors: usize,
    /// Descriptors kept of removed objects that the kernel still knows.
    pub kept_descriptors: usize,
    /// Operations that changed something, since the start.
    pub changes: u64,
    /// Objects whose local fsync has failed, whose further fsyncs therefore fail.
    pub failed_syncs: usize,
}
