//! What the planner sees of the modules around it.

use super::PlanError;
use crate::disk::Snapshot;
use crate::journal::{ChangeView, Sealed};
use crate::model::{BlockHash, Extent, FileId, Name, Object};
use crate::records::{self, Records};
use std::fs::File;
use std::io;

/// The real tree, by known names.
pub trait Source {
    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// `NotFound` or `ESTALE` when no known name holds it any more.
    fn open(&self, id: FileId) -> io::Result<File>;

    /// An object as it is now, with its extended attributes.
    ///
    /// # Errors
    /// As [`Source::open`].
    fn snapshot(&self, id: FileId) -> io::Result<Snapshot>;

    /// A file that is gone, if it is kept as a base for a delta.
    fn kept(&self, _id: FileId) -> Option<File> {
        None
    }

    /// An object as it is now; the extended attributes may be missing in the answer.
    ///
    /// # Errors
    /// As [`Source::open`].
    fn look(&self, id: FileId) -> io::Result<Snapshot> {
        self.snapshot(id)
    }
}

/// What the replica holds.
pub trait Index {
    /// An object.
    ///
    /// # Errors
    /// [`PlanError::Index`], as all of these.
    fn object(&self, id: FileId) -> Result<Option<Object>, PlanError>;

    /// Hashes of `count` blocks from block `first`; [`BlockHash::ZERO`] for those it has not.
    ///
    /// # Errors
    /// See [`Index::object`].
    fn blocks(&self, id: FileId, first: u64, count: u64) -> Result<Vec<BlockHash>, PlanError>;

    /// What a name holds.
    ///
    /// # Errors
    /// See [`Index::object`].
    fn child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>, PlanError>;

    /// Up to `max` names in a directory and what they hold.
    ///
    /// # Errors
    /// See [`Index::object`].
    fn children(&self, parent: FileId, max: usize) -> Result<Vec<(Name, FileId)>, PlanError>;

    /// Up to `max` names of an object.
    ///
    /// # Errors
    /// See [`Index::object`].
    fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>, PlanError>;
}

impl Index for Records {
    fn object(&self, id: FileId) -> Result<Option<Object>, PlanError> {
        Ok(Records::object(self, id)?.map(|record| record.object))
    }

    fn blocks(&self, id: FileId, first: u64, count: u64) -> Result<Vec<BlockHash>, PlanError> {
        Ok(Records::blocks(self, id, first, count)?)
    }

    fn child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>, PlanError> {
        Ok(Records::child(self, parent, name)?)
    }

    fn children(&self, parent: FileId, max: usize) -> Result<Vec<(Name, FileId)>, PlanError> {
        Ok(Records::children(self, parent, None, max)?)
    }
    fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>, PlanError> {
        Ok(Records::links(self, id, max)?)
    }
}

impl From<records::Error> for PlanError {
    fn from(error: records::Error) -> PlanError {
        PlanError::Index(Box::new(error))
    }
}

/// A sealed epoch.
pub trait EpochView {
    /// The objects that it changes, in order.
    fn objects(&self) -> Vec<FileId>;
    /// What changed about an object.
    fn change(&self, id: FileId) -> Option<ChangeView>;
    /// The names that it binds.
    fn bindings(&self) -> Vec<(FileId, Name, Option<FileId>)>;
    /// An object as it was at the seal, if it was changed since.
    fn saved_stat(&self, id: FileId) -> Option<Snapshot>;
    /// A file that was unlinked since the seal; its state is saved, too.
    fn saved_descriptor(&self, id: FileId) -> Option<File>;
    /// Whether anything of these bytes may have been saved.
    fn has_saved(&self, id: FileId, extent: Extent) -> bool;
    /// Lays the bytes that were saved of `extent` over those that were read before.
    ///
    /// # Errors
    /// When they cannot be read back.
    fn patch_saved(&self, id: FileId, extent: Extent, bytes: &mut [u8]) -> io::Result<()>;
    /// The content of a file that the epoch removes, if it was not changed since: what the
    /// replica holds, most likely.
    fn delta_base(&self, id: FileId) -> Option<File>;
    /// These bytes need not be saved any more.
    fn read_done(&self, id: FileId, extent: Extent);
}

impl EpochView for Sealed {
    fn objects(&self) -> Vec<FileId> {
        Sealed::objects(self)
    }
    fn change(&self, id: FileId) -> Option<ChangeView> {
        Sealed::change(self, id)
    }
    fn bindings(&self) -> Vec<(FileId, Name, Option<FileId>)> {
        Sealed::bindings(self)
    }
    fn saved_stat(&self, id: FileId) -> Option<Snapshot> {
        Sealed::saved_stat(self, id)
    }
    fn saved_descriptor(&self, id: FileId) -> Option<File> {
        Sealed::saved_descriptor(self, id)
    }
    fn has_saved(&self, id: FileId, extent: Extent) -> bool {
        Sealed::has_saved(self, id, extent)
    }
    fn patch_saved(&self, id: FileId, extent: Extent, bytes: &mut [u8]) -> io::Result<()> {
        Sealed::patch_saved(self, id, extent, bytes)
    }
    fn delta_base(&self, id: FileId) -> Option<File> {
        Sealed::delta_base(self, id)
    }
    fn read_done(&self, id: FileId, extent: Extent) {
        Sealed::read_done(self, id, extent);
    }
}
