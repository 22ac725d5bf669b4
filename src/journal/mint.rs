//! New file ids (invariant I13: none is used twice, also after a crash).

use crate::limits::FILE_IDS_RESERVED;
use crate::model::FileId;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// Makes it durable that all ids below the given one may be in use.
pub type Reserve = Arc<dyn Fn(FileId) -> io::Result<()> + Send + Sync>;

/// How often a reservation that failed is tried again while there are ids left.
const ATTEMPT_EVERY: u64 = 1024;

pub(super) struct Mint {
    next: AtomicU64,
    reserved: AtomicU64,
    reserving: Mutex<()>,
    reserve: Reserve,
    failed: AtomicBool,
}

impl Mint {
    pub fn new(next: FileId, reserve: Reserve) -> Mint {
        let next = next.0.max(FileId::FIRST.0);
        Mint {
            next: AtomicU64::new(next),
            reserved: AtomicU64::new(next),
            reserving: Mutex::new(()),
            reserve,
            failed: AtomicBool::new(false),
        }
    }

    pub fn mint(&self) -> FileId {
        let id = self.next.fetch_add(1, SeqCst);
        let reserved = self.reserved.load(SeqCst);
        let needed = id >= reserved;
        // Half a range ahead, so that a state disk that is full for a while does not matter.
        let soon = id + FILE_IDS_RESERVED / 2 >= reserved && id.is_multiple_of(ATTEMPT_EVERY);
        if needed || soon {
            self.reserve(id);
        }
        FileId(id)
    }

    /// Ids up to this one are in use: what the replica calls its objects.
    pub fn skip(&self, used: FileId) {
        self.next.fetch_max(used.0.saturating_add(1), SeqCst);
    }

    fn reserve(&self, id: u64) {
        let _one = self.reserving.lock();
        let reserved = self.reserved.load(SeqCst);
        if id + FILE_IDS_RESERVED / 2 < reserved {
            return;
        }
        let upto = reserved.max(id + 1) + FILE_IDS_RESERVED;
        match (self.reserve)(FileId(upto)) {
            Ok(()) => {
                self.reserved.store(upto, SeqCst);
                self.failed.store(false, SeqCst);
            }
            Err(error) => {
                // The id is used all the same: nobody's work stops for a state disk. It is used
                // twice only if the machine crashes now, and then nothing on a disk knows it,
                // since whatever does (manifest, index) also says how high the ids went.
                if !self.failed.swap(true, SeqCst) {
                    tracing::error!(%error, "cannot reserve file ids in the state directory");
                }
            }
        }
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_reserved_before_they_are_used() {
        let upto = Arc::new(AtomicU64::new(0));
        let full = Arc::new(AtomicBool::new(false));
        let (seen, is_full) = (Arc::clone(&upto), Arc::clone(&full));
        let reserve: Reserve = Arc::new(move |id: FileId| {
            if is_full.load(SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            seen.store(id.0, SeqCst);
            Ok(())
        });
        let mint = Mint::new(FileId(0), reserve);
        assert_eq!(mint.mint(), FileId::FIRST);
        for _ in 0..3 * FILE_IDS_RESERVED {
            assert!(mint.mint().0 < upto.load(SeqCst));
        }
        full.store(true, SeqCst);
        let left = upto.load(SeqCst) - mint.mint().0;
        assert!(left >= FILE_IDS_RESERVED / 2, "it is reserved ahead");
        for _ in 0..2 * FILE_IDS_RESERVED {
            mint.mint();
        }
        assert!(mint.has_failed());
        full.store(false, SeqCst);
        assert!(mint.mint().0 < upto.load(SeqCst));
        assert!(!mint.has_failed());
    }
}
