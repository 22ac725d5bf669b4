//! A tree that is changed through a journal, as backing does it.

use super::ship::Plan;
use super::tree::{Index, State, Tree};
use super::{name, scratch, start};
use crate::journal::hot_log::Log;
use crate::journal::{Journal, Limits};
use crate::model::{Extent, FileId, Fixed, Name, Object, Stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub struct World {
    pub tree: Tree,
    pub index: Arc<Index>,
    pub journal: Journal,
    pub state: tempfile::TempDir,
    pub hot_slots: usize,
    pub plan: Option<Plan>,
    pub stage: Vec<(FileId, u64, Vec<u8>)>,
    /// No link; what the replica will turn out to have, if that is another state.
    pub offline: Option<Option<State>>,
    pub unlinked: Vec<FileId>,
    pub time: i64,
    pub changes: u64,
    // mark -> changes before it
    pub marks: Vec<(u64, u64)>,
    // Written in place, and since when not committed.
    pub hot: BTreeMap<FileId, u64>,
}

impl World {
    pub fn new(limits: Limits) -> World {
        let state = scratch();
        let index = Arc::new(Index::default());
        *index.0.lock() = State::empty();
        let hot_slots = limits.hot_files_max * 2 + 2;
        let (journal, _) = start(state.path(), Arc::clone(&index) as Arc<_>, limits);
        journal.suspects_settled();
        World {
            tree: Tree::new(),
            index,
            journal,
            state,
            hot_slots,
            plan: None,
            stage: Vec::new(),
            offline: None,
            unlinked: Vec::new(),
            time: 0,
            changes: 0,
            marks: Vec::new(),
            hot: BTreeMap::new(),
        }
    }

    /// The time of a change that is recorded.
    pub fn tick(&mut self) -> i64 {
        self.changes += 1;
        self.unseen_tick()
    }

    pub fn unseen_tick(&mut self) -> i64 {
        self.time += 1;
        self.time
    }

    pub fn pick(&self, at: usize, wanted: impl Fn(&Object) -> bool) -> Option<FileId> {
        let objects = self.tree.objects.lock();
        let ids: Vec<FileId> = objects
            .iter()
            .filter(|(id, (object, _))| wanted(object) && self.tree.is_mirrored(**id))
            .map(|(id, _)| *id)
            .collect();
        ids.get(at % ids.len().max(1)).copied()
    }

    pub fn directory(&self, at: usize) -> FileId {
        self.pick(at, |object| object.fixed.is_directory())
            .expect("the root")
    }

    pub fn file(&self, at: usize) -> Option<FileId> {
        self.pick(at, |object| object.fixed.is_file())
    }

    pub fn holder(&self, directory: FileId, name: &Name) -> Option<FileId> {
        self.tree
            .names
            .lock()
            .get(&(directory, name.clone()))
            .copied()
    }

    pub fn a_name(&self, at: usize) -> Option<((FileId, Name), FileId)> {
        let names = self.tree.mirrored_names();
        names
            .iter()
            .nth(at % names.len().max(1))
            .map(|(name, id)| (name.clone(), *id))
    }

    pub fn is_directory(&self, id: FileId) -> bool {
        self.tree.with(id, |object, _| object.fixed.is_directory())
    }

    pub fn is_empty(&self, id: FileId) -> bool {
        !self
            .tree
            .names
            .lock()
            .keys()
            .any(|(parent, _)| *parent == id)
    }

    pub fn links(&self, id: FileId) -> usize {
        self.tree
            .names
            .lock()
            .values()
            .filter(|held| **held == id)
            .count()
    }

    pub fn is_below(&self, mut id: FileId, above: FileId) -> bool {
        loop {
            if id == above {
                return true;
            }
            let names = self.tree.names.lock();
            let Some(((parent, _), _)) = names.iter().find(|(_, held)| **held == id) else {
                return false;
            };
            let parent = *parent;
            drop(names);
            id = parent;
        }
    }

    pub fn create(&mut self, directory: FileId, name: &Name, is_directory: bool) {
        if self.holder(directory, name).is_some() {
            return;
        }
        let time = self.tick();
        let id = self.journal.mint();
        let operation = self.journal.begin();
        operation
            .before_attributes(directory, &self.tree)
            .expect("ok");
        self.tree.create(
            id,
            if is_directory {
                Fixed::Directory
            } else {
                Fixed::File
            },
        );
        self.tree.names.lock().insert((directory, name.clone()), id);
        self.tree.touch(directory, time);
        operation.created(id, &Stamp::default(), 1);
        operation.bind(directory, name, id);
    }

    pub fn link(&mut self, id: FileId, directory: FileId, name: &Name) {
        if self.holder(directory, name).is_some() {
            return;
        }
        let time = self.tick();
        let operation = self.journal.begin();
        operation
            .before_attributes(directory, &self.tree)
            .expect("ok");
        operation.before_attributes(id, &self.tree).expect("ok");
        self.tree.names.lock().insert((directory, name.clone()), id);
        self.tree.touch(directory, time);
        operation.bind(directory, name, id);
    }

    pub fn unlink(&mut self, directory: FileId, name: &Name, id: FileId) {
        if self.is_directory(id) && !self.is_empty(id) {
            return;
        }
        let time = self.tick();
        let operation = self.journal.begin();
        operation
            .before_attributes(directory, &self.tree)
            .expect("ok");
        let last = self.links(id) == 1;
        operation.before_unlink(id, last, &self.tree).expect("ok");
        self.tree.names.lock().remove(&(directory, name.clone()));
        self.tree.touch(directory, time);
        operation.unbind(directory, name);
        drop(operation);
        self.gone(id);
    }

    /// Some unlinked files stay open, others are gone for good.
    pub fn gone(&mut self, id: FileId) {
        if self.links(id) > 0 {
            return;
        }
        if id.0.is_multiple_of(2) && !self.is_directory(id) {
            self.unlinked.push(id);
        } else {
            self.tree.objects.lock().remove(&id);
        }
    }

    pub fn rename(&mut self, from: usize, directory: FileId, name: &Name, unbind_first: bool) {
        let Some(((old_directory, old_name), id)) = self.a_name(from) else {
            return;
        };
        let victim = self.holder(directory, name);
        let moved_below_itself = self.is_directory(id) && self.is_below(directory, id);
        let fits = victim.is_none_or(|victim| {
            self.is_directory(victim) == self.is_directory(id) && self.is_empty(victim)
        });
        if victim == Some(id) || moved_below_itself || !fits {
            return;
        }
        let time = self.tick();
        let operation = self.journal.begin();
        for touched in [old_directory, directory, id] {
            operation
                .before_attributes(touched, &self.tree)
                .expect("ok");
        }
        if let Some(victim) = victim {
            let last = self.links(victim) == 1;
            operation
                .before_unlink(victim, last, &self.tree)
                .expect("ok");
        }
        {
            let mut names = self.tree.names.lock();
            names.remove(&(old_directory, old_name.clone()));
            names.insert((directory, name.clone()), id);
        }
        self.tree.touch(old_directory, time);
        self.tree.touch(directory, time);
        if unbind_first {
            operation.unbind(old_directory, &old_name);
            operation.bind(directory, name, id);
        } else {
            operation.bind(directory, name, id);
            operation.unbind(old_directory, &old_name);
        }
        drop(operation);
        if let Some(victim) = victim {
            self.gone(victim);
        }
    }

    pub fn write(&mut self, id: FileId, offset: u64, length: u64) {
        let time = self.tick();
        let bytes = vec![time as u8 | 1; length as usize];
        let extent = Extent::new(offset, length);
        let operation = self.journal.begin();
        operation.before_data(id, extent, &self.tree).expect("ok");
        if self.index.0.lock().objects.contains_key(&id) {
            let generation = self.journal.view().open.generation;
            self.hot.insert(id, generation);
        }
        self.check_hot();
        self.tree.with(id, |_, file| {
            file.expect("a file")
                .write_all_at(&bytes, offset)
                .expect("written");
        });
        self.tree.touch(id, time);
        operation.data(id, extent);
    }

    pub fn truncate(&mut self, id: FileId, size: u64) {
        let time = self.tick();
        let old = self.tree.with(id, |object, _| object.size);
        let operation = self.journal.begin();
        let extent = Extent::between(old.min(size), old.max(size));
        operation.before_data(id, extent, &self.tree).expect("ok");
        self.tree.with(id, |_, file| {
            file.expect("a file").set_len(size).expect("cut")
        });
        self.tree.touch(id, time);
        operation.truncated(id, old, size);
    }

    pub fn attributes(&mut self, id: FileId, extended: bool) {
        let time = self.tick();
        let operation = self.journal.begin();
        operation.before_attributes(id, &self.tree).expect("ok");
        self.tree.with(id, |object, _| {
            if extended {
                object
                    .xattrs
                    .insert(b"user.x"[..].into(), time.to_le_bytes()[..].into());
            } else {
                object.attributes.mode = time as u32 & 0o777;
            }
        });
        if extended {
            operation.xattrs(id)
        } else {
            operation.attributes(id)
        }
    }

    /// Somebody writes to the backing directory, and a walk finds it.
    pub fn outside(&mut self, id: FileId, size: u64) {
        if self.plan.is_some() {
            return;
        }
        let time = self.tick();
        self.tree.with(id, |_, file| {
            let file = file.expect("a file");
            file.write_all_at(&time.to_le_bytes(), 0).expect("written");
            file.set_len(size).expect("cut");
        });
        self.tree.touch(id, time);
        self.journal.begin().compare(id, size);
    }

    pub fn discover(&mut self, directory: FileId, name: &Name, size: u64) {
        if self.plan.is_some() || self.holder(directory, name).is_some() {
            return;
        }
        let time = self.tick();
        let id = self.journal.mint();
        self.tree.create(id, Fixed::File);
        self.tree.with(id, |_, file| {
            let file = file.expect("a file");
            file.write_all_at(&time.to_le_bytes(), 0).expect("written");
            file.set_len(size).expect("cut");
        });
        self.tree.names.lock().insert((directory, name.clone()), id);
        let operation = self.journal.begin();
        operation.discovered(id, &Stamp::default(), size);
        operation.bind(directory, name, id);
    }

    // Checks.

    pub fn check_hot(&self) {
        let directory = Arc::new(super::directory(self.state.path()));
        let content = Log::read(&directory, self.hot_slots).expect("readable");
        for id in self.hot.keys() {
            assert!(
                content.everything || content.files.contains(id),
                "{id} is not in the hot set"
            );
        }
    }

    pub fn check_known(&self) {
        let names = self.tree.mirrored_names();
        let mut by_id: BTreeMap<FileId, Vec<(FileId, Name)>> = BTreeMap::new();
        for (name, id) in &names {
            by_id.entry(*id).or_default().push(name.clone());
        }
        let objects: Vec<FileId> = self.tree.objects.lock().keys().copied().collect();
        for id in objects {
            let mirrored = self.tree.is_mirrored(id);
            assert_eq!(self.journal.is_reachable(id).expect("index"), mirrored);
            let mut links = self.journal.known_links(id, 100).expect("index");
            let one = self.journal.known_links(id, 1).expect("index");
            assert_eq!(one.len(), links.len().min(1));
            // There may be names in what was moved out of the tree.
            links.retain(|(parent, _)| self.tree.is_mirrored(*parent));
            links.sort();
            assert_eq!(Some(&links).filter(|l| !l.is_empty()), by_id.get(&id));
        }
        let directories: BTreeSet<FileId> = names
            .keys()
            .map(|(parent, _)| *parent)
            .chain([FileId::ROOT])
            .collect();
        for directory in directories {
            let mut found = Vec::new();
            loop {
                let after = found.last().map(|(name, _)| name);
                let page = self
                    .journal
                    .known_children(directory, after, 2)
                    .expect("index");
                assert!(page.len() <= 2);
                let last = page.len() < 2;
                found.extend(page);
                if last {
                    break;
                }
            }
            let real = names.iter().filter(|((parent, _), _)| *parent == directory);
            let real: Vec<_> = real.map(|((_, name), id)| (name.clone(), *id)).collect();
            assert_eq!(found, real);
            for text in 0..5 {
                let name = name(&format!("n{text}"));
                let held = self.journal.known_child(directory, &name).expect("index");
                assert_eq!(held, names.get(&(directory, name)).copied());
            }
        }
    }
}
