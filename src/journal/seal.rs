//! From one epoch to the next. All of it is called by one thread, the one that ships.

use super::change::Change;
use super::epoch::Epoch;
use super::saved::Saved;
use super::sealed::Sealed;
use super::{Committed, Journal};
use crate::model::{EpochId, FileId};
use std::fs::File;
use std::sync::Arc;

impl Journal {
    /// Makes the open epoch immutable and opens another; `None` if it holds no change. Returns
    /// when the operations that belong to it have ended, which takes as long as their I/O does;
    /// operations of the new epoch run meanwhile. The instant of the state is that of the call:
    /// operations that began before it are in it, later ones are not.
    ///
    /// # Panics
    /// When there is a sealed epoch: it is committed or abandoned first (invariant I3).
    pub fn seal(&self, consistent: bool) -> Option<Arc<Sealed>> {
        let mut next_epoch = self.serial.lock();
        let open = self.view().open;
        if open.is_empty() {
            return None;
        }
        open.return_pending();
        let fresh = Arc::new(Epoch::new(open.generation + 1, self.limits.clone()));
        let sealed = Arc::new(Sealed {
            epoch: Arc::clone(&open),
            id: *next_epoch,
            consistent,
            sealed_at: super::now(),
            index: Arc::clone(&self.index),
            saved: Saved::new(Arc::clone(&self.directory), self.limits.clone()),
        });
        {
            let mut state = self.state.write();
            assert!(state.sealed.is_none(), "one sealed epoch at a time");
            state.open = fresh;
            state.sealed = Some(Arc::clone(&sealed));
        }
        *next_epoch = next_epoch.next();
        open.wait_until_retired();
        if let Err(error) = open.settle_revived(&*self.index) {
            tracing::warn!(%error, "an epoch cannot be completed: it is abandoned");
            sealed.give_up();
        }
        Some(sealed)
    }

    /// Folds the sealed epoch back into the open one, if there is one: the link is lost, or it
    /// could not keep what it owned. Its id is not used again, nothing is lost, and what was
    /// saved for it is dropped. If everything of it was read, its commit may have been sent: then
    /// the index may take it in later, before the next seal.
    ///
    /// What was staged before its seal still counts as staged, unless [`Journal::lost_stage`]
    /// was called before. But the entries that were sent of it after its seal are void: where it
    /// bound a name that is free again now, nobody would take that back. So a stage that has any
    /// of them must be discarded, and `lost_stage(0)` called.
    pub fn abandon(&self) {
        let _serial = self.serial.lock();
        let view = self.view();
        let Some(sealed) = view.sealed else { return };
        sealed.give_up();
        // Everything was read, so its commit may have been sent, and arrived.
        let uncertain = !sealed.is_abandoned();
        let (open, older) = (&view.open, &sealed.epoch);
        let bases = std::mem::take(&mut *older.bases.lock());
        let gone = open
            .bases
            .lock()
            .fold(bases, self.limits.base_descriptors_max);
        drop(gone);
        if uncertain {
            open.doubt(Arc::clone(&sealed));
        }
        open.fold(older, uncertain);
        // A base of the open epoch was to be what the replica holds after the sealed one.
        let bases = open.bases.lock().ids();
        for id in bases {
            let stale = |change: &Change| change.new || change.end() > 0;
            if open.with(id, stale).unwrap_or(false) {
                let gone = open.bases.lock().remove(id);
                drop(gone);
            }
        }
        let gone = self.state.write().sealed.take();
        drop(gone);
        self.poke();
    }

    /// A file that was unlinked or replaced, if its descriptor is kept as a base for a delta.
    pub fn kept(&self, id: FileId) -> Option<File> {
        let view = self.view();
        let of = |epoch: &Epoch| epoch.bases.lock().get(id);
        of(&view.open).or_else(|| view.sealed.and_then(|sealed| of(&sealed.epoch)))
    }

    /// The sealed epoch is durable at the replica, and the index has taken it in: it is dropped,
    /// and those who wait for it are told.
    ///
    /// # Panics
    /// When `epoch` is not the sealed one.
    pub fn committed(&self, epoch: EpochId) {
        let generation = {
            let _serial = self.serial.lock();
            let gone = {
                let mut state = self.state.write();
                let sealed = state.sealed.as_ref().map(|sealed| sealed.id);
                assert_eq!(sealed, Some(epoch), "only the sealed epoch is committed");
                state.sealed.take()
            };
            let Some(gone) = gone else { return };
            // A generation is committed with the first epoch of it or a later one, since what is
            // abandoned is folded into the next.
            self.committed.send_replace(Committed {
                generation: gone.generation(),
                epoch,
            });
            gone.generation()
        };
        self.hot.committed(generation);
    }
}
