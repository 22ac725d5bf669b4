//! Small primitives over file descriptors: what an object looks like, its extended attributes,
//! files that are replaced as a whole, and resolution that stays beneath a root.
//!
//! They know no path, so they answer `io::Result`; callers add where it happened. Nothing here
//! follows a symbolic link that it is not told to.

mod identity;
mod look;
mod time;
mod xattr;

pub use identity::{FsId, TreeIdentity, tree_identity};
pub use look::{Place, Snapshot, look, look_fully};
pub use time::{boot_id, coarse_now, is_settled, tick};
pub use xattr::{get_xattr, is_mirrored, read_xattrs, remove_xattr, set_xattr, write_xattrs};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// How often a resolution that raced with a rename is tried again.
const RESOLVE_ATTEMPTS_MAX: usize = 64;

/// Opens `path` beneath `root`. No component may be a symbolic link, and none may lead out
/// (invariant I10).
///
/// # Errors
/// `ELOOP` for a link, `EXDEV` for a way out, and what open(2) says.
pub fn open_beneath(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let (root, path) = (root.as_fd(), path.as_ref());
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, mode, resolve) {
            // The kernel cannot tell whether a rename elsewhere let the path escape.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)
                if attempts < RESOLVE_ATTEMPTS_MAX =>
            {
                attempts += 1;
            }
            opened => return Ok(opened?),
        }
    }
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// Those of fsync(2). A failure must not be retried into success (invariant I9).
pub fn sync_directory(directory: impl AsFd) -> io::Result<()> {
    match rustix::fs::fsync(&directory) {
        // A descriptor opened with O_PATH cannot be synced itself.
        Err(rustix::io::Errno::BADF) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&directory, ".", flags, Mode::empty())?;
            Ok(rustix::fs::fsync(opened)?)
        }
        synced => Ok(synced?),
    }
}

/// Replaces the file `name` in `directory` by one with `bytes`, readable by its owner only.
///
/// # Durability
/// When it returns, the new content and its name are on stable storage. After a crash before
/// that, the name holds either the old content or the new one, whole.
///
/// # Errors
/// Those of the system calls; the old file is then untouched, unless it is the last sync, that of
/// the directory, which failed.
pub fn replace_file(directory: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    let directory = directory.as_fd();
    let temporary = format!("{name}.new");
    let written = write_new(directory, &temporary, bytes).and_then(|()| {
        Ok(rustix::fs::renameat(
            directory, &temporary, directory, name,
        )?)
    });
    if written.is_err() {
        // What is left behind is overwritten by the next attempt; failing to remove it is no harm.
        let _ = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
    }
    written?;
    sync_directory(directory)
}

fn write_new(directory: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut file = File::from(rustix::fs::openat(&directory, name, flags, mode)?);
    file.write_all(bytes)?;
    file.sync_all()
}

