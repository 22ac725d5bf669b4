//! Turns the tree into that of the next epoch, so that a crash at any point can be made good by
//! doing it again.
//!
//! 1. *Make*: new objects are made whole, on the shelf `park`.
//! 2. *Vacate*: names that change lose what they held: to `park` if it lives on, to `trash` if
//!    not, or just the name if the object keeps others.
//! 3. *Mark*, only where a replay could mistake one object for another (see [`Delta::marked`]):
//!    all of this is made durable, then the mark says so. A replay that finds the mark goes on
//!    from here.
//! 4. *Give* names: from the shelf to where it belongs. What a plain file replaces gets a name in
//!    `trash` first, then the new one is moved over it, so that a reader always finds one.
//! 5. *Content* of files that were there before, in place, each checked first (I10).
//! 6. *Attributes*, the times of directories last.
//!
//! Before the mark, or without one at all, everything is found again by where it is: what is on a
//! shelf was moved, what is not there and not at its old name has reached its new one. What can
//! be made anew from the log is made anew. After the mark nothing is made and nothing vacated;
//! what is on the shelf still needs its name, what is not there has it.
//!
//! What was superseded is deleted only when the records say that the epoch is applied.

use super::ReplicaError;
use super::attributes::{self, Policy};
use super::delta::{Delta, Item, Spot};
use super::error::Doing;
use super::home::Home;
use super::place::At;
use super::redo::{Kind, files_name};
use super::tree::{Seen, Tree, staged_name};
use crate::limits::{DIRECTORY_DESCRIPTORS, SUSPECTS_MAX};
use crate::model::{FileId, Fixed, Object};
use crate::records::Records;
use lru::LruCache;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// How far an interrupted apply had come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// Nothing was changed yet.
    None,
    /// It may have been begun.
    Begun,
    /// It has reached its mark.
    Marked,
}

/// One apply.
pub(super) struct Apply<'a> {
    pub(super) tree: &'a Tree,
    pub(super) records: &'a Records,
    pub(super) delta: &'a Delta,
    pub(super) policy: Policy,
    pub(super) root: Rc<OwnedFd>,
    pub(super) park: Rc<OwnedFd>,
    pub(super) trash: Rc<OwnedFd>,
    pub(super) directories: LruCache<FileId, Rc<OwnedFd>>,
    pub(super) replay: bool,
    // names are being given out
    pub(super) giving: bool,
    // directories that names were changed in, or that were made
    pub(super) touched: BTreeSet<FileId>,
    // directories that are being looked for
    pub(super) visiting: HashSet<FileId>,
    gone: &'a HashSet<FileId>,
    suspects: BTreeSet<FileId>,
}

fn again(fd: &OwnedFd) -> Result<Rc<OwnedFd>, ReplicaError> {
    fd.try_clone()
        .map(Rc::new)
        .doing(|| "cannot duplicate a descriptor")
}

/// Does it; returns the objects that are not what the records say.
pub(super) fn apply(
    home: &Home,
    tree: &Tree,
    records: &Records,
    delta: &Delta,
    gone: &HashSet<FileId>,
    policy: Policy,
    progress: Progress,
) -> Result<Vec<FileId>, ReplicaError> {
    let capacity = NonZeroUsize::new(DIRECTORY_DESCRIPTORS).unwrap_or(NonZeroUsize::MIN);
    let mut apply = Apply {
        tree,
        records,
        delta,
        policy,
        root: again(&tree.root)?,
        park: again(&tree.park)?,
        trash: again(&tree.trash)?,
        directories: LruCache::new(capacity),
        replay: progress != Progress::None,
        giving: false,
        touched: delta.bindings.keys().map(|spot| spot.0).collect(),
        visiting: HashSet::new(),
        gone,
        suspects: BTreeSet::new(),
    };
    if progress != Progress::Marked {
        apply.make_all()?;
        apply.vacate_all()?;
    }
    if delta.marked {
        // In a replay too: that the mark was read does not say that it is durable.
        tree.barrier()
            .doing(|| "cannot sync the replica's file system")?;
        home.set_mark(delta.last)?;
    }
    apply.giving = true;
    apply.attach_all()?;
    apply.content_all()?;
    apply.attributes_all()?;
    Ok(apply.suspects.into_iter().collect())
}

