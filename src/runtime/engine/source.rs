//! The backing directory, as the planner reads it.

use crate::backing::Backing;
use crate::disk::Snapshot;
use crate::journal::Journal;
use crate::model::FileId;
use crate::plan;
use std::fs::File;
use std::io;
use std::sync::Arc;

pub(super) struct Source {
    pub(super) backing: Arc<Backing>,
    pub(super) journal: Arc<Journal>,
}

impl plan::Source for Source {
    fn open(&self, id: FileId) -> io::Result<File> {
        self.backing.open_object(id)
    }
    fn kept(&self, id: FileId) -> Option<File> {
        self.journal.kept(id)
    }
    fn snapshot(&self, id: FileId) -> io::Result<Snapshot> {
        self.backing.snapshot(id)
    }
}
