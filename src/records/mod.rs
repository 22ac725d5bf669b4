//! Records: what a side holds. Objects, names and block hashes of the whole tree as of one epoch,
//! in a redb database. The primary's is its *index*: what the replica holds.
//!
//! A [`Change`] turns the state of one epoch into that of the next, in one transaction, from the
//! entries of the epoch; both sides run the same code on the same entries, and get the same
//! [`State::root_hash`]. Who calls: `journal`, `plan` and `reconcile` read, `sender`'s driver and
//! `replica` change.
//!
//! Invariants of a committed state: every object but the root has a name; every name is in a
//! directory that exists, and leads to an object that exists; a directory has one name, and its
//! parents lead to the root; block rows are those of the non-zero blocks below a file's end.
//!
//! A disk that fails (or is full) fails calls, not the process: the database is closed and opened
//! again by the next call. After a [`Change::commit`] that failed, ask [`Records::state`] whether
//! it took place. Commits that were not durable may be lost then ([`Error::FellBack`]): the caller
//! keeps what it needs to apply them again (manifests, a redo log) until [`Records::sync`].

mod change;
mod error;
mod export;
mod row;
mod settle;
mod store;
mod tables;
#[cfg(test)]
mod tests;

pub use change::{Applied, Change};
pub use error::{Error, Result};
pub use export::Cursor;

use crate::model::{BlockHash, EpochId, FileId, Name, Object, RootHash, Stamp};
use crate::wire::RecordItem;
use error::Fault;
use redb::ReadableTable;
use row::{BLOCKS, INODES, LINKS, NAMES, OBJECTS, Row};
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use store::Store;

/// The records of one side. A clone is another handle for the same.
#[derive(Clone, Debug)]
pub struct Records {
    store: Arc<Store>,
}

/// An object in the records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its state.
    pub object: Object,
    /// Where this side saw it when it was in this state.
    pub stamp: Stamp,
    /// How many names it has.
    pub links: u32,
}

/// What the records are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// The epoch that made this state.
    pub epoch: EpochId,
    /// Its digest.
    pub digest: [u8; 32],
    /// The hash of the tree.
    pub root_hash: RootHash,
    /// How many objects there are, the root included.
    pub objects: u64,
    /// How many names.
    pub names: u64,
    /// Sum of the sizes of the files, each counted once.
    pub bytes: u64,
    /// Whether the tree existed at one instant (false within a first sync in parts).
    pub consistent: bool,
    /// No larger id was ever seen in an entry.
    pub highest_id: FileId,
}

/// When a commit is on stable storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// With the next one that is [`Durability::Immediate`]; a crash may lose it until then.
    None,
    /// When the call returns.
    Immediate,
}

