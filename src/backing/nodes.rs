//! The table of objects that the kernel knows. FUSE's node id is the FileId.
//!
//! A node is entered by a lookup and vanishes when the kernel forgets it and nothing has it
//! open. While it is there its inode number means this id and no other; once the last name of
//! an object is gone and nothing holds its inode, the number may be reused by the file system, so
//! it means nothing any more. Order of locks: `keys`, then `nodes`; no call out under either.

use super::seen::Seen;
use super::types::{HandleId, Kind};
use crate::limits::{KEPT_DESCRIPTORS_MAX, NODE_PLACES_MAX};
use crate::model::{FileId, Name, Timestamp};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A name in a directory.
pub(super) type Place = (FileId, Name);

struct Node {
    lookups: u64,
    key: u64,
    birth: Timestamp,
    kind: Kind,
    place: Option<Place>,
    // Other names it was seen under (hard links).
    others: Vec<Place>,
    // None of its names is mirrored.
    excluded: bool,
    // The walk in whose time it was last compared with the known tree.
    verified: u64,
    handles: Vec<HandleId>,
    // Holds the inode of what has no name any more.
    kept: Option<Arc<OwnedFd>>,
}

/// What is known of a node.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub(super) key: u64,
    pub(super) birth: Timestamp,
    pub(super) kind: Kind,
    pub(super) excluded: bool,
    pub(super) verified: u64,
    pub(super) lookups: u64,
    pub(super) is_open: bool,
}

/// What a node is entered with.
pub(super) struct Arrival<'a> {
    pub(super) seen: &'a Seen,
    pub(super) place: Option<Place>,
    pub(super) excluded: bool,
}

/// The table.
#[derive(Default)]
pub(super) struct Nodes {
    nodes: DashMap<FileId, Node>,
    keys: DashMap<u64, FileId>,
    kept: AtomicUsize,
}

impl Nodes {
    /// The node of an object that was just seen, if there is one.
    pub(super) fn find(&self, seen: &Seen) -> Option<FileId> {
        let id = *self.keys.get(&seen.key)?;
        self.is_node(id, seen).then_some(id)
    }

    /// The node with an inode number of the root's file system.
    pub(super) fn by_inode(&self, inode: u64) -> Option<FileId> {
        self.keys.get(&inode).map(|id| *id)
    }

    /// Counts one lookup of an object that has a node, if nothing needs to be thought about:
    /// without locks, a directory's place may be that of a moment ago.
    pub(super) fn greet(&self, seen: &Seen, place: &Place) -> Option<FileId> {
        let key = self.keys.get(&seen.key)?;
        let id = *key;
        let mut node = self.nodes.get_mut(&id).filter(|node| node.is(seen))?;
        let moved = node.kind == Kind::Directory && node.place.as_ref() != Some(place);
        if moved || node.excluded {
            return None;
        }
        node.lookups += 1;
        node.take_place(place);
        Some(id)
    }

    /// Counts one lookup of the object, under the id that it has: the node's, else `candidate`.
    /// `None` if the candidate has meanwhile become the node of another object.
    pub(super) fn enter(&self, candidate: FileId, arrival: &Arrival<'_>) -> Option<FileId> {
        let seen = arrival.seen;
        let key = self.keys.entry(seen.key);
        let id = match &key {
            Entry::Occupied(held) if self.is_node(*held.get(), seen) => *held.get(),
            _ => candidate,
        };
        match self.nodes.entry(id) {
            Entry::Occupied(node) if !node.get().is(seen) => return None,
            Entry::Occupied(mut node) => {
                let node = node.get_mut();
                node.lookups += 1;
                node.excluded &= arrival.excluded;
                if let Some(place) = &arrival.place {
                    node.take_place(place);
                }
            }
            Entry::Vacant(slot) => {
                slot.insert(Node {
                    lookups: 1,
                    key: seen.key,
                    birth: seen.stamp.birth,
                    kind: seen.kind(),
                    place: arrival.place.clone(),
                    others: Vec::new(),
                    excluded: arrival.excluded,
                    verified: 0,
                    handles: Vec::new(),
                    kept: None,
                });
            }
        }
        key.insert(id);
        Some(id)
    }

