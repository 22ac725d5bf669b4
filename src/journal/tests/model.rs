//! Random operations, seals, stages, losses and commits, with a planner that reads between all of
//! them. Whatever happens: the known tree is the real tree, a committed epoch is the tree of its
//! seal to the byte, nobody is told too early, and in the end the replica has everything.

use super::tree::{Index, State, Tree, read_up_to};
use super::{name, scratch, start};
use crate::journal::hot_log::Log;
use crate::journal::{Journal, Limits, Preserve, Sealed};
use crate::limits::BLOCK_BYTES;
use crate::model::{Extent, FileId, Fixed, Name, Object, Stamp};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

const FILE_BYTES: u64 = 4 * BLOCK_BYTES;

#[derive(Clone, Debug)]
enum Step {
    Create {
        directory: usize,
        name: u8,
        is_directory: bool,
    },
    Link {
        object: usize,
        directory: usize,
        name: u8,
    },
    Unlink {
        name: usize,
    },
    Rename {
        from: usize,
        directory: usize,
        name: u8,
        unbind_first: bool,
    },
    Write {
        object: usize,
        offset: u64,
        length: u64,
    },
    WriteUnlinked {
        object: usize,
        offset: u64,
        length: u64,
    },
    Truncate {
        object: usize,
        size: u64,
    },
    Attributes {
        object: usize,
        extended: bool,
    },
    Outside {
        object: usize,
        size: u64,
    },
    Discover {
        directory: usize,
        name: u8,
        size: u64,
    },
    Seal,
    Plan {
        steps: usize,
    },
    Commit,
    Abandon {
        keep_stage: bool,
    },
    Stage {
        bytes: u64,
        confirmed: usize,
    },
    LoseStage {
        percent: u64,
    },
    Mark,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (i, n) = (0usize..64, 0u8..5);
    let range = (0..FILE_BYTES, prop_oneof![1u64..200, 1..2 * BLOCK_BYTES]);
    let size = prop_oneof![
        Just(0),
        1..FILE_BYTES,
        (0..4u64).prop_map(|b| b * BLOCK_BYTES)
    ];
    let step = prop_oneof![
        4 => (i.clone(), n.clone(), any::<bool>()).prop_map(|(directory, name, d)|
            Step::Create { directory, name, is_directory: d }),
        1 => (i.clone(), i.clone(), n.clone()).prop_map(|(object, directory, name)|
            Step::Link { object, directory, name }),
        2 => i.clone().prop_map(|name| Step::Unlink { name }),
        3 => (i.clone(), i.clone(), n.clone(), any::<bool>()).prop_map(
            |(from, directory, name, unbind_first)|
            Step::Rename { from, directory, name, unbind_first }),
        7 => (i.clone(), range.clone()).prop_map(|(object, (offset, length))|
            Step::Write { object, offset, length }),
        1 => (i.clone(), range).prop_map(|(object, (offset, length))|
            Step::WriteUnlinked { object, offset, length }),
        2 => (i.clone(), size.clone()).prop_map(|(object, size)| Step::Truncate { object, size }),
        2 => (i.clone(), any::<bool>()).prop_map(|(object, extended)|
            Step::Attributes { object, extended }),
        1 => (i.clone(), size.clone()).prop_map(|(object, size)| Step::Outside { object, size }),
        1 => (i, n, size).prop_map(|(directory, name, size)|
            Step::Discover { directory, name, size }),
        3 => Just(Step::Seal),
        6 => (1usize..9).prop_map(|steps| Step::Plan { steps }),
        2 => Just(Step::Commit),
        1 => any::<bool>().prop_map(|keep_stage| Step::Abandon { keep_stage }),
        2 => (1u64..5 * BLOCK_BYTES, 0usize..9).prop_map(|(bytes, confirmed)|
            Step::Stage { bytes, confirmed }),
        1 => (0u64..120).prop_map(|percent| Step::LoseStage { percent }),
        2 => Just(Step::Mark),
    ];
    prop::collection::vec(step, 1..120)
}

/// A planner in the middle of its work.
struct Plan {
    sealed: Arc<Sealed>,
    /// The tree at the seal.
    expected: State,
    changes: u64,
    todo: Vec<Todo>,
    objects: BTreeMap<FileId, Object>,
    fragments: Vec<(FileId, u64, Vec<u8>)>,
}

enum Todo {
    Look(FileId),
    Read(FileId, Extent),
    Patch(FileId, Extent, Vec<u8>),
}

