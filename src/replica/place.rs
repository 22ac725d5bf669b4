//! Where objects are while an epoch is applied.
//!
//! An object that is on its way is in `park` (or in `trash`, if it is doomed) under its id. All
//! others are at one of their names: before names are given out at an old one, after that at a
//! new one. A directory's place is that of its parent and its name in it, from the root down.

use super::ReplicaError;
use super::apply::Apply;
use super::attributes;
use super::delta::{Item, Spot};
use super::error::Doing;
use super::redo::Kind;
use super::tree::{Seen, os};
use crate::model::FileId;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// How many kept names of an object are looked at.
const KEPT_LOOKED_AT: usize = 8;

/// How deep a replay searches that is not sure where directories are.
const DEPTH_MAX: usize = 4096;

/// An entry of an open directory.
#[derive(Clone, Debug)]
pub(super) struct At {
    pub directory: Rc<OwnedFd>,
    pub name: OsString,
}

impl At {
    pub(super) fn place(&self) -> (&OwnedFd, &OsStr) {
        (&self.directory, &self.name)
    }
}

/// Whether an error says that there is no such directory (or something else in its place).
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV)
    )
}

impl Apply<'_> {
    /// The name of an object on a shelf. What an earlier apply has left is not mistaken for it.
    pub(super) fn shelf_name(&self, id: FileId) -> OsString {
        format!("{}-{id}", self.delta.last).into()
    }

    /// An entry of `park`, for what an object needs on its way.
    pub(super) fn temporary(&self, id: FileId, what: &str) -> At {
        At {
            directory: self.park.clone(),
            name: format!("{}-{id}.{what}", self.delta.last).into(),
        }
    }

    /// The shelf that an object is on while it is on its way.
    pub(super) fn shelf(&self, id: FileId) -> At {
        let doomed = self.delta.items.get(&id).is_some_and(Item::doomed);
        let directory = if doomed { &self.trash } else { &self.park };
        At {
            directory: directory.clone(),
            name: self.shelf_name(id),
        }
    }

    /// The shelf that the old object of a rebuilt file, or a doomed one, is on.
    pub(super) fn old_shelf(&self, id: FileId) -> At {
        let item = self.delta.items.get(&id);
        let gone = item.is_some_and(|item| item.doomed() || item.rebuilt);
        let directory = if gone { &self.trash } else { &self.park };
        At {
            directory: directory.clone(),
            name: self.shelf_name(id),
        }
    }

    pub(super) fn seen(&self, at: &At) -> Result<Option<Seen>, ReplicaError> {
        self.tree
            .seen(at.place())
            .doing(|| format!("cannot look at {}", at.name.display()))
    }

    /// Names that an object keeps, some of them.
    pub(super) fn kept_names(&self, id: FileId) -> Result<Vec<Spot>, ReplicaError> {
        let Some(item) = self.delta.items.get(&id) else {
            return Ok(self.records.links(id, KEPT_LOOKED_AT)?);
        };
        if item.kept == 0 {
            return Ok(Vec::new());
        }
        let max = item.vacated.len() + KEPT_LOOKED_AT;
        let mut names = self.records.links(id, max)?;
        names.retain(|spot| !item.vacated.contains(spot));
        Ok(names)
    }

    /// The names that an object can be found at now, the likeliest first.
    fn names(&self, id: FileId) -> Result<Vec<Spot>, ReplicaError> {
        let mut names = self.kept_names(id)?;
        if let Some(item) = self.delta.items.get(&id) {
            if !self.giving && !item.rebuilt {
                names.extend(item.vacated.iter().cloned());
            }
            if self.may_be_attached() {
                names.extend(item.attached.iter().cloned());
            }
        }
        Ok(names)
    }

    /// Whether an object may already be at a new name: names are being given out, or were before
    /// a crash.
    pub(super) fn may_be_attached(&self) -> bool {
        self.giving || (self.replay && !self.delta.marked)
    }

    /// An open directory of the tree; `None` if it is not there. While names are given out it is
    /// made again.
    pub(super) fn directory(&mut self, id: FileId) -> Result<Option<Rc<OwnedFd>>, ReplicaError> {
        if self.replay && !self.giving && !self.delta.marked {
            return self.search(id);
        }
        // Up to a directory that is known, then down again; without recursion, since the depth
        // is the primary's choice.
        let mut path: Vec<(FileId, Spot)> = Vec::new();
        let mut at = id;
        let mut open = loop {
            if let Some(open) = self.open_directory(at)? {
                break open;
            }
            let Some(spot) = self.names(at)?.into_iter().next() else {
                return Ok(None);
            };
            let parent = spot.0;
            path.push((at, spot));
            at = parent;
        };
        while let Some((id, spot)) = path.pop() {
            open = match self.descend(&open, id, &spot)? {
                Some(found) => found,
                None if self.giving => self.make_again(&open, id, &spot)?,
                None => return Ok(None),
            };
        }
        Ok(Some(open))
    }

    /// The same in a replay that cannot know whether a directory is at its old or its new name:
    /// all ways up are tried.
    fn search(&mut self, id: FileId) -> Result<Option<Rc<OwnedFd>>, ReplicaError> {
        if let Some(open) = self.open_directory(id)? {
            return Ok(Some(open));
        }
        if self.visiting.len() >= DEPTH_MAX || !self.visiting.insert(id) {
            return Ok(None);
        }
        let mut found = Ok(None);
        for spot in self.names(id)? {
            found = match self.search(spot.0) {
                Ok(Some(parent)) => self.descend(&parent, id, &spot),
                other => other,
            };
            if !matches!(found, Ok(None)) {
                break;
            }
        }
        self.visiting.remove(&id);
        found
    }

    fn open_directory(&mut self, id: FileId) -> Result<Option<Rc<OwnedFd>>, ReplicaError> {
        if id == FileId::ROOT {
            return Ok(Some(self.root.clone()));
        }
        if let Some(open) = self.directories.get(&id) {
            return Ok(Some(open.clone()));
        }
        if !self.delta.items.contains_key(&id) {
            return Ok(None);
        }
        let shelf = self.shelf(id);
        match self.tree.way(shelf.place()) {
            Ok(open) => Ok(Some(self.keep(id, open))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error).doing(|| format!("cannot open {}", shelf.name.display())),
        }
    }

    fn keep(&mut self, id: FileId, open: OwnedFd) -> Rc<OwnedFd> {
        if !self.policy.privileged
            && let Err(error) = attributes::let_us_in(open.as_fd())
        {
            tracing::debug!(%error, %id, "a directory that is not ours");
        }
        let open = Rc::new(open);
        self.directories.put(id, open.clone());
        open
    }

    /// From the open parent into the directory, if it is there.
    fn descend(
        &mut self,
        parent: &Rc<OwnedFd>,
        id: FileId,
        (_, name): &Spot,
    ) -> Result<Option<Rc<OwnedFd>>, ReplicaError> {
        match self.tree.way((parent, os(name))) {
            Ok(open) => Ok(Some(self.keep(id, open))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error).doing(|| format!("cannot open {name}")),
        }
    }

    /// Somebody removed a directory of the tree, or put something in its place.
    fn make_again(
        &mut self,
        parent: &Rc<OwnedFd>,
        id: FileId,
        (_, name): &Spot,
    ) -> Result<Rc<OwnedFd>, ReplicaError> {
        let place = (&**parent, os(name));
        let made = self
            .tree
            .discard(place)
            .and_then(|()| self.tree.make_directory(place));
        let open = made.and_then(|()| self.tree.way(place));
        self.suspect(id);
        self.touched.insert(id);
        let open = open.doing(|| format!("cannot make {name} again"))?;
        Ok(self.keep(id, open))
    }

    /// A name as an entry of an open directory; `None` if the directory is not there.
    pub(super) fn at(&mut self, spot: &Spot) -> Result<Option<At>, ReplicaError> {
        Ok(self.directory(spot.0)?.map(|directory| At {
            directory,
            name: os(&spot.1).to_os_string(),
        }))
    }

    /// Where an object that is no directory is now, and what is there.
    pub(super) fn locate(&mut self, id: FileId) -> Result<Option<(At, Seen)>, ReplicaError> {
        let shelf = self.shelf(id);
        if self.delta.items.contains_key(&id)
            && let Some(seen) = self.seen(&shelf)?
        {
            return Ok(Some((shelf, seen)));
        }
        let names = self.names(id)?;
        self.first_of(&names)
    }

    /// Where the file is that had this id before the epoch.
    pub(super) fn locate_before(&mut self, id: FileId) -> Result<Option<At>, ReplicaError> {
        let item = self.delta.items.get(&id);
        if item.is_some_and(|item| item.known.is_none()) {
            return Ok(None);
        }
        let rebuilt = item.is_some_and(|item| item.rebuilt);
        if item.is_some() {
            let shelf = self.old_shelf(id);
            if self.seen(&shelf)?.is_some() {
                return Ok(Some(shelf));
            }
        }
        let names = match (rebuilt, self.giving) {
            (true, true) => Vec::new(),
            (true, false) => {
                let item = self.delta.items.get(&id);
                item.map_or_else(Vec::new, |item| item.vacated.clone())
            }
            _ => self.names(id)?,
        };
        let found = self.first_of(&names)?;
        Ok(found
            .filter(|(_, seen)| seen.kind == Kind::File)
            .map(|(at, _)| at))
    }

    fn first_of(&mut self, names: &[Spot]) -> Result<Option<(At, Seen)>, ReplicaError> {
        for spot in names {
            let Some(at) = self.at(spot)? else { continue };
            if let Some(seen) = self.seen(&at)?
                && !seen.is_directory()
            {
                return Ok(Some((at, seen)));
            }
        }
        Ok(None)
    }
}
