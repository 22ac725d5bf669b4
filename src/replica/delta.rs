//! What an apply has to do: the difference between the records and the state after one or more
//! epochs that are applied as one.
//!
//! A delta is a function of the records before and of the logs alone, so an apply that begins
//! again after a crash finds the same one, whatever state the tree is in.
//!
//! An object is *moved* if it lives on and every name it had is vacated, *doomed* if it has no
//! name after (what is only named in a doomed directory goes with it and is not looked at), and
//! *rebuilt* if its new content must be made in a new file beside the old one.

use super::ReplicaError;
use super::redo::{Index, Kind, Log};
use crate::model::{Body, Entry, EpochId, FileId, Name, Object};
use crate::records::Records;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// A name: the directory, and the name in it.
pub(super) type Spot = (FileId, Name);

/// An object as the records have it before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    pub kind: Kind,
    pub size: u64,
    pub links: u32,
}

/// A change of a file's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    /// The fragment at this place of this log.
    Fragment(usize, u64),
    /// The same, but it is in the staged file already.
    Direct(usize, u64),
    /// The file is cut or extended.
    Size(u64),
}

/// An object that is touched.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// As it was; `None`: it is new.
    pub known: Option<Known>,
    pub kind: Kind,
    /// Its final state, if it is said: in which log, and where.
    pub object: Option<(usize, u64)>,
    /// What happens to its content, in order.
    pub content: Vec<Op>,
    /// Names that it loses.
    pub vacated: Vec<Spot>,
    /// Names that it gets.
    pub attached: Vec<Spot>,
    /// How many names it keeps.
    pub kept: u32,
    /// In which log's directory its staged file is.
    pub staged: Option<usize>,
    pub rebuilt: bool,
}

/// What happens to a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Binding {
    pub old: Option<FileId>,
    pub new: Option<FileId>,
    /// The new object is moved over the old one, so that a reader finds one of them always.
    pub over: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Delta {
    pub logs: Vec<Arc<Log>>,
    pub items: BTreeMap<FileId, Item>,
    pub bindings: BTreeMap<Spot, Binding>,
    /// What is vacated and made must be durable before names are given out again: else a replay
    /// could take one object for another.
    pub marked: bool,
    /// The epoch that is reached.
    pub last: EpochId,
}

impl Item {
    /// Whether it has no name after.
    pub(super) fn doomed(&self) -> bool {
        self.kept == 0 && self.attached.is_empty()
    }

    /// Whether it lives on, but under none of the names it had.
    pub(super) fn moved(&self) -> bool {
        self.known.is_some() && self.kept == 0 && !self.attached.is_empty() && !self.rebuilt
    }

    /// Whether a new inode is made for it.
    pub(super) fn made(&self) -> bool {
        self.known.is_none() || self.rebuilt
    }

    /// How many names it has after.
    pub(super) fn links(&self) -> u64 {
        u64::from(self.kept) + self.attached.len() as u64
    }
}

/// Whether `next` can be applied together with the epochs before it. What it copies must come
/// from the state before it, so it cannot if it copies.
pub(super) fn joins(next: &Index) -> bool {
    next.files.values().all(|pieces| !pieces.copies)
}

impl Delta {
    /// The difference that these logs, in order, make to the records.
    pub(super) fn new(records: &Records, logs: Vec<Arc<Log>>) -> Result<Delta, ReplicaError> {
        let last = logs.last().map_or(EpochId(0), |log| log.epoch());
        let mut delta = Delta {
            logs,
            items: BTreeMap::new(),
            bindings: BTreeMap::new(),
            marked: false,
            last,
        };
        delta.take_bindings(records)?;
        delta.take_unsaid(records)?;
        delta.take_objects(records)?;
        let sources = delta.take_content(records)?;
        delta.decide_over(&sources);
        Ok(delta)
    }

    /// The final state of an object: from the logs, else from the records.
    pub(super) fn object(
        &self,
        records: &Records,
        id: FileId,
    ) -> Result<Option<Object>, ReplicaError> {
        match self.items.get(&id).and_then(|item| item.object) {
            Some((log, at)) => match self.logs[log].entry(at)?.0 {
                Entry::Object { object, .. } => Ok(Some(object)),
                _ => Err(self.logs[log].damaged(at)),
            },
            None => Ok(records.object(id)?.map(|record| record.object)),
        }
    }

