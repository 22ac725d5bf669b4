//! An epoch, or an import, on its way into the records.

use super::error::{Error, Fault, Result};
use super::row::{META, META_STATE, encode_state};
use super::store::{self, Store, Writing};
use super::tables::{Tables, Work, hint, touch};
use super::{Durability, State, settle};
use crate::limits::BLOCK_BYTES;
use crate::model::{BlockHash, Commit, Entry, FileId, Fragment, Name, Object, Stamp, blocks_of};
use crate::wire::RecordItem;
use redb::WriteTransaction;
use std::sync::Arc;

/// How many steps are collected before the tables are opened for them.
const STEPS_MAX: usize = 256;

/// A change of the records, in one transaction: the entries of an epoch, or an import. Dropping
/// it undoes everything.
///
/// Entries are final states and may come in any order, a later one overriding an earlier one. An
/// error may be that of an earlier entry than the one that was given; the change is then over.
pub struct Change {
    writing: Writing,
    base: State,
    work: Work,
    steps: Vec<Step>,
    import: bool,
    failed: bool,
}

/// What a commit did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The state after it.
    pub state: State,
    /// The objects that are gone, each behind the directory that took it along.
    pub gone: Vec<FileId>,
}

#[derive(Debug)]
enum Step {
    Object(FileId, Box<Object>),
    Bind(FileId, Name, Option<FileId>),
    Blocks(FileId, u64, Vec<BlockHash>),
    Hole(FileId, u64, u64),
    Stamp(FileId, Stamp),
}

impl Change {
    pub(super) fn begin(store: &Arc<Store>) -> Result<Change> {
        let writing = store.begin_write()?;
        // Nobody else writes now, so this is the state that the transaction began with.
        let state = store.state()?;
        Ok(Change {
            writing,
            base: state,
            work: Work::new(state),
            steps: Vec::new(),
            import: false,
            failed: false,
        })
    }

    /// The state that is being changed.
    #[must_use]
    pub fn base(&self) -> State {
        self.base
    }

