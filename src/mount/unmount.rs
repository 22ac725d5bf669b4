//! Taking a mount away: as root with `umount2`, as an ordinary user through `fusermount3`.

use super::holders::{self, Holders};
use super::table::{self, MountEntry};
use rustix::mount::UnmountFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a mount stays.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Something is at work in it.
    #[error("{} is busy: {holders}", point.display())]
    Busy {
        /// Where.
        point: PathBuf,
        /// Who.
        holders: Holders,
    },
    /// Another file system was mounted over it since.
    #[error("{} is covered by another mount ({by}); unmount that first", point.display())]
    Covered {
        /// Where.
        point: PathBuf,
        /// What is on top.
        by: String,
    },
    /// It was refused.
    #[error("cannot unmount {}: {source}", point.display())]
    Failed {
        /// Where.
        point: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Takes `mount` away. With `lazy` it disappears from the tree at once, and ends when the last
/// process lets go. If it is not there any more, that is no error.
pub(super) fn unmount(mount: &MountEntry, lazy: bool) -> Result<(), UnmountError> {
    let point = mount.point.clone();
    let failed = |source| UnmountError::Failed {
        point: point.clone(),
        source,
    };
    let listed = table::mounts().map_err(failed)?;
    // The kernel gives ids and devices to later mounts again.
    if !listed.iter().any(|entry| entry.is_same(mount)) {
        return Ok(());
    }
    let top = table::resolve(&point).map_err(failed)?.mount;
    if !top.is_same(mount) {
        return Err(UnmountError::Covered {
            point,
            by: top.source,
        });
    }
    match take_away(&point, lazy) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let holders = holders::of_mount(mount);
            Err(UnmountError::Busy { point, holders })
        }
        Err(source) => Err(UnmountError::Failed { point, source }),
    }
}

/// Detaches the uppermost mount at `point`.
pub(super) fn detach(point: &Path) -> io::Result<()> {
    take_away(point, true)
}

fn take_away(point: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    match rustix::mount::unmount(point, flags | UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::PERM) => by_helper(point, lazy),
        result => result.map_err(io::Error::from),
    }
}

// Only the setuid helper may unmount what an ordinary user has mounted.
fn by_helper(point: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(point)
        // The message decides whether it is busy, so it must not be translated.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("fusermount3: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(message))
}