    fn take_bindings(&mut self, records: &Records) -> Result<(), ReplicaError> {
        let logs = self.logs.clone();
        for log in &logs {
            for (spot, new) in &log.index.bindings {
                match self.bindings.get_mut(spot) {
                    Some(binding) => binding.new = *new,
                    None => {
                        let binding = Binding {
                            old: records.child(spot.0, &spot.1)?,
                            new: *new,
                            over: false,
                        };
                        self.bindings.insert(spot.clone(), binding);
                    }
                }
            }
        }
        self.bindings
            .retain(|_, binding| binding.old != binding.new);
        let bindings: Vec<(Spot, Binding)> = self
            .bindings
            .iter()
            .map(|(spot, binding)| (spot.clone(), *binding))
            .collect();
        for (spot, binding) in bindings {
            if let Some(item) = self.item(records, binding.old)? {
                item.kept = item.kept.saturating_sub(1);
                item.vacated.push(spot.clone());
            }
            if let Some(item) = self.item(records, binding.new)? {
                item.attached.push(spot);
            }
        }
        Ok(())
    }

    /// A directory that gets a name and is not said to lose its old one was in a directory that is
    /// gone. (What is no directory may keep such a name, until the trash is emptied.)
    fn take_unsaid(&mut self, records: &Records) -> Result<(), ReplicaError> {
        let moved = |item: &Item| {
            item.known
                .is_some_and(|known| known.kind == Kind::Directory)
                && item.kept > 0
                && !item.attached.is_empty()
        };
        let moved: Vec<FileId> = self
            .items
            .iter()
            .filter(|(_, item)| moved(item))
            .map(|(id, _)| *id)
            .collect();
        for id in moved {
            for spot in records.links(id, 1)? {
                let binding = Binding {
                    old: Some(id),
                    new: None,
                    over: false,
                };
                self.bindings.insert(spot.clone(), binding);
                if let Some(item) = self.items.get_mut(&id) {
                    item.kept = 0;
                    item.vacated.push(spot);
                }
            }
        }
        Ok(())
    }

