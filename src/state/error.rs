//! What can go wrong with a state directory, and what to do about it.

use crate::model::EpochId;
use std::path::PathBuf;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("there is no state directory at {}: nothing was mirrored from here", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It is somebody else's.
    #[error("the state directory {} belongs to another user (uid {owner})", path.display())]
    OtherOwner {
        /// Where it is.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Another process works with it.
    #[error("the state directory {} is in use by {by}", path.display())]
    InUse {
        /// Where it is.
        path: PathBuf,
        /// Who: `pid N`, where that is known.
        by: String,
    },
    /// Another version of the program made it.
    #[error(
        "{} has format {found}, this program knows {known}: use the program that wrote it",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: String,
        /// Ours.
        known: u32,
    },
    /// A file in it is not what was written.
    #[error(
        "{} is damaged ({detail}): move the state directory away and mount again with --adopt; \
         what the replica holds is then compared, not resent",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The manifest of a sealed epoch is not what was written: the index cannot follow it, and is
    /// to be made again from what the replica holds.
    #[error("{} is not the manifest of epoch {epoch} ({detail})", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The epoch.
        epoch: EpochId,
        /// What is wrong.
        detail: String,
    },
    /// There is no such manifest.
    #[error("there is no manifest of epoch {epoch} in {}", path.display())]
    NoManifest {
        /// The state directory.
        path: PathBuf,
        /// The epoch.
        epoch: EpochId,
    },
    /// The manifest that is being written lost its place when the disk failed; it is of use again
    /// when it was cut.
    #[error("{} could not be written before", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
    },
    /// The disk did not do it. Nothing was changed that a later start would trust.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried: "read", "write", …
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The result of an operation on a state directory.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn io(doing: &'static str, path: PathBuf) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            doing,
            path,
            source,
        }
    }
}
