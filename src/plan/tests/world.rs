//! A real directory, a dirty map kept by hand, and what a sealed epoch saves.

use super::model::{Entries, Model};
use crate::disk::{self, Place, Snapshot};
use crate::journal::ChangeView;
use crate::limits::BLOCK_BYTES;
use crate::model::{
    Commit, Entry, EpochId, Extent, ExtentSet, FileId, Incarnation, Name, Timestamp,
};
use crate::plan::{Against, EpochView, Index, Planned, Planner, Source, Tally};
use crate::records::{Durability, Records};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Objects live under their id in one flat directory; the names are only in the maps.
pub struct World {
    place: tempfile::TempDir,
    pub replica: Model,
    /// Takes the same entries as the replica, and must come to the same state.
    records: Records,
    epoch: EpochId,
    pub planner: Planner,
    pub names: BTreeMap<(FileId, Name), FileId>,
    pub changes: BTreeMap<FileId, ChangeView>,
    dirty: BTreeMap<FileId, ExtentSet>,
    bindings: BTreeMap<(FileId, Name), Option<FileId>>,
    pub staged: Entries,
    next: u64,
}

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn collect(into: &mut Entries) -> impl FnMut(Entry, Option<&[u8]>) -> io::Result<()> + '_ {
    |entry, bytes| {
        into.push((entry, bytes.unwrap_or_default().to_vec()));
        Ok(())
    }
}

impl World {
    pub fn new() -> World {
        let place = tempfile::tempdir().expect("a directory");
        World {
            records: Records::create(&place.path().join("records")).expect("created"),
            epoch: EpochId(0),
            place,
            replica: Model::new(),
            planner: Planner::new(),
            names: BTreeMap::new(),
            changes: BTreeMap::new(),
            dirty: BTreeMap::new(),
            bindings: BTreeMap::new(),
            staged: Vec::new(),
            next: FileId::FIRST.0,
        }
    }

    fn path(&self, id: FileId) -> PathBuf {
        self.place.path().join(id.to_string())
    }

    pub fn change(&mut self, id: FileId) -> &mut ChangeView {
        self.changes.entry(id).or_default()
    }

    pub fn bind(&mut self, parent: FileId, text: &str, id: Option<FileId>) {
        let key = (parent, name(text));
        match id {
            Some(id) => self.names.insert(key.clone(), id),
            None => self.names.remove(&key),
        };
        self.bindings.insert(key, id);
        if parent != FileId::ROOT {
            self.change(parent).attributes = true;
        }
    }

    fn mint(&mut self) -> FileId {
        self.next += 1;
        FileId(self.next - 1)
    }

    pub fn create(&mut self, text: &str, content: &[u8]) -> FileId {
        let id = self.mint();
        std::fs::write(self.path(id), content).expect("written");
        self.change(id).new = true;
        self.mark(id, Extent::new(0, content.len() as u64));
        self.bind(FileId::ROOT, text, Some(id));
        id
    }

    pub fn create_directory(&mut self, parent: FileId, text: &str) -> FileId {
        let id = self.mint();
        std::fs::create_dir(self.path(id)).expect("made");
        self.change(id).new = true;
        self.bind(parent, text, Some(id));
        id
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let id = self.names[&(FileId::ROOT, name(from))];
        let replaced = self.names.get(&(FileId::ROOT, name(to))).copied();
        self.bind(FileId::ROOT, from, None);
        self.bind(FileId::ROOT, to, Some(id));
        self.change(id).replaced = replaced;
    }

