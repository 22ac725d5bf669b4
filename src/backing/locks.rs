//! The locks of the objects: striped by id, taken in the order of the stripes.

use crate::model::FileId;
use parking_lot::{Mutex, MutexGuard};

/// How many stripes there are. Two objects share one now and then, which costs only a wait.
const STRIPES: usize = 1024;

/// The most objects that one operation locks: a rename has two directories and two entries.
const HELD_MAX: usize = 4;

/// All stripes.
pub(super) struct Locks {
    stripes: Box<[Mutex<()>]>,
}

/// The locks of one operation.
pub(super) struct Held<'a> {
    _guards: [Option<MutexGuard<'a, ()>>; HELD_MAX],
}

impl Locks {
    pub(super) fn new() -> Locks {
        Locks {
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        }
    }

    /// Locks the objects, at most [`HELD_MAX`]. A thread never calls this while it holds some.
    pub(super) fn lock(&self, ids: &[FileId]) -> Held<'_> {
        assert!(
            ids.len() <= HELD_MAX,
            "an operation locks at most {HELD_MAX} objects"
        );
        let mut wanted = [usize::MAX; HELD_MAX];
        for (slot, id) in wanted.iter_mut().zip(ids) {
            *slot = usize::try_from(id.0 % STRIPES as u64).unwrap_or(0);
        }
        wanted.sort_unstable();
        let mut guards = [const { None }; HELD_MAX];
        let mut last = usize::MAX;
        for (guard, stripe) in guards.iter_mut().zip(wanted) {
            if stripe != last
                && let Some(mutex) = self.stripes.get(stripe)
            {
                *guard = Some(mutex.lock());
            }
            last = stripe;
        }
        Held { _guards: guards }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stripe_is_taken_once_and_orders_do_not_deadlock() {
        let locks = Locks::new();
        let same = FileId(7 + STRIPES as u64);
        drop(locks.lock(&[FileId(7), same, FileId(7)]));
        std::thread::scope(|scope| {
            for order in [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3]] {
                let locks = &locks;
                scope.spawn(move || {
                    for _ in 0..2000 {
                        drop(locks.lock(&order.map(FileId)));
                    }
                });
            }
        });
    }
}
