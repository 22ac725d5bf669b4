//! The known tree: the names of the open epoch over those of the sealed one over the index.

use super::epoch::{Epoch, Holder};
use super::{Error, Journal, Result};
use crate::model::{FileId, Name, Timestamp};
use crate::records::Records;
use std::collections::{BTreeMap, HashSet};

/// How many names of an index or an overlay are looked at in one go, at least.
const PAGE_MIN: usize = 16;

/// What the replica holds, as far as the journal asks.
pub(crate) trait Known: Send + Sync {
    /// What a name holds.
    fn child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>>;
    /// Names of a directory in order, behind `after`.
    fn children(
        &self,
        parent: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, FileId)>>;
    /// Names of an object.
    fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>>;
    /// The size of an object; `None`: there is no such object.
    fn size(&self, id: FileId) -> Result<Option<u64>>;
    /// The object that was last seen with this inode number.
    fn by_inode(&self, inode: u64) -> Result<Option<FileId>>;
}

impl Known for Records {
    fn child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>> {
        Records::child(self, parent, name).map_err(unreadable)
    }
    fn children(
        &self,
        parent: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, FileId)>> {
        Records::children(self, parent, after, max).map_err(unreadable)
    }
    fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>> {
        Records::links(self, id, max).map_err(unreadable)
    }
    fn size(&self, id: FileId) -> Result<Option<u64>> {
        let record = self.object(id).map_err(unreadable)?;
        Ok(record.map(|record| record.object.size))
    }
    fn by_inode(&self, inode: u64) -> Result<Option<FileId>> {
        Records::by_inode(self, inode).map_err(unreadable)
    }
}

fn unreadable(error: crate::records::Error) -> Error {
    Error::Index(Box::new(error))
}

/// Overlays over the index, the newest first.
pub(super) struct Layers<'a> {
    pub overlays: [Option<&'a Epoch>; 2],
    pub index: &'a dyn Known,
}

impl<'a> Layers<'a> {
    fn overlays(&self) -> impl DoubleEndedIterator<Item = &'a Epoch> {
        self.overlays.into_iter().flatten()
    }

    /// Whether the index cannot know the object.
    pub fn is_new(&self, id: FileId) -> bool {
        self.overlays().any(|overlay| overlay.is_new(id))
    }

    /// What the overlays say of a name. Of a directory that is new in one of them nothing older
    /// is true: it is as old as that, or the layers below are about to lose it.
    pub fn overlay_child(&self, parent: FileId, name: &Name) -> Option<Holder> {
        for overlay in self.overlays() {
            let held = overlay.child(parent, name);
            if held.is_some() {
                return held;
            }
            if overlay.is_new(parent) {
                return Some(None);
            }
        }
        None
    }

    pub fn child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>> {
        match self.overlay_child(parent, name) {
            Some(holder) => Ok(holder),
            None => self.index.child(parent, name),
        }
    }

    pub fn children(
        &self,
        parent: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, FileId)>> {
        let newest = self.overlays().position(|overlay| overlay.is_new(parent));
        let depth = newest.map_or(self.overlays.len(), |at| at + 1);
        let mut after = after.cloned();
        let mut found = Vec::new();
        while found.len() < max {
            let page = (max - found.len()).max(PAGE_MIN);
            let mut merged = Merged::default();
            if newest.is_none() {
                let rows = self.index.children(parent, after.as_ref(), page)?;
                merged.add(rows.into_iter().map(|(name, id)| (name, Some(id))), page);
            }
            for overlay in self
                .overlays()
                .take(depth)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                let rows = overlay.children(parent, after.as_ref(), page);
                merged.add(rows.into_iter(), page);
            }
            let Merged { names, complete_to } = merged;
            let complete = |name: &Name| complete_to.as_ref().is_none_or(|to| name <= to);
            let rows = names.into_iter().take_while(|(name, _)| complete(name));
            found.extend(rows.filter_map(|(name, holder)| Some((name, holder?))));
            after = complete_to;
            if after.is_none() {
                break;
            }
        }
        found.truncate(max);
        Ok(found)
    }

    pub fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>> {
        let mut found = Vec::new();
        let [newest, older] = self.overlays;
        if let Some(newest) = newest {
            found.extend(newest.links(id));
        }
        let masked = |parent: FileId, name: &Name| {
            newest
                .is_some_and(|newest| newest.child(parent, name).is_some() || newest.is_new(parent))
        };
        if let Some(older) = older {
            found.extend(
                older
                    .links(id)
                    .into_iter()
                    .filter(|(p, name)| !masked(*p, name)),
            );
        }
        let mut ask = max;
        while found.len() < max && !self.is_new(id) {
            let rows = self.index.links(id, ask)?;
            let complete = rows.len() < ask;
            let unmasked =
                |(parent, name): &(FileId, Name)| self.overlay_child(*parent, name).is_none();
            let kept: Vec<_> = rows.into_iter().filter(unmasked).collect();
            if complete || found.len() + kept.len() >= max {
                found.extend(kept);
                break;
            }
            ask = ask.saturating_mul(2);
        }
        found.truncate(max);
        Ok(found)
    }

    /// Whether a name of the object leads up to the root.
    pub fn is_reachable(&self, id: FileId) -> Result<bool> {
        let mut seen = HashSet::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if id == FileId::ROOT {
                return Ok(true);
            }
            if seen.insert(id) {
                open.extend(
                    self.links(id, usize::MAX)?
                        .into_iter()
                        .map(|(parent, _)| parent),
                );
            }
        }
        Ok(false)
    }
}

