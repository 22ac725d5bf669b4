//! What an object is, apart from its names and its content.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Seconds and nanoseconds since 1970, as `stat` gives them. `nanos` is below 10^9.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Timestamp {
    /// Seconds; negative before 1970.
    pub secs: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

/// What cannot change in the life of an object: its kind, a link's target, a device's number.
/// A name that is found with another one holds another object.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Fixed {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target (1 to 4,096 bytes without NUL).
    Symlink(Box<[u8]>),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A block device and its number (`dev_t`).
    BlockDevice(u64),
    /// A character device and its number (`dev_t`).
    CharDevice(u64),
}

/// Owner, mode and time of the last modification.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits, setuid, setgid and sticky: at most `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
}

/// Extended attributes, POSIX ACLs (`system.posix_acl_*`) among them: full name to value.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// The final state of an object in an epoch, without names and content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Object {
    /// What cannot change.
    pub fixed: Fixed,
    /// Owner, mode, time.
    pub attributes: Attributes,
    /// Bytes of a regular file; 0 for all others.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// Where and when a side last saw an object on its own disk: a hint for its identity, and the
/// proof (by equality, never by order) that it was not touched since. Never shipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// Inode number; 0: not known.
    pub inode: u64,
    /// Time of birth, where the file system has one; else zero.
    pub birth: Timestamp,
    /// Time of the last change. Zero: not trusted, the object must be compared by content.
    pub ctime: Timestamp,
}

impl Fixed {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self, Fixed::Directory)
    }
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self, Fixed::File)
    }
    /// The file type bits of `st_mode`.
    #[must_use]
    pub fn type_bits(&self) -> u32 {
        match self {
            Fixed::File => libc::S_IFREG,
            Fixed::Directory => libc::S_IFDIR,
            Fixed::Symlink(_) => libc::S_IFLNK,
            Fixed::Fifo => libc::S_IFIFO,
            Fixed::Socket => libc::S_IFSOCK,
            Fixed::BlockDevice(_) => libc::S_IFBLK,
            Fixed::CharDevice(_) => libc::S_IFCHR,
        }
    }
}

impl Object {
    /// Whether what was decoded is within the bounds of an object.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        use crate::limits::{NAME_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_BYTES_MAX, XATTRS_BYTES_MAX};
        let target = match &self.fixed {
            Fixed::Symlink(t) => !t.is_empty() && t.len() <= SYMLINK_BYTES_MAX && !t.contains(&0),
            _ => true,
        };
        let xattrs = self.xattrs.iter().all(|(name, value)| {
            !name.is_empty()
                && name.len() <= NAME_BYTES_MAX
                && !name.contains(&0)
                && value.len() <= XATTR_BYTES_MAX
        });
        let sum: usize = self.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        target
            && xattrs
            && sum <= XATTRS_BYTES_MAX
            && self.attributes.mode <= 0o7777
            && self.attributes.mtime.nanos < 1_000_000_000
            && i64::try_from(self.size).is_ok()
            && (self.fixed.is_file() || self.size == 0)
    }
}
