//! The driver's side of a link: a thread that decodes what the replica says, and a writer.
//!
//! The writer blocks when the link does. That is wanted (back-pressure), but a link that is dead
//! without an end would block it for good. The replica says something every
//! [`HEARTBEAT_INTERVAL`], whatever is on its way to it; so the reader's thread closes a link on
//! which nothing was heard for [`LINK_DEADLINE`], and the writer fails.

use crate::limits::{HEARTBEAT_INTERVAL, LINK_DEADLINE};
use crate::transport::{self, Closer, Link, Outcome};
use crate::wire::{Decoder, Encoder, ToPrimary, ToReplica, WireError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How many decoded messages may wait for the driver.
const MESSAGES_MAX: usize = 64;

/// How long to wait for the reason of an end; a remote's last words come a moment after it.
const DIAGNOSIS_PATIENCE: Duration = Duration::from_millis(500);

/// What the reader's thread heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// A message.
    Message(ToPrimary),
    /// The end, and why.
    End(LinkEnd),
}

/// Why a link ended.
#[derive(Clone, Debug)]
pub(super) enum LinkEnd {
    /// The transport knows.
    Transport(Arc<transport::Error>),
    /// Nothing was heard for too long.
    Silent,
    /// The stream just ended.
    Closed,
    /// What came is no conversation.
    Garbled(String),
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinkEnd::Transport(error) => write!(f, "{}", crate::runtime::ship::chain(&**error)),
            LinkEnd::Silent => {
                write!(
                    f,
                    "nothing was heard from the replica for {} s",
                    LINK_DEADLINE.as_secs()
                )
            }
            LinkEnd::Closed => f.write_str("the remote side closed the link"),
            LinkEnd::Garbled(what) => write!(f, "what the remote side says makes no sense: {what}"),
        }
    }
}

/// Counts what is written.
struct Counted {
    inner: UnixStream,
    bytes: Arc<AtomicU64>,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A connected link, as the driver uses it.
pub(super) struct Connection {
    encoder: Encoder<Counted>,
    heard: mpsc::Receiver<Heard>,
    closer: Closer,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Connection {
    /// Takes a link over. `bytes` counts what is written.
    ///
    /// # Errors
    /// When the reader's thread cannot be started.
    pub(super) fn new(link: Link, bytes: Arc<AtomicU64>) -> io::Result<Connection> {
        let Link {
            reader,
            writer,
            closer,
            outcome,
        } = link;
        reader.set_read_timeout(Some(HEARTBEAT_INTERVAL))?;
        let (tell, heard) = mpsc::channel(MESSAGES_MAX);
        let ear = Ear {
            closer: closer.clone(),
            outcome,
        };
        let thread = std::thread::Builder::new()
            .name("ship-reader".into())
            .spawn(move || ear.listen(reader, &tell))?;
        let encoder = Encoder::new(Counted {
            inner: writer,
            bytes,
        });
        Ok(Connection {
            encoder,
            heard,
            closer,
            reader: Some(thread),
        })
    }

    /// Sends, without flushing. Returns the bytes of the frame.
    ///
    /// # Errors
    /// When the link is gone.
    pub(super) fn send(&mut self, message: &ToReplica, bytes: Option<&[u8]>) -> io::Result<usize> {
        self.encoder.send(message, bytes)
    }

    /// Hands over to the link what was sent.
    ///
    /// # Errors
    /// When the link is gone.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }

    /// The next thing that the replica said. Cancel-safe.
    pub(super) async fn hear(&mut self) -> Heard {
        self.heard
            .recv()
            .await
            .unwrap_or(Heard::End(LinkEnd::Closed))
    }

    /// What is there without waiting.
    pub(super) fn try_hear(&mut self) -> Option<Heard> {
        self.heard.try_recv().ok()
    }

    /// Why it ended, for a writer that failed: what the reader heard last.
    pub(super) fn end(&mut self) -> LinkEnd {
        self.closer.close();
        loop {
            match self.heard.blocking_recv() {
                Some(Heard::Message(_)) => {}
                Some(Heard::End(end)) => return end,
                None => return LinkEnd::Closed,
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.closer.close();
        self.heard.close();
        if let Some(reader) = self.reader.take() {
            // It ends because its stream did, or because nobody listens.
            let _ = reader.join();
        }
    }
}

/// The reader's thread.
struct Ear {
    closer: Closer,
    outcome: Outcome,
}

impl Ear {
    fn listen(self, reader: UnixStream, tell: &mpsc::Sender<Heard>) {
        let mut decoder = Decoder::new(reader);
        let mut last_heard = Instant::now();
        loop {
            let heard = match decoder.receive::<ToPrimary>() {
                Ok(Some((message, _))) => Heard::Message(message),
                Err(WireError::Io(error)) if is_timeout(&error) => {
                    if last_heard.elapsed() < LINK_DEADLINE {
                        continue;
                    }
                    Heard::End(LinkEnd::Silent)
                }
                Ok(None) | Err(WireError::Io(_) | WireError::Truncated { .. }) => {
                    Heard::End(self.diagnosis(LinkEnd::Closed))
                }
                Err(error) => Heard::End(self.garbled(error.to_string())),
            };
            last_heard = Instant::now();
            let last = matches!(heard, Heard::End(_));
            if last {
                self.closer.close();
            }
            if tell.blocking_send(heard).is_err() || last {
                return;
            }
        }
    }

    /// What came is no conversation. Why the other side could not even begin says more; that it
    /// has ended since does not.
    fn garbled(&self, what: String) -> LinkEnd {
        match self.diagnosis(LinkEnd::Closed) {
            LinkEnd::Transport(error) if !matches!(*error, transport::Error::Lost { .. }) => {
                LinkEnd::Transport(error)
            }
            _ => LinkEnd::Garbled(what),
        }
    }

    fn diagnosis(&self, otherwise: LinkEnd) -> LinkEnd {
        let patience = if self.closer.is_closed() {
            Duration::ZERO
        } else {
            DIAGNOSIS_PATIENCE
        };
        self.outcome
            .wait(patience)
            .map_or(otherwise, LinkEnd::Transport)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
