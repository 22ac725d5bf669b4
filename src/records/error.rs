//! What can go wrong with records, and what to do about it.

use crate::model::{EpochId, FileId};
use std::path::PathBuf;

/// Why records cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are none.
    #[error("there are no records at {}: they are made by the first sync", path.display())]
    Missing {
        /// Where they should be.
        path: PathBuf,
    },
    /// Another version of the program wrote them.
    #[error(
        "the records at {} have format {found}, this program knows {known}: use the program that \
         wrote them, or move them away to have them made again by comparison",
        path.display()
    )]
    Version {
        /// Where they are.
        path: PathBuf,
        /// Their format.
        found: String,
        /// Ours.
        known: u32,
    },
    /// They are not what was written.
    #[error(
        "the records at {} are damaged ({detail}): move them away to have them made again by \
         comparison",
        path.display()
    )]
    Damaged {
        /// Where they are.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Another process has them.
    #[error("the records at {} are in use by another process", path.display())]
    InUse {
        /// Where they are.
        path: PathBuf,
    },
    /// The disk did not do it. What was not committed is lost; the next call tries again.
    #[error("cannot access the records at {}", path.display())]
    Io {
        /// Where they are.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// After a failure of the disk they are older than what this process already relied upon.
    /// Only [`super::Records::state`] and changes are possible, until a change brings them back
    /// to that epoch.
    #[error(
        "the records at {} fell back from epoch {had} to {has} when the disk failed: its epochs \
         are to be applied again",
        path.display()
    )]
    FellBack {
        /// Where they are.
        path: PathBuf,
        /// The epoch that was committed, not yet durable.
        had: EpochId,
        /// The epoch they have now.
        has: EpochId,
    },
    /// The entries of an epoch contradict each other, or the state that they change. Nothing was
    /// changed.
    #[error("the epoch cannot be applied: object {id} {detail}")]
    Inconsistent {
        /// The object.
        id: FileId,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// The epoch does not follow the one that the records have. Nothing was changed.
    #[error("epoch {epoch} changes the state after {parent}, the records have that after {has}")]
    Order {
        /// The epoch.
        epoch: EpochId,
        /// The one that it changes.
        parent: EpochId,
        /// The one they have.
        has: EpochId,
    },
}

/// The result of an operation on records.
pub type Result<T> = std::result::Result<T, Error>;

/// What an operation inside the database answers; [`super::store::Store`] adds the path.
#[derive(Debug)]
pub(super) enum Fault {
    /// From the database.
    Database(Box<redb::Error>),
    /// A row that no version of this program wrote.
    Row(&'static str),
    /// Already what the caller shall see.
    Final(Error),
}

impl Fault {
    pub(super) fn inconsistent(id: FileId, detail: &'static str) -> Fault {
        Fault::Final(Error::Inconsistent { id, detail })
    }

    /// Whether the database must be closed and opened again.
    pub(super) fn needs_reopen(&self) -> bool {
        use redb::Error as E;
        match self {
            Fault::Database(error) => matches!(
                **error,
                E::Io(_) | E::Backend(_) | E::PreviousIo | E::DatabaseClosed | E::LockPoisoned(_)
            ),
            _ => false,
        }
    }

    /// With the path.
    pub(super) fn at(self, path: &std::path::Path) -> Error {
        use redb::Error as E;
        let path = path.to_owned();
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        let damaged = |detail: String| Error::Damaged {
            path: path.clone(),
            detail,
        };
        let error = match self {
            Fault::Final(error) => return error,
            Fault::Row(detail) => return damaged(detail.into()),
            Fault::Database(error) => *error,
        };
        match error {
            E::Io(source) if source.kind() == std::io::ErrorKind::InvalidData => {
                damaged(source.to_string())
            }
            E::Io(source) if source.kind() == std::io::ErrorKind::NotFound => {
                Error::Missing { path }
            }
            E::Io(source) => io(source),
            E::DatabaseAlreadyOpen | E::LockProtocolMismatch => Error::InUse { path },
            E::UpgradeRequired(found) => Error::Version {
                path,
                found: format!("redb {found}"),
                known: super::row::FORMAT,
            },
            E::Corrupted(_)
            | E::RepairAborted
            | E::TableTypeMismatch { .. }
            | E::TableIsMultimap(_)
            | E::TableIsNotMultimap(_)
            | E::TypeDefinitionChanged { .. }
            | E::TableDoesNotExist(_) => damaged(error.to_string()),
            other => io(std::io::Error::other(other.to_string())),
        }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Fault {
                Fault::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(
    redb::Error,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError,
    redb::SetDurabilityError
);