/// The content of the file `name` in `directory`; `None` if there is none.
///
/// # Errors
/// Those of the system calls, and `InvalidData` when it is no regular file or longer than
/// `bytes_max`.
pub fn read_file(
    directory: impl AsFd,
    name: &str,
    bytes_max: usize,
) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
        Ok(opened) => File::from(opened),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file",
        ));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "longer than it can be",
        ));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::fs::symlink;

    fn open_directory(path: &Path) -> OwnedFd {
        File::open(path).expect("a directory").into()
    }

    #[test]
    fn resolution_stays_beneath_the_root() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).expect("made");
        std::fs::write(root.join("a/b/f"), "x").expect("made");
        std::fs::write(place.path().join("outside"), "x").expect("made");
        symlink("b", root.join("a/link")).expect("made");
        symlink("/etc", root.join("away")).expect("made");
        let fd = open_directory(&root);
        let open = |path: &str| open_beneath(&fd, path, OFlags::RDONLY, Mode::empty());
        assert!(open("a/b/f").is_ok());
        for bad in [
            "../outside",
            "a/link/f",
            "a/link",
            "away/passwd",
            "/etc/passwd",
        ] {
            assert!(open(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_replaced_file_is_old_or_new() {
        let place = tempfile::tempdir().expect("a directory");
        let fd = open_directory(place.path());
        assert_eq!(read_file(&fd, "x", 10).expect("read"), None);
        replace_file(&fd, "x", b"one").expect("replaced");
        // What an interrupted attempt leaves behind is no obstacle.
        symlink("/dev/full", place.path().join("x.new")).expect("made");
        replace_file(&fd, "x", b"two").expect("replaced");
        assert_eq!(
            read_file(&fd, "x", 3).expect("read").as_deref(),
            Some(&b"two"[..])
        );
        assert!(read_file(&fd, "x", 2).is_err());
        assert_eq!(std::fs::read_dir(place.path()).expect("list").count(), 1);
        std::fs::create_dir(place.path().join("d")).expect("made");
        assert!(replace_file(&fd, "d", b"x").is_err());
        assert_eq!(std::fs::read_dir(place.path()).expect("list").count(), 2);
    }

    #[test]
    fn objects_look_as_they_are() {
        let place = tempfile::tempdir().expect("a directory");
        let fd = open_directory(place.path());
        std::fs::write(place.path().join("f"), "hello").expect("made");
        symlink("somewhere", place.path().join("l")).expect("made");
        std::fs::hard_link(place.path().join("f"), place.path().join("g")).expect("linked");
        let f = look(Place::Entry(fd.as_fd(), OsStr::new("f"))).expect("seen");
        assert_eq!((f.object.size, f.links), (5, 2));
        assert!(f.object.is_valid() && f.object.fixed.is_file() && f.stamp.inode != 0);
        let opened = File::open(place.path().join("f")).expect("open");
        assert_eq!(look(Place::Open(opened.as_fd())).expect("seen"), f);
        let l = look_fully(Place::Entry(fd.as_fd(), OsStr::new("l"))).expect("seen");
        assert_eq!(
            l.object.fixed,
            crate::model::Fixed::Symlink(b"somewhere"[..].into())
        );
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let link = rustix::fs::openat(&fd, "l", flags, Mode::empty()).expect("open");
        assert_eq!(look_fully(Place::Open(link.as_fd())).expect("seen"), l);
        assert!(
            look(Place::Open(fd.as_fd()))
                .expect("seen")
                .object
                .fixed
                .is_directory()
        );
    }

    #[test]
    fn extended_attributes_are_read_and_made_equal() {
        let place = tempfile::tempdir().expect("a directory");
        let fd = open_directory(place.path());
        std::fs::write(place.path().join("f"), "").expect("made");
        let at = Place::Entry(fd.as_fd(), OsStr::new("f"));
        match set_xattr(at, b"user.a", b"1") {
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return,
            set => set.expect("set"),
        }
        let big = vec![7; 3000];
        set_xattr(at, b"user.b", &big).expect("set");
        let path = rustix::fs::openat(&fd, "f", OFlags::PATH, Mode::empty()).expect("open");
        let whole = File::open(place.path().join("f")).expect("open");
        for other in [at, Place::Open(path.as_fd()), Place::Open(whole.as_fd())] {
            let found = read_xattrs(other).expect("read");
            assert_eq!(found.len(), 2);
            assert_eq!(found.get(&b"user.b"[..]).map(|v| &v[..]), Some(&big[..]));
            assert_eq!(
                get_xattr(other, b"user.a").expect("get").as_deref(),
                Some(&b"1"[..])
            );
            assert_eq!(get_xattr(other, b"user.none").expect("get"), None);
        }
        let wanted = [(b"user.a"[..].into(), b"2"[..].into())]
            .into_iter()
            .collect();
        write_xattrs(Place::Open(path.as_fd()), &wanted).expect("written");
        assert_eq!(read_xattrs(at).expect("read"), wanted);
        remove_xattr(at, b"user.a").expect("removed");
        remove_xattr(at, b"user.a").expect("removing nothing is no error");
        assert!(read_xattrs(at).expect("read").is_empty());
    }

    #[test]
    fn a_tree_is_known_again() {
        let place = tempfile::tempdir().expect("a directory");
        let fd = open_directory(place.path());
        let one = tree_identity(&fd).expect("identity");
        assert!(one.matches(&tree_identity(&fd).expect("identity")));
        std::fs::create_dir(place.path().join("d")).expect("made");
        let other = tree_identity(open_directory(&place.path().join("d"))).expect("identity");
        assert!(!one.matches(&other));
        assert_eq!(boot_id().expect("boot"), boot_id().expect("boot"));
    }
}
