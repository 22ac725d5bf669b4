//! The hot set: indexed files whose content may have reached the disk before their ctime did.
//!
//! An in-place write to a file that the index knows is named on disk before it is done, once,
//! since it stays in the set across epochs (invariant I5; DRBD's activity log). After a power
//! failure the stamp of such a file proves nothing, and it is compared by content. A file may
//! leave the set when the epoch of its last write is committed and the kernel has had the time
//! to write it back. If the set is full of files that may not, one record says that everything
//! is suspect; it goes when the writes that only it covers could leave, too.

use super::hot_log::{Content, FILE, Log};
use super::{Error, Limits, Result};
use crate::model::FileId;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What may differ from the index without a stamp that shows it, if the machine lost power since
/// the journal was last closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Suspects {
    /// Nothing.
    None,
    /// These files. Some of them may not exist any more.
    Files(Vec<FileId>),
    /// Every file: more of them were written than the set can name, or there is no hot set (as
    /// in a new state directory).
    Everything,
}

/// The generation of what an earlier run left, until it is compared.
const CARRIED: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Touch {
    generation: u64,
    at: Instant,
}

struct Entry {
    touch: Touch,
    // Whether it is on disk.
    recorded: bool,
}

struct State {
    files: HashMap<FileId, Entry>,
    /// The last write to a file that only the record for everything covers.
    untracked: Option<Touch>,
    /// Whether that record is on disk.
    everything: bool,
    /// None: a thread is writing to it.
    log: Option<Log>,
    /// A write failed: only a new file can be trusted.
    spoiled: bool,
    failed: Option<Instant>,
    committed: u64,
    /// When it was last found that nothing may leave.
    swept_in_vain: Option<Touch>,
}

pub(super) struct Hot {
    state: Mutex<State>,
    written: Condvar,
    files_max: usize,
    settle: Duration,
    retry: Duration,
}

impl Hot {
    pub fn open(directory: Arc<OwnedFd>, limits: &Limits) -> Result<(Hot, Suspects)> {
        let files_max = limits.hot_files_max;
        let slots = files_max * 2 + 2;
        let failed = |action| {
            move |source| Error::HotSet {
                action,
                name: FILE,
                source,
            }
        };
        let mut content = Log::read(&directory, slots).map_err(failed("read"))?;
        // The file can name more than may be in the set.
        content.everything |= content.files.len() > files_max * 2;
        content.files.truncate(files_max * 2);
        let log = Log::create(directory, slots, &content).map_err(failed("write"))?;
        let touch = Touch {
            generation: CARRIED,
            at: Instant::now(),
        };
        let entry = |&id| {
            (
                id,
                Entry {
                    touch,
                    recorded: true,
                },
            )
        };
        let state = State {
            files: content.files.iter().map(entry).collect(),
            untracked: content.everything.then_some(touch),
            everything: content.everything,
            log: Some(log),
            spoiled: false,
            failed: None,
            committed: 0,
            swept_in_vain: None,
        };
        let suspects = match content {
            Content {
                everything: true, ..
            } => Suspects::Everything,
            Content { files, .. } if files.is_empty() => Suspects::None,
            Content { files, .. } => Suspects::Files(files),
        };
        let (settle, retry) = (limits.hot_settle, limits.hot_retry);
        Ok((
            Hot {
                state: Mutex::new(state),
                written: Condvar::new(),
                files_max,
                settle,
                retry,
            },
            suspects,
        ))
    }

    /// Notes a write to a file if it is in the set on disk; whether it is.
    pub fn touch_known(&self, id: FileId, generation: u64) -> bool {
        let mut state = self.state.lock();
        // While the disk fails every write tries again.
        let works = state.failed.is_none();
        match state.files.get_mut(&id) {
            Some(entry) if entry.recorded && works => {
                entry.touch.renew(generation);
                true
            }
            _ => false,
        }
    }

    /// Puts a file into the set before it is written to.
    ///
    /// # Durability
    /// The set on disk names the file, or everything, when this returns, unless
    /// [`Hot::is_degraded`].
    pub fn touch(&self, id: FileId, generation: u64) {
        let mut state = self.state.lock();
        let touch = Touch {
            generation,
            at: Instant::now(),
        };
        if let Some(entry) = state.files.get_mut(&id) {
            entry.touch.renew(generation);
        } else {
            if state.files.len() >= self.files_max {
                self.sweep(&mut state, touch);
            }
            if state.files.len() < self.files_max {
                state.files.insert(
                    id,
                    Entry {
                        touch,
                        recorded: false,
                    },
                );
            } else {
                match &mut state.untracked {
                    Some(untracked) => untracked.renew(generation),
                    None => state.untracked = Some(touch),
                }
            }
        }
        let covered = move |state: &State| {
            let known = state
                .files
                .get(&id)
                .map_or(state.everything, |entry| entry.recorded);
            known && state.failed.is_none()
        };
        // A failure is kept in the state.
        let _ = self.write(state, covered);
    }

