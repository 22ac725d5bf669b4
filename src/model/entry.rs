//! The entries of an epoch: what a primary sends, a replica stages, and both apply to their
//! records.
//!
//! An epoch is a log of entries that ends in a [`Commit`]. Entries are final states, in any
//! order, and a later one of the same kind and key overrides an earlier one; so what is staged
//! before the seal can simply be sent again when it was changed. Fragments of a file apply in
//! order of arrival, and the file is then cut or extended to the size that its last
//! [`Entry::Object`] has. A hole may reach past that size, to the end of the last block: that is
//! also how a block gets its new hash when the end of a file is cut off within it. Fragments of
//! a file that has no name in the end are of no use, and no error.
//!
//! Deletion is derived: an object that has no name after the bindings is gone, and a directory
//! that is gone takes with it what is still named in it.

use super::{
    BlockHash, EpochId, Extent, FileId, Incarnation, Name, Object, RESERVED_NAME, Timestamp,
};
use crate::limits::FRAGMENT_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// One entry of an epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// A piece of the content of a regular file.
    Fragment(Fragment),
    /// The final state of an object. For an object that the replica does not know it creates it.
    Object {
        /// Which.
        id: FileId,
        /// Its state.
        object: Object,
    },
    /// What a name finally holds; `None`: nothing.
    Binding {
        /// The directory.
        parent: FileId,
        /// The name in it.
        name: Name,
        /// What it holds.
        object: Option<FileId>,
    },
}

/// A piece of the content of a regular file. Its bytes, if it has any, travel beside it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fragment {
    /// The file.
    pub file: FileId,
    /// Where; at most 1 MiB unless it is a hole; never past `i64::MAX`.
    pub extent: Extent,
    /// Where its bytes come from.
    pub body: Body,
    /// The hash of each block that the extent touches; empty for a hole that covers whole blocks
    /// only, whose blocks are all zero. Of the fragments that touch a block, the last to arrive
    /// has its hash as the whole block is after all of them, cut at the file's final size; those
    /// before it may have hashes of states that never were. So blocks are checked when all
    /// fragments of the file are applied, not one by one.
    pub blocks: Vec<BlockHash>,
}

/// Where the bytes of a fragment come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Body {
    /// They follow the fragment.
    Bytes,
    /// They are zeros, and need no space.
    Hole,
    /// They are at `offset` of the file `from` as it was before this epoch.
    Copy {
        /// The file, of the state before the epoch.
        from: FileId,
        /// Where in it.
        offset: u64,
    },
}

/// The end of an epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Commit {
    /// This epoch.
    pub epoch: EpochId,
    /// The epoch whose state it changes: what the replica must hold.
    pub parent: EpochId,
    /// The history that it belongs to.
    pub incarnation: Incarnation,
    /// When it was sealed, by the primary's clock.
    pub sealed_at: Timestamp,
    /// Whether the tree after it existed at one instant. False for a part of a first sync.
    pub consistent: bool,
    /// How many entries it has.
    pub entries: u64,
    /// blake3 over the encoded entries, in order, without the bytes of fragments.
    pub digest: [u8; 32],
}

impl Entry {
    /// Whether what was decoded is within the bounds of an entry.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        match self {
            Entry::Fragment(fragment) => fragment.is_valid(),
            Entry::Object { object, .. } => object.is_valid(),
            Entry::Binding {
                parent,
                name,
                object,
            } => {
                let reserved =
                    *parent == FileId::ROOT && name.as_bytes() == RESERVED_NAME.as_bytes();
                *object != Some(FileId::ROOT) && !reserved
            }
        }
    }
}

impl Fragment {
    /// Whether what was decoded is within the bounds of a fragment.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let Some(end) = self.extent.offset.checked_add(self.extent.length) else {
            return false;
        };
        if self.extent.length == 0 || i64::try_from(end).is_err() {
            return false;
        }
        let touched = super::blocks_of(self.extent);
        let touched = touched.end - touched.start;
        let whole = self
            .extent
            .offset
            .is_multiple_of(crate::limits::BLOCK_BYTES)
            && end.is_multiple_of(crate::limits::BLOCK_BYTES);
        match self.body {
            Body::Hole if whole => self.blocks.is_empty(),
            Body::Copy { offset, .. } if offset.checked_add(self.extent.length).is_none() => false,
            _ => self.extent.length <= FRAGMENT_BYTES_MAX && self.blocks.len() as u64 == touched,
        }
    }
}
