//! What the two sides say to each other. `docs/protocol.md` has the conversation.

use crate::model::{
    BlockHash, Commit, Entry, EpochId, FileId, Incarnation, Name, Object, RootHash, SessionId, Uuid,
};
use serde::{Deserialize, Serialize};

/// From the primary to the replica. `serde` encodes it; the bytes of a fragment follow its
/// entry in the same frame (see [`super::encode`]).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToReplica {
    /// The first message: who speaks, and what it expects.
    Hello(Hello),
    /// Entry number `sequence` of the epoch that is being staged. With bytes for
    /// a fragment with [`crate::model::Body::Bytes`].
    Stage {
        /// Counts from 0 in each stage.
        sequence: u64,
        /// The entry.
        entry: Entry,
    },
    /// Keep the first `keep` entries of the stage and forget the rest; the next entry has this
    /// sequence. The replica answers [`ToPrimary::Staged`] with the number that it really kept,
    /// which is lower if a forgotten fragment had overwritten (in a staged file) one to be kept;
    /// the next entry then has that sequence.
    Truncate {
        /// How many.
        keep: u64,
    },
    /// Make what is staged durable, as this epoch.
    Commit(Commit),
    /// Apply everything that is durable now, and answer [`ToPrimary::Applied`].
    Apply,
    /// Send the records of everything the replica holds ([`ToPrimary::Records`]).
    FetchRecords,
    /// Are you there?
    Ping(u64),
    /// No more will come; the replica applies what is durable, then closes.
    Goodbye,
}

/// See [`ToReplica::Hello`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The newest version of the protocol that the primary speaks.
    pub version: u16,
    /// Version of the program, for messages to people.
    pub program: String,
    /// The primary's state directory.
    pub primary: Uuid,
    /// The replica that the primary knows; `None` before the first contact.
    pub replica: Option<Uuid>,
    /// The history it writes.
    pub incarnation: Incarnation,
    /// Grows with each connection of the primary.
    pub session: SessionId,
    /// Take over a directory that is no replica of this primary, or not a replica at all.
    pub adopt: bool,
    /// Keep ownership, modes and devices in records even where it could apply them.
    pub fake_super: bool,
}

/// From the replica to the primary.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToPrimary {
    /// The answer to [`ToReplica::Hello`].
    Welcome(Welcome),
    /// The conversation cannot go on.
    Refused {
        /// Why, for programs.
        reason: Refusal,
        /// Why, for people: cause, path and next step.
        message: String,
    },
    /// All entries below `entries` of the stage are in the replica's memory or better.
    Staged {
        /// How many.
        entries: u64,
    },
    /// The commit of this epoch has arrived, with all that it needs (protocol B).
    Received(EpochId),
    /// This epoch is on stable storage (protocol C).
    Durable(EpochId),
    /// This epoch, and all before it, is in the tree, on stable storage.
    Applied {
        /// The newest applied one.
        epoch: EpochId,
        /// The hash of the tree.
        root_hash: RootHash,
    },
    /// What the replica holds of this file is not what the primary thinks; it is to be compared.
    Suspect {
        /// The file.
        file: FileId,
    },
    /// Some records, at most `RECORDS_MAX`, and as many as fit a message (see
    /// [`RecordItem::weight`]); see [`ToReplica::FetchRecords`].
    Records(#[serde(deserialize_with = "super::validate::records")] Vec<RecordItem>),
    /// The records are complete: the state after this epoch.
    RecordsEnd {
        /// The epoch whose state they are.
        epoch: EpochId,
        /// Its digest.
        digest: [u8; 32],
        /// The hash of the tree.
        root_hash: RootHash,
    },
    /// The answer to [`ToReplica::Ping`].
    Pong(u64),
    /// The replica cannot store what it was sent for now (its disk is full, say); it has closed
    /// nothing, lost nothing and the primary tries again later.
    Stalled {
        /// Why, for people.
        message: String,
    },
}

/// See [`ToPrimary::Welcome`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The version both speak from now on.
    pub version: u16,
    /// Version of the program, for messages to people.
    pub program: String,
    /// The replica.
    pub replica: Uuid,
    /// Whether the replica had never been written to, or was adopted just now: its records are
    /// to be fetched, whatever the watermarks say.
    pub fresh: bool,
    /// The newest durable epoch and its digest.
    pub durable: EpochId,
    /// See `durable`.
    pub digest: [u8; 32],
    /// The newest applied epoch.
    pub applied: EpochId,
    /// The stage that the replica still holds: entries that need not be sent again, if the
    /// primary staged them in the session before.
    pub staged: u64,
    /// The session that staged them.
    pub staged_by: SessionId,
    /// Whether the tree is one that existed (false within a first sync in parts).
    pub consistent: bool,
    /// Whether real ownership and devices are applied.
    pub privileged: bool,
}

/// Why a replica refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// No common version of the protocol.
    Version,
    /// The directory is the replica of another primary.
    Foreign,
    /// A newer incarnation has written to it.
    Fenced,
    /// The directory has files but is no replica, and adoption was not asked for.
    NotEmpty,
    /// Another session serves it and cannot be taken over.
    Busy,
    /// It cannot be read or written.
    Unusable,
    /// Its records are damaged, or of a version that is not known.
    Damaged,
    /// What the primary sent breaks the protocol.
    Protocol,
}

/// One row of a side's records.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RecordItem {
    /// An object.
    Object {
        /// Which.
        id: FileId,
        /// Its state.
        object: Object,
    },
    /// A name.
    Binding {
        /// The directory.
        parent: FileId,
        /// The name.
        name: Name,
        /// What it holds.
        object: FileId,
    },
    /// Hashes of consecutive blocks of a file.
    Blocks {
        /// The file.
        file: FileId,
        /// The number of the first.
        first: u64,
        /// The hashes.
        #[serde(deserialize_with = "super::validate::hashes")]
        hashes: Vec<BlockHash>,
    },
}

impl RecordItem {
    /// About how many bytes it takes in a message (never less than it does): lists are cut so
    /// that their sum stays below `MESSAGE_BYTES_MAX`.
    #[must_use]
    pub fn weight(&self) -> usize {
        const FIXED: usize = 96;
        FIXED
            + match self {
                RecordItem::Object { object, .. } => {
                    let target = match &object.fixed {
                        crate::model::Fixed::Symlink(target) => target.len(),
                        _ => 0,
                    };
                    let pairs = object.xattrs.iter();
                    target
                        + pairs
                            .map(|(name, value)| name.len() + value.len() + 6)
                            .sum::<usize>()
                }
                RecordItem::Binding { name, .. } => name.as_bytes().len(),
                RecordItem::Blocks { hashes, .. } => hashes.len() * 32,
            }
    }
}
