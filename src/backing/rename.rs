//! rename: one operation on up to two directories and two objects.

use super::inspect::Visit;
use super::nodes::Place;
use super::seen::Seen;
use super::{ATTEMPTS_MAX, Backing, broken, errno};
use crate::journal::Operation;
use crate::model::FileId;
use rustix::fs::RenameFlags;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// One end of a rename: a name, and what it holds.
struct End<'a> {
    backing: &'a Backing,
    place: Place,
    directory: Arc<OwnedFd>,
    found: Option<(FileId, Seen)>,
    _visit: Option<Visit<'a>>,
}

impl<'a> End<'a> {
    fn new(backing: &'a Backing, place: &Place) -> io::Result<End<'a>> {
        let mut end = End {
            backing,
            directory: backing.directory(place.0)?,
            place: place.clone(),
            found: None,
            _visit: None,
        };
        match backing.arrive(&end.directory, place) {
            Ok((id, seen)) => {
                end._visit = Some(Visit { backing, id });
                end.found = Some((id, seen));
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        Ok(end)
    }

    fn look(&self) -> io::Result<Option<Seen>> {
        let name = self.place.1.as_bytes();
        match Seen::entry(&*self.directory, name, self.backing.home) {
            Ok(seen) => Ok(Some(seen)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the name still holds what it held before the locks were taken.
    fn is_current(&self) -> io::Result<bool> {
        Ok(match (self.look()?, &self.found) {
            (Some(now), Some((_, seen))) => now.is_same(seen) && now.links() == seen.links(),
            (None, None) => true,
            _ => false,
        })
    }

    /// Whether nothing in the directory is mirrored. Its lock is held.
    fn parent_excluded(&self) -> bool {
        self.backing.is_excluded(self.place.0)
    }

    /// Whether an object of this kind is not mirrored under the name.
    fn excludes(&self, seen: &Seen) -> bool {
        self.parent_excluded() || self.backing.excludes(self.place.0, &self.place.1, seen)
    }
}

impl Backing {
    /// Moves a name; with `RENAME_EXCHANGE` two names change what they hold, with
    /// `RENAME_NOREPLACE` the new one must hold nothing.
    ///
    /// # Errors
    /// Those of renameat2(2); EINVAL for other flags; EPERM for the reserved name.
    pub fn rename(
        &self,
        parent: FileId,
        name: &OsStr,
        new_parent: FileId,
        new_name: &OsStr,
        flags: u32,
    ) -> io::Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(errno(libc::EINVAL));
        }
        let from: Place = (parent, self.name(parent, name)?);
        let to: Place = (new_parent, self.name(new_parent, new_name)?);
        self.settle(parent)?;
        self.settle(new_parent)?;
        for _ in 0..ATTEMPTS_MAX {
            let source = End::new(self, &from)?;
            let target = End::new(self, &to)?;
            let Some((moved, _)) = source.found else {
                return Err(errno(libc::ENOENT));
            };
            self.settle(moved)?;
            let mut locked = vec![parent, new_parent, moved];
            if let Some((other, seen)) = &target.found {
                if flags.contains(RenameFlags::EXCHANGE) || seen.links() > 1 {
                    self.settle(*other)?;
                }
                locked.push(*other);
            }
            let held = self.locks.lock(&locked);
            if !source.is_current()? || !target.is_current()? {
                continue;
            }
            self.rename_locked(&source, &target, flags)?;
            drop(held);
            self.name_changed(parent)?;
            return if parent == new_parent {
                Ok(())
            } else {
                self.name_changed(new_parent)
            };
        }
        Err(errno(libc::EBUSY))
    }

    fn rename_locked(
        &self,
        source: &End<'_>,
        target: &End<'_>,
        flags: RenameFlags,
    ) -> io::Result<()> {
        let act = || {
            let (from, to) = (source.place.1.as_bytes(), target.place.1.as_bytes());
            let (old, new) = (source.directory.as_fd(), target.directory.as_fd());
            Ok::<_, io::Error>(rustix::fs::renameat_with(old, from, new, to, flags)?)
        };
        let Some((moved, seen)) = &source.found else {
            return Err(errno(libc::ENOENT));
        };
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if target
            .found
            .as_ref()
            .is_some_and(|(other, _)| other == moved)
        {
            // Two names of one object, or the same name: POSIX wants nothing to happen.
            return act();
        }
        // Asked before anything moves: a walk that meets the directory in between misses it. And
        // patterns may match other things below a directory that has another path.
        let walk_again = !self.exclude.is_empty() || !self.is_walked();
        let operation = self.begin();
        for end in [source, target] {
            if !end.parent_excluded() {
                operation
                    .before_attributes(end.place.0, self)
                    .map_err(broken)?;
            }
        }
        self.before_move(&operation, *moved, seen, source, target)?;
        match &target.found {
            Some((other, seen)) if exchange => {
                self.before_move(&operation, *other, seen, target, source)?;
            }
            Some((victim, seen)) => self.before_replace(&operation, *victim, seen, target)?,
            None => {}
        }
        if let Err(error) = act() {
            if let Some((victim, _)) = &target.found {
                self.nodes.unkeep(*victim);
            }
            return Err(error);
        }
        if !exchange && let Some((victim, seen)) = &target.found {
            let last = seen.is_directory() || seen.links() <= 1;
            self.lost_name(*victim, &target.place, last);
        }
        self.record_move(&operation, *moved, seen, (source, target), walk_again)?;
        match &target.found {
            Some((other, seen)) if exchange => {
                self.record_move(&operation, *other, seen, (target, source), walk_again)?;
                self.leave(*other)?;
            }
            replaced => {
                if !source.parent_excluded() {
                    self.cover(&operation, source.place.0, &source.place.1)?;
                }
                if let Some((victim, seen)) = replaced {
                    self.record_replaced(&operation, *victim, seen)?;
                }
            }
        }
        self.leave(*moved)
    }

    /// What is to be preserved of an object that gets another name.
    fn before_move(
        &self,
        operation: &Operation<'_>,
        id: FileId,
        seen: &Seen,
        from: &End<'_>,
        to: &End<'_>,
    ) -> io::Result<()> {
        if self.is_excluded(id) {
            return Ok(());
        }
        if to.excludes(seen) && !from.excludes(seen) {
            let last = seen.is_directory() || seen.links() <= 1;
            operation.before_unlink(id, last, self).map_err(broken)?;
        }
        operation.before_attributes(id, self).map_err(broken)
    }

    fn before_replace(
        &self,
        operation: &Operation<'_>,
        victim: FileId,
        seen: &Seen,
        at: &End<'_>,
    ) -> io::Result<()> {
        let last = seen.is_directory() || seen.links() <= 1;
        if !at.excludes(seen) {
            operation
                .before_unlink(victim, last, self)
                .map_err(broken)?;
        }
        self.keep_removed(victim, at.directory.as_fd(), at.place.1.as_bytes(), last);
        Ok(())
    }

    /// Binds the new name. The old one is unbound after this, so that the object is known all
    /// the time.
    fn record_move(
        &self,
        operation: &Operation<'_>,
        id: FileId,
        seen: &Seen,
        (from, to): (&End<'_>, &End<'_>),
        walk_again: bool,
    ) -> io::Result<()> {
        self.nodes.remove_place(id, &from.place, false);
        self.nodes.add_place(id, &to.place);
        if !to.excludes(seen) {
            self.bind_found(operation, &to.place, id, seen)?;
            if seen.is_directory() && walk_again {
                self.push_unwalked(id);
            }
        } else if !to.parent_excluded() {
            self.cover(operation, to.place.0, &to.place.1)?;
        }
        if !self.is_excluded(id) {
            operation.attributes(id);
        }
        Ok(())
    }

    fn record_replaced(
        &self,
        operation: &Operation<'_>,
        victim: FileId,
        seen: &Seen,
    ) -> io::Result<()> {
        if !seen.is_directory() && seen.links() > 1 && !self.is_excluded(victim) {
            operation.attributes(victim);
            self.leave(victim)?;
        }
        Ok(())
    }

    /// An object has lost a name: it may have no mirrored one any more.
    fn leave(&self, id: FileId) -> io::Result<()> {
        if !self.exclude.is_empty() && !self.is_excluded(id) {
            let mirrored = self.is_known(id)?;
            self.nodes.set_excluded(id, !mirrored);
        }
        Ok(())
    }
}
