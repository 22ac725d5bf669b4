//! The replica's records replace the index: at the first contact, after an adoption, and whenever
//! the two do not know the same epoch. What is on disk here is then compared by content.

use super::driver::End;
use super::session::Session;
use super::{FailureKind, Suspicion};
use crate::model::{Commit, EpochId, Incarnation, RootHash, Timestamp};
use crate::records::Durability;
use crate::sender::Event;
use crate::wire::{ToPrimary, ToReplica};
use std::sync::atomic::Ordering;

impl Session<'_> {
    /// Asks for the records and makes them the index.
    pub(super) fn fetch_records(&mut self, consistent: bool) -> Result<(), End> {
        // Nothing consistent is sealed before a walk has compared everything.
        let shared = self.driver.shared.clone();
        shared.fetching.store(true, Ordering::SeqCst);
        self.send(&ToReplica::FetchRecords, None)?;
        self.flush()?;
        let index = self.driver.options.index.clone();
        let mut change = index.replace()?;
        loop {
            let Event::Records(records) = self.wait_for_message()? else {
                continue;
            };
            match records {
                ToPrimary::Records(items) => {
                    for item in &items {
                        change.item(item).map_err(|error| unusable(&error))?;
                    }
                }
                ToPrimary::RecordsEnd {
                    epoch,
                    digest,
                    root_hash,
                } => {
                    let commit = imported(epoch, digest, consistent);
                    let applied = change
                        .commit(&commit, Durability::Immediate)
                        .map_err(|error| unusable(&error))?;
                    self.same_tree(applied.state.root_hash, root_hash)?;
                    let highest = applied.state.highest_id;
                    self.driver.options.journal.skip_ids(highest);
                    break;
                }
                _ => {}
            }
        }
        self.driver.roots.clear();
        (self.driver.options.suspect)(Suspicion::Everything);
        shared.fetching.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn same_tree(&self, ours: RootHash, theirs: RootHash) -> Result<(), End> {
        if ours == theirs {
            return Ok(());
        }
        let message = format!("the replica's records do not add up: {ours} here, {theirs} there");
        let next = "run `mirrorfs recover TARGET` on the backup host, then mount again";
        Err(End::halted(FailureKind::Protocol, message, next))
    }
}

fn unusable(error: &crate::records::Error) -> End {
    let message = format!(
        "the replica's records cannot be used: {}",
        super::chain(error)
    );
    End::lost(FailureKind::Protocol, message, None)
}

/// A commit that stands for the state that was fetched.
fn imported(epoch: EpochId, digest: [u8; 32], consistent: bool) -> Commit {
    Commit {
        epoch,
        parent: EpochId(0),
        incarnation: Incarnation(0),
        sealed_at: Timestamp::default(),
        consistent,
        entries: 0,
        digest,
    }
}
