//! From an id to a descriptor: through the names that the object is known under, checked against
//! its inode, or through what has it open. No descriptor is held an object; those of directories
//! and, without handles, of files are cached within bounds.

use super::nodes::Place;
use super::seen::Seen;
use super::types::Kind;
use super::{Backing, broken, errno};
use crate::limits::{DIRECTORY_DESCRIPTORS, FILE_DESCRIPTORS};
use crate::model::FileId;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How many names of an object that the table does not have are tried.
pub(super) const LINKS_MAX: usize = 64;

/// How deep a tree may be to be found from its root; the kernel's own paths end far before.
pub(super) const DEPTH_MAX: usize = 64 * 1024;

/// How often another name of a directory is tried on one way.
const FALLBACKS_MAX: u32 = 4;

/// The caches.
pub(super) struct Descriptors {
    directories: Mutex<LruCache<FileId, Arc<OwnedFd>>>,
    files: Mutex<LruCache<FileId, (Arc<File>, bool)>>,
}

fn cache<V>(entries: usize) -> Mutex<LruCache<FileId, V>> {
    Mutex::new(LruCache::new(
        NonZeroUsize::new(entries).unwrap_or(NonZeroUsize::MIN),
    ))
}

impl Descriptors {
    pub(super) fn new() -> Descriptors {
        Descriptors {
            directories: cache(DIRECTORY_DESCRIPTORS),
            files: cache(FILE_DESCRIPTORS),
        }
    }

    fn directory(&self, id: FileId) -> Option<Arc<OwnedFd>> {
        self.directories.lock().get(&id).cloned()
    }

    fn put_directory(&self, id: FileId, descriptor: &Arc<OwnedFd>) {
        let old = self.directories.lock().push(id, Arc::clone(descriptor));
        drop(old);
    }

    /// A cached file, if it can be written to or need not.
    pub(super) fn file(&self, id: FileId, writable: bool) -> Option<Arc<File>> {
        let mut files = self.files.lock();
        let (file, can_write) = files.get(&id)?;
        (*can_write || !writable).then(|| Arc::clone(file))
    }

    pub(super) fn put_file(&self, id: FileId, file: &Arc<File>, writable: bool) {
        let old = self.files.lock().push(id, (Arc::clone(file), writable));
        drop(old);
    }

    /// The object is forgotten or gone.
    pub(super) fn forget(&self, id: FileId) {
        let directory = self.directories.lock().pop(&id);
        let file = self.files.lock().pop(&id);
        drop((directory, file));
    }

    pub(super) fn clear(&self) {
        self.directories.lock().clear();
        self.files.lock().clear();
    }

    pub(super) fn count(&self) -> usize {
        self.directories.lock().len() + self.files.lock().len()
    }

    /// The process is out of descriptors: half of the cached ones are closed.
    fn shrink(&self) {
        fn halve<V>(cache: &Mutex<LruCache<FileId, V>>) {
            let mut cache = cache.lock();
            for _ in 0..cache.len().div_ceil(2) {
                cache.pop_lru();
            }
        }
        halve(&self.directories);
        halve(&self.files);
    }
}

/// A descriptor of an object; perhaps `O_PATH`, perhaps a handle's.
pub(super) enum Reached {
    /// A file that is open anyway.
    File(Arc<File>),
    /// One that is held for longer.
    Held(Arc<OwnedFd>),
    /// Opened for this.
    Fresh(OwnedFd),
}

impl AsFd for Reached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Reached::File(file) => file.as_fd(),
            Reached::Held(fd) => fd.as_fd(),
            Reached::Fresh(fd) => fd.as_fd(),
        }
    }
}

