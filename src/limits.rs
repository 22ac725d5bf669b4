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

/// An epoch is sealed when nothing was changed for so long, or when somebody waits for it: a file
/// that is written and renamed over another one is then in one epoch, and ships as a delta.
pub const SEAL_QUIET: Duration = Duration::from_millis(10);

/// The longest that [`SEAL_QUIET`] may put a seal off.
pub const SEAL_AGE_MAX: Duration = Duration::from_millis(250);

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

/// The largest replaced file that a delta is made against, in bytes.
pub const DELTA_BASE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// How many blocks of a replaced file are looked up; a large file has larger ones.
pub const DELTA_BLOCKS_MAX: u64 = 256 * 1024;

/// How many extents one file may have in the dirty map before the closest are joined.
pub const FILE_EXTENTS_MAX: usize = 1024;

/// How many indexed files may be in the hot set (in-place writes whose intent is durable).
pub const HOT_FILES_MAX: usize = 4096;

/// How old the last in-place write to a file must be before it may leave the hot set, besides
/// that its epoch is committed: the kernel has written its pages and its ctime back by then
/// (`dirty_expire_centisecs` is 30 s, the flusher runs every 5 s).
pub const HOT_SETTLE: Duration = Duration::from_secs(60);

/// How often a hot set that a failing state disk did not take is tried again.
pub const HOT_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The smallest and the largest file that is kept as a base for a delta, in bytes.
pub const BASE_BYTES_MIN: u64 = 4096;
/// See [`BASE_BYTES_MIN`].
pub const BASE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// How many file ids are reserved on disk at once.
pub const FILE_IDS_RESERVED: u64 = 65536;

/// How many directory descriptors the backing directory keeps open.
pub const DIRECTORY_DESCRIPTORS: usize = 512;

/// How many file descriptors without a handle the backing directory keeps open.
pub const FILE_DESCRIPTORS: usize = 256;

/// How many names of a directory a walk takes at a time.
pub const WALK_BATCH: usize = 1024;

/// How many names of one directory a walk remembers, so as not to inspect them twice.
pub const WALK_SEEN_NAMES_MAX: usize = 128 * 1024;

/// How many directories and suspects that cannot be read a walk keeps apart; past that, all is
/// walked again.
pub const WALK_FAILURES_MAX: usize = 4096;

/// How many of them are told of.
pub const WALK_FAILURES_SHOWN: usize = 8;

/// The first and the longest pause before they are tried again.
pub const WALK_RETRY_MIN: Duration = Duration::from_secs(1);
/// See [`WALK_RETRY_MIN`].
pub const WALK_RETRY_MAX: Duration = Duration::from_secs(60);

/// How many suspects may wait; past that, the whole tree is compared by content.
pub const WALK_SUSPECTS_MAX: usize = 64 * 1024;

/// How many names a path has that is told to a person.
pub const DESCRIBED_DEPTH_MAX: usize = 256;

/// How many processes, and how many mounts, are named when a mount is busy.
pub const HOLDERS_MAX: usize = 16;

/// How long a mount that is found at the mount point may take to answer.
pub const STALE_MOUNT_DEADLINE: Duration = Duration::from_secs(5);

/// How many dead mounts on top of each other are detached.
pub const STALE_MOUNTS_MAX: usize = 16;

/// The fewest and the most threads that serve the kernel; more than cores hurt.
pub const SERVING_THREADS_MIN: usize = 2;
/// See [`SERVING_THREADS_MIN`].
pub const SERVING_THREADS_MAX: usize = 4;

/// The largest write and read that the kernel sends, in bytes.
pub const REQUEST_BYTES_MAX: u32 = 1024 * 1024;

/// How many requests of its own (read-ahead, asynchronous I/O) the kernel may have in flight.
pub const BACKGROUND_REQUESTS_MAX: u16 = 128;

/// How much one `copy_file_range` may copy, so that it does not hold a serving thread for long;
/// a whole number of blocks of every file system that can share them.
pub const COPY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How many names of one object the table of nodes remembers; the known tree has the others.
pub const NODE_PLACES_MAX: usize = 16;

/// How many removed objects that the kernel still knows are held by a descriptor.
pub const KEPT_DESCRIPTORS_MAX: usize = 1024;

/// How many directories wait to be walked before the whole tree does.
pub const UNWALKED_MAX: usize = 64 * 1024;

/// How many changed objects wait for their own sync before the whole file system is synced.
pub const PENDING_SYNCS_MAX: usize = 1024;

/// Bytes that the sender may have in flight without an answer of the replica.
pub const WINDOW_BYTES: u64 = 32 * 1024 * 1024;

/// How many entries the log of one epoch may have at the replica.
pub const STAGE_ENTRIES_MAX: u64 = 16 * 1024 * 1024;

/// How many different objects and names one epoch may have at the replica.
pub const STAGE_KEYS_MAX: usize = 16 * EPOCH_OBJECTS_MAX;

/// Fragments of new files that end behind this are written to a file of their own, not to the
/// redo log, in bytes.
pub const DIRECT_BYTES: u64 = 1024 * 1024;

/// Bytes that are collected before they are written to a redo log.
pub const REDO_BUFFER_BYTES: usize = 1024 * 1024;

