//! A real tree and a replica, as far as a journal can tell.

use crate::disk::Snapshot;
use crate::journal::{Error, Known, Preserve, Result};
use crate::model::{Attributes, Extent, FileId, Fixed, Name, Object, Stamp, Timestamp};
use parking_lot::Mutex;
use rustix::fs::MemfdFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

pub type Names = BTreeMap<(FileId, Name), FileId>;

/// A directory beside the tree: what is below it is excluded.
pub const HIDDEN: FileId = FileId(u64::MAX);

/// Everything about a tree that counts.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct State {
    pub objects: BTreeMap<FileId, (Object, Vec<u8>)>,
    pub names: Names,
}

pub fn object(fixed: Fixed) -> Object {
    let attributes = Attributes::default();
    Object {
        fixed,
        attributes,
        size: 0,
        xattrs: BTreeMap::new(),
    }
}

impl State {
    pub fn empty() -> State {
        let root = (object(Fixed::Directory), Vec::new());
        State {
            objects: [(FileId::ROOT, root)].into(),
            names: BTreeMap::new(),
        }
    }

    /// What cannot be reached from the root is gone.
    pub fn drop_unreachable(&mut self) {
        let reachable = reachable(&self.names);
        self.objects.retain(|id, _| reachable.contains(id));
        self.names
            .retain(|(parent, _), _| reachable.contains(parent));
    }

    /// The first difference, for people.
    pub fn difference(&self, other: &State) -> Option<String> {
        if self.names != other.names {
            return Some(format!("names {:?} / {:?}", self.names, other.names));
        }
        for id in self.objects.keys().chain(other.objects.keys()) {
            let (Some(one), Some(two)) = (self.objects.get(id), other.objects.get(id)) else {
                return Some(format!("{id} is in one only"));
            };
            if one.0 != two.0 {
                return Some(format!("{id} is {:?} / {:?}", one.0, two.0));
            }
            if one.1 != two.1 {
                let at = one.1.iter().zip(&two.1).position(|(one, two)| one != two);
                return Some(format!("{id} differs at {at:?}"));
            }
        }
        None
    }
}

/// What the replica holds: the index.
#[derive(Default)]
pub struct Index(pub Mutex<State>);

impl Known for Index {
    fn child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>> {
        Ok(self.0.lock().names.get(&(parent, name.clone())).copied())
    }
    fn children(
        &self,
        parent: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, FileId)>> {
        let state = self.0.lock();
        let rows = state
            .names
            .iter()
            .filter(|((p, n), _)| *p == parent && after.is_none_or(|a| n > a));
        Ok(rows
            .take(max)
            .map(|((_, n), id)| (n.clone(), *id))
            .collect())
    }
    fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>> {
        let state = self.0.lock();
        let rows = state
            .names
            .iter()
            .filter(|(_, held)| **held == id)
            .take(max);
        Ok(rows.map(|(name, _)| name.clone()).collect())
    }
    fn size(&self, id: FileId) -> Result<Option<u64>> {
        Ok(self
            .0
            .lock()
            .objects
            .get(&id)
            .map(|(object, _)| object.size))
    }
    fn by_inode(&self, _: u64) -> Result<Option<FileId>> {
        Err(Error::Index("not asked for".into()))
    }
}

/// The real tree. Files are in memory, but real, as descriptors of them are kept.
#[derive(Default)]
pub struct Tree {
    pub objects: Mutex<BTreeMap<FileId, (Object, Option<File>)>>,
    pub names: Mutex<Names>,
}

impl Tree {
    pub fn new() -> Tree {
        let root = (object(Fixed::Directory), None);
        Tree {
            objects: Mutex::new([(FileId::ROOT, root)].into()),
            names: Mutex::default(),
        }
    }

    pub fn create(&self, id: FileId, fixed: Fixed) {
        let file = fixed.is_file().then(|| {
            File::from(rustix::fs::memfd_create("file", MemfdFlags::CLOEXEC).expect("memory"))
        });
        self.objects.lock().insert(id, (object(fixed), file));
    }

    pub fn with<T>(&self, id: FileId, act: impl FnOnce(&mut Object, Option<&File>) -> T) -> T {
        let mut objects = self.objects.lock();
        let (object, file) = objects.get_mut(&id).expect("an object");
        let answer = act(object, file.as_ref());
        if let Some(file) = file {
            object.size = file.metadata().expect("metadata").len();
        }
        answer
    }

    /// Changes the time of an object, as every change of it does.
    pub fn touch(&self, id: FileId, time: i64) {
        self.with(id, |object, _| {
            object.attributes.mtime = Timestamp {
                secs: time,
                nanos: 0,
            }
        });
    }

    pub fn state(&self) -> State {
        let mut state = State {
            names: self.names.lock().clone(),
            ..State::default()
        };
        for (&id, (object, file)) in self.objects.lock().iter() {
            let mut bytes = vec![0; object.size as usize];
            if let Some(file) = file {
                file.read_exact_at(&mut bytes, 0).expect("read");
            }
            state.objects.insert(id, (object.clone(), bytes));
        }
        state.drop_unreachable();
        state
    }

    /// Whether an object is in the part of the tree that is mirrored.
    pub fn is_mirrored(&self, id: FileId) -> bool {
        reachable(&self.names.lock()).contains(&id)
    }

    /// The names of the part that is mirrored.
    pub fn mirrored_names(&self) -> Names {
        let mut names = self.names.lock().clone();
        let reachable = reachable(&names);
        names.retain(|(parent, _), _| reachable.contains(parent));
        names
    }
}

fn reachable(names: &Names) -> BTreeSet<FileId> {
    let mut found = BTreeSet::from([FileId::ROOT]);
    let mut last = 0;
    while last != found.len() {
        last = found.len();
        let below: Vec<FileId> = names
            .iter()
            .filter(|((p, _), _)| found.contains(p))
            .map(|(_, id)| *id)
            .collect();
        found.extend(below);
    }
    found
}

impl Preserve for Tree {
    fn read_at(&self, id: FileId, extent: Extent, buffer: &mut Vec<u8>) -> io::Result<()> {
        let objects = self.objects.lock();
        let file = objects.get(&id).and_then(|(_, file)| file.as_ref());
        read_up_to(file.ok_or(io::ErrorKind::NotFound)?, extent, buffer)
    }
    fn stat(&self, id: FileId) -> io::Result<Snapshot> {
        let objects = self.objects.lock();
        let (object, _) = objects.get(&id).ok_or(io::ErrorKind::NotFound)?;
        Ok(Snapshot {
            object: object.clone(),
            stamp: Stamp::default(),
            links: 1,
        })
    }
    fn descriptor(&self, id: FileId) -> io::Result<OwnedFd> {
        let objects = self.objects.lock();
        let file = objects.get(&id).and_then(|(_, file)| file.as_ref());
        Ok(file.ok_or(io::ErrorKind::NotFound)?.try_clone()?.into())
    }
}

pub fn read_up_to(file: &File, extent: Extent, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    let size = file.metadata()?.len();
    let end = extent.end().min(size);
    buffer.resize(end.saturating_sub(extent.offset) as usize, 0);
    file.read_exact_at(buffer, extent.offset)
}
