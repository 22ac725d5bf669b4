//! What statx says of an object of the real tree.

use super::types::{Attr, Kind};
use crate::model::{FileId, Fixed, Stamp, Timestamp};
use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// An object as it is at one instant, not yet with an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    /// The inode number, made unique over the file systems below the root.
    pub(super) key: u64,
    /// The inode number and the times that tell whether it was touched.
    pub(super) stamp: Stamp,
    /// Whether it is on the root's own file system.
    pub(super) at_home: bool,
    attr: Attr,
}

impl Seen {
    /// Looks at what is open (`O_PATH` will do).
    pub(super) fn open(fd: impl AsFd, home: u64) -> io::Result<Seen> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let found = rustix::fs::statx(fd, Path::new(""), AtFlags::EMPTY_PATH, wanted)?;
        Seen::new(&found, home)
    }

    /// Looks at an entry of a directory; a symbolic link stands for itself.
    pub(super) fn entry(fd: impl AsFd, name: &[u8], home: u64) -> io::Result<Seen> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let found = rustix::fs::statx(fd, name, flags, wanted)?;
        Seen::new(&found, home)
    }

    fn new(found: &Statx, home: u64) -> io::Result<Seen> {
        let kind = match u32::from(found.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFBLK => Kind::BlockDevice,
            libc::S_IFCHR => Kind::CharDevice,
            _ => return Err(io::Error::from_raw_os_error(libc::EIO)),
        };
        let has_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        let birth = if has_birth {
            timestamp(found.stx_btime)
        } else {
            Timestamp::default()
        };
        let device = device_of(found);
        let at_home = device == home || home == 0;
        // Inode numbers are small; those of another file system are moved out of their way.
        let foreign = device.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63;
        let attr = Attr {
            id: FileId(0),
            kind,
            mode: u32::from(found.stx_mode) & 0o7777,
            nlink: found.stx_nlink,
            uid: found.stx_uid,
            gid: found.stx_gid,
            rdev: rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor),
            size: found.stx_size,
            blocks: found.stx_blocks,
            block_bytes: found.stx_blksize,
            atime: timestamp(found.stx_atime),
            mtime: timestamp(found.stx_mtime),
            ctime: timestamp(found.stx_ctime),
            birth,
        };
        Ok(Seen {
            key: if at_home {
                found.stx_ino
            } else {
                found.stx_ino ^ foreign
            },
            stamp: Stamp {
                inode: found.stx_ino,
                birth,
                ctime: attr.ctime,
            },
            at_home,
            attr,
        })
    }

    /// The device number of an open object, as `home` above.
    pub(super) fn device(fd: impl AsFd) -> io::Result<u64> {
        let flags = AtFlags::EMPTY_PATH;
        Ok(device_of(&rustix::fs::statx(
            fd,
            Path::new(""),
            flags,
            StatxFlags::INO,
        )?))
    }

    /// As the attributes of `id`.
    pub(super) fn attr(&self, id: FileId) -> Attr {
        Attr { id, ..self.attr }
    }

    pub(super) fn kind(&self) -> Kind {
        self.attr.kind
    }

    pub(super) fn is_directory(&self) -> bool {
        self.attr.kind == Kind::Directory
    }

    pub(super) fn size(&self) -> u64 {
        if self.attr.kind == Kind::File {
            self.attr.size
        } else {
            0
        }
    }

    pub(super) fn links(&self) -> u32 {
        self.attr.nlink
    }

    pub(super) fn mode(&self) -> u32 {
        self.attr.mode
    }

    pub(super) fn mtime(&self) -> Timestamp {
        self.attr.mtime
    }

    /// Whether its kind, or its device number, is that of `fixed`; a link's target is not looked
    /// at.
    pub(super) fn may_be(&self, fixed: &Fixed) -> bool {
        match fixed {
            Fixed::File => self.attr.kind == Kind::File,
            Fixed::Directory => self.attr.kind == Kind::Directory,
            Fixed::Symlink(_) => self.attr.kind == Kind::Symlink,
            Fixed::Fifo => self.attr.kind == Kind::Fifo,
            Fixed::Socket => self.attr.kind == Kind::Socket,
            Fixed::BlockDevice(number) => {
                self.attr.kind == Kind::BlockDevice && self.attr.rdev == *number
            }
            Fixed::CharDevice(number) => {
                self.attr.kind == Kind::CharDevice && self.attr.rdev == *number
            }
        }
    }

    /// Whether both are the same object of the real tree.
    pub(super) fn is_same(&self, other: &Seen) -> bool {
        self.key == other.key
            && self.stamp.birth == other.stamp.birth
            && self.kind() == other.kind()
    }
}

fn device_of(found: &Statx) -> u64 {
    rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor)
}

fn timestamp(time: StatxTimestamp) -> Timestamp {
    Timestamp {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    }
}
