//! One session with one primary: takes its messages in order, and answers.

use super::ReplicaError;
use super::engine::{Engine, Report};
use super::gate::{self, Admitted};
use super::link::{Inbox, Incoming, Outbox, Stop};
use super::redo::{Header, Kind};
use super::stage::Stage;
use crate::limits::{APPLY_STACK_BYTES, LINK_DEADLINE, RECORDS_MAX, STAGED_CONFIRM_BYTES};
use crate::model::{Commit, Entry, FileId};
use crate::records::Cursor;
use crate::wire::{Hello, Refusal, ToPrimary, ToReplica, Welcome, bounded_text};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

/// How a replica is served.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Keep ownership, modes and devices in records even where they could be applied. The primary
    /// can ask for the same.
    pub fake_super: bool,
    /// Ends the session, soon.
    pub stop: Stop,
}

/// Serves the replica in `root` to the primary at the other end of a byte stream, until that says
/// goodbye or the link ends.
///
/// What is durable is applied before it returns, unless it was told to stop. Two threads that
/// read and write the stream may outlive the call, until the stream ends.
///
/// # Errors
/// When the primary was refused (it was told why), or the replica cannot be used.
pub fn serve<R, W>(
    root: &Path,
    options: ServeOptions,
    reader: R,
    writer: W,
) -> Result<(), ReplicaError>
where
    R: Read + Send + 'static,
    W: Write + Send + 'static,
{
    use super::error::Doing;
    let inbox = Inbox::start(reader).doing(|| "cannot start a thread")?;
    let outbox = Outbox::start(writer).doing(|| "cannot start a thread")?;
    let stopped = inbox.clone();
    options.stop.listen(move || stopped.stop());
    let result = admit_and_run(root, &options, &inbox, &outbox);
    if let Err(error) = &result
        && !matches!(error, ReplicaError::Stopped)
    {
        outbox.send(refusal(error));
    }
    outbox.finish();
    inbox.abandon();
    match result {
        Err(ReplicaError::Stopped) => Ok(()),
        result => result,
    }
}

fn refusal(error: &ReplicaError) -> ToPrimary {
    let reason = match error {
        ReplicaError::Refused { reason, .. } => *reason,
        ReplicaError::Records(crate::records::Error::Io { .. }) | ReplicaError::Io { .. } => {
            Refusal::Unusable
        }
        ReplicaError::Records(_) | ReplicaError::Damaged { .. } => Refusal::Damaged,
        ReplicaError::Wire(_) | ReplicaError::Invalid { .. } => Refusal::Protocol,
        ReplicaError::Stopped => Refusal::Busy,
    };
    ToPrimary::Refused {
        reason,
        message: error.chain(),
    }
}

fn admit_and_run(
    root: &Path,
    options: &ServeOptions,
    inbox: &Arc<Inbox>,
    outbox: &Arc<Outbox>,
) -> Result<(), ReplicaError> {
    let hello = match inbox.next_within(LINK_DEADLINE) {
        Some(Incoming::Message(ToReplica::Hello(hello), _)) => hello,
        Some(Incoming::Message(..)) => {
            let message = "the first message of a primary must be its hello";
            return Err(ReplicaError::refused(Refusal::Protocol, message));
        }
        Some(Incoming::Stop) => return Err(ReplicaError::Stopped),
        Some(Incoming::Closed(Some(why))) => {
            let message = format!("what arrives is not a primary of mirrorfs: {why}");
            return Err(ReplicaError::refused(Refusal::Protocol, message));
        }
        Some(Incoming::Closed(None)) => return Ok(()),
        None => {
            let message = "the primary did not say hello in time";
            return Err(ReplicaError::refused(Refusal::Protocol, message));
        }
    };
    let admitted = gate::admit(root, &hello, options.fake_super, &options.stop)?;
    run(admitted, &hello, options, inbox, outbox)
}

