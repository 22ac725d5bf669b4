//! A backing directory with its journal and index, and a replica in memory.

use crate::backing::{Attr, Backing, Caller, HandleId, Kind, Local, Options, SetAttr, WriteHow};
use crate::exclude::Exclude;
use crate::journal::{self, Journal};
use crate::model::{Commit, Entry, EpochId, Extent, FileId, Incarnation, Name, Object, Timestamp};
use crate::records::{Durability, Records};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Rig {
    pub(super) real: tempfile::TempDir,
    _state: tempfile::TempDir,
    pub(super) backing: Arc<Backing>,
    pub(super) journal: Arc<Journal>,
    pub(super) index: Records,
    /// What the replica holds of each file.
    pub(super) contents: parking_lot::Mutex<HashMap<FileId, Vec<u8>>>,
    cache: parking_lot::Mutex<Vec<FileId>>,
}

pub(super) const ME: Caller = Caller { uid: 0, gid: 0 };
const WHEN: Duration = Duration::from_secs(20);

/// What is at a path: kind and mode, and the content, target or number of entries.
pub(super) type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

impl Rig {
    pub(super) fn new() -> Rig {
        Rig::with(&[], Local::Os, false)
    }

    pub(super) fn with(patterns: &[&str], local: Local, hold_unlinked: bool) -> Rig {
        let real = tempfile::tempdir().expect("a directory");
        let state = tempfile::tempdir().expect("a directory");
        let index = Records::create(&state.path().join("index")).expect("records");
        let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
        let exclude = Exclude::new(&patterns, &[]).expect("patterns");
        let options = |real: &Path| Options {
            root: File::open(real).expect("open").into(),
            local,
            exclude,
            privileged: rustix::process::geteuid().is_root(),
            hold_unlinked,
        };
        let journal = journal(state.path(), &index, 1, FileId::FIRST);
        let backing = Backing::open(options(real.path()), Arc::clone(&journal), index.clone());
        Rig {
            backing: backing.expect("opened"),
            real,
            _state: state,
            journal,
            index,
            contents: Default::default(),
            cache: Default::default(),
        }
    }

    /// Unmounted, and mounted again.
    pub(super) fn remount(self) -> Rig {
        let state = self.index.state().expect("state");
        let next = FileId(state.highest_id.0.max(1 << 20) + 1);
        let journal = journal(self._state.path(), &self.index, state.epoch.0 + 1, next);
        let options = Options {
            root: File::open(self.real.path()).expect("open").into(),
            local: Local::Os,
            exclude: Exclude::none(),
            privileged: rustix::process::geteuid().is_root(),
            hold_unlinked: false,
        };
        let backing = Backing::open(options, Arc::clone(&journal), self.index.clone());
        Rig {
            backing: backing.expect("opened"),
            journal,
            ..self
        }
    }

    /// Looks a path up from the root. As with the kernel, the directories above stay known:
    /// until [`Rig::drop_cache`].
    pub(super) fn attr(&self, path: &str) -> io::Result<Attr> {
        let (attr, above) = self.resolve(path)?;
        self.cache.lock().extend(above);
        Ok(attr)
    }

    pub(super) fn find(&self, path: &str) -> io::Result<FileId> {
        self.attr(path).map(|attr| attr.id)
    }

