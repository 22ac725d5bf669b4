//! The backing directory, as the planner reads it.

use crate::backing::Backing;
use crate::disk::Snapshot;
use crate::model::FileId;
use crate::plan;
use std::fs::File;
use std::io;
use std::sync::Arc;

pub(super) struct Source(pub(super) Arc<Backing>);

impl plan::Source for Source {
    fn open(&self, id: FileId) -> io::Result<File> {
        self.0.open_object(id)
    }
    fn snapshot(&self, id: FileId) -> io::Result<Snapshot> {
        self.0.snapshot(id)
    }
}
