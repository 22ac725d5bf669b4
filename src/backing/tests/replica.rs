//! A replica in memory, made of nothing but what the journal says: a small planner over the
//! content that is there and what was preserved.

use super::rig::Rig;
use crate::backing::inspect::is_gone;
use crate::journal;
use crate::model::{Commit, Entry, Extent, FileId, Incarnation, Name, Object, Timestamp};
use crate::records::Durability;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const WHEN: Duration = Duration::from_secs(20);

/// What is at a path: kind and mode, and content or target, and extended attributes.
pub(super) type Tree = BTreeMap<PathBuf, (u32, String)>;

impl Rig {
    /// The real tree; `skip`: what is excluded.
    pub(super) fn real_tree(&self, skip: &dyn Fn(&Path) -> bool) -> Tree {
        plain_tree(self.real.path(), skip)
    }

    /// The tree that the known names make, with real states.
    pub(super) fn known_tree(&self) -> Tree {
        let mut tree = Tree::new();
        let mut todo = vec![(FileId::ROOT, PathBuf::new())];
        while let Some((directory, path)) = todo.pop() {
            for (name, id) in self
                .journal
                .known_children(directory, None, usize::MAX)
                .expect("known")
            {
                let path = path.join(name.as_os_str());
                let snapshot = self
                    .backing
                    .snapshot(id)
                    .unwrap_or_else(|e| panic!("{path:?}: {e}"));
                let content = || {
                    let file = self.backing.open_object(id).expect("opened");
                    let mut bytes = vec![0; snapshot.object.size as usize];
                    file.read_exact_at(&mut bytes, 0).expect("read");
                    bytes
                };
                if snapshot.object.fixed.is_directory() {
                    todo.push((id, path.clone()));
                }
                let state = state_of(&snapshot.object, content);
                tree.insert(path, state);
            }
        }
        tree
    }

    /// The tree that the replica holds.
    pub(super) fn replica_tree(&self) -> Tree {
        let contents = self.contents.lock();
        let mut tree = Tree::new();
        let mut todo = vec![(FileId::ROOT, PathBuf::new())];
        while let Some((directory, path)) = todo.pop() {
            for (name, id) in self
                .index
                .children(directory, None, usize::MAX)
                .expect("index")
            {
                let path = path.join(name.as_os_str());
                let record = self
                    .index
                    .object(id)
                    .expect("index")
                    .expect("bound to an object");
                if record.object.fixed.is_directory() {
                    todo.push((id, path.clone()));
                }
                let content = || contents.get(&id).cloned().unwrap_or_default();
                tree.insert(path, state_of(&record.object, content));
            }
        }
        tree
    }

    /// Seals, plans, ships and commits; false if nothing was to be done, or it was lost.
    pub(super) fn ship(&self) -> bool {
        self.journal.sealed().is_none() && self.journal.seal(true).is_some() && self.finish()
    }

    /// Plans, ships and commits what is sealed.
    pub(super) fn finish(&self) -> bool {
        let Some(sealed) = self.journal.sealed() else {
            return false;
        };
        let mut change = self.index.begin().expect("a change");
        let mut contents = self.contents.lock().clone();
        let bindings = sealed.bindings();
        let mut objects = sealed.objects();
        // A name of something that is new without being said to be: all of it is dirty.
        objects.extend(bindings.iter().filter_map(|(_, _, object)| *object));
        objects.sort();
        objects.dedup();
        for id in objects {
            let planned = self.plan(&sealed, id, &mut contents, &mut change);
            if let Err(error) = planned {
                // It was taken out of the tree, or too much had to be preserved.
                assert!(is_gone(&error) || sealed.is_abandoned(), "{id}: {error}");
                self.journal.abandon();
                return false;
            }
        }
        if !sealed.finish_reading() {
            self.journal.abandon();
            return false;
        }
        for (parent, name, object) in bindings {
            if object.is_some() && !is_alive(&sealed, parent) {
                continue;
            }
            change
                .entry(&Entry::Binding {
                    parent,
                    name,
                    object,
                })
                .expect("an entry");
        }
        let commit = Commit {
            epoch: sealed.epoch(),
            parent: self.index.state().expect("state").epoch,
            incarnation: Incarnation(1),
            sealed_at: Timestamp::default(),
            consistent: true,
            entries: 0,
            digest: [0; 32],
        };
        let applied = change.commit(&commit, Durability::None).expect("committed");
        applied.gone.iter().for_each(|id| drop(contents.remove(id)));
        *self.contents.lock() = contents;
        self.journal.committed(sealed.epoch());
        true
    }

