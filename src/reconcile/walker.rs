//! The thread that walks: its queues, its retries, and what it tells of itself.

use super::tree::Tree;
use super::walk::{self, Stopped, Task, Walked, is_gone};
use crate::limits::{
    WALK_FAILURES_MAX, WALK_FAILURES_SHOWN, WALK_RETRY_MAX, WALK_RETRY_MIN, WALK_SEEN_NAMES_MAX,
    WALK_SUSPECTS_MAX,
};
use crate::model::FileId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often a walk that waits for room looks whether there is some, if nobody tells it.
const ROOM_INTERVAL: Duration = Duration::from_millis(200);

/// What a walker begins with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Start {
    /// Walk the whole tree.
    pub walk: bool,
    /// Compare the content of all files in it, whatever their attributes say.
    pub by_content: bool,
    /// Objects whose content may have changed without their attributes showing it.
    pub suspects: Vec<FileId>,
}

/// What a walker is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It compares.
    Walking,
    /// The open epoch is full; it goes on when something was shipped.
    WaitingForRoom,
    /// Some directories could not be read; they are tried again. The walk is not complete.
    WaitingToRetry,
    /// Known tree = real tree.
    Complete,
    /// It was stopped before it was complete.
    Stopped,
}

/// A directory that cannot be walked for now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Where it is.
    pub path: String,
    /// Why.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// How far a walk is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What it is at.
    pub phase: Phase,
    /// Directories walked.
    pub directories: u64,
    /// Objects inspected.
    pub objects: u64,
    /// Objects that were new, or looked different, or are suspect.
    pub found: u64,
    /// Directories and suspects that are known to be left.
    pub queued: u64,
    /// How many directories have failed and wait for another attempt.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<Failure>,
}

/// A point at which the known tree was the real one; see [`Walker::mark`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    discovered: u64,
    requests: u64,
}

/// Why there is no walker.
#[derive(Debug, thiserror::Error)]
pub enum WalkerError {
    /// No thread can be started.
    #[error("cannot start the thread that walks the source: {0}")]
    Thread(#[from] std::io::Error),
}

#[derive(Default)]
struct Inbox {
    walk: Option<bool>,
    suspects: Vec<FileId>,
    stop: bool,
    // How often something was asked for.
    requests: u64,
}

struct Shared {
    tree: Arc<dyn Tree>,
    inbox: Mutex<Inbox>,
    progress: watch::Sender<Progress>,
    // All that was discovered and asked for up to here is done. Read before what it counts is
    // taken, so it is never ahead of the truth.
    settled: Mutex<Option<Mark>>,
}

impl Shared {
    fn mark_now(&self) -> Mark {
        let requests = self.inbox.lock().requests;
        Mark {
            discovered: self.tree.discovered(),
            requests,
        }
    }
}

/// Compares the real tree with the known one, behind the mount. Lives as long as the mount does:
/// when complete it waits for directories that operations discover, and for suspects.
pub struct Walker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Walker {
    /// Starts a walker on a thread of its own, of low priority.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(tree: Arc<dyn Tree>, start: Start) -> Result<Walker, WalkerError> {
        let inbox = Inbox {
            walk: start.walk.then_some(start.by_content),
            suspects: start.suspects,
            ..Inbox::default()
        };
        let progress = Progress {
            phase: Phase::Walking,
            directories: 0,
            objects: 0,
            found: 0,
            queued: 0,
            failed: 0,
            failures: Vec::new(),
        };
        let shared = Arc::new(Shared {
            tree,
            inbox: Mutex::new(inbox),
            progress: watch::Sender::new(progress),
            settled: Mutex::new(None),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let run = Run {
            shared: Arc::clone(&shared),
            runtime,
            stack: Vec::new(),
            suspects: Vec::new(),
            failed: BTreeMap::new(),
            overflow: None,
            deep: false,
            walking: false,
            taken: Mark::default(),
        };
        let thread = std::thread::Builder::new()
            .name("walker".to_owned())
            .spawn(|| run.run())?;
        Ok(Walker {
            shared,
            thread: Some(thread),
        })
    }

    /// Walks everything again: the replica has forked, say, or the dirty map has become too coarse.
    pub fn walk_again(&self, by_content: bool) {
        let mut inbox = self.shared.inbox.lock();
        inbox.walk = Some(by_content || inbox.walk == Some(true));
        inbox.requests += 1;
        drop(inbox);
        self.shared.tree.bell().notify_one();
    }

    /// More objects whose content is to be compared.
    pub fn suspect(&self, ids: impl IntoIterator<Item = FileId>) {
        let mut inbox = self.shared.inbox.lock();
        inbox.suspects.extend(ids);
        if inbox.suspects.len() > WALK_SUSPECTS_MAX {
            // Coarser, never less.
            inbox.suspects = Vec::new();
            inbox.walk = Some(true);
        }
        inbox.requests += 1;
        drop(inbox);
        self.shared.tree.bell().notify_one();
    }

    /// Tells that the open epoch has room again.
    pub fn room_made(&self) {
        self.shared.tree.bell().notify_one();
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.shared.progress.borrow().clone()
    }

    /// How far it is, and every change of that.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// A point before a seal, if the known tree is the real one now. The epoch is consistent if
    /// there was one and it still [holds](Walker::holds) when all operations of the epoch have
    /// retired: an operation may discover a directory whose content only a later epoch has.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.shared.settled.lock().filter(|&mark| self.holds(mark))
    }

