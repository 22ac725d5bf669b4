//! The epochs that are durable and not yet applied, and the thread that applies them.
//!
//! Several that wait are applied as one: one sync of the file system, one commit of the records.

use super::ReplicaError;
use super::apply::{Progress, apply};
use super::attributes::Policy;
use super::delta::{Delta, joins};
use super::error::Doing;
use super::home::Home;
use super::redo::{self, Kind, Log, files_name, log_name};
use super::tree::{Tree, sync_directory};
use crate::limits::{APPLY_RETRY_PAUSE, GROUP_EPOCHS_MAX, REDO_BYTES_MAX, REDO_EPOCHS_MAX};
use crate::model::{EpochId, FileId};
use crate::records::{self, Durability, Records, State};
use parking_lot::{Condvar, Mutex};
use rustix::fs::AtFlags;
use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What the applying thread has to say.
#[derive(Debug)]
pub(super) enum Report {
    /// All epochs up to this state are applied; these objects are not what the records say.
    Applied(State, Vec<FileId>),
    /// It cannot go on. An epoch that makes no sense was dropped, with all after it.
    Broken(ReplicaError),
}

/// See the module.
pub(super) struct Engine {
    pub(super) home: Home,
    pub(super) tree: Arc<Tree>,
    pub(super) records: Records,
    policy: Policy,
    stop: Arc<AtomicBool>,
    shared: Mutex<Shared>,
    changed: Condvar,
}

struct Shared {
    pending: VecDeque<Arc<Log>>,
    state: State,
    // how many of the first pending epochs an apply was begun of, and how far it may have come
    begun: Option<(usize, Progress)>,
    failing: Option<String>,
    broken: bool,
    // nothing will be added any more
    closing: bool,
}

/// What is on the disk besides what is applied.
pub(super) struct Found {
    /// The number of a log without a commit.
    pub stage: Option<u64>,
    /// A number that no log has, nor any after it.
    pub next: u64,
}

impl Engine {
    /// Reads what is durable and not yet applied, and clears away what is of no use any more.
    pub(super) fn open(
        home: Home,
        records: Records,
        policy: Policy,
        stop: Arc<AtomicBool>,
    ) -> Result<(Engine, Found), ReplicaError> {
        let tree = Arc::new(Tree::open(&home, stop.clone())?);
        Engine::with_tree(home, tree, records, policy, stop)
    }

    pub(super) fn with_tree(
        home: Home,
        tree: Arc<Tree>,
        records: Records,
        policy: Policy,
        stop: Arc<AtomicBool>,
    ) -> Result<(Engine, Found), ReplicaError> {
        let state = records.state()?;
        let (pending, found) = read_logs(&tree, state)?;
        let begun = begun(&home, state, &pending)?;
        if pending.is_empty() {
            clear(&home, &tree)?;
        }
        let shared = Shared {
            pending,
            state,
            begun,
            failing: None,
            broken: false,
            closing: false,
        };
        let engine = Engine {
            home,
            tree,
            records,
            policy,
            stop,
            shared: Mutex::new(shared),
            changed: Condvar::new(),
        };
        Ok((engine, found))
    }

    /// The state that is applied.
    pub(super) fn applied(&self) -> State {
        self.shared.lock().state
    }

    /// The newest durable epoch and its digest.
    pub(super) fn durable(&self) -> (EpochId, [u8; 32]) {
        let shared = self.shared.lock();
        let last = shared.pending.back().and_then(|log| log.commit.as_ref());
        last.map_or((shared.state.epoch, shared.state.digest), |commit| {
            (commit.epoch, commit.digest)
        })
    }

    /// What kind of object will be there when all that is durable is applied.
    pub(super) fn kind(&self, id: FileId) -> Result<Option<Kind>, ReplicaError> {
        {
            let shared = self.shared.lock();
            let mut logs = shared.pending.iter();
            if let Some((_, kind)) = logs.find_map(|log| log.index.objects.get(&id)) {
                return Ok(Some(*kind));
            }
        }
        let record = self.records.object(id)?;
        Ok(record.map(|record| Kind::of(&record.object.fixed)))
    }

    /// Adds a durable epoch.
    pub(super) fn push(&self, log: Log) {
        self.shared.lock().pending.push_back(Arc::new(log));
        self.changed.notify_all();
    }