/// Up to how many staged files are synced one by one; more are with their whole file system.
pub const STAGED_SYNC_MAX: usize = 64;

/// How many epochs may be durable and not applied at the replica before it takes no more.
pub const REDO_EPOCHS_MAX: usize = 64;

/// How many bytes of redo logs may be durable and not applied before no more is taken.
pub const REDO_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// How many epochs are applied as one.
pub const GROUP_EPOCHS_MAX: usize = 32;

/// How long an apply that failed waits before it is tried again.
pub const APPLY_RETRY_PAUSE: Duration = Duration::from_secs(2);

/// How many objects one apply reports as not what the records say.
pub const SUSPECTS_MAX: usize = 4096;

/// Bytes of a stage after which the replica confirms what it has.
pub const STAGED_CONFIRM_BYTES: u64 = WINDOW_BYTES / 8;

/// Messages of the primary that the replica has read and not yet looked at.
pub const INBOX_MESSAGES: usize = 16;

/// Messages of the replica that are not yet sent.
pub const OUTBOX_MESSAGES: usize = 64;

/// Stack of the thread that applies, in bytes; a replay searches directories recursively.
pub const APPLY_STACK_BYTES: usize = 16 * 1024 * 1024;

/// How long an older serving process gets to end before it is killed, and as long again after.
pub const TAKEOVER_DEADLINE: Duration = Duration::from_secs(8);

/// How often a silent link is asked whether it is alive.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// How long a link may be silent before it is taken for dead.
pub const LINK_DEADLINE: Duration = Duration::from_secs(20);

/// How many ids of epochs are made durable at once, before they are used.
pub const IDS_RESERVED: u64 = 1024;

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

/// How long an attempt to reach a host may take, its name's resolution included.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// How long one step of an ssh handshake may take (not counting the time a user types).
pub const SSH_STEP_DEADLINE: Duration = Duration::from_secs(20);

/// How long a remote side may take to say why it ended, after the end of its stream.
pub const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(3);

/// How long a remote shell may take to end once it was asked to.
pub const REMOTE_SHELL_GRACE: Duration = Duration::from_secs(2);

/// Bytes that an ssh link buffers in each direction.
pub const SSH_BUFFER_BYTES: usize = 256 * 1024;

/// Bytes that the remote side may send ahead over ssh.
pub const SSH_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// How much of the last words of a remote side is kept, in bytes.
pub const DIAGNOSIS_BYTES_MAX: usize = 4096;

/// The largest file of keys, known hosts or ssh configuration that is read, in bytes.
pub const CREDENTIAL_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How many commands may speak to a daemon at a time.
pub const CONTROL_CLIENTS_MAX: usize = 64;

/// The longest line on the control socket, in bytes.
pub const CONTROL_LINE_BYTES_MAX: usize = 64 * 1024;

/// How many `fsync`s may wait for the replica at a time; past it they are answered as if their
/// time had passed.
pub const REMOTE_WAITERS_MAX: usize = 4096;

/// How long the daemon's log gets before it is rotated, in bytes; one old log is kept.
pub const LOG_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How long a drain may take after SIGTERM or SIGINT.
pub const SIGNAL_DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// How long a drain may take after an unmount that is not `mirrorfs umount`.
pub const UNMOUNT_DRAIN_DEADLINE: Duration = Duration::from_secs(600);

/// How long a replica in this process may go on applying when its session is over.
pub const EMBEDDED_REPLICA_GRACE: Duration = Duration::from_secs(10);

/// Blocks in the largest fragment, counting one that is cut at each end.
pub const FRAGMENT_BLOCKS_MAX: usize = (FRAGMENT_BYTES_MAX / BLOCK_BYTES) as usize + 1;

const _: () = assert!(FRAGMENT_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(FRAGMENT_BYTES_MAX as usize + MESSAGE_BYTES_MAX < FRAME_BYTES_MAX);
// Names and values of xattrs, and at most as much again for their lengths.
const _: () = assert!(2 * XATTRS_BYTES_MAX + 2 * SYMLINK_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(BLOCKS_ITEM_MAX * 32 + 4096 < MESSAGE_BYTES_MAX);
const _: () = assert!(TEXT_BYTES_MAX + 4096 < MESSAGE_BYTES_MAX);
// Blocks of a base never straddle what is read of it at once.
const _: () = assert!(DELTA_BASE_BYTES_MAX / DELTA_BLOCKS_MAX <= FRAGMENT_BYTES_MAX);
const _: () = assert!(PART_OBJECTS < EPOCH_OBJECTS_MAX);
const _: () = assert!(SEAL_BYTES_MAX <= SAVED_MEMORY_BYTES_MAX + SAVED_DISK_BYTES_MAX);

/// The least that must be dirty in a young file, in bytes, for a file beside it to be read as a
/// base, and the least and the largest size of that file.
pub const RELATIVE_BYTES_MIN: u64 = BLOCK_BYTES;
/// See [`RELATIVE_BYTES_MIN`].
pub const RELATIVE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How many files beside a young one are looked at.
pub const RELATIVE_SIBLINGS_MAX: usize = 256;

/// How many files count as young at most.
pub const YOUNG_FILES_MAX: usize = 64;

/// How many names an epoch may bind for its young files to be compared with files beside them.
pub const RELATIVE_NAMES_MAX: usize = 64;
