//! Identifiers, each a type of its own.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An object of the tree, minted once by the primary and never reused (invariant I13). An inode
/// number is only a hint for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct FileId(pub u64);

impl FileId {
    /// The root directory of the tree; also FUSE's root node id.
    pub const ROOT: FileId = FileId(1);
    /// The first id that may be minted.
    pub const FIRST: FileId = FileId(2);
}

/// A sealed, immutable set of changes. Ids grow and are never reused (invariant I7); 0 is the
/// state before the first epoch.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct EpochId(pub u64);

/// The fencing token of one history of writes: a replica follows the newest one it has seen.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

/// One connection of a primary. A newer session of an incarnation fences an older one.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct SessionId(pub u64);

/// A random identity: of a state directory, of a replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A fresh one, from the kernel's random source.
    ///
    /// # Errors
    /// When the kernel has none to give.
    pub fn random() -> std::io::Result<Uuid> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
        Ok(Uuid(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! plain_display {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
plain_display!(FileId, EpochId, Incarnation, SessionId);

impl EpochId {
    /// The id after this one.
    #[must_use]
    pub fn next(self) -> EpochId {
        EpochId(self.0 + 1)
    }
}
