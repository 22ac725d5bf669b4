//! The journal: what changed since the replica last knew, in epochs.
//!
//! It owns the open epoch and at most one sealed, uncommitted one (invariant I3), both in memory;
//! what a sealed epoch must preserve (I2); and the hot set, the one thing that it keeps on disk
//! (I1, I5). It does no I/O on the real tree but through [`Preserve`], and never sees the link.
//!
//! *Called by*: `backing`, an [`Operation`] at a time, with the locks of the inodes held;
//! `reconcile`, through `backing`; `plan`, which reads a [`Sealed`] epoch; and the one thread
//! that ships, which stages, seals, commits and abandons.
//!
//! *Invariants*: no lock is held over I/O, nor while one waits for operations to end, so that
//! [`Journal::begin`] never waits. A change is dropped only when its epoch is committed; an
//! abandoned epoch is folded into the open one. The known tree, open over sealed over index, is
//! the real tree (after the first walk), at every instant of all that.
//!
//! *Bounds*: past `EPOCH_OBJECTS_MAX` objects each of them keeps one dirty extent only. What
//! keeps growing then, while the link is down, is about 300 bytes for each object or name that
//! is touched for the first time since the last commit, since names are the identity of what they
//! hold; what is created and removed again meanwhile is forgotten. A shipper that has a link
//! seals in parts long before ([`Pressure::full`]).

mod bases;
mod change;
mod epoch;
mod hot;
mod hot_log;
mod known;
mod mint;
mod operation;
mod saved;
mod seal;
mod sealed;
mod stage;
#[cfg(test)]
mod tests;

pub use hot::Suspects;
pub(crate) use known::Known;
pub use mint::Reserve;
pub use operation::Operation;
pub use saved::Preserve;
pub use sealed::{ChangeView, Sealed};

use crate::limits;
use crate::model::{EpochId, FileId, Timestamp};
use crate::records::Records;
use epoch::Epoch;
use parking_lot::{Condvar, Mutex, RwLock};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};

/// What the journal cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index does not answer.
    #[error("cannot read the index of what the replica holds")]
    Index(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The hot set on disk cannot be read or written.
    #[error("cannot {action} {name:?} in the state directory")]
    HotSet {
        /// What was to be done.
        action: &'static str,
        /// The file.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The result of what the journal does.
pub type Result<T> = std::result::Result<T, Error>;

/// The bounds, which tests make small.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub objects_max: usize,
    pub file_extents_max: usize,
    pub saved_memory_bytes_max: u64,
    pub saved_disk_bytes_max: u64,
    pub saved_descriptors_max: usize,
    pub base_descriptors_max: usize,
    pub hot_files_max: usize,
    pub hot_settle: Duration,
    pub hot_retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            objects_max: limits::EPOCH_OBJECTS_MAX,
            file_extents_max: limits::FILE_EXTENTS_MAX,
            saved_memory_bytes_max: limits::SAVED_MEMORY_BYTES_MAX,
            saved_disk_bytes_max: limits::SAVED_DISK_BYTES_MAX,
            saved_descriptors_max: limits::SAVED_DESCRIPTORS_MAX,
            base_descriptors_max: limits::BASE_DESCRIPTORS_MAX,
            hot_files_max: limits::HOT_FILES_MAX,
            hot_settle: limits::HOT_SETTLE,
            hot_retry: limits::HOT_RETRY_PAUSE,
        }
    }
}

/// What a journal starts from.
pub struct Options {
    /// The state directory, opened before the mount (invariant I8).
    pub directory: OwnedFd,
    /// The id of the first epoch: higher than any that was ever put into a manifest or an index.
    pub next_epoch: EpochId,
    /// The first id to mint: not below any that was reserved, nor any that the index has.
    pub next_id: FileId,
    /// How ids are reserved.
    pub reserve: Reserve,
}