    /// Takes one entry of an epoch.
    ///
    /// # Errors
    /// [`Error::Inconsistent`], [`Error::Io`], [`Error::Damaged`]; the change is then over.
    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        let step = match entry {
            Entry::Object { id, object } => Step::Object(*id, Box::new(object.clone())),
            Entry::Binding {
                parent,
                name,
                object,
            } => Step::Bind(*parent, name.clone(), *object),
            Entry::Fragment(fragment) => fragment_step(fragment)?,
        };
        if !entry.is_valid() {
            self.failed = true;
            let id = match entry {
                Entry::Object { id, .. } => *id,
                Entry::Binding { parent, .. } => *parent,
                Entry::Fragment(fragment) => fragment.file,
            };
            return Err(Error::Inconsistent {
                id,
                detail: "has an entry that is out of bounds",
            });
        }
        self.step(step)
    }

    /// Takes one row of another side's records. The commit of an import need not follow the epoch
    /// that these records have.
    ///
    /// # Errors
    /// See [`Change::entry`].
    pub fn item(&mut self, item: &RecordItem) -> Result<()> {
        self.import = true;
        self.step(match item {
            RecordItem::Object { id, object } => Step::Object(*id, Box::new(object.clone())),
            RecordItem::Binding {
                parent,
                name,
                object,
            } => Step::Bind(*parent, name.clone(), Some(*object)),
            RecordItem::Blocks {
                file,
                first,
                hashes,
            } => Step::Blocks(*file, *first, hashes.clone()),
        })
    }

    /// Notes where this side saw an object.
    ///
    /// # Errors
    /// See [`Change::entry`].
    pub fn stamp(&mut self, id: FileId, stamp: Stamp) -> Result<()> {
        self.step(Step::Stamp(id, stamp))
    }

    /// Forgets everything, as if the records had just been created.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.import = true;
        self.steps.clear();
        let highest_id = self.work.state.highest_id;
        let cleared = self.writing.step(store::clear);
        self.failed |= cleared.is_err();
        let state = cleared?;
        self.work = Work::new(State {
            highest_id,
            ..state
        });
        Ok(())
    }

    /// Derives what is gone, checks that the tree is one, and makes it the state of the epoch:
    /// [`Change::settle`] and [`Change::finish`].
    ///
    /// # Errors
    /// [`Error::Inconsistent`] and [`Error::Order`]: nothing was changed. Others: ask
    /// [`super::Records::state`] whether it was.
    pub fn commit(mut self, commit: &Commit, durability: Durability) -> Result<Applied> {
        let applied = self.settle(commit)?;
        self.finish(durability)?;
        Ok(applied)
    }

    /// Ends an epoch within the change: derives what is gone and checks that the tree is one.
    /// Nobody else sees it before [`Change::finish`], and the entries of the next epoch may
    /// follow.
    ///
    /// # Errors
    /// [`Error::Inconsistent`], [`Error::Order`], [`Error::Io`], [`Error::Damaged`]; the change
    /// is then over.
    pub fn settle(&mut self, commit: &Commit) -> Result<Applied> {
        let has = self.base.epoch;
        if !self.import && (commit.parent != has || commit.epoch <= has) {
            self.failed = true;
            let Commit { epoch, parent, .. } = *commit;
            return Err(Error::Order { epoch, parent, has });
        }
        self.flush()?;
        let Change { writing, work, .. } = self;
        let settled = writing.step(|write| {
            let mut tables = Tables::open(write)?;
            let gone = settle::settle(work, &mut tables)?;
            let state = State {
                epoch: commit.epoch,
                digest: commit.digest,
                root_hash: work.root.root_hash(),
                consistent: commit.consistent,
                ..work.state
            };
            write
                .open_table(META)?
                .insert(META_STATE, &encode_state(&state)?[..])?;
            Ok(Applied { state, gone })
        });
        self.failed |= settled.is_err();
        let applied = settled?;
        self.base = applied.state;
        self.work = Work::new(applied.state);
        Ok(applied)
    }

    /// Makes what was settled the state of the records; entries behind the last
    /// [`Change::settle`] are an error.
    ///
    /// # Errors
    /// As [`Change::commit`].
    pub fn finish(self, durability: Durability) -> Result<()> {
        if self.failed || !self.steps.is_empty() {
            let detail = "is in a change that was not settled";
            return Err(Error::Inconsistent {
                id: FileId::ROOT,
                detail,
            });
        }
        self.writing
            .commit(Some((self.base.epoch, self.import)), durability)
    }

    /// Undoes everything; so does dropping it.
    pub fn abort(self) {}

    /// As if more were touched than an epoch may.
    #[cfg(test)]
    pub(super) fn touch_all(&mut self) {
        self.work.touched = super::tables::Touched::All;
    }

    fn step(&mut self, step: Step) -> Result<()> {
        self.steps.push(step);
        if self.steps.len() >= STEPS_MAX {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<()> {
        if self.failed {
            let detail = "is in a change that has failed";
            return Err(Error::Inconsistent {
                id: FileId::ROOT,
                detail,
            });
        }
        let steps = std::mem::take(&mut self.steps);
        let Change {
            writing,
            work,
            failed,
            ..
        } = self;
        let taken = writing.step(|write| take(work, write, steps));
        *failed |= taken.is_err();
        taken
    }
}

fn fragment_step(fragment: &Fragment) -> Result<Step> {
    let blocks = blocks_of(fragment.extent);
    Ok(if fragment.blocks.is_empty() {
        Step::Hole(fragment.file, blocks.start, blocks.end)
    } else {
        Step::Blocks(fragment.file, blocks.start, fragment.blocks.clone())
    })
}

fn take(
    work: &mut Work,
    write: &WriteTransaction,
    steps: Vec<Step>,
) -> std::result::Result<(), Fault> {
    let tables = &mut Tables::open(write)?;
    for step in steps {
        match step {
            Step::Object(id, object) => {
                let row = work.row(tables, id, touch::CONTENT)?;
                if row
                    .object
                    .as_ref()
                    .is_some_and(|held| held.fixed != object.fixed)
                {
                    return Err(Fault::inconsistent(id, "became another kind of object"));
                }
                row.object = Some(*object);
            }
            Step::Bind(parent, name, object) => {
                if object == Some(FileId::ROOT) {
                    return Err(Fault::inconsistent(FileId::ROOT, "cannot have a name"));
                }
                work.bind(tables, parent, name.as_bytes(), object)?;
            }
            Step::Blocks(id, first, hashes) => {
                let end = first.checked_add(hashes.len() as u64);
                if end.and_then(|end| end.checked_mul(BLOCK_BYTES)).is_none() {
                    return Err(Fault::inconsistent(id, "has a block past any end"));
                }
                for (block, hash) in (first..).zip(hashes) {
                    work.block(tables, id, block, hash)?;
                }
            }
            Step::Hole(id, first, end) => work.drop_blocks(tables, id, first, end)?,
            Step::Stamp(id, stamp) => {
                let row = work.row(tables, id, touch::CONTENT)?;
                let before = std::mem::replace(&mut row.stamp, stamp);
                hint(&mut tables.inodes, id, &before, &stamp)?;
            }
        }
    }
    Ok(())
}
