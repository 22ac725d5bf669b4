//! Ships epochs: the thread that joins journal, plan, sender and transport, and the handle by
//! which the rest of the process watches and steers it.
//!
//! The thread owns the link, the manifest and the index's write side. It never waits for a lock
//! that a serving thread could hold over a network wait, and serving threads never wait for it.

mod driver;
mod epoch;
mod fetch;
mod link;
mod session;

use crate::journal::Journal;
use crate::model::{EpochId, FileId, RootHash};
use crate::plan::Source;
use crate::records::Records;
use crate::sender::Watermarks;
use crate::state::StateDir;
use crate::transport::{self, Closer, Link};
use crate::wire::Refusal;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};
use tokio::sync::watch;

/// Makes links; the runtime gives one for local targets and one for remote ones.
pub trait Connect: Send + Sync {
    /// A fresh link. Ends soon after `closer` was closed.
    ///
    /// # Errors
    /// Why there is none.
    fn connect(&self, closer: &Closer) -> transport::Result<Link>;
}

/// Which walk over the tree is complete, if the last one is that was asked for (or that became
/// necessary since). It is another one whenever anything was compared in between: an epoch that
/// was sealed between two equal answers is consistent.
pub type Walked = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// What a shipper works with.
pub struct Options {
    /// Makes links.
    pub connect: Box<dyn Connect>,
    /// The state directory.
    pub state: Arc<StateDir>,
    /// The journal.
    pub journal: Arc<Journal>,
    /// The index.
    pub index: Records,
    /// Reads the real tree.
    pub source: Arc<dyn Source + Send + Sync>,
    /// Take over what is no replica of this directory.
    pub adopt: bool,
    /// See [`crate::wire::Hello::fake_super`].
    pub fake_super: bool,
    /// Which walk over the tree is complete.
    pub walk: Walked,
    /// Told what is to be compared again.
    pub suspect: Box<dyn Fn(Suspicion) + Send>,
}

/// What is to be compared with the index again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspicion {
    /// One object, by content.
    Object(FileId),
    /// The whole tree, by content: the index was replaced. From the call on [`Options::walk`] says
    /// that the walk is not complete.
    Everything,
    /// Something changed that no walk has found the name of: compare the tree once more, by
    /// stamps. The walk is not complete, as above.
    Tree,
}

/// Why the link is not there.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When.
    pub at: SystemTime,
    /// What happened, causes included.
    pub message: String,
    /// What to do, if something is to be done.
    pub next_step: Option<String>,
    /// What kind of failure, for exit codes.
    pub kind: FailureKind,
    /// Whether another attempt may succeed without anybody doing anything.
    pub transient: bool,
}

/// See [`Failure`].
#[derive(Clone, Debug)]
pub enum FailureKind {
    /// The transport's.
    Transport(Arc<transport::Error>),
    /// The replica refuses.
    Refused(Refusal),
    /// Another replica than the known one answers.
    OtherReplica,
    /// The replica cannot store what it is sent.
    Stalled,
    /// The primary's own state cannot be read or written.
    State,
    /// The conversation broke.
    Protocol,
}

/// What the shipper does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// Reaching the replica, or waiting for another attempt.
    #[default]
    Offline,
    /// Agreeing with the replica what it holds.
    Greeting,
    /// In session.
    Connected,
    /// Until somebody decides something (see the failure).
    Halted,
    /// Stopped.
    Stopped,
}

/// What is going on.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What the shipper does.
    pub phase: Phase,
    /// Since when.
    pub since: Option<SystemTime>,
    /// The last failure, also if it has passed.
    pub failure: Option<Failure>,
    /// How far the epochs have come.
    pub marks: Watermarks,
    /// The tree's hash at the applied epoch.
    pub root_hash: Option<RootHash>,
    /// Whether the replica holds a state that existed (false until the first sync is through).
    pub consistent: bool,
    /// Whether a replica was ever agreed with, in this process.
    pub greeted: bool,
    /// Whether an epoch is being planned, staged or committed right now.
    pub busy: bool,
    /// When an epoch was last made durable at the replica.
    pub last_durable: Option<SystemTime>,
}

/// The end of a drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// The newest epoch, which the replica's tree has on stable storage.
    pub epoch: EpochId,
    /// The hash of that tree.
    pub root_hash: RootHash,
    /// Bytes sent to the replica since the shipper started.
    pub bytes_shipped: u64,
}

