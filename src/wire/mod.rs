//! Frames, messages and the encoding of entries: bytes to types and back, checked and bounded.
//!
//! Nothing here opens, connects or waits; [`Encoder`] and [`Decoder`] move frames over a
//! `Write` and a `Read` that a transport gives them, [`encode`] and [`decode`] work on buffers.
//! What [`decode`] returns has been validated, so its bounds need no second look elsewhere.

/// The newest version of the protocol. 1: the first one.
pub const PROTOCOL_VERSION: u16 = 1;

mod compress;
mod digest;
mod frame;
mod message;
mod stream;
mod validate;

pub use digest::{EntryDigest, decode_entry, encode_entry, split_entry};
pub use frame::{FRAME_HEADER_BYTES, WireError, decode, encode, frame_bytes};
pub use message::{Hello, RecordItem, Refusal, ToPrimary, ToReplica, Welcome};
pub use stream::{Decoder, Encoder};
pub use validate::{Invalid, Message, bounded_text};
