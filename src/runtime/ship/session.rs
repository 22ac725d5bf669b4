//! One session: from the hello to the end of the link.

use super::driver::{Driver, End};
use super::link::{Connection, Heard};
use super::{FailureKind, Phase, Suspicion};
use crate::limits::{HEARTBEAT_INTERVAL, LINK_DEADLINE};
use crate::model::{Entry, EpochId, FileId, SessionId, Stamp};
use crate::plan::Planner;
use crate::sender::{Decision, Event, Local, SealedManifest, Sender, decide};
use crate::state::ManifestWriter;
use crate::wire::{Hello, ToPrimary, ToReplica, Welcome};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// The version of the protocol that this program speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// How long the replica may take for its welcome: it may have to scan a tree that is adopted, or
/// to finish an interrupted apply. The link's own watch ends what is dead.
const WELCOME_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// An epoch whose commit was sent.
pub(super) struct Committing {
    pub(super) epoch: EpochId,
    pub(super) consistent: bool,
    /// The journal's epoch and its generation of changes; `None` for an epoch without changes,
    /// which only says that the tree is one that existed.
    pub(super) sealed: Option<(EpochId, u64)>,
    pub(super) stamps: Vec<(FileId, Stamp)>,
}

pub(super) struct Session<'a> {
    pub(super) driver: &'a mut Driver,
    pub(super) connection: Connection,
    pub(super) sender: Sender,
    pub(super) manifest: ManifestWriter,
    pub(super) session: SessionId,
    /// Bytes that were staged since the last seal, to see whether staging converges.
    pub(super) staged_bytes: u64,
    /// Staging makes no headway: seal whatever is dirty.
    pub(super) seal_now: bool,
    pub(super) committing: Option<Committing>,
    /// How many changes the open epoch had when it was last looked at, and since when.
    pub(super) seen_operations: u64,
    pub(super) quiet_since: Instant,
    /// When there is something to do again though nothing happens.
    pub(super) rest_until: Option<Instant>,
    last_sent: Instant,
    apply_asked: bool,
}

/// What woke the session.
enum Woken {
    Heard(Heard),
    Changed,
}

impl<'a> Session<'a> {
    /// Holds a session until its end.
    pub(super) fn hold(driver: &'a mut Driver, mut connection: Connection) -> End {
        driver.enter(Phase::Greeting);
        let session = match driver.options.state.next_session() {
            Ok(session) => session,
            Err(error) => return error.into(),
        };
        let welcome = match greet(driver, &mut connection, session) {
            Ok(welcome) => welcome,
            Err(end) => return end,
        };
        let manifest = match driver.options.state.manifest() {
            Ok(manifest) => manifest,
            Err(error) => return error.into(),
        };
        let sender = Sender::new(welcome.durable, welcome.applied, welcome.staged);
        let mut session = Session {
            driver,
            connection,
            sender,
            manifest,
            session,
            staged_bytes: 0,
            seal_now: false,
            committing: None,
            seen_operations: 0,
            quiet_since: Instant::now(),
            rest_until: None,
            last_sent: Instant::now(),
            apply_asked: false,
        };
        let Err(end) = session.run(&welcome);
        session.close(end)
    }

    fn run(&mut self, welcome: &Welcome) -> Result<std::convert::Infallible, End> {
        self.agree(welcome)?;
        self.driver.settled();
        self.driver.enter(Phase::Connected);
        loop {
            while let Some(heard) = self.connection.try_hear() {
                self.heard(heard)?;
            }
            if self.driver.shared.stopping() {
                return Err(End::Stopped);
            }
            if !self.advance()? {
                self.rest()?;
            }
        }
    }

    /// Finds out what the replica holds, and makes the index say so.
    fn agree(&mut self, welcome: &Welcome) -> Result<(), End> {
        let state = self.driver.options.state.clone();
        let index = self.driver.options.index.state()?;
        let manifests = state.manifests()?;
        let local = Local {
            replica: state.replica(),
            stage: self.driver.stage,
            index: (index.epoch, index.digest),
            manifests: manifests
                .iter()
                .map(|m| SealedManifest {
                    epoch: m.epoch,
                    parent: m.parent,
                    digest: m.digest,
                })
                .collect(),
            adopt: self.driver.options.adopt,
        };
        let decision = decide(welcome, &local).map_err(|halt| {
            let next = "mount with --adopt to take this replica over, or name the right target";
            End::halted(FailureKind::OtherReplica, halt.to_string(), next)
        })?;
        let keep = match decision {
            Decision::InStep { manifests, keep } => {
                for epoch in manifests {
                    self.apply_manifest(epoch)?;
                }
                keep
            }
            Decision::FetchRecords => {
                self.fetch_records(welcome.consistent)?;
                0
            }
        };
        state.skip_epochs(welcome.durable)?;
        state.set_replica(welcome.replica)?;
        let index = self.index_epoch()?;
        if let Some(unheard) = manifests
            .iter()
            .rev()
            .find(|manifest| manifest.epoch > index)
        {
            // Its commit never arrived; the entries that were staged before its seal may have.
            self.manifest.unseal(unheard.epoch)?;
        }
        state.trim_manifests_after(index)?;
        let keep = self.manifest.truncate(keep)?;
        self.lost_stage(keep);
        self.cut_stage(keep)?;
        let index = self.driver.options.index.state()?;
        let marks = self.sender.marks();
        self.driver.shared.update(|status| {
            status.marks = marks;
            status.consistent = index.consistent;
            status.root_hash = (index.epoch == marks.applied).then_some(index.root_hash);
            status.greeted = true;
        });
        Ok(())
    }