struct World {
    tree: Tree,
    index: Arc<Index>,
    journal: Journal,
    state: tempfile::TempDir,
    hot_slots: usize,
    plan: Option<Plan>,
    stage: Vec<(FileId, u64, Vec<u8>)>,
    unlinked: Vec<FileId>,
    changes: u64,
    // mark -> changes before it
    marks: Vec<(u64, u64)>,
    // Written in place, and since when not committed.
    hot: BTreeMap<FileId, u64>,
}

impl World {
    fn new(limits: Limits) -> World {
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
            unlinked: Vec::new(),
            changes: 0,
            marks: Vec::new(),
            hot: BTreeMap::new(),
        }
    }

    fn tick(&mut self) -> i64 {
        self.changes += 1;
        self.changes as i64
    }

    fn pick(&self, at: usize, wanted: impl Fn(&Object) -> bool) -> Option<FileId> {
        let objects = self.tree.objects.lock();
        let ids: Vec<FileId> = objects
            .iter()
            .filter(|(id, (object, _))| wanted(object) && self.tree.named(**id))
            .map(|(id, _)| *id)
            .collect();
        ids.get(at % ids.len().max(1)).copied()
    }

    fn directory(&self, at: usize) -> FileId {
        self.pick(at, |object| object.fixed.is_directory())
            .expect("the root")
    }

    fn file(&self, at: usize) -> Option<FileId> {
        self.pick(at, |object| object.fixed.is_file())
    }

    fn holder(&self, directory: FileId, name: &Name) -> Option<FileId> {
        self.tree
            .names
            .lock()
            .get(&(directory, name.clone()))
            .copied()
    }

    fn a_name(&self, at: usize) -> Option<((FileId, Name), FileId)> {
        let names = self.tree.names.lock();
        names
            .iter()
            .nth(at % names.len().max(1))
            .map(|(name, id)| (name.clone(), *id))
    }

    fn is_directory(&self, id: FileId) -> bool {
        self.tree.with(id, |object, _| object.fixed.is_directory())
    }

    fn is_empty(&self, id: FileId) -> bool {
        !self
            .tree
            .names
            .lock()
            .keys()
            .any(|(parent, _)| *parent == id)
    }

    fn links(&self, id: FileId) -> usize {
        self.tree
            .names
            .lock()
            .values()
            .filter(|held| **held == id)
            .count()
    }

    fn is_below(&self, mut id: FileId, above: FileId) -> bool {
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

    fn create(&mut self, directory: FileId, name: &Name, is_directory: bool) {
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

    fn link(&mut self, id: FileId, directory: FileId, name: &Name) {
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

    fn unlink(&mut self, directory: FileId, name: &Name, id: FileId) {
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
    fn gone(&mut self, id: FileId) {
        if self.tree.named(id) {
            return;
        }
        if id.0.is_multiple_of(2) && !self.is_directory(id) {
            self.unlinked.push(id);
        } else {
            self.tree.objects.lock().remove(&id);
        }
    }

    fn rename(&mut self, from: usize, directory: FileId, name: &Name, unbind_first: bool) {
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

    fn write(&mut self, id: FileId, offset: u64, length: u64) {
        let time = self.tick();
        let bytes: Vec<u8> = (0..length)
            .map(|at| (time as u64 * 31 + at % 251) as u8)
            .collect();
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

    fn truncate(&mut self, id: FileId, size: u64) {
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

    fn attributes(&mut self, id: FileId, extended: bool) {
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
    fn outside(&mut self, id: FileId, size: u64) {
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

    fn discover(&mut self, directory: FileId, name: &Name, size: u64) {
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
        operation.discovered(id, size);
        operation.bind(directory, name, id);
    }

    // The shipping thread.

    fn seal(&mut self) {
        if self.plan.is_some() {
            return;
        }
        let Some(sealed) = self.journal.seal(true) else {
            return;
        };
        let todo = sealed.objects().into_iter().map(Todo::Look).collect();
        self.plan = Some(Plan {
            sealed,
            expected: self.tree.state(),
            changes: self.changes,
            todo,
            objects: BTreeMap::new(),
            fragments: Vec::new(),
        });
    }

    fn plan_step(&mut self) -> bool {
        let Some(plan) = &mut self.plan else {
            return false;
        };
        let Some(todo) = plan.todo.pop() else {
            return false;
        };
        let sealed = &plan.sealed;
        match todo {
            Todo::Look(id) => {
                if sealed.is_orphan(id).expect("index") {
                    assert!(!plan.expected.objects.contains_key(&id));
                    return true;
                }
                let seen = self.tree.stat(id).ok();
                let snapshot = sealed.saved_stat(id).or(seen);
                if sealed.is_abandoned() {
                    return true;
                }
                let object = snapshot.expect("the object or its saved state").object;
                let change = sealed.change(id).expect("a change");
                let mut blocks = BTreeSet::new();
                for extent in &change.dirty {
                    let part = extent.intersection(Extent::new(0, object.size));
                    blocks.extend(crate::model::blocks_of(part));
                }
                plan.todo.extend(blocks.into_iter().map(|block| {
                    let extent = Extent::new(block * BLOCK_BYTES, BLOCK_BYTES);
                    Todo::Read(id, extent.intersection(Extent::new(0, object.size)))
                }));
                plan.objects.insert(id, object);
            }
            Todo::Read(id, extent) => {
                let mut bytes = Vec::new();
                let file = sealed.saved_descriptor(id);
                match file {
                    Some(file) => read_up_to(&file, extent, &mut bytes).expect("read"),
                    None => {
                        // Gone if all that was wanted of it is saved, or the epoch is lost.
                        let _ = self.tree.read_at(id, extent, &mut bytes);
                    }
                }
                bytes.resize(extent.length as usize, 0);
                plan.todo.push(Todo::Patch(id, extent, bytes));
            }
            Todo::Patch(id, extent, mut bytes) => {
                if sealed.patch_saved(id, extent, &mut bytes).is_err() {
                    assert!(sealed.is_abandoned());
                }
                sealed.read_done(id, extent);
                let index = self.index.0.lock();
                let range = extent.offset as usize..extent.end() as usize;
                let held = index.objects.get(&id).and_then(|(_, held)| held.get(range));
                let staged = sealed.change(id).expect("a change").staged;
                let is_staged = staged.iter().any(|s| !s.intersection(extent).is_empty());
                if held != Some(&bytes[..]) || is_staged {
                    plan.fragments.push((id, extent.offset, bytes));
                }
            }
        }
        true
    }

    fn commit(&mut self) {
        while self.plan_step() {}
        let Some(plan) = self.plan.take() else { return };
        if !plan.sealed.finish_reading() {
            assert!(plan.sealed.is_abandoned());
            self.journal.abandon();
            return;
        }
        let mut state = self.index.0.lock();
        for (parent, name, holder) in plan.sealed.bindings() {
            match holder {
                Some(id) => state.names.insert((parent, name), id),
                None => state.names.remove(&(parent, name)),
            };
        }
        for id in plan.objects.keys() {
            let new = (super::tree::object(Fixed::File), Vec::new());
            state.objects.entry(*id).or_insert(new);
        }
        for (id, offset, bytes) in self.stage.drain(..).chain(plan.fragments) {
            let Some((_, content)) = state.objects.get_mut(&id) else {
                continue;
            };
            let (start, end) = (offset as usize, offset as usize + bytes.len());
            content.resize(content.len().max(end), 0);
            content[start..end].copy_from_slice(&bytes);
        }
        for (id, object) in plan.objects {
            let held = state.objects.get_mut(&id).expect("inserted above");
            held.1.resize(object.size as usize, 0);
            held.0 = object;
        }
        state.drop_nameless();
        let difference = state.difference(&plan.expected);
        assert_eq!(difference, None, "the replica is not the tree of the seal");
        drop(state);
        self.journal.committed(plan.sealed.epoch());
        let committed = *self.journal.committed_watch().borrow();
        assert_eq!(committed.generation, plan.sealed.generation());
        for (mark, changes) in &self.marks {
            assert!(
                *mark > committed.generation || *changes <= plan.changes,
                "told too early"
            );
        }
        self.hot
            .retain(|_, generation| *generation > committed.generation);
    }

    fn abandon(&mut self, keep_stage: bool) {
        if !keep_stage {
            self.stage.clear();
            self.journal.lost_stage(0);
        }
        self.plan = None;
        self.journal.abandon();
    }

    fn stage(&mut self, bytes: u64, confirmed: usize) {
        for (at, (id, extent)) in self.journal.take_for_stage(bytes).into_iter().enumerate() {
            let mut bytes = Vec::new();
            if at >= confirmed || self.tree.read_at(id, extent, &mut bytes).is_err() {
                continue;
            }
            let part = Extent::new(extent.offset, bytes.len() as u64);
            self.journal.staged(id, part, self.stage.len() as u64);
            self.stage.push((id, part.offset, bytes));
        }
    }

    fn lose_stage(&mut self, percent: u64) {
        let from = self.stage.len() as u64 * percent / 100;
        self.stage.truncate(from as usize);
        self.journal.lost_stage(from);
        if let Some(plan) = &self.plan
            && plan.sealed.is_abandoned()
        {
            self.plan = None;
            self.journal.abandon();
        }
    }

    // Checks.

    fn check_hot(&self) {
        let directory = Arc::new(super::directory(self.state.path()));
        let content = Log::read(&directory, self.hot_slots).expect("readable");
        for id in self.hot.keys() {
            assert!(
                content.everything || content.files.contains(id),
                "{id} is not in the hot set"
            );
        }
    }

    fn check_known(&self) {
        let names = self.tree.names.lock().clone();
        let mut by_id: BTreeMap<FileId, Vec<(FileId, Name)>> = BTreeMap::new();
        for (name, id) in &names {
            by_id.entry(*id).or_default().push(name.clone());
        }
        for id in by_id.keys().chain(&self.unlinked) {
            let mut links = self.journal.known_links(*id, 100).expect("index");
            links.sort();
            assert_eq!(Some(&links).filter(|l| !l.is_empty()), by_id.get(id));
            let one = self.journal.known_links(*id, 1).expect("index");
            assert_eq!(one.len(), links.len().min(1));
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

    fn run(&mut self, step: Step) {
        let named = |n: u8| name(&format!("n{n}"));
        match step {
            Step::Create {
                directory,
                name,
                is_directory,
            } => {
                self.create(self.directory(directory), &named(name), is_directory);
            }
            Step::Link {
                object,
                directory,
                name,
            } => {
                if let Some(id) = self.file(object) {
                    self.link(id, self.directory(directory), &named(name));
                }
            }
            Step::Unlink { name } => {
                if let Some(((directory, name), id)) = self.a_name(name) {
                    self.unlink(directory, &name, id);
                }
            }
            Step::Rename {
                from,
                directory,
                name,
                unbind_first,
            } => {
                self.rename(from, self.directory(directory), &named(name), unbind_first);
            }
            Step::Write {
                object,
                offset,
                length,
            } => {
                if let Some(id) = self.file(object) {
                    self.write(id, offset, length);
                }
            }
            Step::WriteUnlinked {
                object,
                offset,
                length,
            } => {
                if let Some(&id) = self.unlinked.get(object % self.unlinked.len().max(1)) {
                    self.write(id, offset, length);
                }
            }
            Step::Truncate { object, size } => {
                if let Some(id) = self.file(object) {
                    self.truncate(id, size);
                }
            }
            Step::Attributes { object, extended } => {
                if let Some(id) = self.pick(object, |_| true) {
                    self.attributes(id, extended);
                }
            }
            Step::Outside { object, size } => {
                if let Some(id) = self.file(object) {
                    self.outside(id, size);
                }
            }
            Step::Discover {
                directory,
                name,
                size,
            } => {
                self.discover(self.directory(directory), &named(name), size);
            }
            Step::Seal => self.seal(),
            Step::Plan { steps } => (0..steps).for_each(|_| {
                self.plan_step();
            }),
            Step::Commit => self.commit(),
            Step::Abandon { keep_stage } => self.abandon(keep_stage),
            Step::Stage { bytes, confirmed } => self.stage(bytes, confirmed),
            Step::LoseStage { percent } => self.lose_stage(percent),
            Step::Mark => self.marks.push((self.journal.mark(), self.changes)),
        }
    }

    fn finish(&mut self) {
        for _ in 0..9 {
            self.commit();
            self.seal();
        }
        assert_eq!(self.journal.pressure().operations, 0);
        assert_eq!(self.journal.pressure().dirty_bytes, 0);
        let difference = self.index.0.lock().difference(&self.tree.state());
        assert_eq!(difference, None, "the replica is not the tree");
        let committed = self.journal.committed_watch().borrow().generation;
        assert!(self.marks.iter().all(|(mark, _)| *mark <= committed));
        assert!(self.journal.close_clean().expect("closed"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_committed_epoch_is_the_tree_of_its_seal(
        steps in steps(),
        objects_max in prop_oneof![Just(3usize), Just(1000)],
        file_extents_max in prop_oneof![Just(2usize), Just(1000)],
        memory in prop_oneof![Just(0u64), Just(100_000), Just(1 << 30)],
        disk in prop_oneof![Just(0u64), Just(200_000), Just(1 << 30)],
        descriptors in prop_oneof![Just(1usize), Just(100)],
        hot_files_max in 1usize..4,
    ) {
        let mut world = World::new(Limits {
            objects_max,
            file_extents_max,
            saved_memory_bytes_max: memory,
            saved_disk_bytes_max: disk,
            saved_descriptors_max: descriptors,
            base_descriptors_max: 3,
            hot_files_max,
            hot_settle: Duration::ZERO,
            hot_retry: Duration::ZERO,
        });
        for step in steps {
            world.run(step);
            world.check_known();
        }
        world.finish();
    }
}
