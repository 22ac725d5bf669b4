//! How much may be in flight.

use crate::limits::WINDOW_BYTES;
use std::collections::VecDeque;

/// Entries that were sent and not yet confirmed, with their bytes. Bounded by bytes: an entry is
/// sent only while fewer than [`WINDOW_BYTES`] are unconfirmed, so it holds one entry too many at
/// most.
#[derive(Debug)]
pub struct Window {
    // (sequence, bytes), in order
    unconfirmed: VecDeque<(u64, u64)>,
    bytes: u64,
    confirmed: u64,
}

/// What an entry costs beside its bytes, so that the number of entries is bounded as well.
const ENTRY_COST: u64 = 256;

impl Window {
    /// Nothing in flight; `confirmed` entries are at the replica.
    #[must_use]
    pub fn new(confirmed: u64) -> Window {
        Window {
            unconfirmed: VecDeque::new(),
            bytes: 0,
            confirmed,
        }
    }

    /// Whether another entry may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes < WINDOW_BYTES
    }

    /// How many entries are confirmed.
    #[must_use]
    pub fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// An entry was sent.
    pub fn sent(&mut self, sequence: u64, bytes: u64) {
        self.unconfirmed.push_back((sequence, bytes + ENTRY_COST));
        self.bytes += bytes + ENTRY_COST;
    }

    /// All entries below `entries` are confirmed.
    pub fn confirm(&mut self, entries: u64) {
        self.confirmed = self.confirmed.max(entries);
        while let Some(&(sequence, bytes)) = self.unconfirmed.front()
            && sequence < entries
        {
            self.bytes -= bytes;
            self.unconfirmed.pop_front();
        }
    }
}
