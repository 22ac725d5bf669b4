//! Moves bytes between the sender's socket and the channel of an ssh session.
//!
//! libssh2 allows one call at a time, so one thread owns the session, without ever blocking in it.
//! A packet that the socket took only a part of must be finished by the same call before any
//! other is made: [`Pump::unfinished`] remembers which. There is no keepalive of libssh2 here,
//! because it breaks that rule; the sender's heartbeats do its work, and `TCP_USER_TIMEOUT`.

use crate::limits::{LAST_WORDS_DEADLINE, SSH_BUFFER_BYTES};
use crate::transport::error::{Error, Result};
use crate::transport::link::{Closer, Tail, end_of_stream, poll};
use rustix::event::{PollFd, PollFlags};
use ssh2::{BlockDirections, Channel, Session};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// The exit status with which a shell says that there is no such command.
const NOT_FOUND: i32 = 127;

/// What was started and must be finished before anything else is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Send,
    SendEnd,
    Receive,
    ReceiveWords,
    AwaitClose,
}

/// Whether a step got anything done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    Some,
    None,
}

/// See the module.
pub(super) struct Pump {
    channel: Channel,
    session: Session,
    socket: TcpStream,
    local: UnixStream,
    closer: Closer,
    outgoing: Buffer,
    incoming: Buffer,
    words: Tail,
    unfinished: Option<Step>,
    local_ended: bool,
    end_sent: bool,
    remote_ended: bool,
    end_told: bool,
}

impl Pump {
    pub(super) fn new(
        session: Session,
        channel: Channel,
        socket: TcpStream,
        local: UnixStream,
        closer: Closer,
    ) -> Result<Pump> {
        let set = local
            .set_nonblocking(true)
            .and_then(|()| socket.set_nonblocking(true));
        set.map_err(|source| Error::System {
            action: "set up a socket",
            source,
        })?;
        Ok(Pump {
            channel,
            session,
            socket,
            local,
            closer,
            outgoing: Buffer::default(),
            incoming: Buffer::default(),
            words: Tail::default(),
            unfinished: None,
            local_ended: false,
            end_sent: false,
            remote_ended: false,
            end_told: false,
        })
    }

    /// Runs until the link is dead, and says why.
    pub(super) fn run(mut self, host: &str, command: &str) -> Error {
        let ended = self.work();
        if self.closer.is_closed() {
            return Error::Closed;
        }
        end_of_stream(&self.local);
        match ended {
            Ok(()) => self.explain(host, command),
            Err(message) => Error::Lost {
                host: host.to_owned(),
                message,
            },
        }
    }

    /// Ends well when the remote side has closed the channel.
    fn work(&mut self) -> std::result::Result<(), String> {
        let mut give_up: Option<Instant> = None;
        loop {
            if self.closer.is_closed() {
                return Ok(());
            }
            let mut progress = self.local_side()?;
            progress |= self.remote_side()?;
            if self.end_told && self.step(Step::AwaitClose)? == Progress::Some {
                return Ok(());
            }
            if self.end_told {
                let at = *give_up.get_or_insert_with(|| Instant::now() + LAST_WORDS_DEADLINE);
                if Instant::now() >= at {
                    return Ok(());
                }
            }
            if !progress {
                self.wait(give_up)?;
            }
        }
    }

    fn local_side(&mut self) -> std::result::Result<bool, String> {
        let mut progress = false;
        if !self.local_ended && self.outgoing.has_room() {
            match self.outgoing.fill(|room| (&self.local).read(room)) {
                Ok(0) => {
                    self.local_ended = true;
                    progress = true;
                }
                Ok(_) => progress = true,
                Err(error) if would_block(&error) => {}
                Err(error) => return Err(format!("reading from this side: {error}")),
            }
        }
        if !self.incoming.is_empty() {
            match self.incoming.drain(|bytes| (&self.local).write(bytes)) {
                Ok(_) => progress = true,
                Err(error) if would_block(&error) => {}
                Err(error) => return Err(format!("writing to this side: {error}")),
            }
        }
        if self.remote_ended && self.incoming.is_empty() && !self.end_told {
            self.end_told = true;
            end_of_stream(&self.local);
            progress = true;
        }
        Ok(progress)
    }

    fn remote_side(&mut self) -> std::result::Result<bool, String> {
        let mut progress = false;
        if let Some(step) = self.unfinished {
            if self.step(step)? == Progress::None {
                return Ok(false);
            }
            progress = true;
        }
        for step in [Step::Receive, Step::ReceiveWords, Step::Send, Step::SendEnd] {
            while self.unfinished.is_none() && self.wants(step) {
                if self.step(step)? == Progress::None {
                    break;
                }
                progress = true;
                if step == Step::ReceiveWords {
                    break;
                }
            }
        }
        Ok(progress)
    }

