//! Descriptors of removed files, whose content the replica holds: a base for the delta of what
//! takes their place. Only help: any of them may be dropped at any time.

use crate::limits::{BASE_BYTES_MAX, BASE_BYTES_MIN};
use crate::model::FileId;
use rustix::fs::FileType;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// How many files may be removed, one for each place, before nobody expects that something takes
/// the place of the next one: `rm -rf` shall not open every file.
const MISSES_MAX: usize = 4;

/// The bases of one epoch, oldest first.
#[derive(Default)]
pub(super) struct Bases {
    held: VecDeque<(FileId, OwnedFd)>,
    misses: usize,
}

impl Bases {
    /// Whether a removed file is worth to be offered.
    pub fn wanted(&self, max: usize) -> bool {
        self.misses <= max.saturating_mul(MISSES_MAX)
    }

    /// Keeps a descriptor of a regular file of a fitting size; the oldest makes room. What is
    /// not kept is returned.
    pub fn offer(&mut self, id: FileId, descriptor: OwnedFd, max: usize) -> Option<OwnedFd> {
        self.misses += 1;
        if !fits(&descriptor) {
            return Some(descriptor);
        }
        // An object loses its last name once.
        self.held.push_back((id, descriptor));
        if self.held.len() > max {
            self.held.pop_front().map(|(_, gone)| gone)
        } else {
            None
        }
    }

    /// Something took the place of a removed file.
    pub fn used(&mut self) {
        self.misses = 0;
    }

    /// Its content changes, or is not what the replica holds.
    pub fn remove(&mut self, id: FileId) -> Option<OwnedFd> {
        let at = self.held.iter().position(|(held, _)| *held == id)?;
        self.held.remove(at).map(|(_, gone)| gone)
    }

    /// Takes over those of an abandoned epoch, as the oldest, and returns those that are too
    /// many.
    pub fn fold(&mut self, older: Bases, max: usize) -> Vec<OwnedFd> {
        for base in older.held.into_iter().rev() {
            self.held.push_front(base);
        }
        let many = self.held.len().saturating_sub(max);
        self.held.drain(..many).map(|(_, gone)| gone).collect()
    }

    pub fn ids(&self) -> Vec<FileId> {
        self.held.iter().map(|(id, _)| *id).collect()
    }

    pub fn get(&self, id: FileId) -> Option<File> {
        let (_, descriptor) = self.held.iter().find(|(held, _)| *held == id)?;
        descriptor.try_clone().ok().map(File::from)
    }
}

fn fits(descriptor: impl AsFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(descriptor) else {
        return false;
    };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && (BASE_BYTES_MIN..=BASE_BYTES_MAX).contains(&size)
}
