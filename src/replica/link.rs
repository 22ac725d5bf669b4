//! The two directions of a session's link, each with a thread, so that neither the session nor
//! the apply ever waits for the other side.
//!
//! What is received waits in a bounded inbox; what is to be sent, in an outbox. When there is
//! nothing to send for a while, the outbox sends a sign of life: the session may be busy with a
//! sync of a slow disk, and its link is alive all the same.

use crate::limits::{HEARTBEAT_INTERVAL, INBOX_MESSAGES, LINK_DEADLINE, OUTBOX_MESSAGES};
use crate::wire::{Decoder, Encoder, ToPrimary, ToReplica};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the session has to deal with next.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A message, with the bytes that came with it.
    Message(ToReplica, Vec<u8>),
    /// The link is of no use any more; why, if it did not just end.
    Closed(Option<String>),
    /// The session shall stop.
    Stop,
}

/// Asks sessions to stop, from anywhere.
///
/// A session that is told to stop cuts its apply off before the next change, keeps everything
/// that is durable or staged, and lets go of the replica; whoever serves it next goes on.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    inner: Arc<Mutex<Stopping>>,
}

#[derive(Default)]
struct Stopping {
    asked: bool,
    listeners: Vec<Box<dyn Fn() + Send>>,
}

impl std::fmt::Debug for Stopping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopping")
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

impl Stop {
    /// Asks; it cannot be taken back.
    pub fn request(&self) {
        let mut inner = self.inner.lock();
        inner.asked = true;
        inner.listeners.drain(..).for_each(|listener| listener());
    }

    /// Calls `listener` when a stop is asked for, at once if it was.
    pub(super) fn listen(&self, listener: impl Fn() + Send + 'static) {
        let mut inner = self.inner.lock();
        if inner.asked {
            listener();
        } else {
            inner.listeners.push(Box::new(listener));
        }
    }
}

/// What was received and not yet looked at.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct InboxState {
    messages: VecDeque<(ToReplica, Vec<u8>)>,
    closed: Option<Option<String>>,
    stop: bool,
    // nobody will look any more
    abandoned: bool,
}

impl Inbox {
    /// Reads the stream in a thread of its own, until it ends or nobody is interested any more.
    pub(super) fn start<R: Read + Send + 'static>(reader: R) -> std::io::Result<Arc<Inbox>> {
        let inbox = Arc::new(Inbox::default());
        let filled = inbox.clone();
        std::thread::Builder::new()
            .name("replica-receive".to_owned())
            .spawn(move || {
                let mut decoder = Decoder::new(reader);
                let why = loop {
                    match decoder.receive::<ToReplica>() {
                        Ok(Some((message, bytes))) => {
                            // Nothing comes after it, so the stream is let go of.
                            let last = matches!(message, ToReplica::Goodbye);
                            if !filled.put(message, bytes) {
                                return;
                            }
                            if last {
                                break None;
                            }
                        }
                        Ok(None) => break None,
                        Err(error) => break Some(super::ReplicaError::from(error).chain()),
                    }
                };
                filled.state.lock().closed = Some(why);
                filled.changed.notify_all();
            })?;
        Ok(inbox)
    }

    fn put(&self, message: ToReplica, bytes: Vec<u8>) -> bool {
        let mut state = self.state.lock();
        while state.messages.len() >= INBOX_MESSAGES && !state.abandoned {
            self.changed.wait(&mut state);
        }
        state.messages.push_back((message, bytes));
        self.changed.notify_all();
        !state.abandoned
    }

    /// The next thing to deal with.
    pub(super) fn next(&self) -> Incoming {
        let mut state = self.state.lock();
        loop {
            if let Some(next) = take(&mut state) {
                self.changed.notify_all();
                return next;
            }
            self.changed.wait(&mut state);
        }
    }

    /// The same if there is something.
    pub(super) fn try_next(&self) -> Option<Incoming> {
        let next = take(&mut self.state.lock());
        self.changed.notify_all();
        next
    }

    /// The same within a time.
    pub(super) fn next_within(&self, limit: Duration) -> Option<Incoming> {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        loop {
            if let Some(next) = take(&mut state) {
                self.changed.notify_all();
                return Some(next);
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return None;
            }
        }
    }

    /// Lets the session stop.
    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// Nobody will look any more.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.abandoned = true;
        state.messages.clear();
        self.changed.notify_all();
    }
}

