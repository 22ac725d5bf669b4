//! The vocabulary: ids, names, extents, objects and the entries of an epoch. No I/O, no locks.

mod attributes;
mod entry;
mod extent;
mod hash;
mod ids;
mod name;

pub use attributes::{Attributes, Fixed, Object, Stamp, Timestamp, Xattrs};
pub use entry::{Body, Commit, Entry, Fragment};
pub use extent::{Extent, ExtentSet};
pub use hash::{BlockHash, RootHash, blocks_of, hash_block};
pub use ids::{EpochId, FileId, Incarnation, SessionId, Uuid};
pub use name::{Name, NameError, RESERVED_NAME};