fn run(
    admitted: Admitted,
    hello: &Hello,
    options: &ServeOptions,
    inbox: &Arc<Inbox>,
    outbox: &Arc<Outbox>,
) -> Result<(), ReplicaError> {
    let Admitted {
        engine,
        found,
        mut identity,
        version,
        fresh,
        privileged,
        // Let go of when all else is over.
        lock: _lock,
    } = admitted;
    let engine = Arc::new(engine);
    // Who asks to stop may outlive the session, which must not be kept open by that.
    let (stopped, waiting) = (Arc::downgrade(&engine), inbox.clone());
    options.stop.listen(move || {
        if let Some(engine) = stopped.upgrade() {
            engine.stop();
        }
        waiting.stop();
    });
    let header = Header::new(identity.primary, identity.incarnation, identity.session)?;
    let mut stage = Stage::new(engine.tree.clone(), header, found.next);
    if let Some(number) = found.stage {
        stage.resume(number)?;
    }
    let (applied, (durable, digest)) = (engine.applied(), engine.durable());
    let welcome = Welcome {
        version,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        replica: identity.replica,
        fresh,
        durable,
        digest,
        applied: applied.epoch,
        staged: stage.entries(),
        staged_by: stage.session(),
        consistent: applied.consistent,
        privileged,
    };
    outbox.send(ToPrimary::Welcome(welcome));
    outbox.alive();
    if identity.adopting {
        super::adopt::adopt(&engine.tree, &engine.records, hello.incarnation)?;
        identity.adopting = false;
        engine.home.set_identity(&identity)?;
        engine.reread()?;
    }
    let mut session = Session {
        inbox,
        outbox,
        engine: &engine,
        stage,
        incarnation: hello.incarnation,
        dropping: false,
        unconfirmed: 0,
    };
    with_apply(&engine, inbox, outbox, || {
        let result = session.run();
        // What broke the protocol is not kept for another session.
        let kept = match &result {
            Err(ReplicaError::Refused { .. }) => session.stage.discard(),
            _ => session.stage.flush(),
        };
        result.and(kept)
    })
}

/// Runs a session beside the thread that applies.
fn with_apply(
    engine: &Engine,
    inbox: &Arc<Inbox>,
    outbox: &Arc<Outbox>,
    session: impl FnOnce() -> Result<(), ReplicaError>,
) -> Result<(), ReplicaError> {
    use super::error::Doing;
    std::thread::scope(|scope| {
        let mut report = |said| report(said, inbox, outbox);
        let thread = std::thread::Builder::new()
            .name("replica-apply".to_owned())
            .stack_size(APPLY_STACK_BYTES)
            .spawn_scoped(scope, move || engine.run(&mut report))
            .doing(|| "cannot start a thread")?;
        let result = session();
        match result {
            Ok(()) => engine.close(),
            Err(_) => engine.stop(),
        }
        if thread.join().is_err() {
            let message = "the applying thread has failed";
            return Err(ReplicaError::refused(Refusal::Unusable, message));
        }
        result
    })
}

fn report(said: Report, inbox: &Inbox, outbox: &Outbox) {
    match said {
        Report::Applied(state, suspects) => {
            for file in suspects {
                outbox.send(ToPrimary::Suspect { file });
            }
            outbox.send(ToPrimary::Applied {
                epoch: state.epoch,
                root_hash: state.root_hash,
            });
        }
        Report::Broken(error) => {
            outbox.send(refusal(&error));
            inbox.stop();
        }
    }
}

struct Session<'a> {
    inbox: &'a Inbox,
    outbox: &'a Outbox,
    engine: &'a Engine,
    stage: Stage,
    incarnation: crate::model::Incarnation,
    // The primary was told that its stage is gone, and what it sent before it heard of that
    // still arrives.
    dropping: bool,
    unconfirmed: u64,
}

