//! Frames over a byte stream.

use super::frame::{WireError, decode, encode, frame_bytes};
use super::validate::Message;
use std::io::{self, ErrorKind, Read, Write};

/// What is collected before it is written, and how much is read at once, in bytes.
const CHUNK_BYTES: usize = 128 * 1024;

/// Sends messages over a stream.
#[derive(Debug)]
pub struct Encoder<W> {
    inner: W,
    buffer: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// An encoder that writes to `inner`.
    pub fn new(inner: W) -> Encoder<W> {
        Encoder {
            inner,
            buffer: Vec::new(),
        }
    }

    /// Queues a message, with the bytes of its fragment if it has some, and writes what is
    /// queued when that is much. Returns how many bytes the frame has.
    ///
    /// # Errors
    /// The stream's; `InvalidInput` for a message that the other side would not accept, of
    /// which nothing is then queued.
    pub fn send<M: Message>(&mut self, message: &M, bytes: Option<&[u8]>) -> io::Result<usize> {
        let sent = encode(message, bytes, &mut self.buffer).map_err(|error| match error {
            WireError::Io(error) => error,
            other => io::Error::new(ErrorKind::InvalidInput, other),
        })?;
        if self.buffer.len() >= CHUNK_BYTES {
            self.write_queued()?;
        }
        Ok(sent)
    }

    /// Writes what is queued, and flushes the stream.
    ///
    /// # Errors
    /// The stream's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_queued()?;
        self.inner.flush()
    }

    /// The stream below.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    fn write_queued(&mut self) -> io::Result<()> {
        // A failed write leaves a torn frame behind it: the stream is of no use any more, so
        // what was queued is dropped rather than written twice.
        let result = self.inner.write_all(&self.buffer);
        self.buffer.clear();
        result
    }
}

/// Receives messages from a stream.
#[derive(Debug)]
pub struct Decoder<R> {
    inner: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> Decoder<R> {
    /// A decoder that reads from `inner`.
    pub fn new(inner: R) -> Decoder<R> {
        Decoder {
            inner,
            buffer: Vec::new(),
            start: 0,
            end: 0,
        }
    }

    /// Waits for the next message; returns it with the bytes that came with it. `None`: the
    /// stream ended, between two frames.
    ///
    /// # Errors
    /// The stream's, and as [`decode`]. The stream is of no use after that.
    pub fn receive<M: Message>(&mut self) -> Result<Option<(M, Vec<u8>)>, WireError> {
        loop {
            let held = &self.buffer[self.start..self.end];
            let whole = frame_bytes(held)?;
            if let Some(whole) = whole
                && whole <= held.len()
                && let Some((consumed, message, bytes)) = decode(held)?
            {
                self.start += consumed;
                return Ok(Some((message, bytes)));
            }
            let missing = whole
                .unwrap_or(super::FRAME_HEADER_BYTES)
                .saturating_sub(held.len());
            if self.fill(missing)? == 0 {
                if self.start == self.end {
                    return Ok(None);
                }
                return Err(WireError::Truncated { missing });
            }
        }
    }

    /// Whether bytes have been read that [`Decoder::receive`] has not yet returned, so that
    /// waiting for the stream to become readable could wait for nothing.
    pub fn has_buffered(&self) -> bool {
        self.start != self.end
    }

    // Reads once, with room for the missing bytes at least.
    fn fill(&mut self, missing: usize) -> io::Result<usize> {
        if self.start > 0 && self.buffer.len() - self.end < missing.max(CHUNK_BYTES / 2) {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = (self.end + missing).max(CHUNK_BYTES);
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        loop {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
            }
        }
    }
}
