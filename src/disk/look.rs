//! What an object on the disk looks like now.

use crate::model::{Attributes, Fixed, Object, Stamp, Timestamp, Xattrs};
use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// An object on the disk: by a descriptor of its own (`O_PATH` will do), or by its name in a
/// directory, whose descriptor may be `O_PATH` too. A symbolic link stands for itself.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// The object that is open as this.
    Open(BorrowedFd<'a>),
    /// The entry of a directory.
    Entry(BorrowedFd<'a>, &'a OsStr),
}

/// An object as it was on the disk at one instant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Its state.
    pub object: Object,
    /// Where it was, and when it last changed.
    pub stamp: Stamp,
    /// How many names it had there; 0: it was unlinked.
    pub links: u32,
}

/// Looks at an object, not at its extended attributes (they are empty in the answer).
///
/// # Errors
/// Those of statx(2) and readlink(2); `InvalidData` for a kind of object that is none of ours.
pub fn look(place: Place<'_>) -> io::Result<Snapshot> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let found = match place {
        Place::Open(fd) => rustix::fs::statx(fd, Path::new(""), AtFlags::EMPTY_PATH, wanted)?,
        Place::Entry(directory, name) => {
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            rustix::fs::statx(directory, name, flags, wanted)?
        }
    };
    let fixed = fixed(place, &found)?;
    let size = if fixed.is_file() { found.stx_size } else { 0 };
    let attributes = Attributes {
        mode: u32::from(found.stx_mode) & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        mtime: timestamp(found.stx_mtime),
    };
    let has_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    let birth = if has_birth {
        timestamp(found.stx_btime)
    } else {
        Timestamp::default()
    };
    let stamp = Stamp {
        inode: found.stx_ino,
        birth,
        ctime: timestamp(found.stx_ctime),
    };
    let object = Object {
        fixed,
        attributes,
        size,
        xattrs: Xattrs::new(),
    };
    Ok(Snapshot {
        object,
        stamp,
        links: found.stx_nlink,
    })
}

/// Looks at an object and at its extended attributes.
///
/// # Errors
/// Those of [`look`] and [`super::read_xattrs`].
pub fn look_fully(place: Place<'_>) -> io::Result<Snapshot> {
    let mut snapshot = look(place)?;
    snapshot.object.xattrs = super::read_xattrs(place)?;
    Ok(snapshot)
}

fn fixed(place: Place<'_>, found: &Statx) -> io::Result<Fixed> {
    let device = || rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor);
    Ok(match u32::from(found.stx_mode) & libc::S_IFMT {
        libc::S_IFREG => Fixed::File,
        libc::S_IFDIR => Fixed::Directory,
        libc::S_IFLNK => {
            let target = match place {
                Place::Open(fd) => rustix::fs::readlinkat(fd, Path::new(""), Vec::new())?,
                Place::Entry(fd, name) => rustix::fs::readlinkat(fd.as_fd(), name, Vec::new())?,
            };
            Fixed::Symlink(target.into_bytes().into_boxed_slice())
        }
        libc::S_IFIFO => Fixed::Fifo,
        libc::S_IFSOCK => Fixed::Socket,
        libc::S_IFBLK => Fixed::BlockDevice(device()),
        libc::S_IFCHR => Fixed::CharDevice(device()),
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "an object of no known kind",
            ));
        }
    })
}

fn timestamp(time: StatxTimestamp) -> Timestamp {
    Timestamp {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    }
}
