//! Hashes of blocks and of whole trees.

use super::Extent;
use crate::limits::BLOCK_BYTES;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// The hash of one block of a file: blake3 of its bytes without the zeros at its end, so that
/// it says nothing of the file's size. A block of zeros, or behind the end, is `ZERO`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// A block of nothing but zeros.
    pub const ZERO: BlockHash = BlockHash([0; 32]);
}

/// The hash of a whole tree; what it is made of is said in `records`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct RootHash(pub [u8; 32]);

/// Hashes one block; `bytes` may be shorter than a block (the rest counts as zeros).
#[must_use]
pub fn hash_block(bytes: &[u8]) -> BlockHash {
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        return BlockHash::ZERO;
    }
    BlockHash(*blake3::hash(&bytes[..end]).as_bytes())
}

/// The numbers of the blocks that an extent touches.
#[must_use]
pub fn blocks_of(extent: Extent) -> Range<u64> {
    if extent.length == 0 {
        return 0..0;
    }
    extent.offset / BLOCK_BYTES..extent.end().div_ceil(BLOCK_BYTES)
}

macro_rules! hex {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}
hex!(BlockHash, RootHash);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_do_not_count() {
        assert_eq!(hash_block(&[0; 4096]), BlockHash::ZERO);
        assert_eq!(hash_block(b""), BlockHash::ZERO);
        assert_eq!(hash_block(b"a\0\0"), hash_block(b"a"));
        assert_ne!(hash_block(b"\0a"), hash_block(b"a"));
    }

    #[test]
    fn blocks_cover_the_extent() {
        assert_eq!(blocks_of(Extent::new(0, 1)), 0..1);
        assert_eq!(blocks_of(Extent::new(BLOCK_BYTES - 1, 2)), 0..2);
        assert_eq!(blocks_of(Extent::new(BLOCK_BYTES, BLOCK_BYTES)), 1..2);
        assert!(blocks_of(Extent::new(9, 0)).is_empty());
    }
}