    /// How many durable epochs are not applied.
    pub(super) fn waiting(&self) -> u64 {
        self.shared.lock().pending.len() as u64
    }

    /// Whether the last attempt to apply has failed.
    pub(super) fn is_failing(&self) -> bool {
        self.shared.lock().failing.is_some()
    }

    /// Why not everything is applied, for people.
    pub(super) fn trouble(&self) -> String {
        let trouble = self.shared.lock().failing.clone();
        trouble.unwrap_or_else(|| "the replica cannot keep up".to_owned())
    }

    /// Takes in that the records were made anew.
    pub(super) fn reread(&self) -> Result<(), ReplicaError> {
        self.shared.lock().state = self.records.state()?;
        Ok(())
    }

    /// Waits until another epoch may become durable; `false`: there will be no room, for now.
    pub(super) fn wait_for_room(&self) -> Result<bool, ReplicaError> {
        let mut shared = self.shared.lock();
        while !self.is_over(&shared) && shared.failing.is_none() && is_full(&shared) {
            self.changed.wait(&mut shared);
        }
        match self.is_over(&shared) {
            true => Err(ReplicaError::Stopped),
            false => Ok(!is_full(&shared)),
        }
    }

    /// Whether the disk has room to store `length` more bytes of content, and to apply them
    /// later with what is `staged` and what is durable. Without that an epoch could become
    /// durable that can never be applied, and the one that would make room stands behind it.
    pub(super) fn has_space(&self, length: u64, staged: u64) -> Result<bool, ReplicaError> {
        let space = rustix::fs::fstatvfs(&self.tree.root)
            .map_err(std::io::Error::from)
            .doing(|| "cannot ask for the free space of the target")?;
        let free = match rustix::process::geteuid().is_root() {
            true => space.f_bfree,
            false => space.f_bavail,
        };
        let pending: u64 = {
            let shared = self.shared.lock();
            shared.pending.iter().map(|log| log.length).sum()
        };
        let owed = pending + staged + 2 * length;
        Ok(free.saturating_mul(space.f_frsize) >= owed)
    }

    /// Waits until all that is durable is applied; `false`: it cannot be, for now. What has failed
    /// before is tried once more.
    pub(super) fn wait_until_applied(&self) -> Result<bool, ReplicaError> {
        let mut shared = self.shared.lock();
        if shared.failing.take().is_some() {
            self.changed.notify_all();
        }
        while !self.is_over(&shared) && shared.failing.is_none() && !shared.pending.is_empty() {
            self.changed.wait(&mut shared);
        }
        match self.is_over(&shared) {
            true => Err(ReplicaError::Stopped),
            false => Ok(shared.pending.is_empty()),
        }
    }

    /// Says that nothing will be added: the thread ends when all is applied, or cannot be.
    pub(super) fn close(&self) {
        self.shared.lock().closing = true;
        self.changed.notify_all();
    }

    /// Ends the thread before its next change of the tree.
    pub(super) fn stop(&self) {
        let shared = self.shared.lock();
        self.stop.store(true, Ordering::Relaxed);
        drop(shared);
        self.changed.notify_all();
    }

    fn is_over(&self, shared: &Shared) -> bool {
        shared.broken || self.stop.load(Ordering::Relaxed)
    }

    /// Applies what is durable as it comes, until it is closed or stopped.
    pub(super) fn run(&self, report: &mut dyn FnMut(Report)) {
        while let Some((group, progress)) = self.next_group() {
            let result = self.apply_group(&group, progress);
            let ended = self.after(&group, result, report);
            self.changed.notify_all();
            if ended {
                return;
            }
        }
    }

    /// Applies all that is durable now.
    pub(super) fn run_once(&self) -> Result<Vec<FileId>, ReplicaError> {
        self.close();
        let mut suspects = Vec::new();
        while let Some((group, progress)) = self.next_group() {
            let (state, found) = self.apply_group(&group, progress)?;
            suspects.extend(found);
            let mut shared = self.shared.lock();
            shared.pending.drain(..group.len());
            shared.begun = None;
            shared.state = state;
            drop(shared);
            self.tidy(&group);
        }
        match self.stop.load(Ordering::Relaxed) {
            true => Err(ReplicaError::Stopped),
            false => Ok(suspects),
        }
    }