    /// Whether nothing was discovered or asked for since.
    #[must_use]
    pub fn holds(&self, mark: Mark) -> bool {
        self.shared.mark_now() == mark
    }

    /// Whether the known tree is the real one: every queue is empty and nothing has failed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.mark().is_some()
    }

    /// Stops, and waits for the inspection that is under way.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.shared.inbox.lock().stop = true;
        self.shared.tree.bell().notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the walker has panicked");
        }
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        self.halt();
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Work {
    Suspect(FileId),
    Directory(FileId),
}

struct Retry {
    by_content: bool,
    error: String,
    attempts: u32,
    at: Instant,
}

enum Next {
    Suspect(FileId),
    Directory(Task),
    Wait(Option<Instant>),
}

struct Run {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Runtime,
    stack: Vec<Task>,
    suspects: Vec<FileId>,
    failed: BTreeMap<Work, Retry>,
    // So much has failed that it cannot be told apart: everything is walked again, then.
    overflow: Option<Instant>,
    // Whether a walk over everything is under way, and whether one compares all content.
    walking: bool,
    deep: bool,
    // What was discovered and asked for when the queues were last filled.
    taken: Mark,
}

impl Run {
    fn run(mut self) {
        // Behind everything that a person waits for. Failure costs nothing but priority.
        rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10).ok();
        while self.step().is_ok() {}
        self.publish(|progress| {
            if progress.phase != Phase::Complete {
                progress.phase = Phase::Stopped;
            }
        });
    }

    fn step(&mut self) -> Result<(), Stopped> {
        self.take_in()?;
        match self.next() {
            Next::Suspect(id) => self.suspect(id),
            Next::Directory(task) => self.directory(task),
            Next::Wait(until) => {
                self.wait(until);
                Ok(())
            }
        }
    }

    fn publish(&self, change: impl FnOnce(&mut Progress)) {
        let queued = (self.stack.len() + self.suspects.len()) as u64;
        let failed = self.failed.len() as u64;
        self.shared.progress.send_modify(|progress| {
            (progress.queued, progress.failed) = (queued, failed);
            change(progress);
        });
    }

    fn take_in(&mut self) -> Result<(), Stopped> {
        self.taken = self.shared.mark_now();
        let unwalked = self.shared.tree.take_unwalked();
        let (walk, suspects) = {
            let mut inbox = self.shared.inbox.lock();
            if inbox.stop {
                return Err(Stopped);
            }
            (inbox.walk.take(), std::mem::take(&mut inbox.suspects))
        };
        if let Some(by_content) = walk {
            // It covers what is left of the one before, if it looks as deep.
            self.deep |= by_content;
            self.walking = true;
            self.shared.tree.walk_begins();
            self.stack.clear();
            self.failed
                .retain(|work, _| matches!(work, Work::Suspect(_)));
            self.overflow = None;
            self.stack.push(Task {
                directory: FileId::ROOT,
                by_content: self.deep,
            });
        }
        // All of what was discovered is marked anyway.
        let unwalked = unwalked.into_iter();
        self.stack.extend(unwalked.map(|directory| Task {
            directory,
            by_content: false,
        }));
        self.suspects.extend(suspects);
        Ok(())
    }

    fn next(&mut self) -> Next {
        if let Some(id) = self.suspects.pop() {
            return Next::Suspect(id);
        }
        if let Some(task) = self.stack.pop() {
            return Next::Directory(task);
        }
        let now = Instant::now();
        if self.overflow.is_some_and(|at| at <= now) {
            self.overflow = None;
            return Next::Directory(Task {
                directory: FileId::ROOT,
                by_content: self.deep,
            });
        }
        let due = self.failed.iter().find(|(_, retry)| retry.at <= now);
        match due.map(|(&work, retry)| (work, retry.by_content)) {
            Some((Work::Suspect(id), _)) => Next::Suspect(id),
            Some((Work::Directory(directory), by_content)) => Next::Directory(Task {
                directory,
                by_content,
            }),
            None => {
                let retries = self.failed.values().map(|retry| retry.at);
                Next::Wait(retries.chain(self.overflow).min())
            }
        }
    }

    fn suspect(&mut self, id: FileId) -> Result<(), Stopped> {
        self.room()?;
        match self.shared.tree.inspect_object(id) {
            Err(error) if !is_gone(&error) => {
                self.fail(Work::Suspect(id), true, error.to_string());
                return Ok(());
            }
            result => {
                self.failed.remove(&Work::Suspect(id));
                let there = u64::from(result.is_ok_and(|there| there));
                self.publish(|progress| {
                    progress.objects += there;
                    progress.found += there;
                });
            }
        }
        Ok(())
    }

    fn directory(&mut self, task: Task) -> Result<(), Stopped> {
        if task.directory == FileId::ROOT
            && let Err(error) = self.shared.tree.inspect_root()
        {
            self.fail(
                Work::Directory(FileId::ROOT),
                task.by_content,
                error.to_string(),
            );
            return Ok(());
        }
        let tree = Arc::clone(&self.shared.tree);
        let walked = walk::directory(&*tree, task, WALK_SEEN_NAMES_MAX, &mut || self.room())?;
        self.settle(task, walked);
        Ok(())
    }

    fn settle(&mut self, task: Task, walked: Walked) {
        let below = walked.below.into_iter();
        self.stack
            .extend(below.map(|directory| Task { directory, ..task }));
        for (id, error) in walked.unreadable {
            self.fail(Work::Suspect(id), true, error);
        }
        let work = Work::Directory(task.directory);
        match walked.failed {
            Some((first, 1)) => self.fail(work, task.by_content, first),
            Some((first, count)) => {
                self.fail(
                    work,
                    task.by_content,
                    format!("{first} (and {} more)", count - 1),
                );
            }
            None => {
                self.failed.remove(&work);
            }
        }
        self.publish(|progress| {
            progress.directories += 1;
            progress.objects += walked.objects;
            progress.found += walked.found;
        });
    }

    fn fail(&mut self, work: Work, by_content: bool, error: String) {
        let attempts = self.failed.get(&work).map_or(0, |retry| retry.attempts) + 1;
        if attempts == 1 {
            let path = self.path(work);
            tracing::warn!(path, error, "cannot be compared now; it is tried again");
        }
        let doublings = attempts.saturating_sub(1).min(16);
        let pause = (WALK_RETRY_MIN * 2u32.pow(doublings)).min(WALK_RETRY_MAX);
        let at = Instant::now() + pause;
        if self.failed.len() >= WALK_FAILURES_MAX && !self.failed.contains_key(&work) {
            self.deep |= by_content;
            self.overflow = Some(Instant::now() + WALK_RETRY_MAX);
            return;
        }
        self.failed.insert(
            work,
            Retry {
                by_content,
                error,
                attempts,
                at,
            },
        );
        self.publish(|_| ());
    }

    fn path(&self, work: Work) -> String {
        let (Work::Suspect(id) | Work::Directory(id)) = work;
        self.shared.tree.describe(id)
    }

    fn wait(&mut self, until: Option<Instant>) {
        let phase = if until.is_some() {
            Phase::WaitingToRetry
        } else {
            Phase::Complete
        };
        if phase == Phase::Complete {
            let walked = std::mem::take(&mut self.walking);
            if walked {
                self.deep = false;
            }
            self.shared.tree.settled(walked);
            *self.shared.settled.lock() = Some(self.taken);
        }
        let failures = self
            .failed
            .iter()
            .take(WALK_FAILURES_SHOWN)
            .map(|(&work, retry)| Failure {
                path: self.path(work),
                error: retry.error.clone(),
                attempts: retry.attempts,
            });
        let failures = failures.collect();
        self.publish(|progress| {
            progress.phase = phase;
            progress.failures = failures;
        });
        self.bell(until);
        self.publish(|progress| progress.phase = Phase::Walking);
    }

    fn bell(&self, until: Option<Instant>) {
        let bell = self.shared.tree.bell();
        self.runtime.block_on(async {
            match until {
                Some(at) => {
                    tokio::time::timeout_at(at.into(), bell.notified())
                        .await
                        .ok();
                }
                None => bell.notified().await,
            }
        });
    }

    // Waits until the open epoch can take what an inspection may find.
    fn room(&self) -> Result<(), Stopped> {
        let mut waited = false;
        loop {
            if self.shared.inbox.lock().stop {
                return Err(Stopped);
            }
            if self.shared.tree.has_room() {
                if waited {
                    self.publish(|progress| progress.phase = Phase::Walking);
                }
                return Ok(());
            }
            if !waited {
                waited = true;
                self.publish(|progress| progress.phase = Phase::WaitingForRoom);
            }
            self.bell(Some(Instant::now() + ROOM_INTERVAL));
        }
    }
}
