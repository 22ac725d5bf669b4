//! The journal against a tree and a replica in memory.

mod borders;
mod hot;
mod model;
mod ship;
mod threads;
mod tree;
mod world;

use super::{Journal, Known, Limits, Options, Suspects};
use crate::model::{EpochId, FileId, Name};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn directory(path: &Path) -> OwnedFd {
    std::fs::File::open(path).expect("a directory").into()
}

/// A directory whose syncs cost nothing, where there is one.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

fn start(path: &Path, index: Arc<dyn Known>, limits: Limits) -> (Journal, Suspects) {
    let options = Options {
        directory: directory(path),
        next_epoch: EpochId(1),
        next_id: FileId::FIRST,
        reserve: Arc::new(|_| Ok(())),
    };
    Journal::start(options, index, limits).expect("a journal")
}
