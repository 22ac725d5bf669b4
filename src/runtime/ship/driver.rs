//! The life of the shipping thread: connect, hold a session, wait, connect again.

use super::link::{Connection, LinkEnd};
use super::session::Session;
use super::{Failure, FailureKind, Options, Phase, Shared, chain};
use crate::limits::{RECONNECT_PAUSE_MAX, RECONNECT_PAUSE_MIN};
use crate::model::{EpochId, RootHash, SessionId};
use crate::plan::Planner;
use crate::transport::Closer;
use crate::wire::Refusal;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// How many epochs' root hashes are remembered, to be compared with the replica's when it has
/// applied them.
pub(super) const ROOTS_MAX: usize = 4096;

/// Why a session, or an attempt at one, is over.
#[derive(Debug)]
pub(super) enum End {
    /// The shipper is to stop.
    Stopped,
    /// Another attempt may help.
    Lost(Failure),
    /// Only somebody's decision helps.
    Halted(Failure),
}

impl End {
    pub(super) fn lost(kind: FailureKind, message: String, next_step: Option<&str>) -> End {
        End::Lost(failure(kind, message, next_step, true))
    }

    pub(super) fn halted(kind: FailureKind, message: String, next_step: &str) -> End {
        End::Halted(failure(kind, message, Some(next_step), false))
    }

    /// The primary's own disk failed: tried again, because disks get room again.
    fn state(error: &dyn std::error::Error) -> End {
        let next = "make room on (or mend) the disk of the state directory; it is tried again";
        End::lost(FailureKind::State, chain(error), Some(next))
    }

    pub(super) fn refused(reason: Refusal, message: String) -> End {
        let kind = FailureKind::Refused(reason);
        match reason {
            Refusal::Busy | Refusal::Unusable => End::lost(kind, message, None),
            Refusal::Version
            | Refusal::Foreign
            | Refusal::Fenced
            | Refusal::NotEmpty
            | Refusal::Damaged
            | Refusal::Protocol => End::Halted(failure(kind, message, None, false)),
        }
    }
}

impl From<crate::state::Error> for End {
    fn from(error: crate::state::Error) -> End {
        End::state(&error)
    }
}

impl From<crate::records::Error> for End {
    fn from(error: crate::records::Error) -> End {
        End::state(&error)
    }
}

impl From<LinkEnd> for End {
    fn from(end: LinkEnd) -> End {
        let message = end.to_string();
        match end {
            LinkEnd::Transport(error) => {
                let failure = Failure {
                    at: SystemTime::now(),
                    message,
                    next_step: Some(error.next_step()).filter(|step| !step.is_empty()),
                    transient: error.is_transient(),
                    kind: FailureKind::Transport(error),
                };
                End::Lost(failure)
            }
            LinkEnd::Garbled(_) => End::lost(FailureKind::Protocol, message, None),
            LinkEnd::Silent | LinkEnd::Closed => End::lost(FailureKind::Protocol, message, None),
        }
    }
}

fn failure(
    kind: FailureKind,
    message: String,
    next_step: Option<&str>,
    transient: bool,
) -> Failure {
    let next_step = next_step.map(str::to_owned);
    Failure {
        at: SystemTime::now(),
        message,
        next_step,
        kind,
        transient,
    }
}

/// What outlives a session.
pub(super) struct Driver {
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: tokio::runtime::Runtime,
    /// The session before, and how many entries it staged before a seal.
    pub(super) stage: Option<(SessionId, u64)>,
    /// Root hashes of the index, to be compared with the replica's.
    pub(super) roots: VecDeque<(EpochId, RootHash)>,
    /// Plans; knows what the stage holds.
    pub(super) planner: Planner,
    pause: Duration,
}

impl Driver {
    pub(super) fn new(
        options: Options,
        shared: Arc<Shared>,
        runtime: tokio::runtime::Runtime,
    ) -> Driver {
        let pause = RECONNECT_PAUSE_MIN;
        let planner = Planner::new();
        Driver {
            options,
            shared,
            runtime,
            stage: None,
            roots: VecDeque::new(),
            planner,
            pause,
        }
    }

    /// Runs until it is stopped.
    pub(super) fn run(mut self) {
        while !self.shared.stopping() {
            self.enter(Phase::Offline);
            let began = Instant::now();
            let end = self.attempt();
            if began.elapsed() > RECONNECT_PAUSE_MAX {
                self.pause = RECONNECT_PAUSE_MIN;
            }
            match end {
                End::Stopped => break,
                End::Lost(failure) => {
                    tracing::warn!(error = %failure.message, "the link is down");
                    self.fail(failure, Phase::Offline);
                    self.pause();
                }
                End::Halted(failure) => {
                    tracing::error!(error = %failure.message, "the mirror is halted");
                    self.fail(failure, Phase::Halted);
                    self.wait_for_stop();
                }
            }
        }
        self.enter(Phase::Stopped);
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.shared.update(|status| {
            if status.phase != phase || status.since.is_none() {
                status.phase = phase;
                status.since = Some(SystemTime::now());
            }
        });
    }

    fn fail(&self, failure: Failure, phase: Phase) {
        self.enter(phase);
        self.shared.update(|status| {
            status.failure = Some(failure);
            status.busy = false;
        });
    }

    /// A session came to be in step: the next failure begins with a short pause again.
    pub(super) fn settled(&mut self) {
        self.pause = RECONNECT_PAUSE_MIN;
    }

    /// Connects and holds one session.
    fn attempt(&mut self) -> End {
        match self.connect() {
            Ok(connection) => Session::hold(self, connection),
            Err(end) => end,
        }
    }

    fn connect(&mut self) -> Result<Connection, End> {
        let system =
            |error: &dyn std::error::Error| End::lost(FailureKind::Protocol, chain(error), None);
        let closer = Closer::new().map_err(|error| system(&error))?;
        *self.shared.connecting.lock() = Some(closer.clone());
        if self.shared.stopping() {
            return Err(End::Stopped);
        }
        let link = self.options.connect.connect(&closer);
        self.shared.connecting.lock().take();
        if self.shared.stopping() {
            return Err(End::Stopped);
        }
        let link = link.map_err(|error| End::from(LinkEnd::Transport(Arc::new(error))))?;
        Connection::new(link, self.shared.bytes.clone()).map_err(|error| system(&error))
    }

    /// Waits before another attempt: longer each time, and never in step with others.
    fn pause(&mut self) {
        let mut random = [0; 2];
        // Without random numbers there is no jitter, and nothing worse.
        let _ = getrandom::fill(&mut random);
        let jitter = f64::from(u16::from_ne_bytes(random)) / f64::from(u16::MAX);
        let until = Instant::now() + self.pause.mul_f64(0.5 + jitter / 2.0);
        self.pause = (self.pause * 2).min(RECONNECT_PAUSE_MAX);
        while !self.shared.stopping() && !self.shared.retry.swap(false, Ordering::SeqCst) {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return;
            };
            let woken = self.shared.wake.notified();
            let _ = self
                .runtime
                .block_on(async { tokio::time::timeout(left, woken).await });
        }
    }

    fn wait_for_stop(&mut self) {
        while !self.shared.stopping() {
            self.runtime.block_on(self.shared.wake.notified());
        }
    }
}