    /// Makes both sides' stage end after `keep` entries (or fewer), and the manifest with them.
    pub(super) fn cut_stage(&mut self, keep: u64) -> Result<(), End> {
        self.flush()?;
        while self.sender.confirmed() < self.sender.staged() {
            self.wait_for_message()?;
        }
        if self.sender.staged() > keep {
            self.send(&ToReplica::Truncate { keep }, None)?;
            self.flush()?;
            let kept = loop {
                match self.wait_for_message()? {
                    Event::Staged(kept) => break kept.min(keep),
                    _ => continue,
                }
            };
            self.sender.truncated(kept);
            if kept < keep {
                self.lost_stage(kept);
            }
        }
        let kept = self.sender.staged();
        let kept_here = self.manifest.truncate(kept)?;
        assert_eq!(
            kept_here, kept,
            "the manifest has every entry that was staged"
        );
        self.driver.stage = Some((self.session, kept));
        Ok(())
    }

    /// What the stage held from entry `keep` on is dirty again.
    fn lost_stage(&mut self, keep: u64) {
        self.driver.options.journal.lost_stage(keep);
        if keep == 0 {
            self.driver.planner = Planner::new();
        }
    }

    /// Waits until there is something to do.
    fn rest(&mut self) -> Result<(), End> {
        self.flush()?;
        let silence = self.last_sent.elapsed();
        if silence >= HEARTBEAT_INTERVAL {
            self.send(&ToReplica::Ping(0), None)?;
            self.flush()?;
        }
        let mut patience = HEARTBEAT_INTERVAL.saturating_sub(self.last_sent.elapsed());
        if let Some(until) = self.rest_until.take() {
            patience = patience.min(until.saturating_duration_since(Instant::now()));
        }
        let notifier = self.driver.options.journal.notifier();
        let connection = &mut self.connection;
        let shared = &self.driver.shared;
        let woken = self.driver.runtime.block_on(async {
            tokio::select! {
                heard = connection.hear() => Woken::Heard(heard),
                () = notifier.notified() => Woken::Changed,
                () = shared.wake.notified() => Woken::Changed,
                () = tokio::time::sleep(patience) => Woken::Changed,
            }
        });
        match woken {
            Woken::Heard(heard) => self.heard(heard).map(|_| ()),
            Woken::Changed => Ok(()),
        }
    }

    /// Waits for a message and takes it in.
    pub(super) fn wait_for_message(&mut self) -> Result<Event, End> {
        let connection = &mut self.connection;
        let shared = &self.driver.shared;
        let heard = self.driver.runtime.block_on(async {
            loop {
                tokio::select! {
                    heard = connection.hear() => return Some(heard),
                    () = shared.wake.notified() => if shared.stopping() { return None },
                }
            }
        });
        match heard {
            Some(heard) => self.heard(heard),
            None => Err(End::Stopped),
        }
    }

    /// Takes in what was heard.
    pub(super) fn heard(&mut self, heard: Heard) -> Result<Event, End> {
        let message = match heard {
            Heard::Message(message) => message,
            Heard::End(end) => return Err(end.into()),
        };
        let broken = |error: crate::sender::ProtocolError| {
            End::lost(FailureKind::Protocol, error.to_string(), None)
        };
        let event = self.sender.receive(message).map_err(broken)?;
        match &event {
            Event::Received(_) => self.received(),
            Event::Durable(_) => self.durable()?,
            Event::Applied(epoch, root_hash) => {
                self.apply_asked = false;
                self.applied(*epoch, *root_hash)?;
            }
            Event::Suspect(file) => (self.driver.options.suspect)(Suspicion::Object(*file)),
            Event::Stalled(message) => {
                let next = "make room on (or mend) the replica's disk; it is tried again";
                return Err(End::lost(FailureKind::Stalled, message.clone(), Some(next)));
            }
            Event::Refused(reason, message) => return Err(End::refused(*reason, message.clone())),
            Event::Staged(_) | Event::Alive | Event::Records(_) => {}
        }
        Ok(event)
    }