    fn wants(&self, step: Step) -> bool {
        match step {
            Step::Send => !self.outgoing.is_empty() && !self.remote_ended,
            Step::SendEnd => self.local_ended && self.outgoing.is_empty() && !self.end_sent,
            Step::Receive => !self.remote_ended && self.incoming.has_room(),
            Step::ReceiveWords => true,
            Step::AwaitClose => self.end_told,
        }
    }

    /// One call of libssh2.
    fn step(&mut self, step: Step) -> std::result::Result<Progress, String> {
        if self.unfinished.is_some_and(|unfinished| unfinished != step) {
            return Ok(Progress::None);
        }
        let mut words = [0; 1024];
        let channel = &mut self.channel;
        let result = match step {
            Step::Send => self.outgoing.drain(|bytes| channel.write(bytes)),
            Step::SendEnd => channel.send_eof().map(|()| 1).map_err(std::io::Error::from),
            Step::Receive => self.incoming.fill(|room| channel.read(room)),
            Step::ReceiveWords => channel.stderr().read(&mut words),
            Step::AwaitClose => channel
                .wait_close()
                .map(|()| 1)
                .map_err(std::io::Error::from),
        };
        self.unfinished = None;
        match (step, result) {
            (Step::Receive, Ok(0)) if self.channel.eof() => self.remote_ended = true,
            (Step::SendEnd, Ok(_)) => self.end_sent = true,
            (Step::ReceiveWords, Ok(count)) if count > 0 => self.words.push(&words[..count]),
            (_, Err(error)) if would_block(&error) => {
                let blocked = self.session.block_directions();
                let outbound = matches!(blocked, BlockDirections::Outbound | BlockDirections::Both);
                self.unfinished = outbound.then_some(step);
                return Ok(Progress::None);
            }
            (Step::SendEnd, Err(_)) => self.end_sent = true,
            (_, Err(error)) => return Err(error.to_string()),
            (_, Ok(0)) => return Ok(Progress::None),
            (_, Ok(_)) => {}
        }
        Ok(Progress::Some)
    }

    /// Waits until something can be done.
    fn wait(&self, until: Option<Instant>) -> std::result::Result<(), String> {
        let flag = |wanted, flag| if wanted { flag } else { PollFlags::empty() };
        // While the sender takes nothing, what arrives may wait in the kernel, unless libssh2
        // needs to see it (a window) to go on sending.
        let receive = self.incoming.has_room() || !self.outgoing.is_empty();
        let remote = flag(receive && self.unfinished.is_none(), PollFlags::IN)
            | flag(self.unfinished.is_some(), PollFlags::OUT);
        let local = flag(!self.local_ended && self.outgoing.has_room(), PollFlags::IN)
            | flag(!self.incoming.is_empty(), PollFlags::OUT);
        // A hang-up is reported even where nothing is asked for, which would spin.
        let mut fds = vec![PollFd::from_borrowed_fd(self.closer.event(), PollFlags::IN)];
        if !remote.is_empty() {
            fds.push(PollFd::new(&self.socket, remote));
        }
        if !local.is_empty() {
            fds.push(PollFd::new(&self.local, local));
        }
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        poll(&mut fds, left)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    fn explain(&mut self, host: &str, command: &str) -> Error {
        let host = host.to_owned();
        let stderr = self.words.text();
        let signal = self
            .channel
            .exit_signal()
            .ok()
            .and_then(|signal| signal.exit_signal);
        match (signal, self.channel.exit_status().unwrap_or(-1)) {
            (Some(signal), _) => Error::RemoteFailed {
                host,
                status: format!("signal {signal}"),
                stderr,
            },
            (None, NOT_FOUND) => Error::RemoteMissing {
                host,
                command: command.to_owned(),
                stderr,
            },
            (None, 0) => Error::Lost {
                host,
                message: "the remote side ended".to_owned(),
            },
            (None, code) => Error::RemoteFailed {
                host,
                status: format!("exit status {code}"),
                stderr,
            },
        }
    }
}

fn would_block(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Bytes that arrived and did not yet leave. What libssh2 was given stays where it is until it
/// has taken it.
#[derive(Debug)]
struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer {
            bytes: vec![0; SSH_BUFFER_BYTES].into(),
            start: 0,
            end: 0,
        }
    }
}

impl Buffer {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn has_room(&self) -> bool {
        self.end < self.bytes.len()
    }

    fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> std::result::Result<usize, E>,
    ) -> std::result::Result<usize, E> {
        let count = read(&mut self.bytes[self.end..])?;
        self.end += count;
        Ok(count)
    }

    fn drain<E>(
        &mut self,
        write: impl FnOnce(&[u8]) -> std::result::Result<usize, E>,
    ) -> std::result::Result<usize, E> {
        let count = write(&self.bytes[self.start..self.end])?;
        self.start += count;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        Ok(count)
    }
}
