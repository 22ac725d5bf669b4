//! What a session does with the open epoch: stage, seal, plan, commit, and take it into the index.

use super::driver::{End, ROOTS_MAX};
use super::session::{Committing, Session};
use super::{FailureKind, Suspicion};
use crate::journal::Pressure;
use crate::limits::{PART_OBJECTS, SAVED_DISK_BYTES_MAX, SEAL_AGE_MAX, SEAL_BYTES_MAX, SEAL_QUIET};
use crate::model::{Commit, EpochId, Extent, FileId, RootHash, Timestamp};
use crate::plan::{Against, Emit, PlanError, Planner};
use crate::records::Durability;
use crate::wire::ToReplica;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// How many bytes are taken for one round of staging.
const STAGE_ROUND_BYTES: u64 = 8 * 1024 * 1024;

/// How old the oldest change may get before a part of a first sync is sealed though it is small.
const PART_AGE_MAX: Duration = Duration::from_secs(1);

/// Why planning did not come to its end.
enum Stopped {
    Session(End),
    Plan(PlanError),
}

impl From<PlanError> for Stopped {
    fn from(error: PlanError) -> Stopped {
        Stopped::Plan(error)
    }
}

impl Session<'_> {
    /// Does the next thing that can be done for the open epoch. False: there is nothing.
    pub(super) fn advance(&mut self) -> Result<bool, End> {
        if self.committing.is_some() {
            return Ok(false);
        }
        let pressure = self.driver.options.journal.pressure();
        if pressure.objects == 0 {
            let through = !self.walking();
            if through && !self.driver.shared.status.lock().consistent {
                return self.seal(true).map(|()| true);
            }
            self.ask_apply()?;
            return Ok(false);
        }
        if pressure.dirty_bytes > SEAL_BYTES_MAX && !self.enough_staged(pressure.dirty_bytes) {
            return self.stage_round().map(|()| true);
        }
        if !self.walking() {
            if self.is_restless(&pressure) {
                return Ok(false);
            }
            return self.seal(true).map(|()| true);
        }
        let first_sync = !self.driver.shared.status.lock().consistent;
        let old = pressure
            .oldest_open
            .is_some_and(|oldest| oldest.elapsed() > PART_AGE_MAX);
        let worth = pressure.objects >= PART_OBJECTS || self.staged_bytes > 0 || old;
        if pressure.full || (first_sync && worth) {
            return self.seal(false).map(|()| true);
        }
        Ok(false)
    }

    /// Changes keep coming, and nobody waits for them: the seal is put off, a little. Says until
    /// when to rest.
    fn is_restless(&mut self, pressure: &Pressure) -> bool {
        let now = Instant::now();
        if self.seen_operations != pressure.operations {
            self.seen_operations = pressure.operations;
            self.quiet_since = now;
        }
        let shared = &self.driver.shared;
        let waited_for = shared.drains.load(Ordering::SeqCst) > 0
            || shared.pressed.swap(false, Ordering::SeqCst);
        let quiet_at = self.quiet_since + SEAL_QUIET;
        let until = match pressure.oldest_open {
            Some(oldest) => quiet_at.min(oldest + SEAL_AGE_MAX),
            None => quiet_at,
        };
        self.rest_until = (now < until && !waited_for).then_some(until);
        self.rest_until.is_some()
    }

    fn walking(&self) -> bool {
        self.driver.shared.walked().is_none()
    }

    /// Staging does not converge (writers are faster than the link): what is left is sealed, if
    /// a sealed epoch can own it.
    fn enough_staged(&self, dirty_bytes: u64) -> bool {
        let rounds = 3 * dirty_bytes.max(SEAL_BYTES_MAX);
        self.seal_now || (self.staged_bytes > rounds && dirty_bytes <= SAVED_DISK_BYTES_MAX / 2)
    }

    /// Sends some dirty extents of the open epoch ahead of its seal.
    fn stage_round(&mut self) -> Result<(), End> {
        self.busy(true);
        let journal = self.driver.options.journal.clone();
        let taken = journal.take_for_stage(STAGE_ROUND_BYTES);
        self.seal_now = taken.is_empty();
        for of_file in taken.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((file, _)) = of_file.first() else {
                continue;
            };
            let extents: Vec<Extent> = of_file.iter().map(|(_, extent)| *extent).collect();
            // What is not confirmed as staged is dirty again at the seal.
            match self.stage_file(*file, &extents) {
                Ok(()) => {}
                Err(Stopped::Session(end)) => return Err(end),
                Err(Stopped::Plan(error)) => {
                    tracing::debug!(%file, %error, "a file cannot be staged; its epoch will tell");
                    self.seal_now = true;
                }
            }
        }
        self.driver.stage = Some((self.session, self.sender.staged()));
        Ok(())
    }

    fn stage_file(&mut self, id: FileId, extents: &[Extent]) -> Result<(), Stopped> {
        let index = self.driver.options.index.clone();
        let source = self.driver.options.source.clone();
        let read = |source| PlanError::Read {
            file: id,
            offset: 0,
            source,
        };
        let file = source.open(id).map_err(read)?;
        let first = self.sender.staged();
        let tally = self.planning(|planner, emit| {
            planner.stage(id, &file, extents, &index, Against::Nothing, emit)
        })?;
        self.staged_bytes += tally.bytes_read;
        let last = self.sender.staged().saturating_sub(1).max(first);
        let journal = &self.driver.options.journal;
        extents
            .iter()
            .for_each(|extent| journal.staged(id, *extent, last));
        Ok(())
    }

    /// Plans, sending entries as they come.
    fn planning<T>(
        &mut self,
        plan: impl FnOnce(&mut Planner, &mut Emit<'_>) -> Result<T, PlanError>,
    ) -> Result<T, Stopped> {
        let mut planner = std::mem::take(&mut self.driver.planner);
        let mut ended = None;
        let result = plan(&mut planner, &mut |entry, bytes| {
            self.stage_entry(entry, bytes).map(|_| ()).map_err(|end| {
                ended = Some(end);
                std::io::ErrorKind::ConnectionAborted.into()
            })
        });
        self.driver.planner = planner;
        match (ended, result) {
            (Some(end), _) => Err(Stopped::Session(end)),
            (None, result) => result.map_err(Stopped::Plan),
        }
    }

    fn busy(&self, busy: bool) {
        self.driver.shared.update(|status| status.busy = busy);
    }

    /// Seals the open epoch, plans it, sends it with its commit.
    fn seal(&mut self, consistent: bool) -> Result<(), End> {
        self.busy(true);
        self.seal_now = false;
        let journal = self.driver.options.journal.clone();
        let before = self.sender.staged();
        self.driver.stage = Some((self.session, before));
        let walked = self.driver.shared.walked();
        let sealed = journal.seal(consistent);
        if consistent && (walked.is_none() || walked != self.driver.shared.walked()) {
            // An operation of the epoch has brought in a directory that only a walk will list.
            if sealed.is_some() {
                return self.fold(before, "a walk has begun meanwhile");
            }
            self.busy(false);
            return Ok(());
        }
        let Some(sealed) = sealed else {
            return self.nothing_to_ship(consistent);
        };
        let index = self.driver.options.index.clone();
        let source = self.driver.options.source.clone();
        let planned =
            self.planning(|planner, emit| planner.epoch(&*sealed, &*source, &index, emit));
        let planned = match planned {
            Ok(planned) => planned,
            Err(Stopped::Plan(_)) if sealed.is_abandoned() => {
                return self.fold(before, "what it had to save passed its bounds");
            }
            Err(Stopped::Session(end)) => return Err(end),
            Err(Stopped::Plan(error)) => {
                self.fold(before, &super::chain(&error))?;
                return pause_after(&error);
            }
        };
        // From here on the epoch holds nothing that could be lost.
        if !sealed.finish_reading() {
            return self.fold(before, "what it had to save passed its bounds");
        }
        if planned.strangers > 0 {
            (self.driver.options.suspect)(Suspicion::Tree);
        }
        let owned = (sealed.epoch(), sealed.generation());
        let known = self.driver.shared.status.lock().consistent;
        if self.sender.staged() == 0 && known == consistent {
            // Everything turned out to be what the replica has: nothing to ship.
            index.set_stamps(&planned.stamps)?;
            journal.committed(owned.0);
            self.driver.planner.committed();
            self.driver.shared.received.send_replace(owned.1);
            self.told();
            return Ok(());
        }
        let epoch = self.driver.options.state.next_epoch()?;
        let sealed = Some(owned);
        self.commit(Committing {
            epoch,
            consistent,
            sealed,
            stamps: planned.stamps,
        })
    }

    /// Nothing is dirty, but the replica is to know that its state is one that existed.
    fn nothing_to_ship(&mut self, consistent: bool) -> Result<(), End> {
        if !consistent || self.driver.shared.status.lock().consistent {
            self.busy(false);
            return Ok(());
        }
        let epoch = self.driver.options.state.next_epoch()?;
        self.commit(Committing {
            epoch,
            consistent,
            sealed: None,
            stamps: Vec::new(),
        })
    }

    fn commit(&mut self, committing: Committing) -> Result<(), End> {
        let Committing {
            epoch, consistent, ..
        } = committing;
        let state = &self.driver.options.state;
        let commit = Commit {
            epoch,
            parent: self.index_epoch()?,
            incarnation: state.incarnation(),
            sealed_at: now(),
            consistent,
            entries: self.manifest.entries(),
            digest: self.manifest.digest(),
        };
        self.sender.sealed(epoch);
        // Durable before the commit is sent, so that a lost acknowledgement costs nothing (I7).
        self.manifest.seal(&commit)?;
        self.sender.committing(&commit);
        self.send(&ToReplica::Commit(commit), None)?;
        self.flush()?;
        self.committing = Some(committing);
        let marks = self.sender.marks();
        self.driver.shared.update(|status| status.marks = marks);
        Ok(())
    }

    /// The seal did not hold: its changes go back into the open epoch, and what was sent for it
    /// out of the stage.
    fn fold(&mut self, before: u64, why: &str) -> Result<(), End> {
        tracing::info!(why, "a sealed epoch goes back into the open one");
        self.driver.options.journal.abandon();
        self.driver.planner.abandoned();
        self.cut_stage(before)
    }

    /// The replica has the sealed epoch on stable storage: the index takes it in.
    pub(super) fn durable(&mut self) -> Result<(), End> {
        let Some(committing) = self.committing.take() else {
            return Ok(());
        };
        self.apply_manifest(committing.epoch)?;
        let options = &self.driver.options;
        options.index.set_stamps(&committing.stamps)?;
        // The marks before the journal: whoever finds its changes committed must not take what
        // was applied before them for all there is.
        self.driver.shared.update(|status| {
            status.consistent = committing.consistent;
            status.last_durable = Some(SystemTime::now());
        });
        self.told();
        if let Some((sealed, generation)) = committing.sealed {
            options.journal.committed(sealed);
            self.driver.shared.received.send_replace(generation);
        }
        self.driver.shared.told();
        self.driver.planner.committed();
        self.manifest = options.state.manifest()?;
        self.driver.stage = Some((self.session, 0));
        self.staged_bytes = 0;
        Ok(())
    }

    /// The replica has the sealed epoch in its memory.
    pub(super) fn received(&mut self) {
        if let Some(Committing {
            sealed: Some((_, generation)),
            ..
        }) = self.committing
        {
            self.driver.shared.received.send_replace(generation);
            self.driver.shared.told();
        }
    }

    /// Shows the watermarks and wakes who waits for them.
    fn told(&self) {
        let marks = self.sender.marks();
        self.driver.shared.update(|status| {
            status.marks = marks;
            status.busy = false;
        });
    }

    /// Applies a manifest to the index.
    pub(super) fn apply_manifest(&mut self, epoch: EpochId) -> Result<(), End> {
        let options = &self.driver.options;
        let mut reader = options.state.read_manifest(epoch)?;
        let mut change = options.index.begin()?;
        while let Some(entry) = reader.next_entry()? {
            change.entry(&entry)?;
        }
        let commit = reader.commit().clone();
        let applied = change.commit(&commit, Durability::None)?;
        let roots = &mut self.driver.roots;
        roots.push_back((epoch, applied.state.root_hash));
        while roots.len() > ROOTS_MAX {
            roots.pop_front();
        }
        Ok(())
    }

    /// The replica has applied an epoch: its tree must be the index's of that epoch.
    pub(super) fn applied(&mut self, epoch: EpochId, root_hash: RootHash) -> Result<(), End> {
        let roots = &mut self.driver.roots;
        while roots.front().is_some_and(|(older, _)| *older < epoch) {
            roots.pop_front();
        }
        let ours = roots
            .front()
            .filter(|(same, _)| *same == epoch)
            .map(|(_, root)| *root);
        if ours.is_some_and(|ours| ours != root_hash) {
            let message = format!("the replica's tree of epoch {epoch} is not the index's");
            // Its records are fetched, and everything is compared, at the next connection.
            self.driver.options.state.forget_replica_state()?;
            return Err(End::lost(FailureKind::Protocol, message, None));
        }
        let marks = self.sender.marks();
        self.driver.shared.update(|status| {
            status.marks = marks;
            status.root_hash = Some(root_hash);
        });
        // Manifests are needed until the index has them on stable storage.
        let options = &self.driver.options;
        let index = options.index.sync()?;
        Ok(options.state.trim_manifests(index)?)
    }

    pub(super) fn index_epoch(&self) -> Result<EpochId, End> {
        let state = self.driver.options.index.state()?;
        Ok(state.epoch)
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

/// After an epoch that could not be planned: a race is tried again at once, what cannot be read
/// (EIO, say) after a pause, and the reason is shown.
fn pause_after(error: &PlanError) -> Result<(), End> {
    if matches!(error, PlanError::Lost { .. }) {
        return Ok(());
    }
    let message = format!("the directory cannot be read: {}", super::chain(error));
    Err(End::lost(
        FailureKind::State,
        message,
        Some("mend the file, or exclude it"),
    ))
}