fn take(state: &mut InboxState) -> Option<Incoming> {
    if state.stop {
        return Some(Incoming::Stop);
    }
    if let Some((message, bytes)) = state.messages.pop_front() {
        return Some(Incoming::Message(message, bytes));
    }
    state.closed.clone().map(Incoming::Closed)
}

/// What is to be sent.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<OutboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct OutboxState {
    messages: VecDeque<ToPrimary>,
    // signs of life are sent
    alive: bool,
    closing: bool,
    ended: bool,
}

impl Outbox {
    /// Writes to the stream in a thread of its own.
    pub(super) fn start<W: Write + Send + 'static>(writer: W) -> std::io::Result<Arc<Outbox>> {
        let outbox = Arc::new(Outbox::default());
        let emptied = outbox.clone();
        std::thread::Builder::new()
            .name("replica-send".to_owned())
            .spawn(move || {
                let mut encoder = Encoder::new(writer);
                while let Some(message) = emptied.next(&mut encoder) {
                    if let Err(error) = encoder.send(&message, None) {
                        tracing::debug!(%error, "cannot send to the primary");
                        break;
                    }
                }
                let _ = encoder.flush();
                let mut state = emptied.state.lock();
                state.ended = true;
                state.messages.clear();
                emptied.changed.notify_all();
            })?;
        Ok(outbox)
    }

    // Flushes before it waits.
    fn next<W: Write>(&self, encoder: &mut Encoder<W>) -> Option<ToPrimary> {
        let mut flushed = false;
        let mut state = self.state.lock();
        loop {
            if let Some(message) = state.messages.pop_front() {
                self.changed.notify_all();
                return Some(message);
            }
            if state.closing {
                return None;
            }
            if !flushed {
                drop(state);
                encoder.flush().ok()?;
                flushed = true;
                state = self.state.lock();
                continue;
            }
            let silent = self
                .changed
                .wait_for(&mut state, HEARTBEAT_INTERVAL)
                .timed_out();
            if silent && state.alive && state.messages.is_empty() {
                return Some(ToPrimary::Pong(0));
            }
        }
    }

    /// Queues a message, whatever there is already: only for what there are few of.
    pub(super) fn send(&self, message: ToPrimary) {
        let mut state = self.state.lock();
        if !state.ended {
            // A newer confirmation says all that an older one does.
            if let (ToPrimary::Staged { .. }, Some(ToPrimary::Staged { .. })) =
                (&message, state.messages.back())
            {
                state.messages.pop_back();
            }
            state.messages.push_back(message);
        }
        self.changed.notify_all();
    }

    /// Queues a message when there is room; `false`: the link is dead.
    pub(super) fn send_when_room(&self, message: ToPrimary) -> bool {
        let mut state = self.state.lock();
        while state.messages.len() >= OUTBOX_MESSAGES && !state.ended {
            self.changed.wait(&mut state);
        }
        if state.ended {
            return false;
        }
        state.messages.push_back(message);
        self.changed.notify_all();
        true
    }

    /// From now on signs of life are sent.
    pub(super) fn alive(&self) {
        self.state.lock().alive = true;
        self.changed.notify_all();
    }

    /// Sends what is queued, and ends. A link that takes nothing is not waited for.
    pub(super) fn finish(&self) {
        let deadline = Instant::now() + LINK_DEADLINE;
        let mut state = self.state.lock();
        state.closing = true;
        self.changed.notify_all();
        while !state.ended {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}