/// How much the shipping thread has to do, and how urgently.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// Objects that the open epoch touches.
    pub objects: usize,
    /// Names that it touches.
    pub names: usize,
    /// Bytes of content that it has to read and did not stage yet.
    pub dirty_bytes: u64,
    /// Changes that were recorded in it.
    pub operations: u64,
    /// When its oldest change was made; a change that came back from an abandoned epoch keeps
    /// its time.
    pub oldest_open: Option<Instant>,
    /// When the oldest change was made that is not committed: its age is the lag.
    pub oldest: Option<Instant>,
    /// Whether there is a sealed epoch.
    pub sealed: bool,
    /// Whether the open epoch is as large as one may be: it is to be sealed, if need be as an
    /// inconsistent part.
    pub full: bool,
    /// Whether it went past that and got coarse.
    pub overflowed: bool,
}

/// How far the replica has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Committed {
    /// All changes with this mark or a lower one are durable at the replica.
    pub generation: u64,
    /// The epoch that brought it there.
    pub epoch: EpochId,
}

#[derive(Clone)]
struct View {
    open: Arc<Epoch>,
    sealed: Option<Arc<Sealed>>,
}

/// See the module. Shared by `Arc`.
pub struct Journal {
    // Written only to replace a pointer; nothing waits with it.
    state: RwLock<View>,
    // Held through everything that replaces epochs; the id of the next one.
    serial: Mutex<EpochId>,
    index: Arc<dyn Known>,
    limits: Limits,
    directory: Arc<OwnedFd>,
    mint: mint::Mint,
    hot: hot::Hot,
    committed: watch::Sender<Committed>,
    notify: Arc<Notify>,
    poked: Mutex<bool>,
    changed: Condvar,
    started: Instant,
}

impl Journal {
    /// Starts with nothing dirty over the index, and says what the hot set on disk has: files whose content must
    /// be compared if the machine went down with dirty pages since they were written, that is
    /// under another boot id. They stay in it until [`Journal::suspects_settled`].
    ///
    /// # Errors
    /// When the hot set cannot be written.
    pub fn open(options: Options, index: Records) -> Result<(Journal, Suspects)> {
        Journal::start(options, Arc::new(index), Limits::default())
    }

    /// [`Journal::open`] over any index.
    pub(crate) fn start(
        options: Options,
        index: Arc<dyn Known>,
        limits: Limits,
    ) -> Result<(Journal, Suspects)> {
        let directory = Arc::new(options.directory);
        let (hot, suspects) = hot::Hot::open(Arc::clone(&directory), &limits)?;
        let journal = Journal {
            state: RwLock::new(View {
                open: Arc::new(Epoch::new(1, limits.clone())),
                sealed: None,
            }),
            serial: Mutex::new(options.next_epoch),
            index,
            directory,
            mint: mint::Mint::new(options.next_id, options.reserve),
            hot,
            committed: watch::Sender::new(Committed::default()),
            notify: Arc::new(Notify::new()),
            poked: Mutex::new(false),
            changed: Condvar::new(),
            started: Instant::now(),
            limits,
        };
        Ok((journal, suspects))
    }