    /// As if no apply was ever begun of what is pending.
    #[cfg(test)]
    pub(super) fn forget_begun(&self) {
        self.shared.lock().begun = None;
    }

    fn next_group(&self) -> Option<(Vec<Arc<Log>>, Progress)> {
        let mut shared = self.shared.lock();
        loop {
            if self.is_over(&shared) || (shared.closing && shared.pending.is_empty()) {
                return None;
            }
            if !shared.pending.is_empty() {
                break;
            }
            self.changed.wait(&mut shared);
        }
        let (count, progress) = match shared.begun {
            Some(begun) => begun,
            None => {
                let rest = shared.pending.iter().skip(1);
                let joined = rest.take_while(|log| joins(&log.index)).count();
                ((joined + 1).min(GROUP_EPOCHS_MAX), Progress::None)
            }
        };
        // Until it is through, the same epochs are taken together again.
        shared.begun = Some((count, Progress::Begun));
        Some((
            shared.pending.iter().take(count).cloned().collect(),
            progress,
        ))
    }

    fn after(
        &self,
        group: &[Arc<Log>],
        result: Result<(State, Vec<FileId>), ReplicaError>,
        report: &mut dyn FnMut(Report),
    ) -> bool {
        match result {
            Ok((state, suspects)) => {
                let mut shared = self.shared.lock();
                shared.pending.drain(..group.len());
                shared.begun = None;
                shared.failing = None;
                shared.state = state;
                drop(shared);
                self.changed.notify_all();
                report(Report::Applied(state, suspects));
                self.tidy(group);
                false
            }
            Err(ReplicaError::Stopped) => true,
            // The records are older than what was already relied upon, or of no use.
            Err(ReplicaError::Records(
                error @ (records::Error::FellBack { .. } | records::Error::Damaged { .. }),
            )) => {
                self.shared.lock().broken = true;
                report(Report::Broken(ReplicaError::from(error)));
                true
            }
            Err(error @ ReplicaError::Invalid { .. }) => {
                tracing::error!(
                    error = error.chain(),
                    "an epoch makes no sense and is dropped"
                );
                let dropped: Vec<_> = {
                    let mut shared = self.shared.lock();
                    shared.broken = true;
                    shared.begun = None;
                    shared.pending.drain(..).collect()
                };
                for log in dropped {
                    if let Err(error) = remove_log(&self.tree, log.number) {
                        tracing::error!(error = error.chain(), "cannot remove a dropped epoch");
                    }
                }
                report(Report::Broken(error));
                true
            }
            Err(error) => self.pause(&error, group),
        }
    }

    /// Waits before another attempt; whether there shall be none.
    fn pause(&self, error: &ReplicaError, group: &[Arc<Log>]) -> bool {
        let text = error.chain();
        tracing::warn!(error = text, "cannot apply for now");
        let last = group.last().map(|log| log.epoch());
        let marked = self.home.mark().ok().flatten();
        let mut shared = self.shared.lock();
        if last.is_some() && marked.map(|mark| mark.last) == last {
            shared.begun = Some((group.len(), Progress::Marked));
        }
        if shared.closing {
            return true;
        }
        shared.failing = Some(text);
        self.changed.notify_all();
        let deadline = Instant::now() + APPLY_RETRY_PAUSE;
        while shared.failing.is_some() && !shared.closing && !self.is_over(&shared) {
            if self.changed.wait_until(&mut shared, deadline).timed_out() {
                break;
            }
        }
        false
    }

    fn apply_group(
        &self,
        group: &[Arc<Log>],
        progress: Progress,
    ) -> Result<(State, Vec<FileId>), ReplicaError> {
        let Engine {
            home,
            tree,
            records,
            ..
        } = self;
        let before = records.state()?;
        let Some(first) = group.first().filter(|log| log.epoch() > before.epoch) else {
            // A commit of the records that failed, and took place all the same.
            return Ok((before, Vec::new()));
        };
        if progress == Progress::None {
            clear(home, tree)?;
        }
        // First the records: they know whether it makes sense.
        let mut change = records.begin()?;
        let mut gone = HashSet::new();
        let mut state = before;
        for log in group {
            let Some(commit) = &log.commit else { continue };
            log.each(|entry| change.entry(&entry).map_err(|error| invalid(first, error)))?;
            let applied = change.settle(commit).map_err(|error| invalid(log, error))?;
            gone.extend(applied.gone);
            state = applied.state;
        }
        let delta = Delta::new(records, group.to_vec())?;
        home.set_applying(delta.last, group.len() > 1)?;
        let suspects = apply(home, tree, records, &delta, &gone, self.policy, progress)?;
        tree.barrier()
            .doing(|| "cannot sync the replica's file system")?;
        change.finish(Durability::Immediate)?;
        Ok((state, suspects))
    }

