//! The rolling hash, and the table of it that blocks of a file are found in.

/// An odd multiplier; the hash is a polynomial in it, modulo 2^64.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of a window of bytes that moves along by one byte at a time. It is only a hint: what
/// it finds is compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rolling {
    sum: u64,
    // MULTIPLIER ^ (length of the window)
    leaving: u64,
}

impl Rolling {
    /// The hash of a window.
    pub(super) fn of(window: &[u8]) -> Rolling {
        let mut rolling = Rolling { sum: 0, leaving: 1 };
        for &byte in window {
            rolling.sum = rolling
                .sum
                .wrapping_mul(MULTIPLIER)
                .wrapping_add(spread(byte));
            rolling.leaving = rolling.leaving.wrapping_mul(MULTIPLIER);
        }
        rolling
    }

    /// Moves the window on.
    pub(super) fn roll(&mut self, out: u8, next: u8) {
        self.sum = self
            .sum
            .wrapping_mul(MULTIPLIER)
            .wrapping_add(spread(next))
            .wrapping_sub(self.leaving.wrapping_mul(spread(out)));
    }

    pub(super) fn value(self) -> u64 {
        self.sum
    }
}

fn spread(byte: u8) -> u64 {
    u64::from(byte) + 1
}

/// Blocks by their hash; of those with equal hashes the first.
#[derive(Default)]
pub(super) struct Table {
    // Sorted by hash.
    blocks: Vec<(u64, u32)>,
    // A bit for each of the hashes' upper bits: most look-ups end here.
    filter: Vec<u64>,
    shift: u32,
}

impl Table {
    /// A table of blocks that are numbered as they come.
    pub(super) fn new(hashes: impl Iterator<Item = u64>) -> Table {
        let mut blocks: Vec<(u64, u32)> = hashes.zip(0..).collect();
        blocks.sort_unstable();
        blocks.dedup_by_key(|(hash, _)| *hash);
        // 16 bits a block, 64 at least.
        let bits = (blocks.len().max(4) * 16)
            .next_power_of_two()
            .trailing_zeros();
        let mut filter = vec![0; 1 << (bits - 6)];
        let shift = 64 - bits;
        for (hash, _) in &blocks {
            let bit = hash >> shift;
            filter[(bit >> 6) as usize] |= 1 << (bit & 63);
        }
        Table {
            blocks,
            filter,
            shift,
        }
    }

    /// The number of a block with this hash.
    pub(super) fn find(&self, hash: u64) -> Option<u32> {
        let bit = hash >> self.shift;
        let word = self.filter.get((bit >> 6) as usize)?;
        if word & (1 << (bit & 63)) == 0 {
            return None;
        }
        let at = self
            .blocks
            .binary_search_by_key(&hash, |(hash, _)| *hash)
            .ok()?;
        self.blocks.get(at).map(|(_, number)| *number)
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rolled_window_has_the_hash_of_its_bytes() {
        let bytes: Vec<u8> = (0..5000u32).map(|n| ((n * n) >> 3) as u8).collect();
        let mut rolling = Rolling::of(&bytes[..100]);
        for at in 1..4900 {
            rolling.roll(bytes[at - 1], bytes[at + 99]);
            assert_eq!(rolling.value(), Rolling::of(&bytes[at..at + 100]).value());
        }
    }

    #[test]
    fn what_is_in_the_table_is_found() {
        let hash = |n: u64| n.wrapping_mul(MULTIPLIER);
        let table = Table::new((0..1000).chain(0..5).map(hash));
        for n in 0..1000 {
            assert_eq!(table.find(hash(n)), Some(n as u32));
        }
        assert!((1000..9000).all(|n| table.find(hash(n)).is_none()));
        assert_eq!(Table::default().find(5), None);
    }
}
