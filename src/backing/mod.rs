//! The real tree under the mount, with capture: every operation that the kernel can send is done
//! on the backing directory and recorded in the journal, under the locks of its objects. No
//! change reaches the tree by another way, so none can miss the journal.
//!
//! Owns: which FileId an object of the real tree has (`identity`), the table of objects that
//! the kernel knows (`nodes`), descriptors (`reach`, `handles`), the operations, and local
//! durability. Called by `mount` (operations), `reconcile` (`inspect`, `list`), `plan` and
//! `journal` (reading an object as it is now).
//!
//! Invariants: an operation takes its locks, begins a journal operation, preserves, acts,
//! records, retires (rule 2 of docs/architecture.md). Local errnos pass through unchanged (I9).
//! No path is ever opened: all is relative to the descriptor of the root, which was taken before
//! the mount (I8). No symbolic link is followed.

mod attributes;
mod create;
mod directories;
mod durability;
mod files;
mod handles;
mod identity;
mod inspect;
mod locks;
mod nodes;
mod owner;
mod preserve;
mod ranges;
mod reach;
mod remove;
mod rename;
mod seen;
mod types;
mod xattrs;

#[cfg(test)]
mod tests;

pub use directories::Listing;
pub use types::{
    Attr, Caller, Counters, DirectoryEntry, HandleId, Inspected, Kind, Local, SetAttr, SetTime,
    Space, WriteHow,
};

use crate::exclude::Exclude;
use crate::journal::{Journal, Operation};
use crate::model::{FileId, Name, RESERVED_NAME};
use crate::records::Records;
use durability::Durability;
use handles::Handles;
use locks::Locks;
use nodes::{Arrival, Nodes, Place};
use parking_lot::Mutex;
use reach::Descriptors;
use seen::Seen;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a backing directory is opened with.
pub struct Options {
    /// The directory itself, opened for reading before anything was mounted over it.
    pub root: OwnedFd,
    /// When changes reach the local disk.
    pub local: Local,
    /// What is not mirrored.
    pub exclude: Exclude,
    /// Serve as root for all users: what is created belongs to the caller.
    pub privileged: bool,
    /// OPEN is answered ENOSYS, so that nobody tells which files are open: what is removed while
    /// the kernel knows it stays readable until it is forgotten.
    pub hold_unlinked: bool,
}

/// The backing directory. Shared by all threads.
pub struct Backing {
    root: Arc<OwnedFd>,
    home: u64,
    journal: Arc<Journal>,
    index: Records,
    exclude: Exclude,
    privileged: bool,
    hold_unlinked: bool,
    nodes: Nodes,
    locks: Locks,
    handles: Handles,
    descriptors: Descriptors,
    durability: Durability,
    unwalked: inspect::Unwalked,
    // The number of the current walk; objects verified in an earlier one are not.
    walk: AtomicU64,
    walked: AtomicBool,
    // Whether another file system was met below the root, and where that was said.
    has_borders: AtomicBool,
    borders_told: Mutex<HashSet<Place>>,
    changes: AtomicU64,
}

/// An errno as an error.
fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The journal or the index cannot go on: the operation is not done, and EIO says so.
fn broken(error: impl Display) -> io::Error {
    tracing::error!(%error, "a change cannot be recorded");
    errno(libc::EIO)
}

/// How often an operation is tried whose objects are exchanged between the look and the lock.
const ATTEMPTS_MAX: usize = 64;

impl Backing {
    /// Takes over a backing directory.
    ///
    /// # Errors
    /// When the root cannot be looked at, or a thread cannot be started.
    pub fn open(
        options: Options,
        journal: Arc<Journal>,
        index: Records,
    ) -> io::Result<Arc<Backing>> {
        let home = Seen::device(&options.root)?;
        let seen = Seen::open(&options.root, home)?;
        let backing = Arc::new(Backing {
            root: Arc::new(options.root),
            home,
            journal,
            index,
            exclude: options.exclude,
            privileged: options.privileged,
            hold_unlinked: options.hold_unlinked,
            nodes: Nodes::default(),
            locks: Locks::new(),
            handles: Handles::default(),
            descriptors: Descriptors::new(),
            durability: Durability::new(options.local),
            unwalked: inspect::Unwalked::default(),
            walk: AtomicU64::new(1),
            walked: AtomicBool::new(false),
            has_borders: AtomicBool::new(false),
            borders_told: Mutex::new(HashSet::new()),
            changes: AtomicU64::new(0),
        });
        backing.enter(
            FileId::ROOT,
            &Arrival {
                seen: &seen,
                place: None,
                excluded: false,
            },
        );
        durability::start_flusher(&backing)?;
        Ok(backing)
    }

