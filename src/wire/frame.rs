//! The frame, the unit that either side checks before it believes anything:
//!
//! ```text
//! offset  bytes
//! 0       4      length of the body, little endian
//! 4       4      crc32 of the body, little endian
//! 8       1      flags: bit 0, the bytes are compressed (zstd)
//! 9       1..3   length of the message (LEB128)
//! ..      ..     the message (postcard)
//! ..      ..     the bytes of a fragment, up to the end of the body
//! ```
//!
//! How many bytes a fragment has follows from its message, so their length is not said again,
//! and what they decompress to is bounded before it is.

use super::validate::{Invalid, Message};
use super::{compress, digest};
use crate::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};

/// Length and checksum, which stand before the body.
pub const FRAME_HEADER_BYTES: usize = 8;

const COMPRESSED: u8 = 1;

/// Why bytes are no frame, or a message cannot become one.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed.
    #[error("the stream failed")]
    Io(#[from] std::io::Error),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame, {missing} bytes short")]
    Truncated {
        /// At least so many bytes are missing.
        missing: usize,
    },
    /// The length is out of bounds: what arrives is no stream of frames, perhaps text.
    #[error("a frame of {bytes} bytes is not acceptable (is the other side mirrorfs?)")]
    Length {
        /// The whole frame.
        bytes: u64,
    },
    /// What arrived is not what was sent.
    #[error("checksum of a frame is {found:08x}, expected {expected:08x}")]
    Checksum {
        /// What the frame says.
        expected: u32,
        /// What it has.
        found: u32,
    },
    /// Flags of a version that is not known.
    #[error("unknown frame flags {flags:#04x}")]
    Flags {
        /// All flags.
        flags: u8,
    },
    /// The message cannot be decoded.
    #[error("a message cannot be decoded")]
    Message(#[source] postcard::Error),
    /// The message can be decoded, but is not one that may be sent.
    #[error("a message is not acceptable: {0}")]
    Invalid(#[from] Invalid),
    /// The bytes cannot be decompressed.
    #[error("bytes of a fragment cannot be decompressed")]
    Compression(#[source] std::io::Error),
    /// More or fewer bytes than the message says.
    #[error("a message with {found} bytes should have {expected}")]
    Bytes {
        /// What the message says.
        expected: u64,
        /// What there are.
        found: u64,
    },
}

/// How long the frame is that starts in `buffer`; `None` while that cannot be said.
///
/// # Errors
/// [`WireError::Length`] if it is shorter or longer than any frame.
pub fn frame_bytes(buffer: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(header) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let bytes = u64::from(u32::from_le_bytes(*header)) + FRAME_HEADER_BYTES as u64;
    match usize::try_from(bytes) {
        // Flags and one byte each of length and message are the least.
        Ok(whole) if (FRAME_HEADER_BYTES + 3..=FRAME_BYTES_MAX).contains(&whole) => Ok(Some(whole)),
        _ => Err(WireError::Length { bytes }),
    }
}

/// Decodes the frame that starts in `buffer`: how many bytes of the buffer it took, the message
/// and the bytes that came with it. `None`: the frame is not complete.
///
/// # Errors
/// When it is no frame, or the message is not one of this type within its bounds. Nothing
/// larger than the bounds is allocated.
pub fn decode<M: Message>(buffer: &[u8]) -> Result<Option<(usize, M, Vec<u8>)>, WireError> {
    let Some(whole) = frame_bytes(buffer)? else {
        return Ok(None);
    };
    let Some((header, body)) = buffer
        .get(..whole)
        .and_then(<[u8]>::split_first_chunk::<FRAME_HEADER_BYTES>)
    else {
        return Ok(None);
    };
    let expected = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let found = crc32fast::hash(body);
    if expected != found {
        return Err(WireError::Checksum { expected, found });
    }
    let flags = body[0];
    if flags & !COMPRESSED != 0 {
        return Err(WireError::Flags { flags });
    }
    let (length, rest) =
        postcard::take_from_bytes::<u32>(&body[1..]).map_err(WireError::Message)?;
    let length = length as usize;
    if length > MESSAGE_BYTES_MAX || length > rest.len() {
        return Err(WireError::Length {
            bytes: length as u64,
        });
    }
    let (encoded, bytes) = rest.split_at(length);
    let message: M = digest::from_bytes(encoded)?;
    message.validate()?;
    let expected = message.bytes_expected();
    let bytes = if flags & COMPRESSED != 0 {
        compress::unpack(bytes, expected)?
    } else {
        bytes.to_vec()
    };
    check_bytes(expected, &bytes)?;
    Ok(Some((whole, message, bytes)))
}

/// Appends the frame of a message, and of its bytes if it has some, to `out`; returns how many
/// bytes that were. The bytes are compressed if that pays.
///
/// # Errors
/// When the message is not one that the other side would accept; `out` is then as it was.
pub fn encode<M: Message>(
    message: &M,
    bytes: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<usize, WireError> {
    let bytes = bytes.unwrap_or_default();
    message.validate()?;
    check_bytes(message.bytes_expected(), bytes)?;
    let start = out.len();
    let result = encode_body(message, bytes, out, start);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn encode_body<M: Message>(
    message: &M,
    bytes: &[u8],
    out: &mut Vec<u8>,
    start: usize,
) -> Result<usize, WireError> {
    // The length of the message stands before it and is not known yet: two bytes of it are
    // enough for most, and the rare one that needs another count is moved.
    let body = start + FRAME_HEADER_BYTES;
    let encoded = body + 2;
    out.resize(encoded, 0);
    digest::to_vec(message, out)?;
    let length = out.len() - encoded;
    if length > MESSAGE_BYTES_MAX {
        return Err(WireError::Length {
            bytes: length as u64,
        });
    }
    let (prefix, count) = varint(length);
    out.splice(body + 1..encoded, prefix[..count].iter().copied());
    if compress::pack(bytes, out) {
        out[body] = COMPRESSED;
    } else {
        out.extend_from_slice(bytes);
    }
    let whole = out.len() - start;
    let Some(size) = u32::try_from(out.len() - body)
        .ok()
        .filter(|_| whole <= FRAME_BYTES_MAX)
    else {
        return Err(WireError::Length {
            bytes: whole as u64,
        });
    };
    let checksum = crc32fast::hash(&out[body..]);
    out[start..start + 4].copy_from_slice(&size.to_le_bytes());
    out[start + 4..body].copy_from_slice(&checksum.to_le_bytes());
    Ok(whole)
}

fn check_bytes(expected: u64, bytes: &[u8]) -> Result<(), WireError> {
    let found = bytes.len() as u64;
    if expected == found {
        Ok(())
    } else {
        Err(WireError::Bytes { expected, found })
    }
}

// LEB128 of a length below 2^21, which MESSAGE_BYTES_MAX is.
fn varint(value: usize) -> ([u8; 3], usize) {
    let low = |shift: usize| ((value >> shift) & 0x7f) as u8;
    match value {
        0..0x80 => ([low(0), 0, 0], 1),
        0x80..0x4000 => ([low(0) | 0x80, low(7), 0], 2),
        _ => ([low(0) | 0x80, low(7) | 0x80, low(14)], 3),
    }
}

const _: () = assert!(MESSAGE_BYTES_MAX < 1 << 21);

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
