//! New objects and new names: mknod, mkdir, symlink, create, link.

use super::nodes::{Arrival, Place};
use super::owner::{SPECIAL, assume, give};
use super::seen::Seen;
use super::types::{Attr, Caller, HandleId, Kind};
use super::{Backing, broken, errno};
use crate::model::{FileId, Name};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// What is created, and how.
struct Birth<'a> {
    caller: Caller,
    parent: FileId,
    name: Name,
    mode: u32,
    umask: u32,
    kind: Kind,
    // Creates it, perhaps opens it.
    act: &'a dyn Fn(BorrowedFd<'_>, &Name) -> io::Result<Option<OwnedFd>>,
}

impl Backing {
    /// Creates a file, device, pipe or socket. `mode` has the type's bits too. Counts a lookup.
    ///
    /// # Errors
    /// Those of mknod(2); EPERM for the reserved name.
    #[allow(clippy::too_many_arguments, reason = "these are FUSE's")]
    pub fn mknod(
        &self,
        caller: Caller,
        parent: FileId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u64,
    ) -> io::Result<Attr> {
        let (kind, file_type) = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => (Kind::File, FileType::RegularFile),
            libc::S_IFIFO => (Kind::Fifo, FileType::Fifo),
            libc::S_IFSOCK => (Kind::Socket, FileType::Socket),
            libc::S_IFBLK => (Kind::BlockDevice, FileType::BlockDevice),
            libc::S_IFCHR => (Kind::CharDevice, FileType::CharacterDevice),
            _ => return Err(errno(libc::EINVAL)),
        };
        let at_first = Mode::from_raw_mode(mode & 0o7777 & !SPECIAL);
        let name = self.name(parent, name)?;
        let act = |directory: BorrowedFd<'_>, name: &Name| {
            rustix::fs::mknodat(directory, name.as_bytes(), file_type, at_first, rdev)?;
            Ok(None)
        };
        let birth = Birth {
            caller,
            parent,
            name,
            mode,
            umask,
            kind,
            act: &act,
        };
        Ok(self.give_birth(&birth)?.0)
    }

    /// Creates a directory. Counts a lookup.
    ///
    /// # Errors
    /// Those of mkdir(2); EPERM for the reserved name.
    pub fn mkdir(
        &self,
        caller: Caller,
        parent: FileId,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Attr> {
        let name = self.name(parent, name)?;
        // Setuid and setgid are not mkdir's to set; the parent's setgid is inherited.
        let mode = mode & 0o1777;
        let act = |directory: BorrowedFd<'_>, name: &Name| {
            rustix::fs::mkdirat(directory, name.as_bytes(), Mode::from_raw_mode(mode))?;
            Ok(None)
        };
        let kind = Kind::Directory;
        let birth = Birth {
            caller,
            parent,
            name,
            mode,
            umask,
            kind,
            act: &act,
        };
        Ok(self.give_birth(&birth)?.0)
    }

    /// Creates a symbolic link. Counts a lookup.
    ///
    /// # Errors
    /// Those of symlink(2); EPERM for the reserved name.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: FileId,
        name: &OsStr,
        target: &OsStr,
    ) -> io::Result<Attr> {
        let name = self.name(parent, name)?;
        let act = |directory: BorrowedFd<'_>, name: &Name| {
            rustix::fs::symlinkat(target.as_bytes(), directory, name.as_bytes())?;
            Ok(None)
        };
        let (mode, umask, kind) = (0o777, 0, Kind::Symlink);
        let birth = Birth {
            caller,
            parent,
            name,
            mode,
            umask,
            kind,
            act: &act,
        };
        Ok(self.give_birth(&birth)?.0)
    }

    /// Creates and opens a file; without `O_EXCL`, opens one that is there. Counts a lookup.
    ///
    /// # Errors
    /// Those of open(2); EPERM for the reserved name.
    #[allow(clippy::too_many_arguments, reason = "these are FUSE's")]
    pub fn create(
        &self,
        caller: Caller,
        parent: FileId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> io::Result<(Attr, HandleId)> {
        let wanted = self.name(parent, name)?;
        let at_first = Mode::from_raw_mode(mode & 0o7777 & !SPECIAL);
        let open = super::files::backing_flags(flags, true) | OFlags::CREATE | OFlags::EXCL;
        let act = |directory: BorrowedFd<'_>, name: &Name| {
            self.open_at(directory, name.as_bytes(), open, at_first)
                .map(Some)
        };
        let kind = Kind::File;
        let birth = Birth {
            caller,
            parent,
            name: wanted,
            mode,
            umask,
            kind,
            act: &act,
        };
        match self.give_birth(&birth) {
            Ok((attr, Some(opened))) => Ok((attr, self.take_file(attr.id, opened, flags))),
            Ok((attr, None)) => {
                self.forget(attr.id, 1);
                Err(errno(libc::EIO))
            }
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && flags & libc::O_EXCL == 0 =>
            {
                let attr = self.lookup(parent, name)?;
                let opened = self.open_file(attr.id, flags & !libc::O_CREAT);
                let handle = opened.inspect_err(|_| self.forget(attr.id, 1))?;
                Ok((attr, handle))
            }
            Err(error) => Err(error),
        }
    }

    fn give_birth(&self, birth: &Birth<'_>) -> io::Result<(Attr, Option<OwnedFd>)> {
        let (parent, name) = (birth.parent, &birth.name);
        self.settle(parent)?;
        let directory = self.directory(parent)?;
        let held = self.locks.lock(&[parent]);
        let operation = self.begin();
        let parent_excluded = self.is_excluded(parent);
        if !parent_excluded {
            operation.before_attributes(parent, self).map_err(broken)?;
        }
        let opened = {
            let _assumed = assume(birth.caller, birth.umask, self.privileged);
            (birth.act)(directory.as_fd(), name)?
        };
        let finished = self.finish_birth(birth, directory.as_fd(), opened.as_ref());
        let seen = match finished {
            Ok(seen) => seen,
            Err(error) => {
                let is_directory = birth.kind == Kind::Directory;
                let flags = if is_directory {
                    AtFlags::REMOVEDIR
                } else {
                    AtFlags::empty()
                };
                // The first error is the one to tell.
                let _ = rustix::fs::unlinkat(&*directory, name.as_bytes(), flags);
                if !parent_excluded {
                    operation.attributes(parent);
                }
                return Err(error);
            }
        };
        let excluded =
            parent_excluded || self.name_excluded(parent, name, birth.kind == Kind::Directory);
        let place = Some((parent, name.clone()));
        let id = self.enter(
            self.journal.mint(),
            &Arrival {
                seen: &seen,
                place,
                excluded,
            },
        );
        if !excluded {
            operation.created(id, &seen.stamp, seen.links());
            operation.bind(parent, name, id);
        } else if !parent_excluded {
            self.cover(&operation, parent, name)?;
        }
        self.nodes.set_verified(id, self.walk_number());
        drop((operation, held));
        self.name_changed(parent)
            .inspect_err(|_| self.forget(id, 1))?;
        Ok((seen.attr(id), opened))
    }

    /// A name that is not mirrored has come or gone in a directory that is: the directory's time
    /// has changed, and what the known tree has under that name is not there.
    pub(super) fn cover(
        &self,
        operation: &crate::journal::Operation<'_>,
        parent: FileId,
        name: &Name,
    ) -> io::Result<()> {
        if self
            .journal
            .known_child(parent, name)
            .map_err(broken)?
            .is_some()
        {
            operation.unbind(parent, name);
        }
        operation.attributes(parent);
        Ok(())
    }

    fn finish_birth(
        &self,
        birth: &Birth<'_>,
        directory: BorrowedFd<'_>,
        opened: Option<&OwnedFd>,
    ) -> io::Result<Seen> {
        let name = birth.name.as_bytes();
        if let Some(opened) = opened {
            let seen = Seen::open(opened, self.home)?;
            give(
                opened,
                birth.caller,
                birth.mode,
                seen.mode(),
                self.privileged,
            )?;
            return Seen::open(opened, self.home);
        }
        let seen = Seen::entry(directory, name, self.home)?;
        let special = birth.mode & SPECIAL != 0 && birth.kind != Kind::Symlink;
        if !self.privileged && !special {
            return Ok(seen);
        }
        let created = self.open_at(directory, name, OFlags::PATH, Mode::empty())?;
        let seen = Seen::open(&created, self.home)?;
        // Nobody may slip another object under the new name to be given it.
        if seen.kind() != birth.kind || seen.kind() != Kind::Directory && seen.links() != 1 {
            return Err(errno(libc::ESTALE));
        }
        let mode = if special { birth.mode } else { 0 };
        give(&created, birth.caller, mode, seen.mode(), self.privileged)?;
        Seen::open(&created, self.home)
    }

    /// Gives an object another name (hard link). Counts a lookup.
    ///
    /// # Errors
    /// Those of link(2); EPERM for the reserved name.
    pub fn link(&self, id: FileId, parent: FileId, name: &OsStr) -> io::Result<Attr> {
        let name = self.name(parent, name)?;
        self.settle(id)?;
        self.settle(parent)?;
        let directory = self.directory(parent)?;
        let held = self.locks.lock(&[id, parent]);
        let object = self.reach(id)?;
        let operation = self.begin();
        let parent_excluded = self.is_excluded(parent);
        if !parent_excluded {
            operation.before_attributes(parent, self).map_err(broken)?;
        }
        if !self.is_excluded(id) {
            operation.before_attributes(id, self).map_err(broken)?;
        }
        let from = super::reach::proc_path(object.as_fd());
        let follow = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, from, &*directory, name.as_bytes(), follow)?;
        let seen = Seen::open(&object, self.home)?;
        let place: Place = (parent, name);
        let excluded = parent_excluded || self.name_excluded(parent, &place.1, false);
        if !excluded {
            self.bind_found(&operation, &place, id, &seen)?;
        } else if !parent_excluded {
            self.cover(&operation, parent, &place.1)?;
        }
        if !self.is_excluded(id) {
            if seen.at_home {
                operation.linked(id, seen.stamp.inode);
            }
            operation.attributes(id);
        }
        let id = self.enter(
            id,
            &Arrival {
                seen: &seen,
                place: Some(place),
                excluded,
            },
        );
        drop((operation, held));
        self.name_changed(parent)
            .inspect_err(|_| self.forget(id, 1))?;
        Ok(seen.attr(id))
    }

    /// Binds a name to an object that the known tree may lack (because its other names are not
    /// mirrored): then all of it is new.
    pub(super) fn bind_found(
        &self,
        operation: &crate::journal::Operation<'_>,
        place: &Place,
        id: FileId,
        seen: &Seen,
    ) -> io::Result<()> {
        if !self.is_known(id)? {
            self.discover(operation, id, seen)?;
            if seen.is_directory() {
                self.push_unwalked(id);
            }
        }
        operation.bind(place.0, &place.1, id);
        self.nodes.set_excluded(id, false);
        self.nodes.set_verified(id, self.walk_number());
        Ok(())
    }
}
