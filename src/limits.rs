//! Every bound of the system, in one place, with the relations that must hold between them.
//!
//! Past its bound a structure gets coarser or makes its producer wait; it never drops a change.

use std::time::Duration;

/// The unit of hashing and of skipping what the replica holds, in bytes.
pub const BLOCK_BYTES: u64 = 64 * 1024;

/// The largest piece of file data in one fragment, in bytes (before compression).
pub const FRAGMENT_BYTES_MAX: u64 = 1024 * 1024;

/// The largest frame that either side accepts, in bytes, header included.
pub const FRAME_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The largest message in a frame, in bytes, without the bytes of a fragment beside it.
pub const MESSAGE_BYTES_MAX: usize = 768 * 1024;

/// How many rows of records one message may have.
pub const RECORDS_MAX: usize = 4096;

/// How many block hashes one row of records may have.
pub const BLOCKS_ITEM_MAX: usize = 4096;

/// The longest text for people in a message, in bytes.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The longest name of a directory entry, in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// The longest target of a symbolic link, in bytes (`PATH_MAX`).
pub const SYMLINK_BYTES_MAX: usize = 4096;

/// The largest value of one extended attribute, in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_BYTES_MAX: usize = 64 * 1024;

/// The largest sum of names and values of the extended attributes of one object, in bytes.
pub const XATTRS_BYTES_MAX: usize = 256 * 1024;

/// How many objects one epoch may touch. A reconcile that finds more is shipped in parts, and
/// the replica is marked inconsistent until the last of them.
pub const EPOCH_OBJECTS_MAX: usize = 256 * 1024;

/// How many objects a part of an inconsistent epoch (first sync) holds before it is sealed.
pub const PART_OBJECTS: usize = 8 * 1024;

/// How many dirty bytes an epoch may have when it is sealed; more is staged before the seal.
pub const SEAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How many bytes of a sealed epoch are saved in memory before they go to disk.
pub const SAVED_MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How many bytes of a sealed epoch are saved on disk before the seal is abandoned.
pub const SAVED_DISK_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// How many descriptors of unlinked files a sealed epoch holds before the seal is abandoned.
pub const SAVED_DESCRIPTORS_MAX: usize = 512;

/// How many descriptors of replaced files are held as a base for a delta.
pub const BASE_DESCRIPTORS_MAX: usize = 64;

/// How many extents one file may have in the dirty map before the closest are joined.
pub const FILE_EXTENTS_MAX: usize = 1024;

/// How many indexed files may be in the hot set (in-place writes whose intent is durable).
pub const HOT_FILES_MAX: usize = 4096;

/// How many directory descriptors the backing directory keeps open.
pub const DIRECTORY_DESCRIPTORS: usize = 512;

/// How many file descriptors without a handle the backing directory keeps open.
pub const FILE_DESCRIPTORS: usize = 256;

/// Bytes that the sender may have in flight without an answer of the replica.
pub const WINDOW_BYTES: u64 = 32 * 1024 * 1024;

/// How often a silent link is asked whether it is alive.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// How long a link may be silent before it is taken for dead.
pub const LINK_DEADLINE: Duration = Duration::from_secs(20);

/// How many bytes of its pages a database of records keeps in memory.
pub const RECORDS_CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Up to which size a database of records is read as a whole when it is opened, to find damage
/// that its own start would not. One that was not closed is read in any case.
pub const RECORDS_CHECK_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How many rows a change of records holds in memory before it writes them to its transaction.
pub const RECORDS_ROWS_MAX: usize = 16 * 1024;

/// The first and the longest pause before another attempt to connect.
pub const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(200);
/// See [`RECONNECT_PAUSE_MIN`].
pub const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Blocks in the largest fragment, counting one that is cut at each end.
pub const FRAGMENT_BLOCKS_MAX: usize = (FRAGMENT_BYTES_MAX / BLOCK_BYTES) as usize + 1;

const _: () = assert!(FRAGMENT_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(FRAGMENT_BYTES_MAX as usize + MESSAGE_BYTES_MAX < FRAME_BYTES_MAX);
// Names and values of xattrs, and at most as much again for their lengths.
const _: () = assert!(2 * XATTRS_BYTES_MAX + 2 * SYMLINK_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(BLOCKS_ITEM_MAX * 32 + 4096 < MESSAGE_BYTES_MAX);
const _: () = assert!(TEXT_BYTES_MAX + 4096 < MESSAGE_BYTES_MAX);
const _: () = assert!(PART_OBJECTS < EPOCH_OBJECTS_MAX);
const _: () = assert!(SEAL_BYTES_MAX <= SAVED_MEMORY_BYTES_MAX + SAVED_DISK_BYTES_MAX);
