//! The primary's half of the conversation, as a state machine without I/O: it says what a
//! message of the replica means, what may be sent, and when what was sent is safe.
//!
//! The driver (`runtime::ship`) owns the link, the journal, the index and the manifests; it asks
//! here what to do and does it. Invariants held here: acknowledged <= durable <= shipped <= sealed
//! and applied <= durable (I6), one sealed uncommitted epoch (I3), and an acknowledgement is
//! believed only for what was really sent.

mod handshake;
mod window;

pub use handshake::{Decision, Halt, Local, SealedManifest, decide};
pub use window::Window;

use crate::model::{Commit, EpochId, FileId, RootHash};
use crate::wire::{Refusal, ToPrimary};

/// How far the epochs have come. Each is the highest contiguous one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// Sealed at the primary.
    pub sealed: EpochId,
    /// Completely sent, its commit included.
    pub shipped: EpochId,
    /// In the replica's memory, at least.
    pub received: EpochId,
    /// On the replica's stable storage.
    pub durable: EpochId,
    /// In the replica's tree, on stable storage.
    pub applied: EpochId,
}

/// What a message of the replica means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Entries below this are staged; the window may have opened.
    Staged(u64),
    /// The sealed epoch is in the replica's memory.
    Received(EpochId),
    /// The sealed epoch is on the replica's stable storage: the index takes it in.
    Durable(EpochId),
    /// The tree has it.
    Applied(EpochId, RootHash),
    /// A file is to be compared.
    Suspect(FileId),
    /// The replica cannot store what it was sent: its stage is empty, and what was staged or
    /// sealed goes back into the open epoch.
    Stalled(String),
    /// The conversation is over.
    Refused(Refusal, String),
    /// The link is alive; nothing else.
    Alive,
    /// A message that belongs to a transfer of records.
    Records(ToPrimary),
}

/// The replica said what it cannot have meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the replica broke the protocol: {0}")]
pub struct ProtocolError(pub String);

/// See the module.
#[derive(Debug)]
pub struct Sender {
    marks: Watermarks,
    window: Window,
    next_sequence: u64,
    // the sealed epoch whose commit was sent
    committing: Option<EpochId>,
}

impl Sender {
    /// At the start of a session: what both sides agreed on.
    #[must_use]
    pub fn new(durable: EpochId, applied: EpochId, staged: u64) -> Sender {
        let marks = Watermarks {
            sealed: durable,
            shipped: durable,
            received: durable,
            durable,
            applied: applied.min(durable),
        };
        Sender {
            marks,
            window: Window::new(staged),
            next_sequence: staged,
            committing: None,
        }
    }

    /// How far the epochs have come.
    #[must_use]
    pub fn marks(&self) -> Watermarks {
        self.marks
    }

    /// Whether another entry may be sent now.
    #[must_use]
    pub fn may_stage(&self) -> bool {
        self.window.has_room()
    }

    /// How many entries the stage has.
    #[must_use]
    pub fn staged(&self) -> u64 {
        self.next_sequence
    }

    /// How many entries of the stage the replica has confirmed.
    #[must_use]
    pub fn confirmed(&self) -> u64 {
        self.window.confirmed()
    }

    /// The sequence of an entry that is sent now, of so many bytes.
    pub fn stage(&mut self, bytes: u64) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.window.sent(sequence, bytes);
        sequence
    }

    /// The stage was cut back (or is empty after a commit).
    pub fn truncated(&mut self, keep: u64) {
        self.next_sequence = keep;
        self.window = Window::new(keep);
    }

    /// An epoch was sealed.
    pub fn sealed(&mut self, epoch: EpochId) {
        assert!(epoch > self.marks.sealed, "epoch ids are never reused");
        self.marks.sealed = epoch;
    }

    /// The commit of the sealed epoch is being sent.
    pub fn committing(&mut self, commit: &Commit) {
        assert!(self.committing.is_none(), "one uncommitted epoch at a time");
        assert_eq!(
            commit.epoch, self.marks.sealed,
            "what was sealed last is committed"
        );
        self.committing = Some(commit.epoch);
        self.marks.shipped = commit.epoch;
    }

    /// The epoch whose commit was sent and not yet acknowledged as durable.
    #[must_use]
    pub fn uncommitted(&self) -> Option<EpochId> {
        self.committing
    }

    /// Takes a message in.
    ///
    /// # Errors
    /// When it acknowledges what was never sent, or has no place in a session.
    pub fn receive(&mut self, message: ToPrimary) -> Result<Event, ProtocolError> {
        match message {
            ToPrimary::Staged { entries } => {
                if entries > self.next_sequence {
                    return wrong(format!(
                        "{entries} entries staged of {}",
                        self.next_sequence
                    ));
                }
                self.window.confirm(entries);
                Ok(Event::Staged(entries))
            }
            ToPrimary::Received(epoch) => {
                self.expect_committing(epoch)?;
                self.marks.received = epoch;
                Ok(Event::Received(epoch))
            }
            ToPrimary::Durable(epoch) => {
                self.expect_committing(epoch)?;
                self.marks.received = epoch;
                self.marks.durable = epoch;
                self.committing = None;
                self.truncated(0);
                Ok(Event::Durable(epoch))
            }
            ToPrimary::Applied { epoch, root_hash } => {
                if epoch > self.marks.durable || epoch < self.marks.applied {
                    return wrong(format!("epoch {epoch} applied"));
                }
                self.marks.applied = epoch;
                Ok(Event::Applied(epoch, root_hash))
            }
            ToPrimary::Suspect { file } => Ok(Event::Suspect(file)),
            ToPrimary::Stalled { message } => {
                self.committing = None;
                self.truncated(0);
                Ok(Event::Stalled(message))
            }
            ToPrimary::Refused { reason, message } => Ok(Event::Refused(reason, message)),
            ToPrimary::Pong(_) => Ok(Event::Alive),
            records @ (ToPrimary::Records(_) | ToPrimary::RecordsEnd { .. }) => {
                Ok(Event::Records(records))
            }
            ToPrimary::Welcome(_) => wrong("a second welcome".to_owned()),
        }
    }

    fn expect_committing(&self, epoch: EpochId) -> Result<(), ProtocolError> {
        if self.committing == Some(epoch) {
            return Ok(());
        }
        wrong(format!(
            "epoch {epoch} acknowledged, {:?} was committed",
            self.committing
        ))
    }
}

fn wrong<T>(what: String) -> Result<T, ProtocolError> {
    Err(ProtocolError(what))
}

#[cfg(test)]
mod tests;
