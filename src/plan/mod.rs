//! Turns what is dirty into the entries of an epoch: only what the replica does not hold.
//!
//! [`Planner::stage`] copies dirty extents ahead of the seal, [`Planner::epoch`] plans a sealed
//! epoch. Both read the real tree through [`Source`], know what the replica holds through
//! [`Index`], and hand entries to the caller one by one; no more than one fragment is ever held
//! in memory. The shipping thread of the runtime calls them.
//!
//! What must hold:
//!
//! - A block is skipped only if its hash, over the whole block as it was read, is the one that
//!   the replica holds. The index says which that is, but not for a block that a fragment which
//!   the index does not yet know has touched (`held`): such a block is never skipped.
//! - The bytes that are shipped and the hash that goes with them come from one read.
//! - Of a sealed epoch the live file is read first and what was saved is laid over it, never the
//!   other way round: whoever writes saves first.

mod content;
mod delta;
mod epoch;
mod held;
mod names;
mod relative;
mod table;
mod view;

pub use delta::Base;
pub use view::{EpochView, Index, Source};

use crate::model::{Entry, Extent, ExtentSet, FileId, Stamp};
use content::Content;
use held::Held;
use std::fs::File;
use std::io;

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Why an epoch could not be planned. Nothing is lost by it: the epoch is abandoned and planned
/// again later.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The real tree could not be read.
    #[error("object {file} of the real tree cannot be read at offset {offset}")]
    Read {
        /// Which object.
        file: FileId,
        /// Where in its content; 0 for its attributes.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// What was saved of a sealed epoch could not be read back.
    #[error("what was saved of object {file} cannot be read at offset {offset}")]
    Saved {
        /// Which object.
        file: FileId,
        /// Where in its content.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The object has a name in the epoch, but is found neither by name nor by descriptor.
    #[error("object {file} of the sealed epoch cannot be found")]
    Lost {
        /// Which object.
        file: FileId,
    },
    /// The index could not be read.
    #[error("the index cannot be read")]
    Index(#[source] BoxedError),
    /// Whoever takes the entries could not.
    #[error("an entry could not be handed on")]
    Emit(#[source] io::Error),
}

/// Takes entries, in order. The bytes of a fragment with [`crate::model::Body::Bytes`] are lent
/// beside it, since they go into a frame at once.
pub type Emit<'a> = dyn FnMut(Entry, Option<&[u8]>) -> io::Result<()> + 'a;

/// What it took to plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Entries that were emitted.
    pub entries: u64,
    /// Bytes of content beside them, before compression.
    pub bytes_emitted: u64,
    /// Bytes that the replica copies from what it holds.
    pub bytes_copied: u64,
    /// Bytes of dirty files that were read.
    pub bytes_read: u64,
    /// Blocks that were dirty, but are as the replica holds them.
    pub skipped_blocks: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: Tally) {
        self.entries += other.entries;
        self.bytes_emitted += other.bytes_emitted;
        self.bytes_copied += other.bytes_copied;
        self.bytes_read += other.bytes_read;
        self.skipped_blocks += other.skipped_blocks;
    }
}

/// A sealed epoch, planned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Planned {
    /// The stamps of the objects, of the state that was read; with a ctime of zero where an
    /// equal one would prove nothing.
    pub stamps: Vec<(FileId, Stamp)>,
    /// Objects that neither the epoch nor the index knows by a name: a walk will find them.
    pub strangers: u64,
    /// What it took.
    pub tally: Tally,
}

/// Where the bytes of a file that replaces another may be found again.
#[derive(Debug)]
pub enum Against<'a> {
    /// Nowhere.
    Nothing,
    /// In the content of the file that it replaced, at any offset.
    Content(&'a mut Base),
    /// In the same place of that file, as far as the hashes of blocks tell.
    Blocks(FileId),
}

/// Plans; keeps its buffers, and what it must remember from one epoch to the next.
#[derive(Debug, Default)]
pub struct Planner {
    held: Held,
    young: relative::Young,
    buffer: Vec<u8>,
}

impl Planner {
    /// A planner whose index knows everything that the replica holds.
    #[must_use]
    pub fn new() -> Planner {
        Planner::default()
    }

    /// Copies dirty extents of a file ahead of the seal. The extents must have been taken out of
    /// the dirty map before this call, so that whatever is written meanwhile is dirty again.
    ///
    /// What lies behind the end of the file as it is now is left out: who shrinks a file marks
    /// what was cut off as dirty.
    ///
    /// # Errors
    /// When the file or the index cannot be read, or `emit` fails. What was emitted stands; the
    /// extents go back to the dirty map.
    pub fn stage(
        &mut self,
        id: FileId,
        file: &File,
        extents: &[Extent],
        index: &dyn Index,
        against: Against<'_>,
        emit: &mut Emit<'_>,
    ) -> Result<Tally, PlanError> {
        let read = |source| PlanError::Read {
            file: id,
            offset: 0,
            source,
        };
        let size = file.metadata().map_err(read)?.len();
        let dirty: ExtentSet = extents.iter().copied().collect();
        let known = index.object(id)?;
        let mut content = Content {
            id,
            file,
            size,
            dirty: &dirty,
            known: known.map(|known| known.size),
            index,
            held: &mut self.held,
            sealed: None,
            buffer: &mut self.buffer,
            tally: Tally::default(),
            against,
        };
        content.plan(emit)?;
        Ok(content.tally)
    }

    /// The index knows the sealed epoch now.
    pub fn committed(&mut self) {
        self.held.committed();
    }

    /// The sealed epoch was folded back into the open one.
    pub fn abandoned(&mut self) {
        self.held.abandoned();
    }
}

#[cfg(test)]
mod tests;
