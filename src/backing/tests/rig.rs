//! A backing directory with its journal and index, and a replica in memory.

use crate::backing::inspect::is_gone;
use crate::backing::{Attr, Backing, Caller, HandleId, Kind, Local, Options, SetAttr, WriteHow};
use crate::exclude::Exclude;
use crate::journal::{self, Journal};
use crate::model::{EpochId, FileId};
use crate::records::Records;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub(super) struct Rig {
    pub(super) real: tempfile::TempDir,
    state: tempfile::TempDir,
    exclude: Exclude,
    pub(super) backing: Arc<Backing>,
    pub(super) journal: Arc<Journal>,
    pub(super) index: Records,
    /// What the replica holds of each file.
    pub(super) contents: parking_lot::Mutex<HashMap<FileId, Vec<u8>>>,
    cache: parking_lot::Mutex<Vec<FileId>>,
}

pub(super) const ME: Caller = Caller { uid: 0, gid: 0 };

impl Rig {
    pub(super) fn new() -> Rig {
        Rig::with(&[], Local::Os, false)
    }

    pub(super) fn with(patterns: &[&str], local: Local, hold_unlinked: bool) -> Rig {
        let real = tempfile::tempdir().expect("a directory");
        let state = tempfile::tempdir().expect("a directory");
        let index = Records::create(&state.path().join("index")).expect("records");
        let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
        let exclude = Exclude::new(&patterns, &[]).expect("patterns");
        let journal = journal(state.path(), &index, 1, FileId::FIRST);
        let options = options(real.path(), &exclude, local, hold_unlinked);
        let backing = Backing::open(options, Arc::clone(&journal), index.clone());
        Rig {
            backing: backing.expect("opened"),
            real,
            state,
            exclude,
            journal,
            index,
            contents: Default::default(),
            cache: Default::default(),
        }
    }

    /// Unmounted, and mounted again.
    pub(super) fn remount(self) -> Rig {
        let state = self.index.state().expect("state");
        let next = FileId(state.highest_id.0.max(1 << 20) + 1);
        let journal = journal(self.state.path(), &self.index, state.epoch.0 + 1, next);
        let options = options(self.real.path(), &self.exclude, Local::Os, false);
        let backing = Backing::open(options, Arc::clone(&journal), self.index.clone());
        Rig {
            backing: backing.expect("opened"),
            journal,
            ..self
        }
    }

    /// Looks a path up from the root. As with the kernel, the directories above stay known:
    /// until [`Rig::drop_cache`].
    pub(super) fn attr(&self, path: &str) -> io::Result<Attr> {
        let (attr, above) = self.resolve(path)?;
        self.cache.lock().extend(above);
        Ok(attr)
    }

    pub(super) fn find(&self, path: &str) -> io::Result<FileId> {
        self.attr(path).map(|attr| attr.id)
    }

