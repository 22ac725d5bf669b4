//! Where the socket is: in the state directory, or, when that lies below the mountpoint and so is
//! seen through the mount only, in a directory of the user below `/run`.
//!
//! A state directory may have a path that is longer than the 107 bytes that an address of a Unix
//! socket takes, so it is named through a descriptor of the directory; that also never resolves a
//! path below a mount (invariant I8).

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The socket's name in a state directory.
pub const SOCKET_NAME: &str = "control.sock";

/// A short path of the socket in the directory `dir`, valid in this process while `dir` is open.
pub(super) fn short_path(dir: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd()))
}

/// The directory for the socket of a mirror whose state directory is covered by its own mount.
/// It follows from the user and the state directory alone, so that every command finds it,
/// whatever is in its environment.
pub(super) fn outside(state_dir: &Path) -> PathBuf {
    let user = rustix::process::geteuid();
    let session = PathBuf::from(format!("/run/user/{}", user.as_raw()));
    let root = match (user.is_root(), session.is_dir()) {
        (true, _) => PathBuf::from("/run/mirrorfs"),
        (false, true) => session.join("mirrorfs"),
        (false, false) => PathBuf::from(format!("/tmp/mirrorfs-{}", user.as_raw())),
    };
    let hash = blake3::hash(state_dir.as_os_str().as_bytes()).to_hex();
    root.join(&hash[..16])
}

/// Makes that directory, and sees to it that it is nobody else's.
///
/// # Errors
/// When it cannot be made, or belongs to another user.
pub(super) fn make_outside(state_dir: &Path) -> io::Result<OwnedFd> {
    let path = outside(state_dir);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)?;
    let user = rustix::process::geteuid().as_raw();
    for made in path.ancestors().take(2) {
        let found = std::fs::symlink_metadata(made)?;
        if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
            let what = format!("{} is not a private directory of this user", made.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(&path, flags, Mode::empty())?)
}