    fn plan(
        &self,
        sealed: &journal::Sealed,
        id: FileId,
        contents: &mut HashMap<FileId, Vec<u8>>,
        change: &mut crate::records::Change,
    ) -> io::Result<()> {
        if !is_alive(sealed, id) {
            return Ok(());
        }
        let now = self.backing.snapshot(id);
        // In this order: whoever changes it saves first.
        let mut snapshot = match sealed.saved_stat(id) {
            Some(saved) => saved,
            None => now?,
        };
        let known = self.index.object(id).expect("index");
        let dirty = match (sealed.change(id), known) {
            (Some(view), Some(known)) => {
                if !view.xattrs {
                    snapshot.object.xattrs = known.object.xattrs;
                }
                view.dirty
            }
            (Some(view), None) if view.new => view.dirty,
            // Nobody said what of it there is; but it has a name.
            (_, None) => vec![Extent::new(0, u64::MAX)],
            (None, Some(_)) => return Ok(()),
        };
        let object = snapshot.object.clone();
        change
            .entry(&Entry::Object { id, object })
            .expect("an entry");
        change.stamp(id, snapshot.stamp).expect("a stamp");
        if !snapshot.object.fixed.is_file() {
            return Ok(());
        }
        let content = contents.entry(id).or_default();
        let size = usize::try_from(snapshot.object.size).expect("small");
        content.resize(size, 0);
        for extent in dirty {
            let extent = extent.intersection(Extent::new(0, size as u64));
            if extent.is_empty() {
                continue;
            }
            let mut bytes = vec![0; usize::try_from(extent.length).expect("small")];
            let file = match self.backing.open_object(id) {
                Ok(file) => file,
                Err(error) => sealed.saved_descriptor(id).ok_or(error)?,
            };
            super::super::files::read_full(&file, extent.offset, &mut bytes)?;
            sealed.patch_saved(id, extent, &mut bytes)?;
            let start = usize::try_from(extent.offset).expect("small");
            content[start..start + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Real tree = known tree = replica, after everything was shipped.
    pub(super) fn assert_equal(&self, skip: &dyn Fn(&Path) -> bool) {
        let real = self.real_tree(skip);
        assert_same(&self.known_tree(), &real, "known");
        self.finish();
        let deadline = Instant::now() + WHEN;
        while self.journal.pressure().operations > 0 {
            assert!(
                self.ship() || Instant::now() < deadline,
                "no epoch gets through"
            );
        }
        assert_same(&self.replica_tree(), &real, "replica");
        self.assert_hard_links(skip);
    }

    /// Names with one inode have one id, others different ones.
    fn assert_hard_links(&self, skip: &dyn Fn(&Path) -> bool) {
        use std::os::unix::fs::MetadataExt;
        let mut of_inode = HashMap::new();
        let mut of_id = HashMap::new();
        for path in self.real_tree(skip).into_keys() {
            let inode = self
                .real
                .path()
                .join(&path)
                .symlink_metadata()
                .expect("there")
                .ino();
            let mut id = FileId::ROOT;
            for part in &path {
                let name = Name::try_from(part).expect("a name");
                id = self
                    .journal
                    .known_child(id, &name)
                    .expect("index")
                    .expect("known");
            }
            assert_eq!(*of_inode.entry(inode).or_insert(id), id, "{path:?}");
            assert_eq!(*of_id.entry(id).or_insert(inode), inode, "{path:?}");
        }
    }
}

/// Shows only what differs.
fn assert_same(tree: &Tree, real: &Tree, what: &str) {
    let only = |one: &Tree, other: &Tree| -> Tree {
        one.iter()
            .filter(|(path, state)| other.get(*path) != Some(*state))
            .map(|(path, state)| (path.clone(), state.clone()))
            .collect()
    };
    assert_eq!(
        only(tree, real),
        only(real, tree),
        "{what} and real tree differ"
    );
}

/// Whether an object could be reached from the root at the seal.
fn is_alive(sealed: &journal::Sealed, id: FileId) -> bool {
    let links = || sealed.links(id, usize::MAX).expect("links");
    id == FileId::ROOT
        || links()
            .into_iter()
            .any(|(parent, _)| is_alive(sealed, parent))
}

fn state_of(object: &Object, content: impl FnOnce() -> Vec<u8>) -> (u32, String) {
    use crate::model::Fixed;
    let mode = object.fixed.type_bits() | object.attributes.mode;
    let mut what = match &object.fixed {
        Fixed::File => content(),
        Fixed::Symlink(target) => target.to_vec(),
        _ => Vec::new(),
    };
    if what.len() > 40 {
        let bytes = what.len();
        what = format!("{bytes} bytes, {}", blake3::hash(&what).to_hex()).into();
    }
    for (name, value) in &object.xattrs {
        what.extend([&b"\0xattr "[..], name, b"=", value].concat());
    }
    (mode, String::from_utf8_lossy(&what).into_owned())
}

/// A tree as it is on the disk.
pub(super) fn plain_tree(root: &Path, skip: &dyn Fn(&Path) -> bool) -> Tree {
    use crate::disk::{Place, look_fully};
    use std::os::fd::AsFd;
    let mut tree = Tree::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(&directory).expect("read") {
            let entry = entry.expect("an entry");
            let path = entry.path();
            let relative = path.strip_prefix(root).expect("below").to_owned();
            if skip(&relative) {
                continue;
            }
            let opened = File::open(&directory).expect("open");
            let snapshot =
                look_fully(Place::Entry(opened.as_fd(), &entry.file_name())).expect("look");
            if snapshot.object.fixed.is_directory() {
                todo.push(path.clone());
            }
            let content = || std::fs::read(&path).expect("read");
            tree.insert(relative, state_of(&snapshot.object, content));
        }
    }
    tree
}

pub(super) fn nothing(_: &Path) -> bool {
    false
}