pub(crate) struct Shared {
    status: Mutex<Status>,
    changed: Condvar,
    wake: tokio::sync::Notify,
    // the index is being replaced
    fetching: AtomicBool,
    walk: Walked,
    drains: AtomicUsize,
    // somebody waits for what is in the open epoch
    pressed: AtomicBool,
    stop: AtomicBool,
    retry: AtomicBool,
    bytes: Arc<AtomicU64>,
    connecting: Mutex<Option<Closer>>,
    // the generation of changes that the replica has in memory at least
    received: watch::Sender<u64>,
    // changes whenever anything got further
    news: watch::Sender<u64>,
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock());
        self.told();
    }
    /// Wakes all who watch.
    fn told(&self) {
        self.changed.notify_all();
        self.news.send_modify(|count| *count += 1);
    }
    /// Which walk is complete, if the last one that was asked for is.
    fn walked(&self) -> Option<u64> {
        (self.walk)().filter(|_| !self.fetching.load(Ordering::SeqCst))
    }
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// A running shipper.
pub struct Shipper {
    shared: Arc<Shared>,
    journal: Arc<Journal>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Shipper {
    /// Starts to reach the replica. Nothing consistent is shipped before a walk is complete.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(options: Options) -> std::io::Result<Shipper> {
        let shared = Arc::new(Shared {
            status: Mutex::new(Status::default()),
            changed: Condvar::new(),
            wake: tokio::sync::Notify::new(),
            fetching: AtomicBool::new(false),
            walk: options.walk.clone(),
            drains: AtomicUsize::new(0),
            pressed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            retry: AtomicBool::new(false),
            bytes: Arc::new(AtomicU64::new(0)),
            connecting: Mutex::new(None),
            received: watch::Sender::new(0),
            news: watch::Sender::new(0),
        });
        let journal = options.journal.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let driver = driver::Driver::new(options, shared.clone(), runtime);
        let thread = std::thread::Builder::new()
            .name("ship".into())
            .spawn(|| driver.run())?;
        Ok(Shipper {
            shared,
            journal,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// What is going on.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status.lock().clone()
    }

    /// Bytes sent to the replica so far, frames included, ssh not.
    #[must_use]
    pub fn bytes_shipped(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Whether a walk is under way (no consistent epoch is sealed).
    #[must_use]
    pub fn walking(&self) -> bool {
        self.shared.walked().is_none()
    }

    /// [`Options::walk`] has another answer.
    pub fn walk_changed(&self) {
        self.shared.wake.notify_one();
        self.shared.told();
    }

    /// Changes whenever anything got further: the status, the watermarks, the walk.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.shared.news.subscribe()
    }

    /// Somebody waits until what was changed so far is at the replica: the open epoch is sealed as
    /// soon as it can be.
    pub fn press(&self) {
        self.shared.pressed.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }

    /// Somebody more waits for the end (`true`), or somebody less: while there is one, the
    /// replica applies at once, and no pause is kept.
    pub fn hurry(&self, more: bool) {
        match more {
            true => {
                self.shared.drains.fetch_add(1, Ordering::SeqCst);
                self.retry_now();
            }
            false => {
                self.shared.drains.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// The receipt, if everything up to this [`Journal::mark`] is in the replica's tree, on
    /// stable storage, and nothing is left to be compared.
    #[must_use]
    pub fn drained(&self, mark: u64) -> Option<Receipt> {
        self.receipt(&self.shared.status.lock(), mark)
    }

    /// The generation of changes (see [`Journal::mark`]) that the replica has in its memory, to
    /// look at or to wait for. What it has on stable storage is [`Journal::committed_watch`]'s.
    #[must_use]
    pub fn received_watch(&self) -> watch::Receiver<u64> {
        self.shared.received.subscribe()
    }

    /// Tries to reach the replica now, whatever pause is on.
    pub fn retry_now(&self) {
        self.shared.retry.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }

    /// Waits until the replica was agreed with, or until there is a failure that says why not.
    ///
    /// # Errors
    /// That failure; `None` when the deadline passed without one.
    pub fn first_contact(&self, deadline: Instant) -> Result<(), Option<Failure>> {
        let mut status = self.shared.status.lock();
        loop {
            if status.greeted {
                return Ok(());
            }
            if status.failure.is_some() {
                return Err(status.failure.clone());
            }
            if self
                .shared
                .changed
                .wait_until(&mut status, deadline)
                .timed_out()
            {
                return Err(None);
            }
        }
    }

    fn receipt(&self, status: &Status, wanted: u64) -> Option<Receipt> {
        let committed = self.journal.committed_watch().borrow().generation;
        let through = !self.walking() && committed >= wanted && status.consistent;
        let root_hash = status.root_hash.filter(|_| through)?;
        let epoch = status.marks.applied;
        let bytes_shipped = self.bytes_shipped();
        (epoch == status.marks.durable).then_some(Receipt {
            epoch,
            root_hash,
            bytes_shipped,
        })
    }

    /// Ends the session at a safe point and stops. What is not shipped stays owed. Blocks.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(closer) = self.shared.connecting.lock().take() {
            closer.close();
        }
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
