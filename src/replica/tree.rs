//! Changes of the real tree, each relative to an open directory, none through a symbolic link.
//!
//! Before every change stands [`Tree::step`]: it ends an apply that was told to stop, and is
//! where tests crash it.

use super::error::Halted;
use super::home::Home;
use super::redo::{Kind, names};
use super::{ReplicaError, error::Doing};
use crate::disk;
use crate::model::{Extent, Fixed, Name};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A change that is about to be made.
// What it is about only the hooks of tests look at.
#[cfg_attr(not(test), allow(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    /// An entry is moved to a free name.
    Rename(Place<'a>, Place<'a>),
    /// An entry is moved over another.
    RenameOver(Place<'a>, Place<'a>),
    /// An object gets this name too.
    Link(Place<'a>),
    /// A name is removed.
    Unlink(Place<'a>),
    /// An object is made under this name.
    Make(Place<'a>),
    /// Bytes of a file are written.
    Write(&'a File, Extent),
    /// A file is cut or extended.
    Cut(&'a File),
    /// Owner, mode or times of an object are set.
    Attributes(BorrowedFd<'a>),
    /// Something of no use any more is deleted.
    Delete,
    /// All so far is made durable.
    Sync,
    /// Nothing is changed.
    Look,
}

/// Called before every change of the tree; what it answers ends the apply.
pub(super) trait Hook: Send + Sync + std::fmt::Debug {
    /// About one change.
    fn before(&self, change: Change<'_>) -> io::Result<()>;
}

/// An entry of a directory, as far as it must be known before it is touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub kind: Kind,
    pub device: u64,
    pub inode: u64,
    pub links: u64,
}

/// The tree that a replica changes.
#[derive(Debug)]
pub(super) struct Tree {
    /// The target directory.
    pub root: OwnedFd,
    /// Objects on their way, by id.
    pub park: OwnedFd,
    /// Superseded objects.
    pub trash: OwnedFd,
    /// The redo logs and their staged files.
    pub redo: OwnedFd,
    stop: Arc<AtomicBool>,
    strangers: AtomicU64,
    hook: Option<Arc<dyn Hook>>,
}

/// A path of one component, below an open directory.
pub(super) type Place<'a> = (&'a OwnedFd, &'a OsStr);

impl Tree {
    /// The tree of a replica. Nothing more is changed once `stop` is set.
    pub(super) fn open(home: &Home, stop: Arc<AtomicBool>) -> Result<Tree, ReplicaError> {
        Ok(Tree {
            root: home.root.try_clone().doing(|| "cannot open the target")?,
            park: home.directory("park")?,
            trash: home.directory("trash")?,
            redo: home.directory("redo")?,
            stop,
            strangers: AtomicU64::new(0),
            hook: None,
        })
    }

    /// With a hook.
    #[cfg(test)]
    pub(super) fn hooked(mut self, hook: Arc<dyn Hook>) -> Tree {
        self.hook = Some(hook);
        self
    }

    /// Stands before every change.
    pub(super) fn step(&self, change: Change<'_>) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(halted());
        }
        self.hook
            .as_ref()
            .map_or(Ok(()), |hook| hook.before(change))
    }

    /// Opens a directory in a directory, to list it.
    pub(super) fn directory(&self, at: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
        open_one(at, name, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens a directory in a directory, to reach what is in it.
    pub(super) fn way(&self, (at, name): Place<'_>) -> io::Result<OwnedFd> {
        open_one(at, name, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens an existing file in a directory, whatever it is; without waiting for a pipe's other
    /// end.
    pub(super) fn file(&self, (at, name): Place<'_>, write: bool) -> io::Result<File> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(File::from(open_one(at, name, flags)?))
    }

    /// An object as a handle that gives neither read nor write access.
    pub(super) fn handle(&self, (at, name): Place<'_>) -> io::Result<OwnedFd> {
        open_one(at, name, OFlags::PATH)
    }

    /// What an entry is; `None` if there is none.
    pub(super) fn seen(&self, (at, name): Place<'_>) -> io::Result<Option<Seen>> {
        match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Seen::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves an entry to a name that is free; `AlreadyExists` if it is not.
    pub(super) fn rename(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        self.step(Change::Rename(from, to))?;
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags) {
            // A file system without the flag.
            Err(Errno::INVAL | Errno::NOSYS) if self.seen(to)?.is_none() => {
                Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1)?)
            }
            renamed => Ok(renamed?),
        }
    }

    /// Moves an entry that is no directory over another that is none.
    pub(super) fn rename_over(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        self.step(Change::RenameOver(from, to))?;
        Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1)?)
    }

    /// Gives an object another name.
    pub(super) fn link(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        self.step(Change::Link(to))?;
        Ok(rustix::fs::linkat(
            from.0,
            from.1,
            to.0,
            to.1,
            AtFlags::empty(),
        )?)
    }

    /// Removes a name that holds no directory, if it is there.
    pub(super) fn unlink(&self, (at, name): Place<'_>) -> io::Result<()> {
        self.step(Change::Unlink((at, name)))?;
        match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a directory, for the owner only.
    pub(super) fn make_directory(&self, (at, name): Place<'_>) -> io::Result<()> {
        self.step(Change::Make((at, name)))?;
        Ok(rustix::fs::mkdirat(at, name, Mode::RWXU)?)
    }

    /// Makes an empty file, for the owner only, and opens it.
    pub(super) fn make_file(&self, (at, name): Place<'_>) -> io::Result<File> {
        self.step(Change::Make((at, name)))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(File::from(rustix::fs::openat(at, name, flags, mode)?))
    }

    /// Makes what is neither a file nor a directory. What may not be made is an empty file in its
    /// place: the records say what it is.
    pub(super) fn make_other(
        &self,
        (at, name): Place<'_>,
        fixed: &Fixed,
        privileged: bool,
    ) -> io::Result<()> {
        self.step(Change::Make((at, name)))?;
        let mode = Mode::RUSR | Mode::WUSR;
        let node = |kind, device| rustix::fs::mknodat(at, name, kind, mode, device);
        let made = match fixed {
            Fixed::Symlink(target) => {
                return Ok(rustix::fs::symlinkat(OsStr::from_bytes(target), at, name)?);
            }
            Fixed::Fifo => node(FileType::Fifo, 0),
            Fixed::Socket if privileged => node(FileType::Socket, 0),
            Fixed::BlockDevice(device) if privileged => node(FileType::BlockDevice, *device),
            Fixed::CharDevice(device) if privileged => node(FileType::CharacterDevice, *device),
            _ => Err(Errno::PERM),
        };
        match made {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {
                Ok(node(FileType::RegularFile, 0)?)
            }
            made => Ok(made?),
        }
    }

    /// Makes an extent of a file zeros that need no space, without changing its size.
    pub(super) fn punch(&self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, flags, offset, length) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(file, offset, length),
            punched => Ok(punched?),
        }
    }

    /// Moves what is in the way to the trash.
    pub(super) fn discard(&self, from: Place<'_>) -> io::Result<()> {
        loop {
            let number = self.strangers.fetch_add(1, Ordering::Relaxed);
            let name = format!("stranger-{number}");
            match self.rename(from, (&self.trash, OsStr::new(&name))) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                moved => return moved,
            }
        }
    }

    /// Empties one of the replica's own directories.
    pub(super) fn empty(&self, directory: &OwnedFd) -> io::Result<()> {
        for name in names(directory)? {
            self.remove_all(directory, OsStr::from_bytes(&name))?;
        }
        Ok(())
    }

    /// Removes an entry and everything below it.
    pub(super) fn remove_all(&self, at: &OwnedFd, name: &OsStr) -> io::Result<()> {
        if self.remove_entry(at, name)? {
            return Ok(());
        }
        // A directory that is not empty. Its depth is not bounded, so there is no recursion:
        // what is in it is moved up, to be removed in turn.
        let mut doomed = vec![name.to_os_string()];
        let mut number = 0u64;
        while let Some(name) = doomed.pop() {
            let Ok(directory) = self.directory(at, &name) else {
                continue;
            };
            for entry in names(&directory)? {
                let entry = OsStr::from_bytes(&entry);
                if self.remove_entry(&directory, entry)? {
                    continue;
                }
                let up = loop {
                    number += 1;
                    let up = std::ffi::OsString::from(format!("doomed-{number}"));
                    match self.rename((&directory, entry), (at, &up)) {
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        moved => break moved.map(|()| up)?,
                    }
                };
                doomed.push(up);
            }
            self.remove_entry(at, &name)?;
        }
        Ok(())
    }

    // Whether it is gone: not a directory with something in it.
    fn remove_entry(&self, at: &OwnedFd, name: &OsStr) -> io::Result<bool> {
        self.step(Change::Delete)?;
        match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                // Without access to it (a mode that was applied) it could not be emptied.
                let _ = make_accessible(at, name);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Everything that was changed so far is on stable storage when it returns.
    pub(super) fn barrier(&self) -> io::Result<()> {
        self.step(Change::Sync)?;
        Ok(rustix::fs::syncfs(&self.root)?)
    }
}

/// What ends an apply that was told to stop.
pub(super) fn halted() -> io::Error {
    io::Error::other(Halted)
}

impl Seen {
    pub(super) fn of(stat: &rustix::fs::Stat) -> Seen {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            _ => Kind::Other,
        };
        #[allow(clippy::unnecessary_cast)]
        Seen {
            kind,
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            links: stat.st_nlink as u64,
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Whether both are the same object.
    pub(super) fn is(&self, other: &Seen) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Opens one component below a directory: no symbolic link, no other mount.
fn open_one(at: impl AsFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    // A link in last place is refused, or with O_PATH is what is opened.
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(&at, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return Ok(opened?),
        }
    }
}

fn make_accessible(at: &OwnedFd, name: &OsStr) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let handle = open_one(at, name, OFlags::PATH | OFlags::DIRECTORY)?;
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::RWXU)?)
}

fn write_zeros(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let end = (offset + length).min(file.metadata()?.len());
    let mut at = offset;
    while at < end {
        let count = usize::try_from(end - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        file.write_all_at(&ZEROS[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

/// The name of a staged file.
pub(super) fn staged_name(id: crate::model::FileId) -> String {
    id.0.to_string()
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(directory: &OwnedFd) -> Result<(), ReplicaError> {
    disk::sync_directory(directory).doing(|| "cannot sync a directory of the replica")
}

/// A name as the operating system takes it.
pub(super) fn os(name: &Name) -> &OsStr {
    name.as_os_str()
}
