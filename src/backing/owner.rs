//! Who owns what is created, and with which mode: as if the caller had created it.
//!
//! The daemon creates under the caller's umask and group (both of this thread only), so that the
//! file system itself applies default ACLs, setgid directories and its mount options; then it
//! gives the object to the caller; setuid and setgid bits come last. At no time has the object
//! more rights than it ends with.

use super::errno;
use super::types::Caller;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, Mode, Uid};
use rustix::thread::UnshareFlags;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// setuid, setgid.
pub(super) const SPECIAL: u32 = libc::S_ISUID | libc::S_ISGID;

thread_local! {
    // Whether the umask is this thread's own; none: not yet tried.
    static OWN_UMASK: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Where a thread may not have a umask of its own (some containers), one creates at a time.
static SHARED_UMASK: Mutex<()> = Mutex::new(());

/// Undoes at the end what [`assume`] has set.
pub(super) struct Assumed {
    umask: Mode,
    group: Option<u32>,
    _alone: Option<MutexGuard<'static, ()>>,
}

/// Makes this thread create under a umask and, if privileged, as a member of the caller's group.
pub(super) fn assume(caller: Caller, umask: u32, privileged: bool) -> Assumed {
    let own_umask = OWN_UMASK.get().unwrap_or_else(|| {
        // SAFETY: only the umask and the working directory become the thread's own; descriptors
        // stay shared. Nothing here depends on the working directory.
        let own = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.is_ok();
        OWN_UMASK.set(Some(own));
        own
    });
    let alone = (!own_umask).then(|| SHARED_UMASK.lock());
    let group = rustix::process::getegid().as_raw();
    let group = (privileged && caller.gid != group).then_some(group);
    if group.is_some() {
        set_group(caller.gid);
    }
    Assumed {
        umask: rustix::process::umask(Mode::from_raw_mode(umask & 0o777)),
        group,
        _alone: alone,
    }
}

impl Drop for Assumed {
    fn drop(&mut self) {
        rustix::process::umask(self.umask);
        if let Some(group) = self.group {
            set_group(group);
        }
    }
}

fn set_group(group: u32) {
    // SAFETY: changes the group that this thread creates files with; touches no memory.
    unsafe { libc::setfsgid(group) };
}

/// Gives what was just created to the caller, and sets the mode's setuid and setgid bits.
pub(super) fn give(
    created: impl AsFd,
    caller: Caller,
    mode: u32,
    found_mode: u32,
    privileged: bool,
) -> io::Result<()> {
    let created = created.as_fd();
    if privileged && caller.uid != rustix::process::geteuid().as_raw() {
        change_owner(created, Some(caller.uid), None)?;
    }
    if mode & SPECIAL & !found_mode != 0 {
        change_mode(created, found_mode | mode & SPECIAL)?;
    }
    Ok(())
}

/// chown(2) of what a descriptor stands for; `O_PATH` will do.
pub(super) fn change_owner(
    object: BorrowedFd<'_>,
    uid: Option<u32>,
    gid: Option<u32>,
) -> io::Result<()> {
    // u32::MAX is "as it is" to the kernel.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(errno(libc::EINVAL));
    }
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
    Ok(rustix::fs::chownat(
        object,
        "",
        uid,
        gid,
        AtFlags::EMPTY_PATH,
    )?)
}

/// chmod(2) of what a descriptor stands for; `O_PATH` will do.
pub(super) fn change_mode(object: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match rustix::fs::fchmod(object, mode) {
        Err(rustix::io::Errno::BADF) => {
            Ok(rustix::fs::chmod(super::reach::proc_path(object), mode)?)
        }
        changed => Ok(changed?),
    }
}

/// The mode without what a write by someone without CAP_FSETID takes away.
pub(super) fn without_privileges(mode: u32) -> u32 {
    let mut left = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        left &= !libc::S_ISGID;
    }
    left
}
