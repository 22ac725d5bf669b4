//! Owner, mode, extended attributes and times of an object of the tree, as far as this replica
//! may and shall apply them. What it does not apply is in the records.

use super::tree::{Change, Tree};
use crate::disk;
use crate::model::{Fixed, Object};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How a replica applies attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Policy {
    /// Owners, modes, devices and all extended attributes are real. Else files are private, and
    /// only times and `user.` attributes are applied.
    pub privileged: bool,
}

impl Policy {
    /// That of this process.
    pub(super) fn of_process(fake_super: bool) -> Policy {
        let privileged = rustix::process::geteuid().is_root() && !fake_super;
        Policy { privileged }
    }

    /// The mode that an object has on the disk. A file that stands for a device is private.
    fn mode(self, object: &Object, on_disk: FileType) -> u32 {
        let stand_in = on_disk == FileType::RegularFile && !object.fixed.is_file();
        match (self.privileged, &object.fixed) {
            (true, _) if !stand_in => object.attributes.mode,
            (_, Fixed::Directory) => 0o700,
            (_, Fixed::File) => object.attributes.mode & 0o700 | 0o600,
            _ => 0o600,
        }
    }

    fn applies(self, name: &[u8], fixed: &Fixed) -> bool {
        let plain = matches!(fixed, Fixed::File | Fixed::Directory);
        self.privileged || (plain && name.starts_with(b"user."))
    }
}

/// Applies what an object has to what is open as `fd` (a handle, if `is_handle`).
pub(super) fn apply(
    tree: &Tree,
    fd: BorrowedFd<'_>,
    is_handle: bool,
    object: &Object,
    policy: Policy,
) -> io::Result<()> {
    tree.step(Change::Attributes(fd))?;
    let empty = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let mut stat = rustix::fs::fstat(fd)?;
    let attributes = &object.attributes;
    if policy.privileged && (stat.st_uid != attributes.uid || stat.st_gid != attributes.gid) {
        let owner = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        match rustix::fs::chownat(fd, "", Some(owner.0), Some(owner.1), empty) {
            // A user namespace without this id, or a file system without owners.
            Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => {}
            owned => owned?,
        }
        // The kernel took setuid and setgid away.
        stat = rustix::fs::fstat(fd)?;
    }
    apply_xattrs(fd, object, policy)?;
    let on_disk = FileType::from_raw_mode(stat.st_mode);
    if on_disk != FileType::Symlink {
        let mode = Mode::from_raw_mode(policy.mode(object, on_disk));
        let held = Mode::from_raw_mode(rustix::fs::fstat(fd)?.st_mode & 0o7777);
        if mode != held && is_handle {
            rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)?;
        } else if mode != held {
            rustix::fs::fchmod(fd, mode)?;
        }
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: attributes.mtime.secs,
            tv_nsec: i64::from(attributes.mtime.nanos),
        },
    };
    if is_handle {
        rustix::fs::utimensat(fd, "", &times, empty)?;
    } else {
        rustix::fs::futimens(fd, &times)?;
    }
    Ok(())
}

/// A directory that was adopted may have a mode that keeps its owner out.
pub(super) fn let_us_in(directory: BorrowedFd<'_>) -> io::Result<()> {
    let mode = rustix::fs::fstat(directory)?.st_mode & 0o7777;
    if mode & 0o700 != 0o700 {
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        rustix::fs::chmod(path, Mode::from_raw_mode(mode | 0o700))?;
    }
    Ok(())
}

fn apply_xattrs(fd: BorrowedFd<'_>, object: &Object, policy: Policy) -> io::Result<()> {
    let place = disk::Place::Open(fd);
    let held = disk::read_xattrs(place)?;
    let ours = |name: &[u8]| policy.applies(name, &object.fixed);
    for name in held
        .keys()
        .filter(|name| ours(name) && !object.xattrs.contains_key(*name))
    {
        lenient(disk::remove_xattr(place, name))?;
    }
    for (name, value) in object.xattrs.iter().filter(|(name, _)| ours(name)) {
        if held.get(name) != Some(value) {
            lenient(disk::set_xattr(place, name, value))?;
        }
    }
    Ok(())
}

/// What this file system has no room or no right for is in the records only.
fn lenient(set: io::Result<()>) -> io::Result<()> {
    match set {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Err(error),
        Err(error) => {
            tracing::debug!(%error, "an extended attribute is kept in the records only");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