impl Session<'_> {
    fn run(&mut self) -> Result<(), ReplicaError> {
        loop {
            let incoming = match self.inbox.try_next() {
                Some(incoming) => incoming,
                None => {
                    self.confirm();
                    self.inbox.next()
                }
            };
            match incoming {
                Incoming::Message(ToReplica::Goodbye, _) => {
                    if !self.engine.wait_until_applied()? {
                        self.stall(&self.engine.trouble())?;
                    }
                    return Ok(());
                }
                Incoming::Message(message, bytes) => self.take(message, &bytes)?,
                Incoming::Closed(why) => {
                    let why = why.unwrap_or_else(|| "it ended".to_owned());
                    tracing::info!(why, "the link to the primary is gone");
                    return Ok(());
                }
                Incoming::Stop => return Err(ReplicaError::Stopped),
            }
        }
    }

    fn take(&mut self, message: ToReplica, bytes: &[u8]) -> Result<(), ReplicaError> {
        match message {
            ToReplica::Stage { sequence, entry } => self.stage(sequence, &entry, bytes),
            ToReplica::Truncate { keep } => {
                self.dropping &= keep > 0;
                let kept = match self.stage.truncate(keep) {
                    Err(error @ ReplicaError::Io { .. }) => return self.stall(&error.chain()),
                    kept => kept?,
                };
                self.unconfirmed = 0;
                self.outbox.send(ToPrimary::Staged { entries: kept });
                Ok(())
            }
            ToReplica::Commit(commit) => self.commit(&commit),
            ToReplica::Apply => {
                if self.engine.is_failing() {
                    // If it succeeds now, the applying thread says so.
                    return match self.engine.wait_until_applied()? {
                        true => Ok(()),
                        false => self.stall(&self.engine.trouble()),
                    };
                }
                let applied = self.engine.applied();
                if applied.epoch == self.engine.durable().0 {
                    self.outbox.send(ToPrimary::Applied {
                        epoch: applied.epoch,
                        root_hash: applied.root_hash,
                    });
                }
                Ok(())
            }
            ToReplica::FetchRecords => self.send_records(),
            ToReplica::Ping(number) => {
                self.outbox.send(ToPrimary::Pong(number));
                Ok(())
            }
            ToReplica::Hello(_) => Err(protocol("a second hello")),
            ToReplica::Goodbye => Ok(()),
        }
    }

    fn stage(&mut self, sequence: u64, entry: &Entry, bytes: &[u8]) -> Result<(), ReplicaError> {
        if self.dropping && sequence != 0 {
            return Ok(());
        }
        self.dropping = false;
        let expected = self.stage.entries();
        if sequence != expected {
            return Err(protocol(&format!(
                "entry {sequence} where {expected} was expected"
            )));
        }
        if !self.engine.wait_for_room()? {
            return self.stall(&self.engine.trouble());
        }
        let length = bytes.len() as u64;
        if length > 0 && !self.has_space(length)? {
            return self.stall("no space is left to store and to apply what comes next");
        }
        let engine = self.engine;
        let is_known = |id| Ok(engine.kind(id)?.is_some());
        match self.stage.add(entry, bytes, is_known) {
            Err(error @ ReplicaError::Io { .. }) => return self.stall(&error.chain()),
            added => added?,
        }
        self.unconfirmed += 128 + bytes.len() as u64;
        if self.unconfirmed >= STAGED_CONFIRM_BYTES {
            self.confirm();
        }
        Ok(())
    }

    /// Whether there is room for more content, as soon as what is durable is applied.
    fn has_space(&self, length: u64) -> Result<bool, ReplicaError> {
        let staged = self.stage.length();
        if self.engine.has_space(length, staged)? {
            return Ok(true);
        }
        // What was applied gives its log's space back.
        self.engine.wait_until_applied()?;
        self.engine.has_space(length, staged)
    }

    fn confirm(&mut self) {
        if self.unconfirmed > 0 {
            self.unconfirmed = 0;
            let entries = self.stage.entries();
            self.outbox.send(ToPrimary::Staged { entries });
        }
    }

    /// What is staged cannot be stored: it is forgotten, and the primary told.
    fn stall(&mut self, why: &str) -> Result<(), ReplicaError> {
        tracing::warn!(why, "what the primary sends cannot be stored for now");
        self.stage.discard()?;
        self.unconfirmed = 0;
        self.dropping = true;
        self.outbox.send(ToPrimary::Stalled {
            message: bounded_text(why.to_owned()),
        });
        Ok(())
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), ReplicaError> {
        if self.dropping {
            return Ok(());
        }
        let (durable, _) = self.engine.durable();
        if commit.parent != durable || commit.epoch <= durable {
            return Err(protocol(&format!(
                "epoch {} changes the state after {}, the replica holds {durable}",
                commit.epoch, commit.parent
            )));
        }
        if commit.incarnation != self.incarnation {
            return Err(protocol("an epoch of another incarnation"));
        }
        if commit.entries != self.stage.entries() || commit.digest != self.stage.digest() {
            return Err(protocol(&format!(
                "epoch {} has {} entries, {} have arrived, or their digest differs",
                commit.epoch,
                commit.entries,
                self.stage.entries()
            )));
        }
        self.check_names()?;
        self.unconfirmed = 0;
        self.outbox.send(ToPrimary::Received(commit.epoch));
        match self.stage.commit(commit) {
            Err(error @ ReplicaError::Io { .. }) => self.stall(&error.chain()),
            Err(error) => Err(error),
            Ok(log) => {
                // Before the apply can say that it is applied.
                self.outbox.send(ToPrimary::Durable(commit.epoch));
                self.engine.push(log);
                Ok(())
            }
        }
    }

    /// Refuses names in what is no directory, of what is not known, and content of what is no
    /// file. The records find the rest before the tree is touched.
    fn check_names(&self) -> Result<(), ReplicaError> {
        let Some(index) = self.stage.index() else {
            return Ok(());
        };
        let mut kinds: HashMap<FileId, Option<Kind>> = HashMap::new();
        let mut kind = |id: FileId| -> Result<Option<Kind>, ReplicaError> {
            if let Some(kind) = kinds.get(&id) {
                return Ok(*kind);
            }
            let staged = index.objects.get(&id).map(|(_, kind)| *kind);
            let held = self.engine.kind(id)?;
            if let (Some(staged), Some(held)) = (staged, held)
                && staged != held
            {
                return Err(protocol(&format!(
                    "object {id} became another kind of object"
                )));
            }
            kinds.insert(id, staged.or(held));
            Ok(staged.or(held))
        };
        for id in index.objects.keys() {
            kind(*id)?;
        }
        for ((parent, name), object) in &index.bindings {
            let Some(object) = object else { continue };
            if kind(*parent)? != Some(Kind::Directory) {
                return Err(protocol(&format!(
                    "name {name} in {parent}, which is no directory"
                )));
            }
            if kind(*object)?.is_none() {
                return Err(protocol(&format!(
                    "name {name} holds {object}, which is not known"
                )));
            }
        }
        for id in index.files.keys() {
            if kind(*id)?.is_some_and(|kind| kind != Kind::File) {
                return Err(protocol(&format!("content of {id}, which is no file")));
            }
        }
        Ok(())
    }

    fn send_records(&mut self) -> Result<(), ReplicaError> {
        if !self.engine.wait_until_applied()? {
            return self.stall(&self.engine.trouble());
        }
        let mut cursor = Cursor::default();
        loop {
            let items = self.engine.records.items(&mut cursor, RECORDS_MAX)?;
            if items.is_empty() {
                break;
            }
            if !self.outbox.send_when_room(ToPrimary::Records(items)) {
                return Ok(());
            }
        }
        let state = cursor.state().unwrap_or_else(|| self.engine.applied());
        self.outbox.send(ToPrimary::RecordsEnd {
            epoch: state.epoch,
            digest: state.digest,
            root_hash: state.root_hash,
        });
        Ok(())
    }
}

fn protocol(what: &str) -> ReplicaError {
    ReplicaError::refused(
        Refusal::Protocol,
        format!("the primary broke the protocol: {what}"),
    )
}