    fn is_node(&self, id: FileId, seen: &Seen) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.is(seen))
    }

    pub(super) fn view(&self, id: FileId) -> Option<View> {
        self.nodes.get(&id).map(|node| View {
            key: node.key,
            birth: node.birth,
            kind: node.kind,
            excluded: node.excluded,
            verified: node.verified,
            lookups: node.lookups,
            is_open: !node.handles.is_empty(),
        })
    }

    /// The names it was seen under, the likeliest first.
    pub(super) fn places(&self, id: FileId) -> Vec<Place> {
        let Some(node) = self.nodes.get(&id) else {
            return Vec::new();
        };
        node.place.iter().chain(&node.others).cloned().collect()
    }

    /// The likeliest name.
    pub(super) fn place(&self, id: FileId) -> Option<Place> {
        self.nodes.get(&id)?.place.clone()
    }

    pub(super) fn set_verified(&self, id: FileId, walk: u64) {
        if let Some(mut node) = self.nodes.get_mut(&id) {
            node.verified = walk;
        }
    }

    pub(super) fn set_excluded(&self, id: FileId, excluded: bool) {
        if let Some(mut node) = self.nodes.get_mut(&id) {
            node.excluded = excluded;
        }
    }

    /// It was found under (or moved to) a name.
    pub(super) fn add_place(&self, id: FileId, place: &Place) {
        if let Some(mut node) = self.nodes.get_mut(&id) {
            node.take_place(place);
        }
    }

    /// It has lost a name. If that was the last (`gone`), its inode number means it only as long
    /// as something holds the inode.
    pub(super) fn remove_place(&self, id: FileId, place: &Place, gone: bool) {
        let Some(mut node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.others.retain(|other| other != place);
        if node.place.as_ref() == Some(place) {
            node.place = node.others.pop();
        }
        let loose = gone && node.handles.is_empty() && node.kept.is_none();
        let key = node.key;
        drop(node);
        if loose {
            self.keys.remove_if(&key, |_, held| *held == id);
        }
    }

    /// Holds a removed object until the kernel forgets it. Call before the removal.
    pub(super) fn keep(&self, id: FileId, descriptor: Arc<OwnedFd>) {
        if self.kept.load(Ordering::Relaxed) >= KEPT_DESCRIPTORS_MAX {
            return;
        }
        if let Some(mut node) = self.nodes.get_mut(&id)
            && node.kept.is_none()
        {
            node.kept = Some(descriptor);
            self.kept.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The removal has failed.
    pub(super) fn unkeep(&self, id: FileId) {
        if let Some(mut node) = self.nodes.get_mut(&id)
            && node.kept.take().is_some()
        {
            self.kept.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn kept(&self, id: FileId) -> Option<Arc<OwnedFd>> {
        self.nodes.get(&id)?.kept.clone()
    }

    pub(super) fn kept_count(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// The newest handle of the object first.
    pub(super) fn handles(&self, id: FileId) -> Vec<HandleId> {
        self.nodes.get(&id).map_or_else(Vec::new, |node| {
            node.handles.iter().rev().copied().collect()
        })
    }

    pub(super) fn attach(&self, id: FileId, handle: HandleId) {
        if let Some(mut node) = self.nodes.get_mut(&id) {
            node.handles.push(handle);
        }
    }

    pub(super) fn detach(&self, id: FileId, handle: HandleId) {
        let Some(mut node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.handles.retain(|held| *held != handle);
        let nameless = node.place.is_none() && node.kept.is_none() && node.handles.is_empty();
        let (unused, key) = (node.is_unused(), node.key);
        drop(node);
        if nameless {
            self.keys.remove_if(&key, |_, held| *held == id);
        }
        if unused {
            self.drop_unused(id, key);
        }
    }

    /// The kernel gives back `count` lookups. Whether that was the end of the node.
    pub(super) fn forget(&self, id: FileId, count: u64) -> bool {
        if id == FileId::ROOT {
            return false;
        }
        let Some(mut node) = self.nodes.get_mut(&id) else {
            return false;
        };
        node.lookups = node.lookups.saturating_sub(count);
        let (unused, key) = (node.is_unused(), node.key);
        drop(node);
        unused && self.drop_unused(id, key)
    }

    fn drop_unused(&self, id: FileId, key: u64) -> bool {
        let entry = self.keys.entry(key);
        let Some((_, node)) = self.nodes.remove_if(&id, |_, node| node.is_unused()) else {
            return false;
        };
        if let Entry::Occupied(held) = entry
            && *held.get() == id
        {
            held.remove();
        }
        if node.kept.is_some() {
            self.kept.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }

    /// The kernel has forgotten everything.
    pub(super) fn forget_all(&self) {
        self.nodes.retain(|id, _| *id == FileId::ROOT);
        self.keys.retain(|_, id| *id == FileId::ROOT);
        self.kept.store(0, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }
}

impl Node {
    fn is(&self, seen: &Seen) -> bool {
        self.key == seen.key && self.birth == seen.stamp.birth && self.kind == seen.kind()
    }

    fn is_unused(&self) -> bool {
        self.lookups == 0 && self.handles.is_empty()
    }

    fn take_place(&mut self, place: &Place) {
        if self.place.as_ref() == Some(place) {
            return;
        }
        self.others.retain(|other| other != place);
        if let Some(before) = self.place.replace(place.clone())
            && self.kind != Kind::Directory
        {
            if self.others.len() >= NODE_PLACES_MAX {
                self.others.remove(0);
            }
            self.others.push(before);
        }
    }
}
