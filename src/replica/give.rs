//! Gives objects their new names. See [`super::apply`].

use super::ReplicaError;
use super::apply::Apply;
use super::delta::{Binding, Item, Spot};
use super::error::Doing;
use super::place::At;
use super::redo::Kind;
use super::tree::Seen;
use crate::model::FileId;
use std::io;

impl Apply<'_> {
    pub(super) fn attach_all(&mut self) -> Result<(), ReplicaError> {
        for (&id, item) in &self.delta.items {
            if item.attached.is_empty() {
                continue;
            }
            if item.kind == Kind::Directory {
                self.attach_directory(id, item)?;
            } else {
                self.attach_object(id, item)?;
            }
        }
        Ok(())
    }

    fn attach_directory(&mut self, id: FileId, item: &Item) -> Result<(), ReplicaError> {
        for spot in &item.attached {
            let shelf = self.shelf(id);
            if self.seen(&shelf)?.is_none() {
                // It has its name, or is made again under it.
                self.directory(id)?;
                continue;
            }
            let Some(at) = self.at(spot)? else { continue };
            self.rename_free(&shelf, &at, spot)?;
        }
        Ok(())
    }

    /// Moves something to a name that nothing of ours holds.
    fn rename_free(&self, from: &At, to: &At, spot: &Spot) -> Result<(), ReplicaError> {
        let action = || format!("cannot put {} in its place", spot.1);
        loop {
            match self.tree.rename(from.place(), to.place()) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.tree.discard(to.place()).doing(action)?;
                }
                moved => return moved.doing(action),
            }
        }
    }

    fn attach_object(&mut self, id: FileId, item: &Item) -> Result<(), ReplicaError> {
        let shelf = self.shelf(id);
        let mut source = self.locate(id)?;
        if source.is_none() {
            // Neither on the shelf nor at a name: removed by somebody.
            let object = self.object(id)?;
            let bare = Item {
                content: Vec::new(),
                rebuilt: false,
                ..item.clone()
            };
            self.make_anew(id, &bare, &shelf, &object)?;
            self.suspect(id);
            source = self.locate(id)?;
        }
        let Some((mut source, seen)) = source else {
            return Ok(());
        };
        for (index, spot) in item.attached.iter().enumerate() {
            let Some(at) = self.at(spot)? else { continue };
            let on_shelf = source.name == shelf.name && is_same(&source, &shelf);
            let last = index + 1 == item.attached.len();
            self.attach_name(id, spot, &source, &seen, &at, on_shelf && last)?;
            if on_shelf && last {
                source = at;
            }
        }
        // All names were links of it already.
        if self.seen(&shelf)?.is_some_and(|shelved| shelved.is(&seen)) {
            self.tree
                .unlink(shelf.place())
                .doing(|| format!("cannot clear the shelf of object {id}"))?;
        }
        Ok(())
    }

    /// Makes one name hold the object that is at `source`: moves it, or gives it another name.
    fn attach_name(
        &mut self,
        id: FileId,
        spot: &Spot,
        source: &At,
        seen: &Seen,
        at: &At,
        moves: bool,
    ) -> Result<(), ReplicaError> {
        let action = || format!("cannot put {} in its place", spot.1);
        let over = match self.seen(at)? {
            Some(there) if there.is(seen) => return Ok(()),
            None => false,
            Some(there) => self.set_aside(spot, at, &there)?,
        };
        match (moves, over) {
            (true, true) => self
                .tree
                .rename_over(source.place(), at.place())
                .doing(action),
            (true, false) => self.rename_free(source, at, spot),
            (false, false) => self.tree.link(source.place(), at.place()).doing(action),
            (false, true) => {
                let temporary = self.temporary(id, "link");
                self.tree.unlink(temporary.place()).doing(action)?;
                self.tree
                    .link(source.place(), temporary.place())
                    .doing(action)?;
                self.tree
                    .rename_over(temporary.place(), at.place())
                    .doing(action)
            }
        }
    }

    /// What a name holds is kept in the trash. `true`: under a second name, so that the new
    /// object can be moved over it.
    fn set_aside(&mut self, spot: &Spot, at: &At, there: &Seen) -> Result<bool, ReplicaError> {
        let action = || format!("cannot set aside what {} holds", spot.1);
        let binding = self.delta.bindings.get(spot);
        let Some(Binding {
            old: Some(old),
            over: true,
            ..
        }) = binding
        else {
            self.tree.discard(at.place()).doing(action)?;
            return Ok(false);
        };
        if there.is_directory() {
            self.tree.discard(at.place()).doing(action)?;
            return Ok(false);
        }
        let shelf = self.old_shelf(*old);
        if let Some(shelved) = self.seen(&shelf)? {
            if shelved.is(there) {
                return Ok(true);
            }
            // One that a replay has made anew, or a stranger.
            self.tree.discard(at.place()).doing(action)?;
            return Ok(false);
        }
        match self.tree.link(at.place(), shelf.place()) {
            Ok(()) => Ok(true),
            // No hard links here, or not to this one, or too many.
            Err(error) if is_no_link(&error) => {
                self.tree.rename(at.place(), shelf.place()).doing(action)?;
                Ok(false)
            }
            Err(error) => Err(error).doing(action),
        }
    }
}

fn is_same(one: &At, other: &At) -> bool {
    std::rc::Rc::ptr_eq(&one.directory, &other.directory)
}

fn is_no_link(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EMLINK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EXDEV)
    )
}
