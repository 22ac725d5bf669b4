//! The encoding of entries, and the digest over it that a commit carries. The primary's
//! manifest, the frames and the replica's redo log all hold entries in this encoding, so a
//! digest can be taken of whichever is at hand.

use super::frame::WireError;
use super::validate::Invalid;
use crate::model::Entry;
use serde::{Serialize, de::DeserializeOwned};

/// Appends the encoding of an entry to `out`. It says itself where it ends.
///
/// # Errors
/// None is known; the encoder's are passed on.
pub fn encode_entry(entry: &Entry, out: &mut Vec<u8>) -> Result<(), WireError> {
    to_vec(entry, out)
}

/// Decodes an entry that fills `bytes`, and validates it.
///
/// # Errors
/// When the bytes are no entry, more than one, or one out of bounds.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, WireError> {
    valid(from_bytes(bytes)?)
}

/// Decodes the entry at the start of `bytes`, validates it, and returns it with the rest.
///
/// # Errors
/// When there is none, or one out of bounds.
pub fn split_entry(bytes: &[u8]) -> Result<(Entry, &[u8]), WireError> {
    let (entry, rest) = postcard::take_from_bytes(bytes).map_err(WireError::Message)?;
    Ok((valid(entry)?, rest))
}

fn valid(entry: Entry) -> Result<Entry, WireError> {
    if entry.is_valid() {
        Ok(entry)
    } else {
        Err(Invalid("an entry out of bounds").into())
    }
}

pub(super) fn to_vec<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), WireError> {
    postcard::to_io(value, &mut *out)
        .map(|_| ())
        .map_err(WireError::Message)
}

pub(super) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes).map_err(WireError::Message)? {
        (value, []) => Ok(value),
        _ => Err(Invalid("a message with something behind it").into()),
    }
}

/// The running digest of an epoch's entries: blake3 over their encoding, in order, without the
/// bytes of fragments (whose blocks' hashes are part of the entries).
#[derive(Clone, Default)]
pub struct EntryDigest {
    hasher: blake3::Hasher,
    entries: u64,
    scratch: Vec<u8>,
}

impl EntryDigest {
    /// Of no entry.
    #[must_use]
    pub fn new() -> EntryDigest {
        EntryDigest::default()
    }

    /// Takes the next entry in.
    ///
    /// # Errors
    /// As [`encode_entry`].
    pub fn add(&mut self, entry: &Entry) -> Result<(), WireError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        encode_entry(entry, &mut scratch)?;
        self.add_encoded(&scratch);
        self.scratch = scratch;
        Ok(())
    }

    /// Takes the next entry in, which is encoded already (exactly one).
    pub fn add_encoded(&mut self, encoded: &[u8]) {
        self.hasher.update(encoded);
        self.entries += 1;
    }

    /// How many entries it has taken in.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The digest so far.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }
}

impl std::fmt::Debug for EntryDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EntryDigest")
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FileId, Name};

    #[test]
    fn the_digest_is_that_of_the_concatenation() {
        let entries: Vec<Entry> = (0..10)
            .map(|number| Entry::Binding {
                parent: FileId::ROOT,
                name: Name::new(format!("n{number}")).expect("a name"),
                object: (number % 2 == 0).then_some(FileId(number + 2)),
            })
            .collect();
        let (mut digest, mut bytes) = (EntryDigest::new(), Vec::new());
        for entry in &entries {
            digest.add(entry).expect("encodes");
            encode_entry(entry, &mut bytes).expect("encodes");
        }
        assert_eq!(digest.entries(), 10);
        assert_eq!(digest.digest(), *blake3::hash(&bytes).as_bytes());
        let mut rest = &bytes[..];
        for entry in &entries {
            let (decoded, after) = split_entry(rest).expect("decodes");
            assert_eq!(&decoded, entry);
            rest = after;
        }
        assert!(rest.is_empty() && split_entry(rest).is_err() && decode_entry(&bytes).is_err());
    }
}