    pub fn open_file(&self, id: FileId) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(id))
            .expect("open")
    }

    pub fn mark(&mut self, id: FileId, extent: Extent) {
        self.change(id).attributes = true;
        self.dirty.entry(id).or_default().insert(extent);
    }

    pub fn write(&mut self, id: FileId, offset: u64, bytes: &[u8]) {
        self.open_file(id)
            .write_all_at(bytes, offset)
            .expect("written");
        self.mark(id, Extent::new(offset, bytes.len() as u64));
    }

    pub fn truncate(&mut self, id: FileId, size: u64) {
        let file = self.open_file(id);
        let before = file.metadata().expect("seen").len();
        file.set_len(size).expect("cut");
        self.mark(id, Extent::between(size, before));
    }

    pub fn read(&self, id: FileId) -> Vec<u8> {
        std::fs::read(self.path(id)).expect("read")
    }

    pub fn take_dirty(&mut self, id: FileId) -> Vec<Extent> {
        self.dirty.remove(&id).unwrap_or_default().iter().collect()
    }

    pub fn stage(&mut self, id: FileId) -> Tally {
        let extents = self.take_dirty(id);
        let file = self.open_file(id);
        let mut emit = collect(&mut self.staged);
        let tally = self
            .planner
            .stage(
                id,
                &file,
                &extents,
                &self.replica,
                Against::Nothing,
                &mut emit,
            )
            .expect("staged");
        drop(emit);
        self.change(id).staged.extend(extents);
        tally
    }

    pub fn seal(&mut self) -> Sealed {
        let mut changes = std::mem::take(&mut self.changes);
        for (id, dirty) in std::mem::take(&mut self.dirty) {
            changes.entry(id).or_default().dirty = dirty.iter().collect();
        }
        Sealed {
            changes,
            bindings: std::mem::take(&mut self.bindings),
            ..Sealed::default()
        }
    }

    /// Seals, plans, applies, compares.
    pub fn ship(&mut self) -> (Planned, Entries) {
        let sealed = self.seal();
        self.ship_sealed(&sealed, |_, _| ())
    }

    pub fn ship_sealed(
        &mut self,
        sealed: &Sealed,
        mut meanwhile: impl FnMut(&World, &Sealed),
    ) -> (Planned, Entries) {
        let mut planner = std::mem::take(&mut self.planner);
        let mut entries = std::mem::take(&mut self.staged);
        let staged = entries.len();
        let planned = planner
            .epoch(sealed, self, &self.replica, &mut |entry, bytes| {
                entries.push((entry, bytes.unwrap_or_default().to_vec()));
                meanwhile(self, sealed);
                Ok(())
            })
            .expect("planned");
        self.planner = planner;
        self.replica.apply(&entries);
        self.record(&entries);
        self.planner.committed();
        assert_eq!(planned.tally.entries as usize, entries.len() - staged);
        (planned, entries)
    }

    fn record(&mut self, entries: &Entries) {
        let mut change = self.records.begin().expect("begun");
        for (entry, _) in entries {
            change.entry(entry).expect("recorded");
        }
        let parent = self.epoch;
        self.epoch = parent.next();
        let commit = Commit {
            epoch: self.epoch,
            parent,
            incarnation: Incarnation(1),
            sealed_at: Timestamp::default(),
            consistent: true,
            entries: entries.len() as u64,
            digest: [0; 32],
        };
        let state = change
            .commit(&commit, Durability::None)
            .expect("committed")
            .state;
        assert_eq!(state.objects, self.replica.objects.len() as u64);
        assert_eq!(state.names, self.replica.names.len() as u64);
        for (id, object) in &self.replica.objects {
            let known = Index::object(&self.records, *id).expect("read");
            assert!(*id == FileId::ROOT || known.as_ref() == Some(object));
            let count = object.size.div_ceil(BLOCK_BYTES) + 2;
            let blocks = |index: &dyn Index| index.blocks(*id, 0, count).expect("read");
            assert_eq!(blocks(&self.records), blocks(&self.replica));
        }
        for ((parent, name), id) in &self.replica.names {
            assert_eq!(self.records.child(*parent, name).expect("read"), Some(*id));
        }
    }

    /// The replica is what the directory is now.
    pub fn compare(&self) {
        assert_eq!(self.replica.names, self.names);
        for (id, object) in &self.replica.objects {
            if *id != FileId::ROOT {
                let live = self.snapshot(*id).expect("seen").object;
                if object.fixed.is_file() {
                    assert_eq!(object, &live);
                    assert!(
                        self.replica.content[id] == self.read(*id),
                        "content of {id}"
                    );
                }
            }
        }
    }
}

impl Source for World {
    fn open(&self, id: FileId) -> io::Result<File> {
        File::open(self.path(id))
    }

    fn snapshot(&self, id: FileId) -> io::Result<Snapshot> {
        let place = File::open(self.place.path())?;
        disk::look_fully(Place::Entry(place.as_fd(), id.to_string().as_ref()))
    }