    fn take_objects(&mut self, records: &Records) -> Result<(), ReplicaError> {
        for number in 0..self.logs.len() {
            let log = self.logs[number].clone();
            for (&id, &(at, kind)) in &log.index.objects {
                if let Some(item) = self.item(records, Some(id))? {
                    item.object = Some((number, at));
                    if item.known.is_none() {
                        item.kind = kind;
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the files that files in place copy from.
    fn take_content(&mut self, records: &Records) -> Result<HashSet<FileId>, ReplicaError> {
        let mut touched: Vec<FileId> = self
            .logs
            .iter()
            .flat_map(|log| log.index.files.keys().copied())
            .collect();
        touched.extend(
            self.items
                .iter()
                .filter(|(_, item)| item.kind == Kind::File && item.object.is_some())
                .map(|(id, _)| *id),
        );
        touched.sort_unstable();
        touched.dedup();
        let mut copying = Vec::new();
        for id in touched {
            let Some(item) = self.item(records, Some(id))? else {
                continue;
            };
            // Fragments of a file that came and went before its epoch was sealed.
            if item.kind != Kind::File || (item.known.is_none() && item.object.is_none()) {
                continue;
            }
            let known = item.known;
            let (content, staged, copies) = self.content(id, known)?;
            if copies {
                copying.push(id);
            }
            if let Some(item) = self.items.get_mut(&id) {
                item.content = content;
                item.staged = staged.filter(|_| known.is_none());
            }
        }
        self.take_copies(records, &copying)
    }

    fn content(
        &self,
        id: FileId,
        known: Option<Known>,
    ) -> Result<(Vec<Op>, Option<usize>, bool), ReplicaError> {
        let mut size = known.map(|known| known.size);
        let (mut content, mut staged, mut copies) = (Vec::new(), None, false);
        for (number, log) in self.logs.iter().enumerate() {
            let pieces = log.index.files.get(&id);
            if let Some(pieces) = pieces {
                copies |= pieces.copies;
                if pieces.direct > 0 {
                    staged = Some(number);
                }
                let op = |(index, at): (usize, &u64)| match index < pieces.direct {
                    true => Op::Direct(number, *at),
                    false => Op::Fragment(number, *at),
                };
                content.extend(pieces.at.iter().enumerate().map(op));
            }
            if let Some(&(at, Kind::File)) = log.index.objects.get(&id) {
                let Entry::Object { object, .. } = log.entry(at)?.0 else {
                    return Err(log.damaged(at));
                };
                if pieces.is_some() || size != Some(object.size) {
                    content.push(Op::Size(object.size));
                }
                size = Some(object.size);
            } else if let (Some(_), Some(size)) = (pieces, size) {
                content.push(Op::Size(size));
            }
        }
        Ok((content, staged, copies))
    }

    fn take_copies(
        &mut self,
        records: &Records,
        copying: &[FileId],
    ) -> Result<HashSet<FileId>, ReplicaError> {
        let mut in_place = HashSet::new();
        for &id in copying {
            let Some(item) = self.items.get(&id) else {
                continue;
            };
            self.marked = true;
            if item.known.is_none() {
                continue;
            }
            let mut sources = HashSet::new();
            for op in &item.content {
                if let Op::Fragment(log, at) = *op
                    && let Body::Copy { from, .. } = self.logs[log].fragment(at)?.0.body
                {
                    sources.insert(from);
                }
            }
            let changes = |from: &FileId| {
                *from == id
                    || self
                        .items
                        .get(from)
                        .is_some_and(|item| !item.content.is_empty())
            };
            if sources.iter().any(changes) {
                self.rebuild(records, id)?;
            } else {
                in_place.extend(sources);
            }
        }
        Ok(in_place)
    }

    /// All names of the file are vacated by the old object and given to a new one.
    fn rebuild(&mut self, records: &Records, id: FileId) -> Result<(), ReplicaError> {
        let names = records.links(id, usize::MAX)?;
        let Some(item) = self.items.get_mut(&id) else {
            return Ok(());
        };
        item.rebuilt = true;
        item.kept = 0;
        for spot in names {
            if item.vacated.contains(&spot) {
                continue;
            }
            item.vacated.push(spot.clone());
            item.attached.push(spot.clone());
            let binding = Binding {
                old: Some(id),
                new: Some(id),
                over: false,
            };
            self.bindings.insert(spot, binding);
        }
        Ok(())
    }

    fn decide_over(&mut self, sources: &HashSet<FileId>) {
        let mut marked = self.marked;
        for binding in self.bindings.values_mut() {
            let (Some(old), Some(new)) = (binding.old, binding.new) else {
                continue;
            };
            let (Some(from), Some(to)) = (self.items.get(&old), self.items.get(&new)) else {
                continue;
            };
            binding.over = from.doomed()
                && !from.rebuilt
                && from.kind != Kind::Directory
                && to.kind != Kind::Directory
                && !to.rebuilt
                && (to.attached.len() == 1 || to.kept > 0)
                && !sources.contains(&old);
            marked |= !binding.over;
        }
        self.marked = marked;
    }

    fn item(
        &mut self,
        records: &Records,
        id: Option<FileId>,
    ) -> Result<Option<&mut Item>, ReplicaError> {
        let Some(id) = id else { return Ok(None) };
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.items.entry(id) {
            let known = records.object(id)?.map(|record| Known {
                kind: Kind::of(&record.object.fixed),
                size: record.object.size,
                links: record.links,
            });
            vacant.insert(Item {
                known,
                kind: known.map_or(Kind::Other, |known| known.kind),
                object: None,
                content: Vec::new(),
                vacated: Vec::new(),
                attached: Vec::new(),
                kept: known.map_or(0, |known| known.links),
                staged: None,
                rebuilt: false,
            });
        }
        Ok(self.items.get_mut(&id))
    }
}
