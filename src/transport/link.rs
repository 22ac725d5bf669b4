//! A link: two byte streams, a way to end them, and the reason why they ended.

use super::error::{Error, Result};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A connection to a replica. Its parts may be moved out of it to different threads.
#[derive(Debug)]
pub struct Link {
    /// What the replica says: blocking; end of file when the link is dead.
    pub reader: UnixStream,
    /// What is said to the replica: blocking; `EPIPE` when the link is dead. Shutting it down for
    /// writing tells the replica that nothing more comes.
    pub writer: UnixStream,
    /// Ends the link.
    pub closer: Closer,
    /// Says why it ended.
    pub outcome: Outcome,
}

impl Link {
    /// A link within this process, and its other end, for the replica. There is nothing between
    /// the two that could fail, so its outcome stays empty until somebody tells it.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn pair() -> Result<(Link, UnixStream)> {
        Link::new(&Closer::new()?)
    }

    /// A link that `closer` ends, and the end of it that a transport moves the bytes of.
    pub(super) fn new(closer: &Closer) -> Result<(Link, UnixStream)> {
        let make = || -> io::Result<_> {
            let (near, far) = UnixStream::pair()?;
            Ok((near.try_clone()?, near.try_clone()?, near, far))
        };
        let (reader, writer, near, far) = make().map_err(|source| Error::System {
            action: "make a socket pair",
            source,
        })?;
        closer.ends(OwnedFd::from(near));
        let closer = closer.clone();
        Ok((
            Link {
                reader,
                writer,
                closer,
                outcome: Outcome::default(),
            },
            far,
        ))
    }

    /// See [`Outcome::wait`].
    #[must_use]
    pub fn diagnosis(&self, patience: Duration) -> Option<Arc<Error>> {
        self.outcome.wait(patience)
    }
}

/// Ends an attempt to connect, or the link that came of it, from any thread. Clones end the same.
#[derive(Clone, Debug)]
pub struct Closer(Arc<CloserState>);

#[derive(Debug)]
struct CloserState {
    closed: AtomicBool,
    // Readable for ever once closed: for those who wait in poll.
    event: OwnedFd,
    // Shut down when closed: for those who wait in read or write.
    sockets: Mutex<Vec<OwnedFd>>,
}

impl Closer {
    /// A closer for one attempt.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn new() -> Result<Closer> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::System {
                action: "make an event",
                source: errno.into(),
            })?;
        Ok(Closer(Arc::new(CloserState {
            closed: AtomicBool::new(false),
            event,
            sockets: Mutex::new(Vec::new()),
        })))
    }

    /// Ends it, now and without a goodbye: who reads sees the end of the file, who writes `EPIPE`.
    /// Never waits.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        // It can only fail when the counter is full, that is, readable.
        let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
        for socket in self.0.sockets.lock().drain(..) {
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::SeqCst)
    }

    /// Puts a connected socket under it.
    pub(super) fn ends(&self, socket: OwnedFd) {
        let mut sockets = self.0.sockets.lock();
        if self.is_closed() {
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        } else {
            sockets.push(socket);
        }
    }

    /// Readable once closed.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    /// Waits until `socket` is ready for `flags` (true), or the deadline is past (false).
    pub(super) fn poll(
        &self,
        socket: BorrowedFd<'_>,
        flags: PollFlags,
        deadline: Instant,
    ) -> Result<bool> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.event(), PollFlags::IN),
            PollFd::from_borrowed_fd(socket, flags),
        ];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = poll(&mut fds, Some(left))?;
            if !fds[0].revents().is_empty() {
                return Err(Error::Closed);
            }
            if !fds[1].revents().is_empty() {
                return Ok(true);
            }
            if ready == 0 && Instant::now() >= deadline {
                return Ok(false);
            }
        }
    }
}

/// `poll`, where an interrupt is a wake-up without news.
pub(super) fn poll(fds: &mut [PollFd<'_>], patience: Option<Duration>) -> Result<usize> {
    let timeout = patience.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(ready) => Ok(ready),
        Err(rustix::io::Errno::INTR) => {
            fds.iter_mut().for_each(PollFd::clear_revents);
            Ok(0)
        }
        Err(errno) => Err(Error::System {
            action: "poll",
            source: errno.into(),
        }),
    }
}

/// Why a link ended. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct Outcome(Arc<(Mutex<Option<Arc<Error>>>, Condvar)>);

impl Outcome {
    /// The reason why the link ended, waiting for it at most `patience`: the last words of a
    /// remote process arrive a moment after the end of its stream.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> Option<Arc<Error>> {
        let deadline = Instant::now() + patience;
        let (reason, told) = &*self.0;
        let mut reason = reason.lock();
        while reason.is_none() {
            if told.wait_until(&mut reason, deadline).timed_out() {
                break;
            }
        }
        reason.clone()
    }

    /// Tells the reason; the first one counts.
    pub fn tell(&self, error: Error) {
        let (reason, told) = &*self.0;
        reason.lock().get_or_insert_with(|| Arc::new(error));
        told.notify_all();
    }
}

/// The last bytes of what a remote process says, as text for people.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        use crate::limits::DIAGNOSIS_BYTES_MAX;
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > DIAGNOSIS_BYTES_MAX {
            self.cut = true;
            self.bytes.drain(..self.bytes.len() - DIAGNOSIS_BYTES_MAX);
        }
    }

    /// Without the control characters that could play tricks on a terminal.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let clean = |c: char| {
            if c.is_control() && c != '\n' && c != '\t' {
                '?'
            } else {
                c
            }
        };
        let text: String = text.replace("\r\n", "\n").chars().map(clean).collect();
        let text = text.trim();
        match (self.cut, text.is_empty()) {
            (_, true) => "it said nothing".to_owned(),
            (true, _) => format!("… {text}"),
            (false, _) => text.to_owned(),
        }
    }
}

/// Ends the writing half of a transport's end, so that the sender's reader sees the end.
pub(super) fn end_of_stream(stream: &UnixStream) {
    let _ = stream.shutdown(Shutdown::Write);
}
