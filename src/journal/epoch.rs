//! The changes of one epoch, in memory: objects by their id, names by their directory.
//!
//! Everything is in shards with a lock of their own, none of which is held over I/O. A lock of
//! `names` may be held while one of `holders` is taken, never the other way round; the others
//! are leaves.

mod fold;

use super::Limits;
use super::bases::Bases;
use super::change::{Change, PENDING};
use super::sealed::Sealed;
use crate::model::{Extent, ExtentSet, FileId, Name};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

const SHARDS: usize = 16;

/// Values sharded by the id that they belong to.
pub(super) struct Sharded<T>([Mutex<T>; SHARDS]);

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        Sharded(std::array::from_fn(|_| Mutex::new(T::default())))
    }
}

impl<T> Sharded<T> {
    pub fn of(&self, id: FileId) -> &Mutex<T> {
        &self.0[(id.0 % SHARDS as u64) as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Mutex<T>> {
        self.0.iter()
    }
}

/// What a name holds; `None`: nothing.
pub(super) type Holder = Option<FileId>;

#[derive(Clone, Copy)]
struct Held {
    holder: Holder,
    /// Never to be forgotten: an epoch that may have reached the replica bound it.
    keep: bool,
}

#[derive(Default)]
struct Objects {
    changes: HashMap<FileId, Change>,
    // Those with dirty content, so that staging need not look at all.
    dirty: BTreeSet<FileId>,
}

/// See the module.
pub(super) struct Epoch {
    /// Counts the epochs that were opened, from 1.
    pub generation: u64,
    /// Descriptors of files that this epoch removes.
    pub bases: Mutex<Bases>,
    limits: Limits,
    objects: Sharded<Objects>,
    names: Sharded<HashMap<FileId, BTreeMap<Name, Held>>>,
    holders: Sharded<HashMap<FileId, BTreeSet<(FileId, Name)>>>,
    inodes: Mutex<HashMap<u64, FileId>>,
    // Objects that the sealed epoch takes from the replica, and this one gives back.
    revived: Mutex<HashSet<FileId>>,
    // The epoch that was folded into this one and may have reached the replica.
    doubtful: Mutex<Option<Arc<Sealed>>>,
    // Objects with extents that were taken for the stage and not confirmed.
    pending: Mutex<HashSet<FileId>>,

    object_count: AtomicUsize,
    name_count: AtomicUsize,
    dirty_bytes: AtomicU64,
    records: AtomicU64,
    // Nanoseconds since the journal was opened; u64::MAX: nothing was recorded.
    oldest: AtomicU64,
    overflowed: AtomicBool,

    pins: AtomicUsize,
    sealing: AtomicBool,
    retiring: Mutex<()>,
    retired: Condvar,
}

impl Epoch {
    pub fn new(generation: u64, limits: Limits) -> Epoch {
        Epoch {
            generation,
            bases: Mutex::default(),
            limits,
            objects: Sharded::default(),
            names: Sharded::default(),
            holders: Sharded::default(),
            inodes: Mutex::default(),
            revived: Mutex::default(),
            doubtful: Mutex::default(),
            pending: Mutex::default(),
            object_count: AtomicUsize::new(0),
            name_count: AtomicUsize::new(0),
            dirty_bytes: AtomicU64::new(0),
            records: AtomicU64::new(0),
            oldest: AtomicU64::new(u64::MAX),
            overflowed: AtomicBool::new(false),
            pins: AtomicUsize::new(0),
            sealing: AtomicBool::new(false),
            retiring: Mutex::new(()),
            retired: Condvar::new(),
        }
    }

    // Pins. An operation pins the epoch while it is the open one, under the journal's lock.

    pub fn pin(&self) {
        self.pins.fetch_add(1, SeqCst);
    }

    /// The order of the two accesses, and the opposite order in `wait_until_retired`, is what
    /// makes sure that one of the two sides sees the other.
    pub fn unpin(&self) {
        if self.pins.fetch_sub(1, SeqCst) == 1 && self.sealing.load(SeqCst) {
            drop(self.retiring.lock());
            self.retired.notify_all();
        }
    }

    /// Waits for the operations that pinned it. Called after another epoch was opened.
    pub fn wait_until_retired(&self) {
        self.sealing.store(true, SeqCst);
        let mut guard = self.retiring.lock();
        while self.pins.load(SeqCst) != 0 {
            self.retired.wait(&mut guard);
        }
    }

    // Counters.

    /// Counts a change; whether it is the first one.
    pub fn recorded(&self, now: impl FnOnce() -> u64) -> bool {
        if self.oldest.load(SeqCst) == u64::MAX {
            self.oldest.fetch_min(now(), SeqCst);
        }
        self.records.fetch_add(1, SeqCst) == 0
    }

    pub fn is_empty(&self) -> bool {
        self.records.load(SeqCst) == 0
    }

    pub fn records(&self) -> u64 {
        self.records.load(SeqCst)
    }

    /// When its oldest change was made, in nanoseconds since the journal was opened.
    pub fn oldest(&self) -> Option<u64> {
        Some(self.oldest.load(SeqCst)).filter(|&nanos| nanos != u64::MAX)
    }

    pub fn object_count(&self) -> usize {
        self.object_count.load(SeqCst)
    }

    pub fn name_count(&self) -> usize {
        self.name_count.load(SeqCst)
    }

    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.load(SeqCst)
    }

    pub fn is_full(&self) -> bool {
        let max = self.limits.objects_max;
        self.object_count() >= max || self.name_count() >= max
    }

    pub fn has_overflowed(&self) -> bool {
        self.overflowed.load(SeqCst)
    }

    // Objects.

    /// Changes what is known about an object.
    pub fn change(&self, id: FileId, act: impl FnOnce(&mut Change)) {
        let fresh = {
            let mut shard = self.objects.of(id).lock();
            let fresh = !shard.changes.contains_key(&id);
            if fresh {
                shard.changes.insert(id, Change::default());
                self.object_count.fetch_add(1, SeqCst);
            }
            self.adjust(&mut shard, id, act);
            fresh
        };
        if fresh && self.object_count() >= self.limits.objects_max {
            self.overflow();
        }
    }

    /// Changes what is known about an object, if anything is.
    fn change_known(&self, id: FileId, act: impl FnOnce(&mut Change)) {
        let mut shard = self.objects.of(id).lock();
        if shard.changes.contains_key(&id) {
            self.adjust(&mut shard, id, act);
        }
    }

    fn adjust(&self, shard: &mut Objects, id: FileId, act: impl FnOnce(&mut Change)) {
        let Some(change) = shard.changes.get_mut(&id) else {
            return;
        };
        let before = change.dirty.bytes();
        act(change);
        let (max, to) = if self.has_overflowed() {
            (1, 1)
        } else {
            (
                self.limits.file_extents_max,
                self.limits.file_extents_max / 4 * 3,
            )
        };
        if change.dirty.len() > max {
            change.dirty.coarsen(to);
        }
        change.staged.coarsen(max);
        let after = change.dirty.bytes();
        self.dirty_bytes
            .fetch_add(after.wrapping_sub(before), SeqCst);
        if after == 0 {
            shard.dirty.remove(&id);
        } else if before == 0 {
            shard.dirty.insert(id);
        }
    }

    /// From now on one extent a file: the names, which are the identity of what they hold, stay.
    fn overflow(&self) {
        if self.overflowed.swap(true, SeqCst) {
            return;
        }
        for shard in self.objects.iter() {
            let mut shard = shard.lock();
            let ids: Vec<FileId> = shard.changes.keys().copied().collect();
            ids.into_iter()
                .for_each(|id| self.adjust(&mut shard, id, |_| ()));
        }
    }

    /// Looks at what is known about an object.
    pub fn with<T>(&self, id: FileId, look: impl FnOnce(&Change) -> T) -> Option<T> {
        self.objects.of(id).lock().changes.get(&id).map(look)
    }

    /// Whether an object was born in this epoch, or is as good as that, so that what the layers
    /// below know of it does not count.
    pub fn is_new(&self, id: FileId) -> bool {
        self.with(id, |change| {
            change.new && (!change.uncertain || change.revived)
        })
        .unwrap_or(false)
    }

    /// Whether the index has never known an object, nor may before this epoch is sealed.
    pub fn is_unheard_of(&self, id: FileId) -> bool {
        self.with(id, |change| {
            change.new && !change.uncertain && !change.revived
        })
        .unwrap_or(false)
    }

    /// Whether an object was born in this epoch. The index may know it all the same, if what was
    /// folded into this one reached the replica.
    pub fn is_born(&self, id: FileId) -> bool {
        self.with(id, |change| change.new).unwrap_or(false)
    }

    /// Forgets an object that was born and is gone in this epoch; but not that the replica's
    /// stage has some of it, since it may come back.
    pub fn forget(&self, id: FileId) {
        let mut shard = self.objects.of(id).lock();
        self.adjust(&mut shard, id, |change| change.dirty = ExtentSet::default());
        if shard
            .changes
            .get(&id)
            .is_some_and(|change| change.staged.is_empty())
        {
            shard.changes.remove(&id);
            self.revived.lock().remove(&id);
            self.object_count.fetch_sub(1, SeqCst);
        }
    }

    pub fn object_ids(&self) -> Vec<FileId> {
        let mut ids = Vec::with_capacity(self.object_count());
        self.objects
            .iter()
            .for_each(|shard| ids.extend(shard.lock().changes.keys()));
        ids.sort_unstable();
        ids
    }

    // Stage.

    /// See [`super::Journal::take_for_stage`].
    pub fn take_for_stage(&self, bytes_max: u64) -> Vec<(FileId, Extent)> {
        let mut taken = Vec::new();
        let mut room = bytes_max;
        for shard in self.objects.iter() {
            while room > 0 {
                let mut shard = shard.lock();
                let Some(id) = shard.dirty.first().copied() else {
                    break;
                };
                self.pending.lock().insert(id);
                self.adjust(&mut shard, id, |change| {
                    for extent in super::stage::pieces(&change.dirty, room) {
                        change.dirty.remove(extent);
                        change.staged.insert(extent, PENDING);
                        taken.push((id, extent));
                        room = room.saturating_sub(extent.length);
                    }
                });
            }
        }
        taken
    }

    pub fn staged(&self, id: FileId, extent: Extent, sequence: u64) {
        self.change_known(id, |change| change.staged.insert(extent, sequence));
    }

    /// Puts what was staged as entry `from` or later back; whether there was any.
    pub fn lost_stage(&self, from: u64) -> bool {
        let mut any = false;
        for shard in self.objects.iter() {
            let mut shard = shard.lock();
            let staged =
                |(&id, change): (&FileId, &Change)| (!change.staged.is_empty()).then_some(id);
            let ids: Vec<FileId> = shard.changes.iter().filter_map(staged).collect();
            for id in ids {
                self.adjust(&mut shard, id, |change| any |= unstage(change, from));
            }
        }
        any
    }

    /// Puts what was taken for the stage and never confirmed back.
    pub fn return_pending(&self) {
        let ids = std::mem::take(&mut *self.pending.lock());
        for id in ids {
            self.change_known(id, |change| {
                change
                    .staged
                    .pending()
                    .into_iter()
                    .for_each(|extent| change.dirty.insert(extent));
            });
        }
    }

    // Names.

    /// Records what a name holds; what this epoch knew of it before.
    pub fn bind(&self, parent: FileId, name: &Name, holder: Holder) -> Option<Holder> {
        let mut shard = self.names.of(parent).lock();
        let names = shard.entry(parent).or_default();
        let before = match names.get_mut(name) {
            Some(bound) => Some(std::mem::replace(&mut bound.holder, holder)),
            None => {
                names.insert(
                    name.clone(),
                    Held {
                        holder,
                        keep: false,
                    },
                );
                self.name_count.fetch_add(1, SeqCst);
                None
            }
        };
        self.held(parent, name, before.flatten(), holder);
        before
    }

    /// Records what a name holds unless something is known of it already.
    fn bind_older(&self, parent: FileId, name: &Name, older: Held) {
        let mut shard = self.names.of(parent).lock();
        let names = shard.entry(parent).or_default();
        if let Some(bound) = names.get_mut(name) {
            bound.keep |= older.keep;
        } else {
            names.insert(name.clone(), older);
            self.name_count.fetch_add(1, SeqCst);
            self.held(parent, name, None, older.holder);
        }
    }

    /// Forgets that a name holds nothing, where that is no change.
    pub fn forget_empty(&self, parent: FileId, name: &Name) {
        let mut shard = self.names.of(parent).lock();
        let Some(names) = shard.get_mut(&parent) else {
            return;
        };
        if names
            .get(name)
            .is_some_and(|bound| bound.holder.is_none() && !bound.keep)
        {
            names.remove(name);
            self.name_count.fetch_sub(1, SeqCst);
            if names.is_empty() {
                shard.remove(&parent);
            }
        }
    }

    // Called under the lock of the name, so that both directions always agree.
    fn held(&self, parent: FileId, name: &Name, before: Holder, after: Holder) {
        if before == after {
            return;
        }
        if let Some(id) = before {
            let mut shard = self.holders.of(id).lock();
            if let Some(names) = shard.get_mut(&id) {
                names.remove(&(parent, name.clone()));
                if names.is_empty() {
                    shard.remove(&id);
                }
            }
        }
        if let Some(id) = after {
            let mut shard = self.holders.of(id).lock();
            shard.entry(id).or_default().insert((parent, name.clone()));
        }
    }

    pub fn child(&self, parent: FileId, name: &Name) -> Option<Holder> {
        let shard = self.names.of(parent).lock();
        shard.get(&parent)?.get(name).map(|held| held.holder)
    }

    /// Up to `max` names of a directory that this epoch touches, in order.
    pub fn children(
        &self,
        parent: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> Vec<(Name, Holder)> {
        let shard = self.names.of(parent).lock();
        let Some(names) = shard.get(&parent) else {
            return Vec::new();
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = names.range::<Name, _>((from, Bound::Unbounded)).take(max);
        rows.map(|(name, bound)| (name.clone(), bound.holder))
            .collect()
    }

    /// The names that this epoch gives to an object.
    pub fn links(&self, id: FileId) -> Vec<(FileId, Name)> {
        let shard = self.holders.of(id).lock();
        shard
            .get(&id)
            .map_or_else(Vec::new, |names| names.iter().cloned().collect())
    }

    /// Whether this epoch gives a name to an object.
    pub fn has_link(&self, id: FileId) -> bool {
        self.holders.of(id).lock().contains_key(&id)
    }

    /// All names that it touches, sorted.
    pub fn bindings(&self) -> Vec<(FileId, Name, Holder)> {
        let mut rows = Vec::with_capacity(self.name_count());
        for shard in self.names.iter() {
            for (&parent, names) in shard.lock().iter() {
                let row = |(name, bound): (&Name, &Held)| (parent, name.clone(), bound.holder);
                rows.extend(names.iter().map(row));
            }
        }
        rows.sort_unstable();
        rows
    }

    // Inode numbers of objects with several names.

    pub fn note_inode(&self, inode: u64, id: FileId) {
        self.inodes.lock().insert(inode, id);
    }

    pub fn by_inode(&self, inode: u64) -> Option<FileId> {
        self.inodes.lock().get(&inode).copied()
    }
}

/// Puts what was sent as entry `from` or later back into the dirty content.
fn unstage(change: &mut Change, from: u64) -> bool {
    let lost = change.staged.take_from(from);
    lost.iter().for_each(|&extent| change.dirty.insert(extent));
    !lost.is_empty()
}