    /// Removes what is of no use any more. What cannot be removed now is before the next apply.
    fn tidy(&self, group: &[Arc<Log>]) {
        let removed = group
            .iter()
            .try_for_each(|log| remove_log(&self.tree, log.number));
        match clear(&self.home, &self.tree).and(removed) {
            Ok(()) | Err(ReplicaError::Stopped) => {}
            Err(error) => tracing::warn!(error = error.chain(), "cannot tidy up"),
        }
    }
}

fn is_full(shared: &Shared) -> bool {
    let bytes: u64 = shared.pending.iter().map(|log| log.length).sum();
    shared.pending.len() >= REDO_EPOCHS_MAX || (bytes >= REDO_BYTES_MAX)
}

fn invalid(log: &Log, error: records::Error) -> ReplicaError {
    match error {
        records::Error::Inconsistent { .. } | records::Error::Order { .. } => {
            ReplicaError::Invalid {
                epoch: log.epoch().0,
                why: error.to_string(),
            }
        }
        other => other.into(),
    }
}

/// Removes what an apply that is through has left.
fn clear(home: &Home, tree: &Tree) -> Result<(), ReplicaError> {
    home.remove("applying")?;
    home.remove("mark")?;
    tree.empty(&tree.park).doing(|| "cannot empty park")?;
    tree.empty(&tree.trash).doing(|| "cannot empty trash")
}

fn remove_log(tree: &Tree, number: u64) -> Result<(), ReplicaError> {
    let action = || format!("cannot remove redo/{number}");
    let files = files_name(number);
    // The log first: without it the files mean nothing.
    match rustix::fs::unlinkat(&tree.redo, log_name(number), AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).doing(action),
    }
    tree.remove_all(&tree.redo, OsStr::new(&files))
        .doing(action)
}

/// The durable epochs that the records do not have, in order; everything else but the newest log
/// without a commit is removed.
fn read_logs(tree: &Tree, state: State) -> Result<(VecDeque<Arc<Log>>, Found), ReplicaError> {
    let (numbers, files) = redo::list(&tree.redo)?;
    let next = numbers
        .iter()
        .chain(&files)
        .max()
        .map_or(0, |last| last + 1);
    let mut found = Found { stage: None, next };
    let mut pending: VecDeque<Arc<Log>> = VecDeque::new();
    let mut durable = state.epoch;
    for &number in &numbers {
        let log = Log::open(&tree.redo, number, u64::MAX, |_, _, _| {})?;
        let newest = numbers.last() == Some(&number);
        match log {
            Some(log) if log.commit.is_none() && newest => found.stage = Some(number),
            Some(log) if log.commit.as_ref().is_some_and(|c| c.parent == durable) => {
                // A process that crashed may have had no time for it.
                log.sync()?;
                durable = log.epoch();
                pending.push_back(Arc::new(log));
            }
            _ => remove_log(tree, number)?,
        }
    }
    for number in files.into_iter().filter(|number| !numbers.contains(number)) {
        remove_log(tree, number)?;
    }
    sync_directory(&tree.redo)?;
    Ok((pending, found))
}

/// How far an interrupted apply had come, and of how many epochs.
fn begun(
    home: &Home,
    state: State,
    pending: &VecDeque<Arc<Log>>,
) -> Result<Option<(usize, Progress)>, ReplicaError> {
    let count = |last: EpochId| pending.iter().position(|log| log.epoch() == last);
    if let Some(mark) = home.mark()?.filter(|mark| mark.last > state.epoch)
        && let Some(index) = count(mark.last)
    {
        return Ok(Some((index + 1, Progress::Marked)));
    }
    if let Some(group) = home.applying()?.filter(|group| group.last > state.epoch)
        && let Some(index) = count(group.last)
    {
        return Ok(Some((index + 1, Progress::Begun)));
    }
    Ok((!pending.is_empty()).then_some((1, Progress::Begun)))
}
