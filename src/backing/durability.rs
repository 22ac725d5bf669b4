//! When changes reach the local disk (`--local`), and what becomes of a sync that failed.
//!
//! A failed sync is sticky (invariant I9): the kernel has marked the pages clean, so that another
//! sync would succeed without anything being on the disk. Every later sync of that object fails
//! with the same errno until the mount ends.

use super::inspect::is_gone;
use super::types::{HandleId, Local};
use super::{Backing, errno};
use crate::limits::PENDING_SYNCS_MAX;
use crate::model::FileId;
use dashmap::DashMap;
use parking_lot::{Condvar, Mutex};
use rustix::fs::OFlags;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

#[derive(Default)]
struct Pending {
    objects: HashSet<FileId>,
    // There were more: the whole file system.
    everything: bool,
}

/// See the module.
pub(super) struct Durability {
    local: Local,
    failed: DashMap<FileId, i32>,
    // A sync of everything has failed: nothing is certain any more.
    all_failed: Mutex<Option<i32>>,
    pending: Mutex<Pending>,
    wake: Arc<(Mutex<bool>, Condvar)>,
    #[cfg(test)]
    pub(super) fault: Mutex<Option<i32>>,
}

impl Durability {
    pub(super) fn new(local: Local) -> Durability {
        Durability {
            local,
            failed: DashMap::new(),
            all_failed: Mutex::new(None),
            pending: Mutex::default(),
            wake: Arc::default(),
            #[cfg(test)]
            fault: Mutex::new(None),
        }
    }

    pub(super) fn failed_count(&self) -> usize {
        self.failed.len() + usize::from(self.all_failed.lock().is_some())
    }

    /// A sync of the object has failed.
    pub(super) fn fail(&self, id: FileId, error: &io::Error) {
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        tracing::error!(%id, %error, "a local sync has failed; all further ones of it will");
        self.failed.entry(id).or_insert(code);
    }

    fn check(&self, id: FileId) -> io::Result<()> {
        let code = self
            .failed
            .get(&id)
            .map(|code| *code)
            .or(*self.all_failed.lock());
        code.map_or(Ok(()), |code| Err(errno(code)))
    }

    fn note(&self, id: FileId) {
        if !matches!(self.local, Local::Close | Local::Interval(_)) {
            return;
        }
        let mut pending = self.pending.lock();
        if pending.objects.len() < PENDING_SYNCS_MAX {
            pending.objects.insert(id);
        } else if !pending.objects.contains(&id) {
            pending.everything = true;
        }
    }

    fn sync(&self, id: FileId, object: BorrowedFd<'_>, data_only: bool) -> io::Result<()> {
        self.check(id)?;
        // What is written from here on is noted again.
        self.pending.lock().objects.remove(&id);
        let synced = self.really_sync(object, data_only);
        if let Err(error) = &synced
            && !is_no_file(error)
        {
            self.fail(id, error);
        }
        synced
    }

    fn really_sync(&self, object: BorrowedFd<'_>, data_only: bool) -> io::Result<()> {
        #[cfg(test)]
        if let Some(code) = self.fault.lock().take() {
            return Err(errno(code));
        }
        if data_only {
            return Ok(rustix::fs::fdatasync(object)?);
        }
        match rustix::fs::fsync(object) {
            Err(rustix::io::Errno::BADF) => crate::disk::sync_directory(object),
            synced => Ok(synced?),
        }
    }
}

/// Whether the object is none that could be synced, so that nothing was lost.
fn is_no_file(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EBADF | libc::EROFS)
    )
}

impl Drop for Durability {
    fn drop(&mut self) {
        *self.wake.0.lock() = true;
        self.wake.1.notify_all();
    }
}

impl Backing {
    /// Makes an object durable: a file or a directory.
    ///
    /// # Errors
    /// Those of fsync(2). Once one has failed, all later ones of this object do.
    pub fn fsync(&self, id: FileId, handle: Option<HandleId>, data_only: bool) -> io::Result<()> {
        if let Some(handle) = handle.and_then(|handle| self.handles.get(handle)) {
            return self.durability.sync(id, handle.file.as_fd(), data_only);
        }
        let is_directory = self
            .nodes
            .view(id)
            .is_some_and(|node| node.kind == super::Kind::Directory);
        if is_directory {
            return self.durability.sync(id, self.directory(id)?.as_fd(), false);
        }
        let file = self
            .file(id, None, false)
            .or_else(|_| self.file(id, None, true))?;
        self.durability.sync(id, file.as_fd(), data_only)
    }