impl Apply<'_> {
    /// Notes that an object is not what the records say.
    pub(super) fn suspect(&mut self, id: FileId) {
        // Past the bound the primary's own verification finds the rest.
        if !self.gone.contains(&id) && self.suspects.len() < SUSPECTS_MAX {
            self.suspects.insert(id);
        }
    }

    pub(super) fn object(&self, id: FileId) -> Result<Object, ReplicaError> {
        self.delta
            .object(self.records, id)?
            .ok_or_else(|| ReplicaError::Invalid {
                epoch: self.delta.last.0,
                why: format!("object {id} is not known"),
            })
    }

    fn make_all(&mut self) -> Result<(), ReplicaError> {
        for (&id, item) in &self.delta.items {
            // What has come and gone, if it is no directory, needs no place.
            if item.made() && (!item.doomed() || item.kind == Kind::Directory) {
                self.make(id, item)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, id: FileId, item: &Item) -> Result<(), ReplicaError> {
        if item.object.is_none() && item.known.is_none() {
            return Ok(());
        }
        let shelf = self.shelf(id);
        if item.kind == Kind::Directory {
            // If it was given its name before a crash, things may have been moved into it.
            if self.directory(id)?.is_none() {
                let made = self.tree.make_directory(shelf.place());
                made.doing(|| format!("cannot make directory {id} in park"))?;
            }
            return Ok(());
        }
        let object = self.object(id)?;
        if let Some(log) = item.staged {
            return self.make_staged(id, item, log, &object);
        }
        if self.seen(&shelf)?.is_some() {
            self.tree
                .remove_all(&shelf.directory, &shelf.name)
                .doing(|| format!("cannot make object {id} anew"))?;
        }
        self.make_anew(id, item, &shelf, &object)
    }

    /// Makes an object with its attributes; a file with its content.
    pub(super) fn make_anew(
        &mut self,
        id: FileId,
        item: &Item,
        at: &At,
        object: &Object,
    ) -> Result<(), ReplicaError> {
        let name = || format!("cannot make object {id} in park");
        if !object.fixed.is_file() {
            let privileged = self.policy.privileged;
            self.tree
                .make_other(at.place(), &object.fixed, privileged)
                .doing(name)?;
            let handle = self.tree.handle(at.place()).doing(name)?;
            return attributes::apply(self.tree, handle.as_fd(), true, object, self.policy)
                .doing(name);
        }
        let file = self.tree.make_file(at.place()).doing(name)?;
        if item.rebuilt {
            self.copy_whole(id, &file)?;
        }
        self.write_content(id, item, &file)?;
        attributes::apply(self.tree, file.as_fd(), false, object, self.policy).doing(name)
    }

    fn make_staged(
        &mut self,
        id: FileId,
        item: &Item,
        log: usize,
        object: &Object,
    ) -> Result<(), ReplicaError> {
        let shelf = self.shelf(id);
        let files = files_name(self.delta.logs[log].number);
        let staged = self.tree.directory(&self.tree.redo, OsStr::new(&files));
        if let Ok(staged) = staged {
            let name = staged_name(id);
            match self
                .tree
                .rename((&staged, OsStr::new(&name)), shelf.place())
            {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                moved => moved.doing(|| format!("cannot move the staged file {id}"))?,
            }
        }
        let at = match self.locate(id)? {
            Some((at, seen)) if seen.kind == Kind::File => at,
            _ => {
                self.suspect(id);
                return self.make_anew(id, item, &shelf, object);
            }
        };
        let file = self.tree.file(at.place(), true);
        let file = file.doing(|| format!("cannot open the staged file {id}"))?;
        self.write_content(id, item, &file)?;
        attributes::apply(self.tree, file.as_fd(), false, object, self.policy)
            .doing(|| format!("cannot set the attributes of file {id}"))
    }

    fn vacate_all(&mut self) -> Result<(), ReplicaError> {
        for (spot, binding) in &self.delta.bindings {
            if let Some(old) = binding.old
                && !binding.over
            {
                self.vacate(spot, old)?;
            }
        }
        // What should have been moved to the shelf, and is nowhere.
        for (&id, item) in &self.delta.items {
            if item.moved() {
                self.make_missing(id, item)?;
            }
        }
        Ok(())
    }

    fn vacate(&mut self, spot: &Spot, old: FileId) -> Result<(), ReplicaError> {
        let Some(at) = self.at(spot)? else {
            return Ok(());
        };
        let Some(seen) = self.seen(&at)? else {
            return Ok(());
        };
        let Some(item) = self.delta.items.get(&old) else {
            return Ok(());
        };
        let action = || format!("cannot move {} away", spot.1);
        if seen.is_directory() != (item.kind == Kind::Directory) {
            // Not what the records say: somebody put it there.
            self.suspect(old);
            return self.tree.discard(at.place()).doing(action);
        }
        if item.kept > 0 && self.is_kept(old, &seen)? {
            return self.tree.unlink(at.place()).doing(action);
        }
        let shelf = self.old_shelf(old);
        match self.seen(&shelf)? {
            None => self.tree.rename(at.place(), shelf.place()).doing(action),
            Some(shelved) if shelved.is(&seen) => self.tree.unlink(at.place()).doing(action),
            Some(_) => self.tree.discard(at.place()).doing(action),
        }
    }

    /// Whether one of the names that an object keeps still holds what was seen.
    fn is_kept(&mut self, id: FileId, seen: &Seen) -> Result<bool, ReplicaError> {
        for spot in self.kept_names(id)? {
            if let Some(at) = self.at(&spot)?
                && self.seen(&at)?.is_some_and(|kept| kept.is(seen))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Somebody removed an object that is to be moved: an empty one takes its place, and the
    /// primary is told.
    fn make_missing(&mut self, id: FileId, item: &Item) -> Result<(), ReplicaError> {
        let shelf = self.shelf(id);
        if item.kind == Kind::Directory {
            if self.directory(id)?.is_some() {
                return Ok(());
            }
            self.tree
                .make_directory(shelf.place())
                .doing(|| format!("cannot make directory {id} again"))?;
        } else {
            if self.locate(id)?.is_some() {
                return Ok(());
            }
            let object = self.object(id)?;
            let bare = Item {
                content: Vec::new(),
                rebuilt: false,
                ..item.clone()
            };
            self.make_anew(id, &bare, &shelf, &object)?;
        }
        self.touched.insert(id);
        self.suspect(id);
        Ok(())
    }

    fn attributes_all(&mut self) -> Result<(), ReplicaError> {
        let mut directories = std::mem::take(&mut self.touched);
        for (&id, item) in &self.delta.items {
            if item.kind == Kind::Directory {
                if item.object.is_some() {
                    directories.insert(id);
                }
            } else if !item.made() && (item.object.is_some() || !item.content.is_empty()) {
                self.attributes_of(id)?;
            }
        }
        for id in directories {
            if !self.lives(id) {
                continue;
            }
            let Some(open) = self.directory(id)? else {
                continue;
            };
            let object = self.object(id)?;
            // It may be that only something else in its place was found.
            if object.fixed == Fixed::Directory {
                attributes::apply(self.tree, open.as_fd(), true, &object, self.policy)
                    .doing(|| format!("cannot set the attributes of directory {id}"))?;
            }
        }
        Ok(())
    }

    fn attributes_of(&mut self, id: FileId) -> Result<(), ReplicaError> {
        if !self.lives(id) {
            return Ok(());
        }
        let Some((at, _)) = self.locate(id)? else {
            return Ok(());
        };
        let object = self.object(id)?;
        let action = || format!("cannot set the attributes of {}", at.name.display());
        let handle = self.tree.handle(at.place()).doing(action)?;
        attributes::apply(self.tree, handle.as_fd(), true, &object, self.policy).doing(action)
    }

    /// Whether an object is there after the epoch.
    pub(super) fn lives(&self, id: FileId) -> bool {
        let doomed = self.delta.items.get(&id).is_some_and(Item::doomed);
        id == FileId::ROOT || (!doomed && !self.gone.contains(&id))
    }
}