    fn resolve(&self, path: &str) -> io::Result<(Attr, Vec<FileId>)> {
        let mut at = self.backing.getattr(FileId::ROOT, None)?;
        let mut above = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            above.push(at.id);
            let next = match at.kind {
                Kind::Directory => self.backing.lookup(at.id, OsStr::new(part)),
                Kind::Symlink => Err(io::Error::from_raw_os_error(libc::ENOENT)),
                _ => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            };
            match next {
                Ok(next) => at = next,
                Err(error) => {
                    above.into_iter().for_each(|id| self.forget(id));
                    return Err(error);
                }
            }
        }
        Ok((at, above))
    }

    pub(super) fn forget(&self, id: FileId) {
        self.backing.forget(id, 1);
    }

    pub(super) fn drop_cache(&self) {
        let ids = std::mem::take(&mut *self.cache.lock());
        ids.into_iter().for_each(|id| self.forget(id));
    }

    pub(super) fn at<T>(
        &self,
        path: &str,
        act: impl FnOnce(FileId, &OsStr) -> io::Result<T>,
    ) -> io::Result<T> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let (attr, above) = self.resolve(parent)?;
        let result = match attr.kind {
            Kind::Directory => act(attr.id, OsStr::new(name)),
            Kind::Symlink => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            _ => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        };
        self.forget(attr.id);
        above.into_iter().for_each(|id| self.forget(id));
        result
    }

    pub(super) fn on<T>(
        &self,
        path: &str,
        act: impl FnOnce(FileId) -> io::Result<T>,
    ) -> io::Result<T> {
        let (attr, above) = self.resolve(path)?;
        let result = act(attr.id);
        self.forget(attr.id);
        above.into_iter().for_each(|id| self.forget(id));
        result
    }

    pub(super) fn create(&self, path: &str) -> io::Result<(FileId, HandleId)> {
        let flags = libc::O_RDWR | libc::O_EXCL;
        self.at(path, |parent, name| {
            let (attr, handle) = self.backing.create(ME, parent, name, 0o644, 0o022, flags)?;
            Ok((attr.id, handle))
        })
    }

    pub(super) fn make(&self, path: &str, content: &[u8]) -> io::Result<FileId> {
        let (id, handle) = self.create(path)?;
        let written = self
            .backing
            .write(id, Some(handle), 0, content, WriteHow::default());
        self.backing.release(handle);
        self.forget(id);
        written.map(|_| id)
    }

    pub(super) fn mkdir(&self, path: &str) -> io::Result<FileId> {
        let attr = self.at(path, |p, name| {
            self.backing.mkdir(ME, p, name, 0o755, 0o022)
        })?;
        self.forget(attr.id);
        Ok(attr.id)
    }

    pub(super) fn rename(&self, from: &str, to: &str, flags: u32) -> io::Result<()> {
        self.at(from, |old, name| {
            self.at(to, |new, new_name| {
                self.backing.rename(old, name, new, new_name, flags)
            })
        })
    }

    pub(super) fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.on(from, |id| {
            let attr = self.at(to, |parent, name| self.backing.link(id, parent, name))?;
            self.forget(attr.id);
            Ok(())
        })
    }

    pub(super) fn unlink(&self, path: &str) -> io::Result<()> {
        self.at(path, |parent, name| self.backing.unlink(parent, name))
    }

    pub(super) fn rmdir(&self, path: &str) -> io::Result<()> {
        self.at(path, |parent, name| self.backing.rmdir(parent, name))
    }

    pub(super) fn write(&self, path: &str, offset: u64, data: &[u8]) -> io::Result<usize> {
        self.on(path, |id| {
            self.backing
                .write(id, None, offset, data, WriteHow::default())
        })
    }

    pub(super) fn set(&self, path: &str, set: SetAttr) -> io::Result<Attr> {
        self.on(path, |id| self.backing.setattr(id, None, &set))
    }

    /// Walks until nothing is left, as reconcile does.
    pub(super) fn walk(&self) {
        self.backing.begin_walk();
        self.backing.inspect_root().expect("the root");
        self.walk_from(FileId::ROOT);
        self.walk_unwalked();
        self.backing.end_walk();
    }

    pub(super) fn walk_unwalked(&self) {
        loop {
            let directories = self.backing.take_unwalked();
            if directories.is_empty() {
                return;
            }
            directories
                .into_iter()
                .for_each(|directory| self.walk_from(directory));
        }
    }

    fn walk_from(&self, directory: FileId) {
        let Ok(mut listing) = self.backing.list(directory) else {
            return;
        };
        let mut names = Vec::new();
        loop {
            let some = listing.next(3).expect("listed");
            if some.is_empty() {
                break;
            }
            names.extend(some);
        }
        let known = self
            .journal
            .known_children(directory, None, usize::MAX)
            .expect("known");
        names.extend(known.into_iter().map(|(name, _)| name));
        names.sort();
        names.dedup();
        for name in names {
            let inspected = self.backing.inspect(directory, &name).expect("inspected");
            if let Some(found) = inspected
                && found.is_directory
            {
                self.walk_from(found.id);
            }
        }
    }

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
        let Some(sealed) = self.journal.seal(true) else {
            return false;
        };
        let mut change = self.index.begin().expect("a change");
        let mut contents = self.contents.lock().clone();
        for id in sealed.objects() {
            if self.plan(&sealed, id, &mut contents, &mut change).is_none() && sealed.is_abandoned()
            {
                self.journal.abandon();
                return false;
            }
        }
        if !sealed.finish_reading() {
            self.journal.abandon();
            return false;
        }
        for (parent, name, object) in sealed.bindings() {
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
    ) -> Option<()> {
        if sealed.is_orphan(id).expect("links") {
            return None;
        }
        let now = self.backing.snapshot(id);
        let snapshot = match (sealed.saved_stat(id), now) {
            (Some(saved), _) => saved,
            (None, Ok(now)) => now,
            (None, Err(error)) => {
                // Below a directory that is gone.
                assert!(super::super::inspect::is_gone(&error), "{error}");
                return None;
            }
        };
        let view = sealed.change(id)?;
        change
            .entry(&Entry::Object {
                id,
                object: snapshot.object.clone(),
            })
            .expect("an entry");
        change.stamp(id, snapshot.stamp).expect("a stamp");
        if snapshot.object.fixed.is_file() {
            let content = contents.entry(id).or_default();
            let size = usize::try_from(snapshot.object.size).expect("small");
            content.resize(size, 0);
            for extent in view.dirty {
                let extent = extent.intersection(Extent::new(0, size as u64));
                if extent.is_empty() {
                    continue;
                }
                let mut bytes = vec![0; usize::try_from(extent.length).expect("small")];
                let file = self
                    .backing
                    .open_object(id)
                    .ok()
                    .or_else(|| sealed.saved_descriptor(id));
                super::super::files::read_full(&file?, extent.offset, &mut bytes).expect("read");
                sealed.patch_saved(id, extent, &mut bytes).expect("patched");
                let start = usize::try_from(extent.offset).expect("small");
                content[start..start + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Some(())
    }

    /// Real tree = known tree = replica, after everything was shipped.
    pub(super) fn assert_equal(&self, skip: &dyn Fn(&Path) -> bool) {
        let real = self.real_tree(skip);
        assert_eq!(self.known_tree(), real, "known and real tree");
        let deadline = Instant::now() + WHEN;
        while self.journal.pressure().operations > 0 {
            assert!(Instant::now() < deadline);
            self.ship();
        }
        assert_eq!(self.replica_tree(), real, "replica and real tree");
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

fn journal(state: &Path, index: &Records, epoch: u64, next_id: FileId) -> Arc<Journal> {
    let options = journal::Options {
        directory: File::open(state).expect("open").into(),
        next_epoch: EpochId(epoch),
        next_id,
        reserve: Arc::new(|_| Ok(())),
    };
    Arc::new(Journal::open(options, index.clone()).expect("a journal").0)
}

fn state_of(object: &Object, content: impl FnOnce() -> Vec<u8>) -> (u32, Vec<u8>) {
    use crate::model::Fixed;
    let mode = object.fixed.type_bits() | object.attributes.mode;
    let mut what = match &object.fixed {
        Fixed::File => content(),
        Fixed::Symlink(target) => target.to_vec(),
        _ => Vec::new(),
    };
    for (name, value) in &object.xattrs {
        what.extend([&b"\0xattr "[..], name, b"=", value].concat());
    }
    (mode, what)
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