    /// Finds what a name holds. Counts one lookup.
    ///
    /// # Errors
    /// ENOENT if nothing; else those of statx(2).
    pub fn lookup(&self, parent: FileId, name: &OsStr) -> io::Result<Attr> {
        if self.is_reserved(parent, name) {
            return Err(errno(libc::ENOENT));
        }
        let name = self.name(parent, name)?;
        let directory = self.directory(parent)?;
        let (id, seen) = self.arrive(&directory, &(parent, name))?;
        Ok(seen.attr(id))
    }

    /// The kernel gives back lookups.
    pub fn forget(&self, id: FileId, lookups: u64) {
        if self.nodes.forget(id, lookups) {
            self.descriptors.forget(id);
        }
    }

    /// The kernel has forgotten everything (the end of the mount).
    pub fn forget_all(&self) {
        self.nodes.forget_all();
        self.descriptors.clear();
    }

    /// Sizes of the file system.
    ///
    /// # Errors
    /// Those of fstatvfs(3).
    pub fn statfs(&self) -> io::Result<Space> {
        let found = rustix::fs::fstatvfs(&*self.root)?;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(Space {
            blocks: found.f_blocks,
            free: found.f_bfree,
            available: found.f_bavail,
            files: found.f_files,
            files_free: found.f_ffree,
            block_bytes: narrow(found.f_bsize),
            fragment_bytes: narrow(found.f_frsize),
            name_bytes_max: narrow(found.f_namemax),
        })
    }

    /// Numbers for the status.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            nodes: self.nodes.count(),
            handles: self.handles.count(),
            cached_descriptors: self.descriptors.count(),
            kept_descriptors: self.nodes.kept_count(),
            changes: self.changes.load(Ordering::Relaxed),
            failed_syncs: self.durability.failed_count(),
        }
    }

    /// Whether an object is not mirrored.
    #[must_use]
    pub fn is_excluded(&self, id: FileId) -> bool {
        self.nodes.view(id).is_some_and(|view| view.excluded)
    }

    fn is_reserved(&self, parent: FileId, name: &OsStr) -> bool {
        parent == FileId::ROOT && name.as_bytes() == RESERVED_NAME.as_bytes()
    }

    /// A name as the kernel gives it. The reserved one in the root is EPERM; what is no name is
    /// ENAMETOOLONG or EINVAL.
    fn name(&self, parent: FileId, name: &OsStr) -> io::Result<Name> {
        if self.is_reserved(parent, name) {
            return Err(errno(libc::EPERM));
        }
        let too_long = name.len() > crate::limits::NAME_BYTES_MAX;
        let error = if too_long {
            libc::ENAMETOOLONG
        } else {
            libc::EINVAL
        };
        Name::try_from(name).map_err(|_| errno(error))
    }

    /// Looks at what a name holds, and enters it into the table with one lookup. Called without
    /// locks.
    fn arrive(&self, directory: impl AsFd, place: &Place) -> io::Result<(FileId, Seen)> {
        let (parent, name) = place;
        let look = || Seen::entry(&directory, name.as_bytes(), self.home);
        let seen = look()?;
        if let Some(id) = self.nodes.greet(&seen, place) {
            return Ok((id, seen));
        }
        // The directory's lock holds what is there and what is known of it together.
        let _held = self.locks.lock(&[*parent]);
        let seen = look()?;
        let (candidate, excluded) = self.identify(*parent, name, &seen)?;
        let arrival = Arrival {
            seen: &seen,
            place: Some(place.clone()),
            excluded,
        };
        Ok((self.enter(candidate, &arrival), seen))
    }

    /// Enters an object under the candidate, or under a new id if that has been taken since.
    fn enter(&self, mut candidate: FileId, arrival: &Arrival<'_>) -> FileId {
        loop {
            if let Some(id) = self.nodes.enter(candidate, arrival) {
                return id;
            }
            candidate = self.journal.mint();
        }
    }

    /// Begins an operation that changes something. Its locks are held.
    fn begin(&self) -> Operation<'_> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.journal.begin()
    }

    /// Whether the first walk since the index was taken over is done: known tree = real tree.
    fn is_walked(&self) -> bool {
        self.walked.load(Ordering::Acquire)
    }

    fn walk_number(&self) -> u64 {
        self.walk.load(Ordering::Acquire)
    }
}
