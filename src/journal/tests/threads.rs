//! Operations of several threads while another one seals, plans, abandons and commits.

use super::tree::{Index, State, Tree};
use super::{name, scratch, start};
use crate::journal::{Journal, Limits, Preserve, Sealed};
use crate::model::{Extent, FileId, Fixed, Stamp};
use parking_lot::Mutex;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

const FILES: usize = 6;

/// Each operation writes the same number to two files. A seal is an instant only if no sealed
/// epoch ever tears such a pair, and the numbers of each file never go back.
struct Pairs {
    journal: Journal,
    tree: Tree,
    files: Vec<(FileId, Mutex<()>)>,
    counter: AtomicU64,
    stop: AtomicBool,
}

impl Pairs {
    fn operate(&self, first: usize, second: usize) {
        let (low, high) = (first.min(second), first.max(second));
        let (one, two) = (&self.files[low], &self.files[high]);
        let _locks = (one.1.lock(), two.1.lock());
        let operation = self.journal.begin();
        let number = self.counter.fetch_add(1, SeqCst) + 1;
        for id in [one.0, two.0] {
            // One half says which file the other one is, so that pairs can be found.
            let extent = Extent::new(0, 16);
            operation.before_data(id, extent, &self.tree).expect("ok");
            let mut bytes = number.to_le_bytes().to_vec();
            bytes.extend(((low * FILES + high) as u64).to_le_bytes());
            self.tree.with(id, |_, file| {
                file.expect("a file")
                    .write_all_at(&bytes, 0)
                    .expect("written");
            });
            // Where it matters whether a seal waits for this one.
            std::thread::yield_now();
            operation.data(id, extent);
        }
    }

    /// What the epoch says of each file that it changes.
    fn read(&self, sealed: &Sealed) -> Vec<Option<(u64, u64)>> {
        let read = |id: FileId| {
            sealed.change(id)?;
            let extent = Extent::new(0, 16);
            let mut bytes = Vec::new();
            self.tree.read_at(id, extent, &mut bytes).expect("read");
            std::thread::yield_now();
            bytes.resize(16, 0);
            sealed.patch_saved(id, extent, &mut bytes).expect("patched");
            sealed.read_done(id, extent);
            let half =
                |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            Some((half(0), half(8)))
        };
        self.files.iter().map(|(id, _)| read(*id)).collect()
    }

    fn check(&self, last: &mut [u64], now: &[Option<(u64, u64)>]) {
        for (at, seen) in now.iter().enumerate() {
            let Some((number, pair)) = *seen else {
                continue;
            };
            assert!(number >= last[at], "a file went back in time");
            last[at] = number;
            let pair = usize::try_from(pair).expect("small");
            for other in [pair / FILES, pair % FILES] {
                let (theirs, _) = now[other].expect("both of a pair are in the epoch");
                assert!(theirs >= number, "a pair is torn: {number} beside {theirs}");
            }
        }
    }
}

/// Stops the others also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_seal_is_an_instant() {
    let state = scratch();
    let index = Arc::new(Index::default());
    *index.0.lock() = State::empty();
    let (journal, _) = start(state.path(), index, Limits::default());
    let tree = Tree::new();
    let mut files = Vec::new();
    for at in 0..FILES {
        let id = journal.mint();
        tree.create(id, Fixed::File);
        let operation = journal.begin();
        operation.created(id, &Stamp::default(), 1);
        operation.bind(FileId::ROOT, &name(&format!("f{at}")), id);
        files.push((id, Mutex::new(())));
    }
    let born = journal.seal(true).expect("files");
    assert!(born.finish_reading());
    journal.committed(born.epoch());
    let pairs = Pairs {
        journal,
        tree,
        files,
        counter: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let pairs = &pairs;
            scope.spawn(move || {
                let mut random = thread as u64 + 1;
                while !pairs.stop.load(SeqCst) {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let first = (random >> 33) as usize % FILES;
                    let second = (first + 1 + (random >> 45) as usize % (FILES - 1)) % FILES;
                    pairs.operate(first, second);
                }
            });
        }
        let _stop = Stop(&pairs.stop);
        let mut last = vec![0; FILES];
        let mut round = 0;
        while round < 400 {
            let mark = pairs.journal.mark();
            let Some(sealed) = pairs.journal.seal(true) else {
                std::thread::yield_now();
                continue;
            };
            assert!(sealed.generation() >= mark);
            round += 1;
            let now = pairs.read(&sealed);
            if round % 3 == 0 {
                // Nothing is learned from it, and everything comes again.
                pairs.journal.abandon();
                continue;
            }
            pairs.check(&mut last, &now);
            assert!(sealed.finish_reading());
            pairs.journal.committed(sealed.epoch());
        }
    });
}
