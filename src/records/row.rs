//! The tables, how their rows are encoded, and what the root hash is made of.
//!
//! | table | key | value |
//! |---|---|---|
//! | `objects` | id | format (1 byte), then [`Row`] as postcard |
//! | `names` | parent, name | id |
//! | `links` | id, parent, name | – |
//! | `blocks` | id, block | hash; none for a block of zeros |
//! | `inodes` | inode number | id (a hint) |
//! | `meta` | `"format"`: [`FORMAT`], little-endian; `"state"`: [`State`] as postcard | |
//!
//! The root hash is a sum modulo 2^256 of one blake3 an object (id, object, content sum) and one a
//! name (parent, name, id), so that a change costs what changed. The content sum is a sum of one
//! blake3 a non-zero block (number, hash).

use super::State;
use super::error::Fault;
use crate::model::{BlockHash, FileId, Object, RootHash, Stamp};
use redb::TableDefinition;
use serde::{Deserialize, Serialize};

/// Version of the tables and their rows.
pub(super) const FORMAT: u32 = 1;

/// Version of a row of `objects`.
const ROW_FORMAT: u8 = 1;

pub(super) type NameKey = (u64, &'static [u8]);
pub(super) type LinkKey = (u64, u64, &'static [u8]);

pub(super) const OBJECTS: TableDefinition<u64, &[u8]> = TableDefinition::new("objects");
pub(super) const NAMES: TableDefinition<NameKey, u64> = TableDefinition::new("names");
pub(super) const LINKS: TableDefinition<LinkKey, ()> = TableDefinition::new("links");
pub(super) const BLOCKS: TableDefinition<(u64, u64), &[u8; 32]> = TableDefinition::new("blocks");
pub(super) const INODES: TableDefinition<u64, u64> = TableDefinition::new("inodes");
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(super) const META_FORMAT: &str = "format";
pub(super) const META_STATE: &str = "state";

/// A number modulo 2^256.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    pub(super) fn add(&mut self, hash: [u8; 32]) {
        let mut carry = false;
        for (word, other) in self.0.iter_mut().zip(words(hash)) {
            let (sum, over) = word.overflowing_add(other);
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            *word = sum;
            carry = over | over_again;
        }
    }

    pub(super) fn subtract(&mut self, hash: [u8; 32]) {
        let mut borrow = false;
        for (word, other) in self.0.iter_mut().zip(words(hash)) {
            let (difference, under) = word.overflowing_sub(other);
            let (difference, under_again) = difference.overflowing_sub(u64::from(borrow));
            *word = difference;
            borrow = under | under_again;
        }
    }

    pub(super) fn bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (part, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(super) fn of(RootHash(bytes): RootHash) -> Sum {
        Sum(words(bytes))
    }

    pub(super) fn root_hash(self) -> RootHash {
        RootHash(self.bytes())
    }

    pub(super) fn is_zero(self) -> bool {
        self == Sum::default()
    }
}

fn words(bytes: [u8; 32]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, part) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*part);
    }
    words
}

/// What a block adds to the content sum of its file.
pub(super) fn block_hash(block: u64, BlockHash(hash): BlockHash) -> [u8; 32] {
    let mut bytes = [0; 41];
    bytes[0] = b'b';
    bytes[1..9].copy_from_slice(&block.to_le_bytes());
    bytes[9..].copy_from_slice(&hash);
    *blake3::hash(&bytes).as_bytes()
}

/// What a name adds to the root hash.
pub(super) fn name_hash(parent: u64, name: &[u8], id: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(b"n")
        .update(&parent.to_le_bytes())
        .update(&id.to_le_bytes())
        .update(name);
    *hasher.finalize().as_bytes()
}

/// An object, as it is stored. Within a transaction there may be one without a state: something
/// was said of an object (a name, a block) before the object itself came. None is committed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) object: Option<Object>,
    pub(super) stamp: Stamp,
    pub(super) links: u32,
    pub(super) content: Sum,
}

impl Row {
    pub(super) fn encode(&self) -> Result<Vec<u8>, Fault> {
        postcard::to_extend(self, vec![ROW_FORMAT]).map_err(|_| Fault::Row("a row is too large"))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Row, Fault> {
        let Some((&ROW_FORMAT, bytes)) = bytes.split_first() else {
            return Err(Fault::Row("a row of an unknown version"));
        };
        let (row, rest): (Row, _) =
            postcard::take_from_bytes(bytes).map_err(|_| Fault::Row("a row that is none"))?;
        if !rest.is_empty() || row.object.as_ref().is_some_and(|object| !object.is_valid()) {
            return Err(Fault::Row("a row that is out of bounds"));
        }
        Ok(row)
    }

    /// What it adds to the root hash.
    pub(super) fn hash(&self, id: FileId) -> Result<Option<[u8; 32]>, Fault> {
        let Some(object) = &self.object else {
            return Ok(None);
        };
        let encoded = postcard::to_stdvec(object).map_err(|_| Fault::Row("a row is too large"))?;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(b"o")
            .update(&id.0.to_le_bytes())
            .update(&self.content.bytes());
        Ok(Some(*hasher.update(&encoded).finalize().as_bytes()))
    }
}

pub(super) fn encode_state(state: &State) -> Result<Vec<u8>, Fault> {
    postcard::to_stdvec(state).map_err(|_| Fault::Row("the state is too large"))
}

pub(super) fn decode_state(bytes: &[u8]) -> Result<State, Fault> {
    postcard::from_bytes(bytes).map_err(|_| Fault::Row("the state is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sum_forgets_the_order(hashes in prop::collection::vec(any::<[u8; 32]>(), 0..8)) {
            let (mut one, mut two) = (Sum::default(), Sum::default());
            hashes.iter().for_each(|hash| one.add(*hash));
            hashes.iter().rev().for_each(|hash| two.add(*hash));
            prop_assert_eq!(one, two);
            prop_assert_eq!(Sum::of(one.root_hash()), one);
            hashes.iter().for_each(|hash| one.subtract(*hash));
            prop_assert!(one.is_zero());
        }
    }
}
