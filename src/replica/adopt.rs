//! Takes a directory over that has files but no records (made by rsync, say): everything in it
//! gets an id and goes into new records with the hashes of its blocks, so that the primary can
//! compare and send only what differs. Nothing in the directory is changed.

use super::ReplicaError;
use super::error::Doing;
use super::redo::names;
use super::tree::{self, Tree};
use crate::disk::{self, Snapshot};
use crate::limits::{BLOCK_BYTES, BLOCKS_ITEM_MAX};
use crate::model::{
    BlockHash, Commit, EpochId, FileId, Fixed, Incarnation, Name, Object, RESERVED_NAME, hash_block,
};
use crate::records::{Change, Durability, Records};
use crate::wire::RecordItem;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// A directory to be looked at: where it is, from the root.
struct Found {
    id: FileId,
    path: Option<Rc<Step>>,
}

struct Step {
    name: OsString,
    parent: Option<Rc<Step>>,
}

struct Scan<'a> {
    tree: &'a Tree,
    change: Change,
    next: FileId,
    // objects with several names, by device and inode
    links: HashMap<(u64, u64), FileId>,
    buffer: Vec<u8>,
}

/// Makes the records those of what is in the directory.
pub(super) fn adopt(
    tree: &Tree,
    records: &Records,
    incarnation: Incarnation,
) -> Result<(), ReplicaError> {
    let change = records.begin()?;
    let block = usize::try_from(BLOCK_BYTES).unwrap_or(0);
    let mut scan = Scan {
        tree,
        change,
        next: FileId::FIRST,
        links: HashMap::new(),
        buffer: vec![0; block],
    };
    scan.all()?;
    let commit = Commit {
        epoch: EpochId(0),
        parent: EpochId(0),
        incarnation,
        sealed_at: disk::coarse_now(),
        consistent: false,
        entries: 0,
        digest: [0; 32],
    };
    scan.change.commit(&commit, Durability::Immediate)?;
    Ok(())
}

impl Scan<'_> {
    fn all(&mut self) -> Result<(), ReplicaError> {
        let seen = disk::look_fully(disk::Place::Open(self.tree.root.as_fd()))
            .doing(|| "cannot look at the target directory")?;
        self.object(FileId::ROOT, seen)?;
        let mut left = vec![Found {
            id: FileId::ROOT,
            path: None,
        }];
        while let Some(found) = left.pop() {
            // No further than a stop.
            self.tree.step(tree::Change::Look).doing(|| "cannot scan")?;
            self.directory(&found, &mut left)?;
        }
        Ok(())
    }

    fn open(&self, path: Option<&Rc<Step>>) -> io::Result<OwnedFd> {
        let mut steps = Vec::new();
        let mut at = path;
        while let Some(step) = at {
            steps.push(step);
            at = step.parent.as_ref();
        }
        let mut open = self.tree.directory(&self.tree.root, OsStr::new("."))?;
        for step in steps.into_iter().rev() {
            open = self.tree.directory(&open, &step.name)?;
        }
        Ok(open)
    }

    fn directory(&mut self, found: &Found, left: &mut Vec<Found>) -> Result<(), ReplicaError> {
        let shown = || match &found.path {
            Some(step) => format!("cannot scan directory {}", step.name.display()),
            None => "cannot scan the target directory".to_owned(),
        };
        let directory = self.open(found.path.as_ref()).doing(shown)?;
        for name in names(&directory).doing(shown)? {
            if found.path.is_none() && name == RESERVED_NAME.as_bytes() {
                continue;
            }
            let Ok(name) = Name::new(&name) else { continue };
            let place = disk::Place::Entry(directory.as_fd(), name.as_os_str());
            let seen = match disk::look_fully(place) {
                Ok(seen) => seen,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).doing(|| format!("cannot look at {name}")),
            };
            let is_directory = seen.object.fixed.is_directory();
            if is_directory && self.tree.way((&directory, name.as_os_str())).is_err() {
                tracing::warn!(%name, "another mount, or not accessible: left out");
                continue;
            }
            let id = self.entry(&directory, &name, seen)?;
            self.change.item(&RecordItem::Binding {
                parent: found.id,
                name: name.clone(),
                object: id,
            })?;
            if is_directory {
                let path = Some(Rc::new(Step {
                    name: name.as_os_str().to_os_string(),
                    parent: found.path.clone(),
                }));
                left.push(Found { id, path });
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: &OwnedFd,
        name: &Name,
        seen: Snapshot,
    ) -> Result<FileId, ReplicaError> {
        let id = self.next;
        if seen.links > 1 && !seen.object.fixed.is_directory() {
            // One file system: another mount is not entered.
            let key = (0, seen.stamp.inode);
            if let Some(known) = self.links.get(&key) {
                return Ok(*known);
            }
            self.links.insert(key, id);
        }
        self.next = FileId(self.next.0 + 1);
        let (fixed, size) = (seen.object.fixed.clone(), seen.object.size);
        self.object(id, seen)?;
        if fixed == Fixed::File && size > 0 {
            match self.tree.file((directory, name.as_os_str()), false) {
                Ok(file) => self
                    .blocks(id, size, file)
                    .doing(|| format!("cannot read {name}"))??,
                // Without hashes it counts as zeros, so that it will be written anew.
                Err(error) => tracing::warn!(%name, %error, "cannot be read"),
            }
        }
        Ok(id)
    }

    fn object(&mut self, id: FileId, seen: Snapshot) -> Result<(), ReplicaError> {
        let object: Object = seen.object;
        self.change.item(&RecordItem::Object { id, object })?;
        self.change.stamp(id, seen.stamp)?;
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn blocks(
        &mut self,
        id: FileId,
        size: u64,
        file: std::fs::File,
    ) -> io::Result<Result<(), ReplicaError>> {
        let mut file = file.take(size);
        let (mut first, mut hashes) = (0, Vec::new());
        loop {
            let mut read = 0;
            while read < self.buffer.len() {
                match file.read(&mut self.buffer[read..])? {
                    0 => break,
                    count => read += count,
                }
            }
            hashes.push(hash_block(&self.buffer[..read]));
            let last = read < self.buffer.len();
            if last || hashes.len() == BLOCKS_ITEM_MAX {
                let count = hashes.len() as u64;
                let item = RecordItem::Blocks {
                    file: id,
                    first,
                    hashes: std::mem::take(&mut hashes),
                };
                let zeros = matches!(&item, RecordItem::Blocks { hashes, .. }
                    if hashes.iter().all(|hash| *hash == BlockHash::ZERO));
                if !zeros && let Err(error) = self.change.item(&item) {
                    return Ok(Err(error.into()));
                }
                first += count;
            }
            if last {
                return Ok(Ok(()));
            }
        }
    }
}
