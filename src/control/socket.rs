//! Where the socket is. A state directory may have a path that is longer than the 107 bytes that
//! an address of a Unix socket takes, so it is named through a descriptor of the directory; that
//! also never resolves a path below a mount (invariant I8).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// The socket's name in a state directory.
pub const SOCKET_NAME: &str = "control.sock";

/// A short path of the socket in the directory `dir`, valid in this process while `dir` is open.
pub(super) fn short_path(dir: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd()))
}
