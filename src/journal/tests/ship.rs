//! The thread that ships: it seals, reads and commits.

use super::tree::{State, object, read_up_to};
use super::world::World;
use crate::journal::{Preserve, Sealed};
use crate::limits::BLOCK_BYTES;
use crate::model::{Extent, FileId, Fixed, Object};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A planner in the middle of its work.
pub struct Plan {
    pub sealed: Arc<Sealed>,
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

impl World {
    // The shipping thread.

    pub fn seal(&mut self) {
        if self.plan.is_some() || self.offline.is_some() {
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

    pub fn plan_step(&mut self) -> bool {
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

    /// Reads the rest of the epoch; what the replica has after it. None: it is abandoned.
    fn complete(&mut self) -> Option<(Plan, State)> {
        while self.plan_step() {}
        let mut plan = self.plan.take()?;
        if !plan.sealed.finish_reading() {
            assert!(plan.sealed.is_abandoned());
            self.journal.abandon();
            return None;
        }
        let mut state = self.index.0.lock().clone();
        for (parent, name, holder) in plan.sealed.bindings() {
            match holder {
                Some(id) => state.names.insert((parent, name), id),
                None => state.names.remove(&(parent, name)),
            };
        }
        for id in plan.objects.keys() {
            let new = (object(Fixed::File), Vec::new());
            state.objects.entry(*id).or_insert(new);
        }
        let fragments = std::mem::take(&mut plan.fragments);
        for (id, offset, bytes) in self.stage.iter().chain(&fragments) {
            let Some((_, content)) = state.objects.get_mut(id) else {
                continue;
            };
            let (start, end) = (*offset as usize, *offset as usize + bytes.len());
            content.resize(content.len().max(end), 0);
            content[start..end].copy_from_slice(bytes);
        }
        for (id, object) in &plan.objects {
            let held = state.objects.get_mut(id).expect("inserted above");
            held.1.resize(object.size as usize, 0);
            held.0 = object.clone();
        }
        state.drop_unreachable();
        let difference = state.difference(&plan.expected);
        assert_eq!(difference, None, "the replica is not the tree of the seal");
        Some((plan, state))
    }

    pub fn commit(&mut self) {
        let Some((plan, state)) = self.complete() else {
            return;
        };
        self.stage.clear();
        *self.index.0.lock() = state;
        self.journal.committed(plan.sealed.epoch());
        let committed = *self.journal.committed_watch().borrow();
        assert_eq!(committed.generation, plan.sealed.generation());
        for (mark, changes) in &self.marks {
            let covered = *changes <= plan.changes;
            assert!(*mark > committed.generation || covered, "told too early");
        }
        self.hot
            .retain(|_, generation| *generation > committed.generation);
    }

    /// The link goes while the commit is on its way.
    pub fn lose_commit(&mut self, arrived: bool) {
        if let Some((_, state)) = self.complete() {
            self.journal.abandon();
            self.offline = Some(arrived.then_some(state));
        }
    }

    /// The replica says whether it came.
    pub fn reconnect(&mut self) {
        if let Some(arrived) = self.offline.take() {
            if let Some(state) = arrived {
                *self.index.0.lock() = state;
            }
            self.stage.clear();
            self.journal.lost_stage(0);
        }
    }

    pub fn abandon(&mut self, keep_stage: bool) {
        if !keep_stage {
            self.stage.clear();
            self.journal.lost_stage(0);
        }
        self.plan = None;
        self.journal.abandon();
    }

    pub fn stage(&mut self, bytes: u64, confirmed: usize) {
        if self.offline.is_some() {
            return;
        }
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

    pub fn lose_stage(&mut self, percent: u64) {
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

    pub fn finish(&mut self) {
        self.reconnect();
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
