//! An epoch that was abandoned goes into the one that followed it.

use super::{Change, Epoch, Held};
use crate::journal::Result;
use crate::journal::known::Known;
use crate::journal::sealed::Sealed;
use crate::model::{FileId, Name};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// How many names of a directory are looked at in one go.
const PAGE: usize = 256;

impl Epoch {
    /// Takes in everything an abandoned epoch knew. Operations go on meanwhile; those that look
    /// at both epochs, this one first, see each name at all times.
    ///
    /// `uncertain`: its commit may have been sent. Then the index may come to know what was born
    /// in it, and what it bound must be said again even if nothing is left of it.
    pub fn fold(&self, older: &Epoch, uncertain: bool) {
        for shard in older.names.iter() {
            // Not both locks at once: the shards of two epochs have no order.
            let copy: Vec<(FileId, Vec<(Name, Held)>)> = {
                let shard = shard.lock();
                let rows = shard.iter().map(|(&parent, names)| {
                    (
                        parent,
                        names
                            .iter()
                            .map(|(name, &bound)| (name.clone(), bound))
                            .collect(),
                    )
                });
                rows.collect()
            };
            for (parent, names) in copy {
                self.fold_names(parent, names, uncertain);
            }
        }
        for shard in older.objects.iter() {
            let copy: Vec<(FileId, Change)> = {
                let shard = shard.lock();
                shard
                    .changes
                    .iter()
                    .map(|(&id, change)| (id, change.clone()))
                    .collect()
            };
            for (id, change) in copy {
                self.change(id, |now| now.fold(&change, uncertain));
            }
        }
        let inodes: Vec<(u64, FileId)> = older
            .inodes
            .lock()
            .iter()
            .map(|(&i, &id)| (i, id))
            .collect();
        for (inode, id) in inodes {
            self.inodes.lock().entry(inode).or_insert(id);
        }
        let revived = std::mem::take(&mut *older.revived.lock());
        self.revived.lock().extend(revived);
        self.oldest.fetch_min(older.oldest.load(SeqCst), SeqCst);
        self.records.fetch_add(older.records(), SeqCst);
    }

    fn fold_names(&self, parent: FileId, names: Vec<(Name, Held)>, uncertain: bool) {
        // What a directory held before it was revived is not there any more. Held until all are
        // in, so that it cannot be revived in between.
        let revived = self.revived.lock();
        if revived.contains(&parent) {
            return;
        }
        for (name, bound) in names {
            let keep = bound.keep || uncertain;
            self.bind_older(parent, &name, Held { keep, ..bound });
        }
    }

    /// The index may yet become that after this epoch, which was folded into this one.
    pub fn doubt(&self, sealed: Arc<Sealed>) {
        *self.doubtful.lock() = Some(sealed);
    }

    /// Whether the replica may have lost an object by the epoch that was folded into this one.
    pub fn may_have_lost(&self, id: FileId) -> bool {
        let doubtful = self.doubtful.lock().clone();
        doubtful.is_some_and(|sealed| sealed.removes(id))
    }

    /// Notes that an object is in this epoch though the sealed one takes it from the replica: it
    /// is as good as new, and a directory as good as empty.
    pub fn revive(&self, id: FileId) {
        self.revived.lock().insert(id);
        self.change(id, |change| change.revived = true);
    }

    /// Once the epoch is sealed, which index it changes is certain. What was revived and is
    /// still in it was not taken away after all, since that epoch was abandoned: it is not new,
    /// and of what a directory held only that is left which was found again.
    pub fn settle_revived(&self, index: &dyn Known) -> Result<()> {
        let certain = self.doubtful.lock().take();
        drop(certain);
        let revived: Vec<FileId> = self.revived.lock().iter().copied().collect();
        for id in revived {
            let still_there = index.size(id)?.is_some();
            if still_there {
                self.unbind_all(id, index)?;
            }
            self.change_known(id, |change| {
                change.new &= !still_there;
                change.revived = false;
            });
            self.revived.lock().remove(&id);
        }
        Ok(())
    }

    fn unbind_all(&self, directory: FileId, index: &dyn Known) -> Result<()> {
        let mut after: Option<Name> = None;
        loop {
            let page = index.children(directory, after.as_ref(), PAGE)?;
            for (name, _) in &page {
                self.bind_older(
                    directory,
                    name,
                    Held {
                        holder: None,
                        keep: true,
                    },
                );
            }
            if page.len() < PAGE {
                return Ok(());
            }
            after = page.into_iter().next_back().map(|(name, _)| name);
        }
    }
}