    /// A descriptor of the file is closed (FUSE's FLUSH).
    ///
    /// # Durability
    /// With [`Local::Close`] everything written to the file is on stable storage afterwards.
    ///
    /// # Errors
    /// Those of fsync(2), also of an earlier failed one.
    pub fn flush(&self, id: FileId, handle: Option<HandleId>) -> io::Result<()> {
        self.durability.check(id)?;
        if self.durability.local != Local::Close {
            return Ok(());
        }
        let mut pending = self.durability.pending.lock();
        if pending.objects.contains(&id) {
            drop(pending);
            return self.fsync(id, handle, false);
        }
        let everything = std::mem::take(&mut pending.everything);
        drop(pending);
        if everything {
            self.sync_everything()
        } else {
            Ok(())
        }
    }

    /// Makes everything durable that was changed through this mount (and everything else on its
    /// file system).
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&*self.root)?)
    }

    /// A file's content or length has changed. Its lock is not held any more.
    pub(super) fn wrote(&self, id: FileId, file: impl AsFd) -> io::Result<()> {
        if self.durability.local == Local::Always {
            return self.durability.sync(id, file.as_fd(), true);
        }
        self.durability.note(id);
        Ok(())
    }

    /// A name in a directory has changed.
    pub(super) fn name_changed(&self, directory: FileId) -> io::Result<()> {
        match self.durability.local {
            Local::Always => {
                self.durability
                    .sync(directory, self.directory(directory)?.as_fd(), false)
            }
            Local::Interval(_) => {
                self.durability.note(directory);
                Ok(())
            }
            Local::Close | Local::Os => Ok(()),
        }
    }

    fn sync_everything(&self) -> io::Result<()> {
        let synced = self.sync();
        if let Err(error) = &synced {
            tracing::error!(%error, "a local sync of everything has failed; all further ones will");
            *self.durability.all_failed.lock() = Some(error.raw_os_error().unwrap_or(libc::EIO));
        }
        synced
    }

    /// Syncs what was changed since the last time. Failures are kept for those who ask.
    fn sync_pending(&self) {
        let (objects, everything) = {
            let mut pending = self.durability.pending.lock();
            let everything = std::mem::take(&mut pending.everything);
            (std::mem::take(&mut pending.objects), everything)
        };
        if everything {
            // It is kept as sticky, and logged.
            let _ = self.sync_everything();
            return;
        }
        for id in objects {
            let synced = match self.reach_to_sync(id) {
                Ok(file) => self.durability.sync(id, file.as_fd(), true),
                Err(error) => Err(error),
            };
            if let Err(error) = synced
                && !is_gone(&error)
                && !is_no_file(&error)
            {
                self.durability.fail(id, &error);
            }
        }
    }

    fn reach_to_sync(&self, id: FileId) -> io::Result<Arc<std::fs::File>> {
        if let Some(file) = self.open_anyway(id, |_| true) {
            return Ok(file);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let opened = match id {
            FileId::ROOT => self.reopen(&*self.root, flags),
            _ => self.open_by_name(id, flags),
        };
        match opened {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                // Not readable by us; any descriptor that can be had will do.
                self.open_by_name(id, OFlags::WRONLY | OFlags::NONBLOCK)
            }
            opened => opened,
        }
        .map(|opened| Arc::new(std::fs::File::from(opened)))
    }
}

/// Starts the thread that syncs at the interval, if there is one. It ends with the backing.
pub(super) fn start_flusher(backing: &Arc<Backing>) -> io::Result<()> {
    let Local::Interval(interval) = backing.durability.local else {
        return Ok(());
    };
    let wake = Arc::clone(&backing.durability.wake);
    let backing = Arc::downgrade(backing);
    std::thread::Builder::new()
        .name("flusher".to_owned())
        .spawn(move || run_flusher(&backing, &wake, interval))?;
    Ok(())
}

fn run_flusher(backing: &Weak<Backing>, wake: &(Mutex<bool>, Condvar), interval: Duration) {
    loop {
        let mut ended = wake.0.lock();
        if !*ended {
            wake.1.wait_for(&mut ended, interval);
        }
        if *ended {
            return;
        }
        drop(ended);
        let Some(backing) = backing.upgrade() else {
            return;
        };
        backing.sync_pending();
    }
}