    /// Asks for an apply, once, when somebody waits for it and everything is durable.
    pub(super) fn ask_apply(&mut self) -> Result<(), End> {
        let marks = self.sender.marks();
        let wanted = self.driver.shared.drains.load(Ordering::SeqCst) > 0;
        if wanted && !self.apply_asked && marks.applied < marks.durable {
            self.send(&ToReplica::Apply, None)?;
            self.flush()?;
            self.apply_asked = true;
        }
        Ok(())
    }

    /// Sends one message.
    pub(super) fn send(&mut self, message: &ToReplica, bytes: Option<&[u8]>) -> Result<usize, End> {
        self.last_sent = Instant::now();
        match self.connection.send(message, bytes) {
            Ok(sent) => Ok(sent),
            Err(_) => Err(self.connection.end().into()),
        }
    }

    /// Hands over what was sent.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        match self.connection.flush() {
            Ok(()) => Ok(()),
            Err(_) => Err(self.connection.end().into()),
        }
    }

    /// Sends one entry of the stage, waiting for room in the window. Returns its sequence.
    pub(super) fn stage_entry(&mut self, entry: Entry, bytes: Option<&[u8]>) -> Result<u64, End> {
        while let Some(heard) = self.connection.try_hear() {
            self.heard(heard)?;
        }
        if !self.sender.may_stage() {
            self.flush()?;
            while !self.sender.may_stage() {
                self.wait_for_message()?;
            }
        }
        if self.driver.shared.stopping() {
            return Err(End::Stopped);
        }
        self.manifest.append(&entry)?;
        let sequence = self.sender.staged();
        let sent = self.send(&ToReplica::Stage { sequence, entry }, bytes)?;
        Ok(self.sender.stage(sent as u64))
    }

    /// The end: what is sealed goes back into the open epoch; a stop says goodbye.
    fn close(mut self, end: End) -> End {
        self.driver.options.journal.abandon();
        self.driver.planner.abandoned();
        if matches!(end, End::Stopped)
            && self.connection.send(&ToReplica::Goodbye, None).is_ok()
            && self.connection.flush().is_ok()
        {
            // The replica applies what it has, and closes. Nothing is lost if it takes longer.
            let connection = &mut self.connection;
            let _ = self.driver.runtime.block_on(async {
                tokio::time::timeout(LINK_DEADLINE, async {
                    while !matches!(connection.hear().await, Heard::End(_)) {}
                })
                .await
            });
        }
        self.driver.shared.update(|status| status.busy = false);
        end
    }
}

/// Hello and welcome.
fn greet(
    driver: &mut Driver,
    connection: &mut Connection,
    session: SessionId,
) -> Result<Welcome, End> {
    let options = &driver.options;
    let hello = Hello {
        version: PROTOCOL_VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        primary: options.state.primary(),
        replica: options.state.replica(),
        incarnation: options.state.incarnation(),
        session,
        adopt: options.adopt,
        fake_super: options.fake_super,
    };
    let sent = connection
        .send(&ToReplica::Hello(hello), None)
        .and_then(|_| connection.flush());
    if sent.is_err() {
        return Err(connection.end().into());
    }
    let until = SystemTime::now() + WELCOME_DEADLINE;
    loop {
        let shared = &driver.shared;
        let heard = driver.runtime.block_on(async {
            tokio::select! {
                heard = connection.hear() => Some(heard),
                () = shared.wake.notified() => None,
                () = tokio::time::sleep(HEARTBEAT_INTERVAL) => None,
            }
        });
        match heard {
            Some(Heard::Message(ToPrimary::Welcome(welcome))) => {
                if welcome.version != PROTOCOL_VERSION {
                    let message = format!(
                        "the replica's mirrorfs {} speaks protocol {}, this one {PROTOCOL_VERSION}",
                        welcome.program, welcome.version
                    );
                    return Err(End::refused(crate::wire::Refusal::Version, message));
                }
                return Ok(welcome);
            }
            Some(Heard::Message(ToPrimary::Refused { reason, message })) => {
                return Err(End::refused(reason, message));
            }
            Some(Heard::Message(ToPrimary::Pong(_))) => {}
            Some(Heard::Message(other)) => {
                let message = format!("a welcome was expected, not {other:?}");
                return Err(End::lost(FailureKind::Protocol, message, None));
            }
            Some(Heard::End(end)) => return Err(end.into()),
            None if driver.shared.stopping() => return Err(End::Stopped),
            None if SystemTime::now() > until => return Err(super::link::LinkEnd::Silent.into()),
            None => {
                // Keeps the link's watch content while the replica prepares itself.
                let sent = connection
                    .send(&ToReplica::Ping(0), None)
                    .and_then(|_| connection.flush());
                if sent.is_err() {
                    return Err(connection.end().into());
                }
            }
        }
    }
}
