//! How a mirror stands, what waits for it, and its end.

use super::Engine;
use crate::config::Remote;
use crate::control::{Epochs, Failure, Link, Phase, Progress, Receipt, Status, rfc3339};
use crate::model::EpochId;
use crate::reconcile;
use crate::runtime::ship::{self, FailureKind};
use crate::runtime::{failures, life, waiters};
use std::sync::atomic::Ordering;
use tokio::sync::watch;

impl Engine {
    fn walk_progress(&self) -> Option<reconcile::Progress> {
        self.walk
            .walker
            .lock()
            .as_ref()
            .map(reconcile::Walker::progress)
    }

    fn phase(&self, status: &ship::Status, pending: bool) -> Phase {
        match status.phase {
            ship::Phase::Halted => Phase::Halted,
            ship::Phase::Offline | ship::Phase::Stopped => Phase::Offline,
            ship::Phase::Greeting => Phase::Reconciling,
            ship::Phase::Connected if self.walk.settled().is_none() || !status.consistent => {
                Phase::Reconciling
            }
            ship::Phase::Connected if pending || status.busy => Phase::Shipping,
            ship::Phase::Connected => Phase::Idle,
        }
    }

    /// Before this process has spoken to the replica, what the index knows.
    fn epochs(&self, status: &ship::Status) -> Epochs {
        let marks = status.marks;
        let known = |mark: EpochId| mark.max(self.known_epoch).0;
        Epochs {
            sealed: known(marks.sealed),
            shipped: known(marks.shipped),
            durable: known(marks.durable),
            applied: marks.applied.0,
        }
    }

    fn link(&self, status: &ship::Status) -> Link {
        let connected = matches!(status.phase, ship::Phase::Connected | ship::Phase::Greeting);
        Link {
            connected,
            since: status.since.map(rfc3339),
            last_error: status
                .failure
                .as_ref()
                .map(|failure| failure.message.clone()),
        }
    }

    fn progress(&self, status: &ship::Status) -> Option<Progress> {
        if status.phase == ship::Phase::Greeting && !status.greeted {
            return Some(Progress {
                what: "the replica takes stock".into(),
                ..Progress::default()
            });
        }
        let walk = self.walk_progress()?;
        let what = match walk.phase {
            reconcile::Phase::Complete if status.consistent => return None,
            reconcile::Phase::Complete => "sending what differs",
            reconcile::Phase::Walking => "comparing",
            reconcile::Phase::WaitingForRoom => "comparing, waiting for what is being sent",
            reconcile::Phase::WaitingToRetry => "cannot read all of the source, trying again",
            reconcile::Phase::Stopped => "stopped",
        };
        let failed = walk.failures.first();
        let failed = failed.map_or(String::new(), |f| format!(" ({}: {})", f.path, f.error));
        Some(Progress {
            what: format!("{what}{failed}"),
            objects: walk.objects,
            objects_total: None,
            bytes: self.shipper.bytes_shipped(),
        })
    }
}

impl life::Engine for Engine {
    fn status(&self) -> Status {
        let status = self.shipper.status();
        let pressure = self.journal.pressure();
        let sealed = u64::from(pressure.sealed);
        let mirror = &self.mirror;
        let degraded = self.degraded.lock();
        Status {
            state: self.phase(&status, pressure.operations > 0 || pressure.sealed),
            mounted: false,
            source: mirror.source.display().to_string(),
            target: mirror.target.clone(),
            mountpoint: mirror.mountpoint.display().to_string(),
            state_dir: mirror.state_dir.display().to_string(),
            pid: None,
            lag_seconds: pressure
                .oldest
                .map_or(0.0, |oldest| oldest.elapsed().as_secs_f64()),
            pending_bytes: pressure.dirty_bytes,
            pending_operations: pressure.operations + sealed,
            epochs: self.epochs(&status),
            link: self.link(&status),
            bytes_shipped: self.shipper.bytes_shipped(),
            root_hash: status.root_hash.map(|hash| hash.to_string()),
            local: mirror.options.local,
            remote: mirror.options.remote,
            degraded: degraded
                .as_ref()
                .is_some_and(|flag| flag.load(Ordering::Relaxed)),
            progress: self.progress(&status),
            halted: self.halted(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    fn news(&self) -> watch::Receiver<u64> {
        self.shipper.news()
    }

    fn mark(&self) -> u64 {
        let mark = self.journal.mark();
        // Who asks for a mark waits for it.
        self.shipper.press();
        mark
    }

    fn reached(&self, mark: u64, level: Remote) -> bool {
        match level {
            Remote::Async => true,
            Remote::Received => *self.shipper.received_watch().borrow() >= mark,
            Remote::Durable => self.journal.committed_watch().borrow().generation >= mark,
        }
    }

    fn settled(&self) -> Option<u64> {
        self.walk.settled()
    }

    fn drained(&self, mark: u64) -> Option<Receipt> {
        let receipt = self.shipper.drained(mark)?;
        Some(Receipt {
            epoch: receipt.epoch.0,
            root_hash: receipt.root_hash.to_string(),
            bytes_shipped: receipt.bytes_shipped,
            seconds: 0.0,
        })
    }

    fn halted(&self) -> Option<Failure> {
        let status = self.shipper.status();
        let halted = status.phase == ship::Phase::Halted;
        status
            .failure
            .filter(|_| halted)
            .map(|failure| failures::shipping(&failure))
    }

    fn obstacle(&self) -> Option<Failure> {
        let status = self.shipper.status();
        let since = status.last_durable;
        let failure = status
            .failure
            .filter(|f| since.is_none_or(|since| f.at > since))?;
        let is_disk = matches!(failure.kind, FailureKind::Stalled | FailureKind::State);
        is_disk.then(|| failures::shipping(&failure))
    }

    fn hurry(&self, more: bool) {
        self.shipper.hurry(more);
    }

    /// # Durability
    /// The real tree is on this machine's stable storage, and the hot set says so.
    fn close(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let walker = self.walk.walker.lock().take();
        if let Some(walker) = walker {
            walker.stop();
        }
        self.shipper.stop();
        if let Some(embedded) = &self.embedded {
            embedded.settle();
        }
        // Only what is on the disk may be called clean.
        let closed = self
            .backing
            .sync()
            .map_err(|error| failures::local(&error))
            .and_then(|()| {
                let emptied = self.journal.close_clean();
                emptied.map_err(|e| Failure::from_error(crate::control::Exit::LocalDisk, &e))?;
                self.index.sync().map_err(|error| failures::index(&error))?;
                self.state
                    .mark_clean()
                    .map_err(|error| failures::state(&error))
            });
        if let Err(failure) = closed {
            tracing::error!(error = %failure.line(), "the state is not left clean");
        }
    }
}

/// For `fsync`s that wait; see [`waiters`].
impl waiters::Reached for Engine {
    fn mark(&self) -> u64 {
        let mark = self.journal.mark();
        // Who asks for a mark waits for it.
        self.shipper.press();
        mark
    }
    fn reached(&self, mark: u64, level: Remote) -> bool {
        <Engine as life::Engine>::reached(self, mark, level)
    }
}
