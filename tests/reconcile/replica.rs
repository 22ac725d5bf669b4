//! A replica in memory, and the real tree in the same form.

use mirrorfs::model::{Body, Entry, FileId, Fixed, Name, Object, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What one path holds, in a form that both sides have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    mtime: Option<Timestamp>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Vec<u8>,
    // The first path of the same object.
    first: PathBuf,
}

pub type Tree = BTreeMap<PathBuf, Seen>;

/// What a replica has after the epochs that it was given.
#[derive(Default)]
pub struct Replica {
    objects: BTreeMap<FileId, (Object, Vec<u8>)>,
    names: BTreeMap<(FileId, Name), FileId>,
}

fn range(offset: u64, length: u64) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).expect("small");
    start..start + usize::try_from(length).expect("small")
}

impl Replica {
    /// Applies an epoch: entries in order, then what its records say is gone.
    pub fn apply(&mut self, entries: &[(Entry, Option<Vec<u8>>)], gone: &[FileId]) {
        let before: BTreeMap<FileId, Vec<u8>> = self
            .objects
            .iter()
            .map(|(id, (_, content))| (*id, content.clone()))
            .collect();
        let mut contents = before.clone();
        for (entry, bytes) in entries {
            match entry {
                Entry::Fragment(fragment) => {
                    let content = contents.entry(fragment.file).or_default();
                    let at = range(fragment.extent.offset, fragment.extent.length);
                    if content.len() < at.end {
                        content.resize(at.end, 0);
                    }
                    match &fragment.body {
                        Body::Bytes => content[at].copy_from_slice(bytes.as_ref().expect("bytes")),
                        Body::Hole => content[at].fill(0),
                        Body::Copy { from, offset } => {
                            let mut source = before[from].clone();
                            let wanted = range(*offset, fragment.extent.length);
                            source.resize(source.len().max(wanted.end), 0);
                            content[at].copy_from_slice(&source[wanted]);
                        }
                    }
                }
                Entry::Object { id, object } => {
                    let content = contents.remove(id).unwrap_or_default();
                    self.objects.insert(*id, (object.clone(), Vec::new()));
                    contents.insert(*id, content);
                }
                Entry::Binding {
                    parent,
                    name,
                    object: Some(id),
                } => {
                    self.names.insert((*parent, name.clone()), *id);
                }
                Entry::Binding {
                    parent,
                    name,
                    object: None,
                } => {
                    self.names.remove(&(*parent, name.clone()));
                }
            }
        }
        for id in gone {
            self.objects.remove(id);
            self.names
                .retain(|(parent, _), object| parent != id && object != id);
        }
        for (id, (object, content)) in &mut self.objects {
            *content = contents.remove(id).unwrap_or_default();
            content.resize(usize::try_from(object.size).expect("small"), 0);
        }
    }

    /// The tree by paths.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        let mut firsts: BTreeMap<FileId, PathBuf> = BTreeMap::new();
        let mut open = vec![(FileId::ROOT, PathBuf::new())];
        let mut paths = vec![];
        while let Some((directory, path)) = open.pop() {
            for ((_, name), id) in self
                .names
                .iter()
                .filter(|((parent, _), _)| *parent == directory)
            {
                let path = path.join(name.as_os_str());
                if matches!(self.objects[id].0.fixed, Fixed::Directory) {
                    open.push((*id, path.clone()));
                }
                paths.push((path, *id));
            }
        }
        paths.sort();
        for (path, id) in paths {
            let first = firsts.entry(id).or_insert_with(|| path.clone()).clone();
            let (object, content) = &self.objects[&id];
            tree.insert(path, of_object(object, content.clone(), first));
        }
        tree
    }
}

fn of_object(object: &Object, content: Vec<u8>, first: PathBuf) -> Seen {
    let link = matches!(object.fixed, Fixed::Symlink(_));
    Seen {
        kind: format!("{:?}", object.fixed),
        // The mode of a symbolic link means nothing.
        mode: if link { 0o777 } else { object.attributes.mode },
        owner: (object.attributes.uid, object.attributes.gid),
        mtime: Some(object.attributes.mtime),
        xattrs: object
            .xattrs
            .iter()
            .map(|(k, v)| (k.to_vec(), v.to_vec()))
            .collect(),
        content,
        first,
    }
}

/// The real tree below a directory, on its own file system.
pub fn real_tree(root: &Path) -> Tree {
    let home = fs::metadata(root).expect("the root").dev();
    let mut found = vec![];
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(root.join(&directory)).expect("a directory") {
            let path = directory.join(entry.expect("an entry").file_name());
            let seen = fs::symlink_metadata(root.join(&path)).expect("an object");
            if seen.is_dir() {
                if seen.dev() != home {
                    continue;
                }
                open.push(path.clone());
            }
            found.push((path, seen));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let mut firsts: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut tree = Tree::new();
    for (path, seen) in found {
        let full = root.join(&path);
        let fixed = match seen.file_type() {
            kind if kind.is_dir() => Fixed::Directory,
            kind if kind.is_symlink() => {
                let target = fs::read_link(&full).expect("a target");
                Fixed::Symlink(target.as_os_str().as_bytes().into())
            }
            kind if kind.is_fifo() => Fixed::Fifo,
            _ => Fixed::File,
        };
        let is_file = fixed == Fixed::File;
        let seen = Seen {
            kind: format!("{fixed:?}"),
            mode: seen.mode() & 0o7777,
            owner: (seen.uid(), seen.gid()),
            mtime: Some(Timestamp {
                secs: seen.mtime(),
                nanos: u32::try_from(seen.mtime_nsec()).expect("nanoseconds"),
            }),
            xattrs: xattrs(&full),
            content: if is_file {
                fs::read(&full).expect("a file")
            } else {
                Vec::new()
            },
            first: firsts
                .entry(seen.ino())
                .or_insert_with(|| path.clone())
                .clone(),
        };
        tree.insert(path, seen);
    }
    tree
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = [0u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| name.starts_with(b"user."));
    names
        .map(|name| {
            let mut value = [0u8; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("a value");
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Says what differs, path by path.
pub fn assert_same(replica: &Tree, real: &Tree) {
    for path in replica.keys().chain(real.keys()) {
        let (ours, theirs) = (replica.get(path), real.get(path));
        if ours != theirs {
            let brief = |seen: Option<&Seen>| {
                seen.map(|seen| {
                    let length = seen.content.len();
                    let sum: u64 = seen.content.iter().map(|&byte| u64::from(byte)).sum();
                    let seen = Seen {
                        content: vec![],
                        ..seen.clone()
                    };
                    format!("{length} bytes (sum {sum}) {seen:?}")
                })
            };
            panic!(
                "{}:\n replica {:?}\n real    {:?}",
                path.display(),
                brief(ours),
                brief(theirs)
            );
        }
    }
}
