//! Extended attributes, of whatever a [`Place`] stands for.
//!
//! A descriptor that was opened with `O_PATH` takes no `f*xattr` call, and the entry of a
//! directory has none that takes both; both are reached through `/proc/self/fd`.

use super::Place;
use crate::limits::{XATTR_BYTES_MAX, XATTRS_BYTES_MAX};
use crate::model::Xattrs;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Largest list of names that the kernel gives (`XATTR_LIST_MAX`).
const LIST_BYTES_MAX: usize = 64 * 1024;

/// Tried first, before a buffer as large as it gets.
const USUAL_BYTES: usize = 256;

/// Whether an attribute belongs to the mirrored state of an object. Labels that the system
/// computes for the place where a file is (SELinux, IMA, EVM) do not.
#[must_use]
pub fn is_mirrored(name: &[u8]) -> bool {
    match name {
        b"security.selinux" | b"security.ima" | b"security.evm" => false,
        b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => [&b"user."[..], b"trusted.", b"security."]
            .iter()
            .any(|space| name.starts_with(space) && name.len() > space.len()),
    }
}

/// All mirrored attributes. A file system without any has none. Those past
/// [`XATTRS_BYTES_MAX`], in the order of their names, are left out with a warning.
///
/// # Errors
/// Those of listxattr(2) and getxattr(2).
pub fn read_xattrs(place: Place<'_>) -> io::Result<Xattrs> {
    let mut found = Xattrs::new();
    let list = match sized(LIST_BYTES_MAX, |buffer| list_into(place, buffer)) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(found),
        Err(error) => return Err(error.into()),
    };
    let mut names: Vec<&[u8]> = list
        .split(|&byte| byte == 0)
        .filter(|name| is_mirrored(name))
        .collect();
    names.sort_unstable();
    let mut bytes = 0;
    for name in names {
        // One that was removed since is simply not there.
        let Some(value) = get_xattr(place, name)? else {
            continue;
        };
        bytes += name.len() + value.len();
        if bytes > XATTRS_BYTES_MAX {
            let name = String::from_utf8_lossy(name);
            tracing::warn!(%name, ?place, "too many extended attributes, the rest is left out");
            break;
        }
        found.insert(name.into(), value.into());
    }
    Ok(found)
}

/// The value of one attribute; `None` if there is none of that name.
///
/// # Errors
/// Those of getxattr(2).
pub fn get_xattr(place: Place<'_>, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    match sized(XATTR_BYTES_MAX, |buffer| get_into(place, name, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sets one attribute, whether it was there or not.
///
/// # Errors
/// Those of setxattr(2).
pub fn set_xattr(place: Place<'_>, name: &[u8], value: &[u8]) -> io::Result<()> {
    let flags = XattrFlags::empty();
    if let Place::Open(fd) = place {
        match rustix::fs::fsetxattr(fd, name, value, flags) {
            Err(Errno::BADF) => {}
            set => return Ok(set?),
        }
    }
    match path(place) {
        (path, true) => rustix::fs::setxattr(path, name, value, flags)?,
        (path, false) => rustix::fs::lsetxattr(path, name, value, flags)?,
    }
    Ok(())
}

/// Removes one attribute. That there is none is no error.
///
/// # Errors
/// Those of removexattr(2).
pub fn remove_xattr(place: Place<'_>, name: &[u8]) -> io::Result<()> {
    let mut removed = Err(Errno::BADF);
    if let Place::Open(fd) = place {
        removed = rustix::fs::fremovexattr(fd, name);
    }
    if removed == Err(Errno::BADF) {
        removed = match path(place) {
            (path, true) => rustix::fs::removexattr(path, name),
            (path, false) => rustix::fs::lremovexattr(path, name),
        };
    }
    match removed {
        Err(Errno::NODATA) => Ok(()),
        removed => Ok(removed?),
    }
}

/// Makes the mirrored attributes those of `wanted`; others are left alone.
///
/// # Errors
/// Those of the calls; some attributes may then be set and others not.
pub fn write_xattrs(place: Place<'_>, wanted: &Xattrs) -> io::Result<()> {
    let held = read_xattrs(place)?;
    for name in held.keys().filter(|name| !wanted.contains_key(*name)) {
        remove_xattr(place, name)?;
    }
    for (name, value) in wanted
        .iter()
        .filter(|(name, value)| held.get(*name) != Some(*value))
    {
        set_xattr(place, name, value)?;
    }
    Ok(())
}

/// Calls with a buffer that is usually enough, then with the largest one.
fn sized(
    bytes_max: usize,
    call: impl Fn(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; USUAL_BYTES];
    let read = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(bytes_max, 0);
            call(&mut buffer)?
        }
        read => read?,
    };
    buffer.truncate(read);
    Ok(buffer)
}

fn list_into(place: Place<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    if let Place::Open(fd) = place {
        match rustix::fs::flistxattr(fd, &mut *buffer) {
            Err(Errno::BADF) => {}
            listed => return listed,
        }
    }
    match path(place) {
        (path, true) => rustix::fs::listxattr(path, buffer),
        (path, false) => rustix::fs::llistxattr(path, buffer),
    }
}

fn get_into(place: Place<'_>, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
    if let Place::Open(fd) = place {
        match rustix::fs::fgetxattr(fd, name, &mut *buffer) {
            Err(Errno::BADF) => {}
            got => return got,
        }
    }
    match path(place) {
        (path, true) => rustix::fs::getxattr(path, name, buffer),
        (path, false) => rustix::fs::lgetxattr(path, name, buffer),
    }
}

/// The way through /proc, and whether its last component (the kernel's own link to an open
/// object, which leads no further) is to be followed.
fn path(place: Place<'_>) -> (PathBuf, bool) {
    match place {
        Place::Open(fd) => (format!("/proc/self/fd/{}", fd.as_raw_fd()).into(), true),
        Place::Entry(fd, name) => {
            let mut path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            path.push(name);
            (path, false)
        }
    }
}