    fn resolve(&self, path: &str) -> io::Result<(Attr, Vec<FileId>)> {
        let mut at = self.backing.getattr(FileId::ROOT, None)?;
        let mut above = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            above.push(at.id);
            let next = match at.kind {
                Kind::Directory => self.backing.lookup(at.id, OsStr::new(part)),
                Kind::Symlink => Err(io::Error::from_raw_os_error(libc::ENOENT)),
                _ => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            };
            match next {
                Ok(next) => at = next,
                Err(error) => {
                    above.into_iter().for_each(|id| self.forget(id));
                    return Err(error);
                }
            }
        }
        Ok((at, above))
    }

    pub(super) fn forget(&self, id: FileId) {
        self.backing.forget(id, 1);
    }

    pub(super) fn drop_cache(&self) {
        let ids = std::mem::take(&mut *self.cache.lock());
        ids.into_iter().for_each(|id| self.forget(id));
    }

    pub(super) fn at<T>(
        &self,
        path: &str,
        act: impl FnOnce(FileId, &OsStr) -> io::Result<T>,
    ) -> io::Result<T> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let (attr, above) = self.resolve(parent)?;
        let result = match attr.kind {
            Kind::Directory => act(attr.id, OsStr::new(name)),
            Kind::Symlink => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            _ => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        };
        self.forget(attr.id);
        above.into_iter().for_each(|id| self.forget(id));
        result
    }

    pub(super) fn on<T>(
        &self,
        path: &str,
        act: impl FnOnce(FileId) -> io::Result<T>,
    ) -> io::Result<T> {
        let (attr, above) = self.resolve(path)?;
        let result = act(attr.id);
        self.forget(attr.id);
        above.into_iter().for_each(|id| self.forget(id));
        result
    }

    pub(super) fn create(&self, path: &str) -> io::Result<(FileId, HandleId)> {
        let flags = libc::O_RDWR | libc::O_EXCL;
        self.at(path, |parent, name| {
            let (attr, handle) = self.backing.create(ME, parent, name, 0o644, 0o022, flags)?;
            Ok((attr.id, handle))
        })
    }

    pub(super) fn make(&self, path: &str, content: &[u8]) -> io::Result<FileId> {
        let (id, handle) = self.create(path)?;
        let written = self
            .backing
            .write(id, Some(handle), 0, content, WriteHow::default());
        self.backing.release(handle);
        self.forget(id);
        written.map(|_| id)
    }

    pub(super) fn mkdir(&self, path: &str) -> io::Result<FileId> {
        let attr = self.at(path, |p, name| {
            self.backing.mkdir(ME, p, name, 0o755, 0o022)
        })?;
        self.forget(attr.id);
        Ok(attr.id)
    }

    pub(super) fn rename(&self, from: &str, to: &str, flags: u32) -> io::Result<()> {
        self.at(from, |old, name| {
            self.at(to, |new, new_name| {
                self.backing.rename(old, name, new, new_name, flags)
            })
        })
    }

    pub(super) fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.on(from, |id| {
            let attr = self.at(to, |parent, name| self.backing.link(id, parent, name))?;
            self.forget(attr.id);
            Ok(())
        })
    }

    pub(super) fn unlink(&self, path: &str) -> io::Result<()> {
        self.at(path, |parent, name| self.backing.unlink(parent, name))
    }

    pub(super) fn rmdir(&self, path: &str) -> io::Result<()> {
        self.at(path, |parent, name| self.backing.rmdir(parent, name))
    }

    pub(super) fn write(&self, path: &str, offset: u64, data: &[u8]) -> io::Result<usize> {
        self.on(path, |id| {
            self.backing
                .write(id, None, offset, data, WriteHow::default())
        })
    }

    pub(super) fn set(&self, path: &str, set: SetAttr) -> io::Result<Attr> {
        self.on(path, |id| self.backing.setattr(id, None, &set))
    }

    /// Walks until nothing is left, as reconcile does.
    pub(super) fn walk(&self) {
        self.backing.begin_walk();
        self.backing.inspect_root().expect("the root");
        self.walk_from(FileId::ROOT);
        self.walk_unwalked();
        self.backing.end_walk();
    }

    pub(super) fn walk_unwalked(&self) {
        loop {
            let directories = self.backing.take_unwalked();
            if directories.is_empty() {
                return;
            }
            directories
                .into_iter()
                .for_each(|directory| self.walk_from(directory));
        }
    }

    fn walk_from(&self, directory: FileId) {
        let Ok(mut listing) = self.backing.list(directory) else {
            return;
        };
        let mut names = Vec::new();
        loop {
            let some = match listing.next(3) {
                Err(error) if is_gone(&error) => return,
                some => some.expect("listed"),
            };
            if some.is_empty() {
                break;
            }
            names.extend(some);
        }
        let known = self
            .journal
            .known_children(directory, None, usize::MAX)
            .expect("known");
        names.extend(known.into_iter().map(|(name, _)| name));
        names.sort();
        names.dedup();
        for name in names {
            let inspected = match self.backing.inspect(directory, &name) {
                // Moved just now; it comes again as unwalked.
                Err(error) if is_gone(&error) => continue,
                inspected => inspected.expect("inspected"),
            };
            if let Some(found) = inspected
                && found.is_directory
            {
                self.walk_from(found.id);
            }
        }
    }
}

fn options(real: &Path, exclude: &Exclude, local: Local, hold_unlinked: bool) -> Options {
    Options {
        root: File::open(real).expect("open").into(),
        local,
        exclude: exclude.clone(),
        privileged: rustix::process::geteuid().is_root(),
        hold_unlinked,
    }
}

fn journal(state: &Path, index: &Records, epoch: u64, next_id: FileId) -> Arc<Journal> {
    let options = journal::Options {
        directory: File::open(state).expect("open").into(),
        next_epoch: EpochId(epoch),
        next_id,
        reserve: Arc::new(|_| Ok(())),
    };
    Arc::new(Journal::open(options, index.clone()).expect("a journal").0)
}