    /// All generations up to this one are committed.
    pub fn committed(&self, generation: u64) {
        let mut state = self.state.lock();
        state.committed = state.committed.max(generation);
        if state
            .untracked
            .is_some_and(|touch| self.may_leave(&state, touch))
        {
            state.untracked = None;
        }
        let _ = self.write(state, |state| {
            state.failed.is_none() && state.everything == state.untracked.is_some()
        });
    }

    /// What an earlier run left is compared; its changes are in this generation at the latest.
    pub fn suspects_settled(&self, generation: u64) {
        let mut state = self.state.lock();
        let State {
            files, untracked, ..
        } = &mut *state;
        let touches = files
            .values_mut()
            .map(|entry| &mut entry.touch)
            .chain(untracked);
        for touch in touches.filter(|touch| touch.generation == CARRIED) {
            touch.generation = generation;
        }
    }

    pub fn is_degraded(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    /// Empties the set, whatever is in it.
    pub fn empty(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.files.clear();
        state.untracked = None;
        state.spoiled = true;
        state.failed = None;
        let written = self.write(state, |state| !state.spoiled);
        written.map_err(|source| Error::HotSet {
            action: "empty",
            name: FILE,
            source,
        })
    }

    fn may_leave(&self, state: &State, touch: Touch) -> bool {
        touch.generation <= state.committed && touch.at.elapsed() >= self.settle
    }

    /// Removes what may leave the set, all at once; seldom if there is none.
    fn sweep(&self, state: &mut State, now: Touch) {
        let in_vain = state.swept_in_vain.is_some_and(|last| {
            last.generation == state.committed && last.at.elapsed() < self.retry
        });
        if in_vain {
            return;
        }
        let committed = state.committed;
        let before = state.files.len();
        state.files.retain(|_, entry| {
            entry.touch.generation > committed || entry.touch.at.elapsed() < self.settle
        });
        let nothing = state.files.len() == before;
        state.swept_in_vain = nothing.then_some(Touch {
            generation: committed,
            at: now.at,
        });
    }

    /// Writes until `done`. One thread writes for all that wait, and without the lock, so that
    /// writes to files that are in the set go on.
    fn write(
        &self,
        mut state: MutexGuard<'_, State>,
        done: impl Fn(&State) -> bool,
    ) -> io::Result<()> {
        while !done(&state) {
            let Some(mut log) = state.log.take() else {
                self.written.wait(&mut state);
                continue;
            };
            if state.failed.is_some_and(|at| at.elapsed() < self.retry) {
                state.log = Some(log);
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            let (whole, content) = state.missing(log.room());
            // It is about to go: nobody may count on it from here on.
            state.everything &= !whole || content.everything;
            let written = MutexGuard::unlocked(&mut state, || {
                if whole {
                    log.rewrite(&content)
                } else {
                    log.append(&content)
                }
            });
            state.log = Some(log);
            self.written.notify_all();
            match written {
                Ok(()) => state.took(whole, content),
                Err(error) => {
                    if state.failed.is_none() {
                        tracing::error!(%error, "the state directory does not take the hot set");
                    }
                    state.failed = Some(Instant::now());
                    state.spoiled = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Touch {
    fn renew(&mut self, generation: u64) {
        // What was carried over stays that until it is compared.
        self.generation = self.generation.max(generation);
        self.at = Instant::now();
    }
}

impl State {
    /// What the file lacks, and whether it must be written as a whole.
    fn missing(&self, room: usize) -> (bool, Content) {
        let unrecorded = self.files.iter().filter(|(_, entry)| !entry.recorded);
        let files: Vec<FileId> = unrecorded.map(|(&id, _)| id).collect();
        let everything = self.untracked.is_some();
        let obsolete = self.everything && !everything;
        if self.spoiled || obsolete || files.len() + 1 > room {
            return (
                true,
                Content {
                    files: self.files.keys().copied().collect(),
                    everything,
                },
            );
        }
        (
            false,
            Content {
                files,
                everything: everything && !self.everything,
            },
        )
    }

    fn took(&mut self, whole: bool, content: Content) {
        for id in content.files {
            if let Some(entry) = self.files.get_mut(&id) {
                entry.recorded = true;
            }
        }
        self.everything = content.everything || (self.everything && !whole);
        self.spoiled &= !whole;
        self.failed = None;
    }
}