    fn look(&self, id: FileId) -> io::Result<Snapshot> {
        let place = File::open(self.place.path())?;
        disk::look(Place::Entry(place.as_fd(), id.to_string().as_ref()))
    }
}

#[derive(Default)]
pub struct Sealed {
    pub changes: BTreeMap<FileId, ChangeView>,
    pub bindings: BTreeMap<(FileId, Name), Option<FileId>>,
    bases: Mutex<HashMap<FileId, PathBuf>>,
    stats: Mutex<HashMap<FileId, Snapshot>>,
    blocks: Mutex<HashMap<(FileId, u64), Vec<u8>>>,
    files: Mutex<HashMap<FileId, File>>,
}

impl Sealed {
    pub fn offer_base(&self, world: &World, id: FileId) {
        self.bases.lock().insert(id, world.path(id));
    }

    pub fn lose_bases(&self) {
        self.bases.lock().clear();
    }

    fn preserve(&self, world: &World, id: FileId, extent: Extent) {
        let snapshot = world.snapshot(id).expect("seen");
        let size = snapshot.object.size;
        self.stats.lock().entry(id).or_insert(snapshot);
        let mut blocks = self.blocks.lock();
        for block in crate::model::blocks_of(extent.intersection(Extent::between(0, size))) {
            blocks.entry((id, block)).or_insert_with(|| {
                let mut bytes = vec![0; BLOCK_BYTES as usize];
                let file = world.open_file(id);
                let count = file.read_at(&mut bytes, block * BLOCK_BYTES).expect("read");
                bytes.truncate(count);
                bytes
            });
        }
    }

    pub fn write_after(&self, world: &World, id: FileId, offset: u64, bytes: &[u8]) {
        self.preserve(world, id, Extent::new(offset, bytes.len() as u64));
        world
            .open_file(id)
            .write_all_at(bytes, offset)
            .expect("written");
    }

    pub fn truncate_after(&self, world: &World, id: FileId, size: u64) {
        self.preserve(world, id, Extent::between(size, i64::MAX as u64));
        world.open_file(id).set_len(size).expect("cut");
    }

    pub fn unlink_after(&self, world: &World, id: FileId) {
        self.preserve(world, id, Extent::new(0, 0));
        self.files.lock().insert(id, world.open_file(id));
        std::fs::remove_file(world.path(id)).expect("removed");
    }
}

impl EpochView for Sealed {
    fn objects(&self) -> Vec<FileId> {
        self.changes.keys().copied().collect()
    }

    fn change(&self, id: FileId) -> Option<ChangeView> {
        self.changes.get(&id).cloned()
    }

    fn bindings(&self) -> Vec<(FileId, Name, Option<FileId>)> {
        let all = self.bindings.iter();
        all.map(|((parent, name), id)| (*parent, name.clone(), *id))
            .collect()
    }

    fn saved_stat(&self, id: FileId) -> Option<Snapshot> {
        self.stats.lock().get(&id).cloned()
    }

    fn saved_descriptor(&self, id: FileId) -> Option<File> {
        self.files
            .lock()
            .get(&id)
            .map(|file| file.try_clone().expect("cloned"))
    }

    fn has_saved(&self, id: FileId, extent: Extent) -> bool {
        let blocks = self.blocks.lock();
        crate::model::blocks_of(extent).any(|block| blocks.contains_key(&(id, block)))
    }

    fn patch_saved(&self, id: FileId, extent: Extent, bytes: &mut [u8]) -> io::Result<()> {
        assert!(extent.offset.is_multiple_of(BLOCK_BYTES));
        let blocks = self.blocks.lock();
        for (block, part) in
            crate::model::blocks_of(extent).zip(bytes.chunks_mut(BLOCK_BYTES as usize))
        {
            if let Some(saved) = blocks.get(&(id, block)) {
                part.fill(0);
                part[..saved.len()].copy_from_slice(saved);
            }
        }
        Ok(())
    }

    fn delta_base(&self, id: FileId) -> Option<File> {
        let bases = self.bases.lock();
        bases.get(&id).map(|path| File::open(path).expect("open"))
    }

    fn read_done(&self, id: FileId, extent: Extent) {
        assert!(!extent.is_empty(), "nothing was read of {id}");
    }
}
