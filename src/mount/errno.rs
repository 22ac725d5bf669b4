//! The one place where an error becomes the errno that a program sees.

use std::io;

/// Local errors pass through unchanged, but for one: ENOSYS would make the kernel never send that
/// kind of request again, for any file.
#[must_use]
pub fn errno_of(error: &io::Error) -> fuser::Errno {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => fuser::Errno::EOPNOTSUPP,
        Some(code) => fuser::Errno::from_i32(code),
        None => fuser::Errno::from_i32(of_kind(error.kind())),
    }
}

// Errors that the code makes itself, or that the standard library makes without an errno.
fn of_kind(kind: io::ErrorKind) -> i32 {
    match kind {
        io::ErrorKind::NotFound => libc::ENOENT,
        io::ErrorKind::PermissionDenied => libc::EACCES,
        io::ErrorKind::AlreadyExists => libc::EEXIST,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        io::ErrorKind::Unsupported => libc::EOPNOTSUPP,
        io::ErrorKind::OutOfMemory => libc::ENOMEM,
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_errors_pass_and_nothing_is_switched_off() {
        let of = |code| errno_of(&io::Error::from_raw_os_error(code)).code();
        for code in [
            libc::ENOSPC,
            libc::EDQUOT,
            libc::EROFS,
            libc::EIO,
            libc::ENODATA,
        ] {
            assert_eq!(of(code), code);
        }
        assert_eq!(of(libc::ENOSYS), libc::EOPNOTSUPP);
        assert_eq!(errno_of(&io::Error::other("x")).code(), libc::EIO);
        assert_eq!(
            errno_of(&io::ErrorKind::NotFound.into()).code(),
            libc::ENOENT
        );
    }
}
