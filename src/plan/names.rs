//! Which objects have a name after the epoch.

use super::{EpochView, Index, PlanError};
use crate::limits::RELATIVE_NAMES_MAX;
use crate::model::{FileId, Name};
use std::collections::{HashMap, HashSet};

/// The names of the epoch over those of the index.
pub(super) struct Names<'a> {
    index: &'a dyn Index,
    bindings: Vec<Binding>,
    // (parent, name) that the epoch binds.
    bound: HashSet<(FileId, Name)>,
    // The parents in which the epoch names an object.
    parents: HashMap<FileId, Vec<FileId>>,
    // Whether a directory can be reached from the root.
    reachable: HashMap<FileId, bool>,
}

/// A name that the epoch binds.
pub(super) struct Binding {
    pub(super) parent: FileId,
    pub(super) name: Name,
    /// What it held.
    pub(super) before: Option<FileId>,
    /// What it holds.
    pub(super) after: Option<FileId>,
}

impl<'a> Names<'a> {
    pub(super) fn new(sealed: &dyn EpochView, index: &'a dyn Index) -> Result<Self, PlanError> {
        let mut names = Names {
            index,
            bindings: Vec::new(),
            bound: HashSet::new(),
            parents: HashMap::new(),
            reachable: HashMap::from([(FileId::ROOT, true)]),
        };
        for (parent, name, after) in sealed.bindings() {
            if let Some(object) = after {
                names.parents.entry(object).or_default().push(parent);
            }
            let before = index.child(parent, &name)?;
            names.bound.insert((parent, name.clone()));
            names.bindings.push(Binding {
                parent,
                name,
                before,
                after,
            });
        }
        Ok(names)
    }

    pub(super) fn take_bindings(&mut self) -> Vec<Binding> {
        std::mem::take(&mut self.bindings)
    }

    /// A name of an object, if the epoch binds few enough to be a person's work and no first sync.
    pub(super) fn of_few(&self, id: FileId) -> Result<Option<(FileId, Name)>, PlanError> {
        if self.bindings.len() > RELATIVE_NAMES_MAX {
            return Ok(None);
        }
        let bound = self
            .bindings
            .iter()
            .find(|binding| binding.after == Some(id));
        match bound {
            Some(binding) => Ok(Some((binding.parent, binding.name.clone()))),
            None => Ok(self.index.links(id, 1)?.pop()),
        }
    }

    /// What the epoch names.
    pub(super) fn targets(&self) -> Vec<FileId> {
        self.parents.keys().copied().collect()
    }

    /// Whether an object has a name in a directory that can be reached from the root.
    pub(super) fn is_alive(&mut self, id: FileId) -> Result<bool, PlanError> {
        if id == FileId::ROOT {
            return Ok(true);
        }
        for parent in self.parents.get(&id).cloned().unwrap_or_default() {
            if self.is_reachable(parent)? {
                return Ok(true);
            }
        }
        // Most objects have one name or two; only who has many is asked for all.
        let mut most = 8;
        loop {
            let links = self.index.links(id, most)?;
            let all = links.len() < most;
            for link in links {
                if !self.bound.contains(&link) && self.is_reachable(link.0)? {
                    return Ok(true);
                }
            }
            if all {
                return Ok(false);
            }
            most *= 8;
        }
    }

    // A directory has one name, so this follows one way up.
    fn is_reachable(&mut self, directory: FileId) -> Result<bool, PlanError> {
        let mut way = vec![directory];
        let found = loop {
            let Some(&at) = way.last() else { break false };
            if let Some(&known) = self.reachable.get(&at) {
                break known;
            }
            // What leads back to itself leads nowhere.
            self.reachable.insert(at, false);
            match self.parent(at)? {
                Some(parent) => way.push(parent),
                None => break false,
            }
        };
        self.reachable.extend(way.into_iter().map(|at| (at, found)));
        Ok(found)
    }

    fn parent(&self, directory: FileId) -> Result<Option<FileId>, PlanError> {
        if let Some(parent) = self
            .parents
            .get(&directory)
            .and_then(|parents| parents.first())
        {
            return Ok(Some(*parent));
        }
        let links = self.index.links(directory, 2)?;
        Ok(links
            .into_iter()
            .find(|link| !self.bound.contains(link))
            .map(|(parent, _)| parent))
    }
}