/// Pages of several layers, the oldest first, as far as all of them were read.
#[derive(Default)]
struct Merged {
    names: BTreeMap<Name, Holder>,
    complete_to: Option<Name>,
}

impl Merged {
    fn add(&mut self, rows: impl ExactSizeIterator<Item = (Name, Holder)>, page: usize) {
        let cut = rows.len() >= page;
        let mut last = None;
        for (name, holder) in rows {
            if cut {
                last = Some(name.clone());
            }
            self.names.insert(name, holder);
        }
        if let Some(last) = last {
            let sooner = self.complete_to.as_ref().is_none_or(|to| last < *to);
            if sooner {
                self.complete_to = Some(last);
            }
        }
    }
}

impl Journal {
    fn look<T>(&self, look: impl FnOnce(&Layers<'_>) -> T) -> T {
        let view = self.view();
        let sealed = view.sealed.as_ref().map(|sealed| sealed.epoch_map());
        look(&Layers {
            overlays: [Some(&view.open), sealed],
            index: &*self.index,
        })
    }

    /// What a name holds in the known tree. Exact under the lock of the directory.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn known_child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>> {
        self.look(|layers| layers.child(parent, name))
    }

    /// Up to `max` names of a directory in the known tree, in order, behind `after`; fewer only
    /// at its end.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn known_children(
        &self,
        parent: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, FileId)>> {
        self.look(|layers| layers.children(parent, after, max))
    }

    /// Up to `max` names of an object in the known tree. Without the locks of its directories
    /// they may be those of a moment ago.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn known_links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>> {
        self.look(|layers| layers.links(id, max))
    }

    /// Whether the object is in the known tree: one of its names leads up to the root. What has
    /// names only in a directory that was moved out of the tree is not in it, and goes with that
    /// directory. Reads the index once for each directory above.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn is_reachable(&self, id: FileId) -> Result<bool> {
        self.look(|layers| layers.is_reachable(id))
    }

    /// Whether the object is new or in the index. It may be without a name by now.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn known_object(&self, id: FileId) -> Result<bool> {
        self.look(|layers| Ok(layers.is_new(id) || layers.index.size(id)?.is_some()))
    }

    /// What a name holds if the open or the sealed epoch touched it; no I/O.
    pub fn overlay_child(&self, parent: FileId, name: &Name) -> Option<Option<FileId>> {
        self.look(|layers| layers.overlay_child(parent, name))
    }

    /// The inode number and the birth that an object had when it was recorded as made or found in
    /// the open or the sealed epoch; no I/O. What has none of these is as the index says.
    pub fn overlay_place(&self, id: FileId) -> Option<(u64, Timestamp)> {
        let place = |epoch: &Epoch| epoch.with(id, |change| change.place).flatten();
        self.look(|layers| layers.overlays().find_map(place))
    }

    /// The object that was recorded with this inode number and several names in the open or the
    /// sealed epoch, while it still has one there; no I/O.
    pub fn overlay_by_inode(&self, inode: u64) -> Option<FileId> {
        self.look(|layers| {
            let id = layers
                .overlays()
                .find_map(|overlay| overlay.by_inode(inode))?;
            // An inode number is free for others once the last name is gone.
            layers
                .overlays()
                .any(|overlay| overlay.has_link(id))
                .then_some(id)
        })
    }

    /// As [`Journal::overlay_by_inode`], else what the index was told: a hint that proves
    /// nothing.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn known_by_inode(&self, inode: u64) -> Result<Option<FileId>> {
        match self.overlay_by_inode(inode) {
            Some(id) => Ok(Some(id)),
            None => self.index.by_inode(inode),
        }
    }
}
