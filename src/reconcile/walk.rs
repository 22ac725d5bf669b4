//! One directory of a walk: the union of its real and its known names, each inspected once.

use super::tree::Tree;
use crate::limits::WALK_BATCH;
use crate::model::{FileId, Name};
use std::collections::HashSet;
use std::io;

/// A directory to be walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Task {
    pub(super) directory: FileId,
    /// Compare the content of its files, whatever their attributes say.
    pub(super) by_content: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) objects: u64,
    pub(super) found: u64,
    /// Directories in it.
    pub(super) below: Vec<FileId>,
    /// Files whose content was to be compared, and why it cannot be.
    pub(super) unreadable: Vec<(FileId, String)>,
    /// The first error, and how many; the rest of the directory is walked all the same.
    pub(super) failed: Option<(String, u64)>,
}

/// Whether the object that was asked for has been removed meanwhile: nothing is left to do.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESTALE | libc::ENOTDIR)
    )
}

/// The walk was stopped.
#[derive(Debug)]
pub(super) struct Stopped;

/// Walks one directory, remembering up to `seen_max` names. `pause` is called before each
/// inspection; it waits for room.
pub(super) fn directory(
    tree: &dyn Tree,
    task: Task,
    seen_max: usize,
    pause: &mut dyn FnMut() -> Result<(), Stopped>,
) -> Result<Walked, Stopped> {
    let mut walk = Walk {
        tree,
        task,
        walked: Walked::default(),
        pause,
    };
    let mut seen = HashSet::new();
    if let Some(error) = walk.real_names(seen_max, &mut seen)? {
        if is_gone(&error) {
            return Ok(walk.walked);
        }
        walk.failed(None, &error);
    }
    if let Some(error) = walk.known_names(&seen)? {
        walk.failed(None, &error);
    }
    Ok(walk.walked)
}

struct Walk<'a> {
    tree: &'a dyn Tree,
    task: Task,
    walked: Walked,
    pause: &'a mut dyn FnMut() -> Result<(), Stopped>,
}

impl Walk<'_> {
    // Remembers the names that were inspected, as far as the bound goes: what is forgotten is
    // inspected twice, which changes nothing.
    fn real_names(
        &mut self,
        seen_max: usize,
        seen: &mut HashSet<Name>,
    ) -> Result<Option<io::Error>, Stopped> {
        let mut names = match self.tree.list(self.task.directory) {
            Ok(names) => names,
            Err(error) => return Ok(Some(error)),
        };
        loop {
            let batch = match names(WALK_BATCH) {
                Ok(batch) => batch,
                Err(error) => return Ok(Some(error)),
            };
            if batch.is_empty() {
                return Ok(None);
            }
            for name in batch {
                self.inspect(&name)?;
                if seen.len() < seen_max {
                    seen.insert(name);
                }
            }
        }
    }

    fn known_names(&mut self, seen: &HashSet<Name>) -> Result<Option<io::Error>, Stopped> {
        let mut after: Option<Name> = None;
        loop {
            let directory = self.task.directory;
            let batch = match self
                .tree
                .known_children(directory, after.as_ref(), WALK_BATCH)
            {
                Ok(batch) => batch,
                Err(error) => return Ok(Some(error)),
            };
            let Some((last, _)) = batch.last() else {
                return Ok(None);
            };
            after = Some(last.clone());
            for (name, _) in &batch {
                if !seen.contains(name) {
                    self.inspect(name)?;
                }
            }
        }
    }

    fn inspect(&mut self, name: &Name) -> Result<(), Stopped> {
        (self.pause)()?;
        let inspected = match self.tree.inspect(self.task.directory, name) {
            Ok(Some(inspected)) => inspected,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.failed(Some(name), &error);
                return Ok(());
            }
        };
        self.walked.objects += 1;
        let mut found = inspected.was_new || inspected.suspect;
        if inspected.is_directory {
            self.walked.below.push(inspected.id);
        } else if self.task.by_content {
            match self.tree.inspect_object(inspected.id) {
                Ok(_) => found = true,
                Err(error) if is_gone(&error) => {}
                Err(error) => self
                    .walked
                    .unreadable
                    .push((inspected.id, error.to_string())),
            }
        }
        self.walked.found += u64::from(found);
        Ok(())
    }

    fn failed(&mut self, name: Option<&Name>, error: &io::Error) {
        let count = self.walked.failed.as_ref().map_or(0, |(_, count)| *count);
        let first = self.walked.failed.take().map_or_else(
            || name.map_or_else(|| error.to_string(), |name| format!("{name}: {error}")),
            |(first, _)| first,
        );
        self.walked.failed = Some((first, count + 1));
    }
}
