//! The table of open files and directories: one descriptor each, as a native process has it.

use super::directories::Stream;
use super::types::HandleId;
use crate::model::FileId;
use dashmap::DashMap;
use parking_lot::Mutex;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open file or directory.
pub(super) struct Handle {
    pub(super) id: FileId,
    pub(super) file: Arc<File>,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Each write is durable before it is answered (`O_SYNC`, `O_DSYNC`).
    pub(super) sync: bool,
    /// Of a directory: where its reader is.
    pub(super) stream: Option<Mutex<Stream>>,
}

/// The table.
#[derive(Default)]
pub(super) struct Handles {
    table: DashMap<HandleId, Arc<Handle>>,
    last: AtomicU64,
}

impl Handles {
    pub(super) fn insert(&self, handle: Handle) -> HandleId {
        let key = HandleId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.table.insert(key, Arc::new(handle));
        key
    }

    pub(super) fn get(&self, key: HandleId) -> Option<Arc<Handle>> {
        self.table.get(&key).map(|handle| Arc::clone(&handle))
    }

    pub(super) fn remove(&self, key: HandleId) -> Option<Arc<Handle>> {
        self.table.remove(&key).map(|(_, handle)| handle)
    }

    pub(super) fn count(&self) -> usize {
        self.table.len()
    }
}