impl Backing {
    /// openat(2) that follows no link. Out of descriptors, the caches shrink and it is tried
    /// once more.
    pub(super) fn open_at(
        &self,
        directory: impl AsFd,
        name: &[u8],
        flags: OFlags,
        mode: Mode,
    ) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = directory.as_fd();
        self.with_descriptors(|| Ok(rustix::fs::openat(directory, name, flags, mode)?))
    }

    /// Does something that needs a new descriptor.
    pub(super) fn with_descriptors<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                self.descriptors.shrink();
                open()
            }
            opened => opened,
        }
    }

    /// Opens again, with other flags, what a descriptor stands for.
    pub(super) fn reopen(&self, descriptor: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
        let path = proc_path(descriptor.as_fd());
        let flags = flags | OFlags::CLOEXEC;
        self.with_descriptors(|| Ok(rustix::fs::open(path.as_str(), flags, Mode::empty())?))
    }

    /// The names an object is known under: where the kernel saw it, then the known tree's.
    pub(super) fn places(&self, id: FileId) -> io::Result<Vec<Place>> {
        let mut places = self.nodes.places(id);
        if !self.is_excluded(id) && (places.is_empty() || self.nodes.view(id).is_none()) {
            for place in self.journal.known_links(id, LINKS_MAX).map_err(broken)? {
                // A directory that has left for what is excluded takes along names that nobody
                // unbinds; the known tree does not reach them, so they may hold anything.
                if !places.contains(&place) && !self.name_excluded(place.0, &place.1, false) {
                    places.push(place);
                }
            }
        }
        Ok(places)
    }

    /// Whether what was found under a name is the object; ESTALE if another one has taken it.
    pub(super) fn check(&self, id: FileId, place: &Place, seen: &Seen) -> io::Result<()> {
        if self.is_there(id, place, seen)? {
            Ok(())
        } else {
            Err(errno(libc::ESTALE))
        }
    }

    fn is_there(&self, id: FileId, place: &Place, seen: &Seen) -> io::Result<bool> {
        if let Some(node) = self.nodes.view(id) {
            let same = node.key == seen.key && node.birth == seen.stamp.birth;
            return Ok(same && node.kind == seen.kind());
        }
        if let Some(known) = self.journal.overlay_place(id) {
            return Ok(known == (seen.stamp.inode, seen.stamp.birth));
        }
        match self.index.object(id).map_err(broken)? {
            Some(record) if record.stamp.inode != 0 => {
                Ok(record.stamp.inode == seen.stamp.inode && seen.may_be(&record.object.fixed))
            }
            // Its inode is not written down anywhere. Without locks its name may have moved
            // between a look at the known tree and the open; then it is not known any more.
            _ => Ok(self
                .journal
                .known_child(place.0, &place.1)
                .map_err(broken)?
                == Some(id)),
        }
    }

    /// The descriptor (`O_PATH`) of a directory.
    ///
    /// # Errors
    /// ESTALE if it is not where it is known to be.
    pub(super) fn directory(&self, id: FileId) -> io::Result<Arc<OwnedFd>> {
        self.directory_within(id, FALLBACKS_MAX)
    }

    fn directory_within(&self, id: FileId, fallbacks: u32) -> io::Result<Arc<OwnedFd>> {
        let mut way: Vec<(FileId, Vec<Place>)> = Vec::new();
        let mut at = id;
        let mut descriptor = loop {
            if at == FileId::ROOT {
                break Arc::clone(&self.root);
            }
            if let Some(descriptor) = self.descriptors.directory(at) {
                break descriptor;
            }
            let places = self.places(at)?;
            let Some((parent, _)) = places.first() else {
                break self.nodes.kept(at).ok_or_else(|| errno(libc::ESTALE))?;
            };
            let parent = *parent;
            if way.len() >= DEPTH_MAX {
                return Err(errno(libc::ELOOP));
            }
            way.push((at, places));
            at = parent;
        };
        while let Some((at, places)) = way.pop() {
            let mut found = Err(errno(libc::ESTALE));
            for (number, place) in places.iter().enumerate() {
                if number > 0 {
                    let Some(left) = fallbacks.checked_sub(1) else {
                        break;
                    };
                    let Ok(other) = self.directory_within(place.0, left) else {
                        continue;
                    };
                    descriptor = other;
                }
                found = self.open_directory_at(&descriptor, place, at);
                if found.is_ok() {
                    break;
                }
            }
            descriptor = Arc::new(found?);
            self.descriptors.put_directory(at, &descriptor);
        }
        Ok(descriptor)
    }

    fn open_directory_at(
        &self,
        parent: &OwnedFd,
        place: &Place,
        id: FileId,
    ) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let found = self.open_at(parent, place.1.as_bytes(), flags, Mode::empty());
        let found = found.map_err(missing_is_stale)?;
        self.check(id, place, &Seen::open(&found, self.home)?)?;
        Ok(found)
    }

    /// A descriptor of an object, good for statx, ownership, times, extended attributes and as
    /// `/proc/self/fd/N`.
    pub(super) fn reach(&self, id: FileId) -> io::Result<Reached> {
        if id == FileId::ROOT {
            return Ok(Reached::Held(Arc::clone(&self.root)));
        }
        if let Some(file) = self.open_anyway(id, |_| true) {
            return Ok(Reached::File(file));
        }
        if self
            .nodes
            .view(id)
            .is_some_and(|node| node.kind == Kind::Directory)
        {
            return self.directory(id).map(Reached::Held);
        }
        match self.open_by_name(id, OFlags::PATH) {
            Ok(found) => Ok(Reached::Fresh(found)),
            Err(error) => self.nodes.kept(id).map(Reached::Held).ok_or(error),
        }
    }

    /// The file of a handle of this object that suits.
    pub(super) fn open_anyway(
        &self,
        id: FileId,
        suits: impl Fn(&super::handles::Handle) -> bool,
    ) -> Option<Arc<File>> {
        let handles = self.nodes.handles(id);
        let mut handles = handles
            .into_iter()
            .filter_map(|handle| self.handles.get(handle));
        handles
            .find(|handle| suits(handle))
            .map(|handle| Arc::clone(&handle.file))
    }

    /// Opens an object by the first of its names that still holds it.
    pub(super) fn open_by_name(&self, id: FileId, flags: OFlags) -> io::Result<OwnedFd> {
        let mut last = errno(libc::ESTALE);
        for place in self.places(id)? {
            let opened = self.directory(place.0).and_then(|directory| {
                let found = self.open_at(&*directory, place.1.as_bytes(), flags, Mode::empty())?;
                self.check(id, &place, &Seen::open(&found, self.home)?)?;
                Ok(found)
            });
            match opened {
                Ok(found) => return Ok(found),
                Err(error) => last = missing_is_stale(error),
            }
        }
        Err(last)
    }

    /// How an object looks now, at best with one system call.
    pub(super) fn see(&self, id: FileId) -> io::Result<Seen> {
        if let Some(place) = self.nodes.place(id)
            && let Ok(directory) = self.directory(place.0)
            && let Ok(seen) = Seen::entry(&*directory, place.1.as_bytes(), self.home)
            && self.check(id, &place, &seen).is_ok()
        {
            return Ok(seen);
        }
        Seen::open(self.reach(id)?, self.home)
    }
}

/// A name that the kernel or the known tree had and that is gone: the tree was changed from
/// outside, or the caller's view is old.
fn missing_is_stale(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => errno(libc::ESTALE),
        _ => error,
    }
}

/// The kernel's own link to what a descriptor stands for.
pub(super) fn proc_path(descriptor: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}