impl Records {
    /// Makes records of nothing but the root directory, in place of any that are there.
    ///
    /// # Durability
    /// They are on stable storage when it returns. After a crash before that, the path holds what
    /// it held.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Records> {
        Ok(Records {
            store: Arc::new(Store::create(path)?),
        })
    }

    /// Opens them. After a crash this reads the whole file.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Version`], [`Error::Damaged`], [`Error::InUse`],
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Records> {
        Ok(Records {
            store: Arc::new(Store::open(path)?),
        })
    }

    /// Where they are.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// What they are of.
    ///
    /// # Errors
    /// As every read: [`Error::Io`], [`Error::Damaged`], [`Error::FellBack`].
    pub fn state(&self) -> Result<State> {
        self.store.state()
    }

    /// An object.
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn object(&self, id: FileId) -> Result<Option<Record>> {
        self.store.read(|read| {
            let objects = read.open_table(OBJECTS)?;
            let Some(bytes) = objects.get(id.0)? else {
                return Ok(None);
            };
            let Row {
                object,
                stamp,
                links,
                ..
            } = Row::decode(bytes.value())?;
            let object = object.ok_or(Fault::Row("an object without a state"))?;
            Ok(Some(Record {
                object,
                stamp,
                links,
            }))
        })
    }

    /// What a name holds.
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>> {
        self.store.read(|read| {
            let names = read.open_table(NAMES)?;
            Ok(names
                .get((parent.0, name.as_bytes()))?
                .map(|id| FileId(id.value())))
        })
    }

    /// The names in a directory, in order, from the first one behind `after`; at most `max`.
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn children(
        &self,
        parent: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> Result<Vec<(Name, FileId)>> {
        let start = match after {
            Some(name) => Bound::Excluded((parent.0, name.as_bytes())),
            None => Bound::Included((parent.0, &[][..])),
        };
        self.store.read(|read| {
            let names = read.open_table(NAMES)?;
            let mut found = Vec::new();
            for row in names.range((start, Bound::Unbounded))?.take(max) {
                let (key, id) = row?;
                let (of, name) = key.value();
                if of != parent.0 {
                    break;
                }
                found.push((decode_name(name)?, FileId(id.value())));
            }
            Ok(found)
        })
    }

    /// The names of an object, at most `max`.
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>> {
        self.store.read(|read| {
            let links = read.open_table(LINKS)?;
            let mut found = Vec::new();
            for row in links.range((id.0, 0, &[][..])..)?.take(max) {
                let (key, ()) = (row?.0, ());
                let (of, parent, name) = key.value();
                if of != id.0 {
                    break;
                }
                found.push((FileId(parent), decode_name(name)?));
            }
            Ok(found)
        })
    }

    /// The hashes of `count` blocks of a file; [`BlockHash::ZERO`] for holes, and behind its end.
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn blocks(&self, id: FileId, first: u64, count: u64) -> Result<Vec<BlockHash>> {
        self.store.read(|read| {
            let blocks = read.open_table(BLOCKS)?;
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let mut found = vec![BlockHash::ZERO; count];
            for row in blocks.range((id.0, first)..(id.0, first.saturating_add(count as u64)))? {
                let (key, hash) = row?;
                let at = usize::try_from(key.value().1 - first).unwrap_or(usize::MAX);
                if let Some(slot) = found.get_mut(at) {
                    *slot = BlockHash(*hash.value());
                }
            }
            Ok(found)
        })
    }

    /// The object that was last stamped with this inode number: a hint.
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn by_inode(&self, inode: u64) -> Result<Option<FileId>> {
        self.store.read(|read| {
            let inodes = read.open_table(INODES)?;
            Ok(inodes.get(inode)?.map(|id| FileId(id.value())))
        })
    }

    /// Begins a change; waits until another one of this process has ended.
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn begin(&self) -> Result<Change> {
        Change::begin(&self.store)
    }

    /// Begins a change that replaces everything (by an import): in it, the records are as they were
    /// when they were created, but for [`State::highest_id`].
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn replace(&self) -> Result<Change> {
        let mut change = self.begin()?;
        change.clear()?;
        Ok(change)
    }

    /// The next rows of an export, all of one state, cut to fit a message; empty at the end.
    ///
    /// # Errors
    /// See [`Records::state`]; the export must then begin again with a new cursor.
    pub fn items(&self, cursor: &mut Cursor, max: usize) -> Result<Vec<RecordItem>> {
        cursor.next(&self.store, max)
    }

    /// Notes where objects were seen. Those that are not known are left out.
    ///
    /// # Durability
    /// [`Durability::None`].
    ///
    /// # Errors
    /// See [`Records::state`].
    pub fn set_stamps(&self, stamps: &[(FileId, Stamp)]) -> Result<()> {
        let mut writing = self.store.begin_write()?;
        writing.step(|write| {
            let mut objects = write.open_table(OBJECTS)?;
            let mut inodes = write.open_table(INODES)?;
            for &(id, stamp) in stamps {
                let row = objects.get(id.0)?.map(|bytes| Row::decode(bytes.value()));
                let Some(mut row) = row.transpose()? else {
                    continue;
                };
                tables::hint(&mut inodes, id, &row.stamp, &stamp)?;
                row.stamp = stamp;
                objects.insert(id.0, &row.encode()?[..])?;
            }
            Ok(())
        })?;
        writing.commit(None, Durability::None)
    }

    /// Makes every commit so far durable, and answers up to which epoch that is.
    ///
    /// # Errors
    /// [`Error::Io`]: it is not known which of them are.
    pub fn sync(&self) -> Result<EpochId> {
        let writing = self.store.begin_write()?;
        let epoch = self.store.state()?.epoch;
        writing.commit(None, Durability::Immediate)?;
        Ok(epoch)
    }
}

fn decode_name(bytes: &[u8]) -> std::result::Result<Name, Fault> {
    Name::new(bytes).map_err(|_| Fault::Row("a name that is none"))
}