    fn view(&self) -> View {
        self.state.read().clone()
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX - 1)
    }

    /// A fresh id. It is reserved on disk before it is used.
    pub fn mint(&self) -> FileId {
        self.mint.mint()
    }

    /// Ids up to this one are in use at the replica, whose records became the index.
    pub fn skip_ids(&self, used: FileId) {
        self.mint.skip(used);
    }

    /// The sealed epoch, if there is one.
    pub fn sealed(&self) -> Option<Arc<Sealed>> {
        self.view().sealed
    }

    /// How much there is to do.
    pub fn pressure(&self) -> Pressure {
        let View { open, sealed } = self.view();
        let instant = |nanos: u64| self.started + Duration::from_nanos(nanos);
        let of_sealed = sealed.as_ref().and_then(|sealed| sealed.epoch.oldest());
        let oldest = [open.oldest(), of_sealed].into_iter().flatten().min();
        Pressure {
            objects: open.object_count(),
            names: open.name_count(),
            dirty_bytes: open.dirty_bytes(),
            operations: open.records(),
            oldest_open: open.oldest().map(instant),
            oldest: oldest.map(instant),
            sealed: sealed.is_some(),
            full: open.is_full(),
            overflowed: open.has_overflowed(),
        }
    }

    // Waiting.

    /// A mark that covers every change which was recorded before this call: all of them are
    /// durable at the replica once [`Committed::generation`] has come to it, however often epochs
    /// are abandoned until then, and not before.
    pub fn mark(&self) -> u64 {
        let View { open, sealed } = self.view();
        // Generation g is sealed, and then committed or folded into g + 1.
        match sealed {
            _ if !open.is_empty() => open.generation,
            Some(sealed) => sealed.generation(),
            None => open.generation - 1,
        }
    }

    /// How far the replica has come, to look at or to wait for.
    pub fn committed_watch(&self) -> watch::Receiver<Committed> {
        self.committed.subscribe()
    }

    /// Poked when an empty open epoch gets its first change, and by [`Journal::poke`].
    pub fn notifier(&self) -> Arc<Notify> {
        Arc::clone(&self.notify)
    }

    /// Wakes the shipping thread.
    pub fn poke(&self) {
        *self.poked.lock() = true;
        self.changed.notify_all();
        self.notify.notify_one();
    }

    /// Waits until the open epoch holds a change or somebody pokes; false: until the deadline.
    pub fn wait_for_change(&self, deadline: Instant) -> bool {
        let mut poked = self.poked.lock();
        loop {
            if std::mem::take(&mut *poked) || !self.view().open.is_empty() {
                return true;
            }
            if self.changed.wait_until(&mut poked, deadline).timed_out() {
                return std::mem::take(&mut *poked);
            }
        }
    }

    // The hot set.

    /// The intent of an in-place write is made durable, where it is to be.
    fn intend(&self, id: FileId, epoch: &Epoch, sealed: Option<&Sealed>) {
        if epoch.is_unheard_of(id) {
            return;
        }
        if self.hot.touch_known(id, epoch.generation) {
            return;
        }
        // What the sealed epoch creates is in the index before these bytes are; so may be what was
        // folded into this one.
        let soon = || epoch.is_born(id) || sealed.is_some_and(|sealed| sealed.epoch.is_born(id));
        // An index that does not answer says nothing; better one intent too many.
        let indexed = || self.index.size(id).map_or(true, |size| size.is_some());
        if soon() || indexed() {
            self.hot.touch(id, epoch.generation);
        }
    }

    /// All that [`Journal::open`] called suspect has been compared, and what differs is recorded:
    /// the hot set may forget it once that is committed.
    pub fn suspects_settled(&self) {
        self.hot.suspects_settled(self.view().open.generation);
    }

    /// Whether the state disk does not take what must be on it: intents of in-place writes, or
    /// reservations of ids. Work goes on, as the contract wants it; but if the machine loses
    /// power while this is so, files may differ from the index that no stamp and no hot set
    /// names. Whoever starts after an unclean stop under another boot id, and cannot know that
    /// this was not so, compares everything.
    pub fn degraded(&self) -> bool {
        self.hot.is_degraded() || self.mint.has_failed()
    }

    /// Empties the hot set, at the end of a clean stop: everything is committed, and the caller
    /// has synced the backing file system since the last write. False, and nothing is done, if
    /// there are changes that are not committed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close_clean(&self) -> Result<bool> {
        let View { open, sealed } = self.view();
        if !open.is_empty() || sealed.is_some() {
            return Ok(false);
        }
        self.hot.empty().map(|()| true)
    }
}

fn now() -> Timestamp {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        secs: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: now.subsec_nanos(),
    }
}
