//! Reading directories: a real descriptor per reader, whose cookies are the kernel's own, so that
//! an entry that is there all the time is seen exactly once whatever is removed meanwhile.

use super::handles::Handle;
use super::inspect::is_gone;
use super::types::{DirectoryEntry, HandleId, Kind};
use super::{Backing, errno};
use crate::model::{FileId, Name, RESERVED_NAME};
use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How much of a directory is read in one go, in bytes.
const READ_BYTES: usize = 32 * 1024;

/// Where a reader of a directory is.
#[derive(Default)]
pub(super) struct Stream {
    // Where the entry at the front of `ahead` begins: what the reader should ask for next.
    position: u64,
    // Entries that were read and not yet given.
    ahead: VecDeque<RawEntry>,
}

struct RawEntry {
    inode: u64,
    next: u64,
    kind: Option<Kind>,
    name: Box<[u8]>,
}

impl Stream {
    /// Goes to a cookie, if the reader is not there yet.
    fn seek(&mut self, directory: impl AsFd, offset: u64) -> io::Result<()> {
        if offset != self.position || offset == 0 {
            self.ahead.clear();
            rustix::fs::seek(directory, SeekFrom::Start(offset))?;
            self.position = offset;
        }
        Ok(())
    }

    /// The next entry, which stays the next until [`Stream::taken`]; `None` at the end.
    fn peek(&mut self, directory: impl AsFd) -> io::Result<Option<&RawEntry>> {
        if self.ahead.is_empty() {
            let mut buffer = [const { MaybeUninit::uninit() }; READ_BYTES];
            let mut raw = RawDir::new(directory.as_fd(), &mut buffer);
            while let Some(entry) = raw.next() {
                let entry = entry?;
                self.ahead.push_back(RawEntry {
                    inode: entry.ino(),
                    next: entry.next_entry_cookie(),
                    kind: kind(entry.file_type()),
                    name: entry.file_name().to_bytes().into(),
                });
                if raw.is_buffer_empty() {
                    break;
                }
            }
        }
        Ok(self.ahead.front())
    }

    fn taken(&mut self) {
        if let Some(entry) = self.ahead.pop_front() {
            self.position = entry.next;
        }
    }
}

fn kind(file_type: FileType) -> Option<Kind> {
    Some(match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::Unknown => return None,
    })
}

fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

fn is_hidden(directory: FileId, name: &[u8]) -> bool {
    directory == FileId::ROOT && name == RESERVED_NAME.as_bytes()
}

impl Backing {
    /// Opens a directory for reading.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_directory(&self, id: FileId) -> io::Result<HandleId> {
        let opened = self.open_to_read(id)?;
        let handle = self.handles.insert(Handle {
            id,
            file: Arc::new(File::from(opened)),
            readable: true,
            writable: false,
            sync: false,
            stream: Some(Mutex::default()),
        });
        self.nodes.attach(id, handle);
        Ok(handle)
    }

    fn open_to_read(&self, id: FileId) -> io::Result<OwnedFd> {
        let path = self.directory(id)?;
        self.open_at(
            &*path,
            b".",
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )
    }

    /// Gives the entries from `offset` (0, or an entry's `next`) to `take` until it answers
    /// `false`, which means that it did not take that entry. With attributes each entry but `.`
    /// and `..` counts as one lookup.
    ///
    /// # Errors
    /// Those of getdents(2); an error behind the first entry is told by the next call.
    pub fn read_directory(
        &self,
        id: FileId,
        handle: HandleId,
        offset: u64,
        with_attributes: bool,
        take: &mut dyn FnMut(&DirectoryEntry<'_>) -> bool,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle).ok_or_else(|| errno(libc::EBADF))?;
        let stream = handle.stream.as_ref().ok_or_else(|| errno(libc::ENOTDIR))?;
        let mut stream = stream.lock();
        stream.seek(&*handle.file, offset)?;
        let mut given = false;
        loop {
            let entry = match stream.peek(&*handle.file) {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(()),
                Err(_) if given => return Ok(()),
                Err(error) => return Err(error),
            };
            if !is_hidden(id, &entry.name) {
                match self.give_entry(id, handle.file.as_fd(), entry, with_attributes, take) {
                    Ok(true) => given = true,
                    Ok(false) => return Ok(()),
                    // Removed since it was read.
                    Err(error) if is_gone(&error) => {}
                    Err(_) if given => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            stream.taken();
        }
    }

    fn give_entry(
        &self,
        directory: FileId,
        opened: BorrowedFd<'_>,
        entry: &RawEntry,
        with_attributes: bool,
        take: &mut dyn FnMut(&DirectoryEntry<'_>) -> bool,
    ) -> io::Result<bool> {
        let (next, name) = (entry.next, &*entry.name);
        if is_dots(name) {
            let id = if name == b".." {
                self.parent(directory)
            } else {
                directory
            };
            let kind = Kind::Directory;
            return Ok(take(&DirectoryEntry {
                id,
                next,
                kind,
                name,
                attr: None,
            }));
        }
        let Ok(own_name) = Name::new(name) else {
            return Ok(true);
        };
        if !with_attributes && let Some(kind) = entry.kind {
            let id = self.nodes.by_inode(entry.inode);
            let id = match id {
                Some(id) => id,
                None => self.shown_id(directory, &own_name, entry.inode),
            };
            return Ok(take(&DirectoryEntry {
                id,
                next,
                kind,
                name,
                attr: None,
            }));
        }
        let (id, seen) = self.arrive(opened, &(directory, own_name))?;
        let attr = with_attributes.then(|| seen.attr(id));
        let taken = take(&DirectoryEntry {
            id,
            next,
            kind: seen.kind(),
            name,
            attr,
        });
        if !(taken && with_attributes) {
            self.forget(id, 1);
        }
        Ok(taken)
    }

    /// `d_ino` of what the kernel does not know: its id if it has one; else the inode number,
    /// which like an id is not 0, until the first lookup.
    fn shown_id(&self, directory: FileId, name: &Name, inode: u64) -> FileId {
        let known = self.journal.known_child(directory, name).ok().flatten();
        known.unwrap_or(FileId(inode | 1 << 62))
    }

    fn parent(&self, directory: FileId) -> FileId {
        if directory == FileId::ROOT {
            return FileId::ROOT;
        }
        self.nodes
            .place(directory)
            .map_or(FileId::ROOT, |(parent, _)| parent)
    }

    /// The names that a directory really has, for a walk: without `.`, `..` and the reserved one.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn list(&self, directory: FileId) -> io::Result<Listing> {
        let opened = self.open_to_read(directory)?;
        Ok(Listing {
            directory,
            opened,
            stream: Stream::default(),
        })
    }
}

/// A reader of the names of a directory.
pub struct Listing {
    directory: FileId,
    opened: OwnedFd,
    stream: Stream,
}

impl Listing {
    /// Up to `max` further names (at least one is asked for); none at the end.
    ///
    /// # Errors
    /// Those of getdents(2).
    pub fn next(&mut self, max: usize) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        while names.len() < max.max(1) {
            let Some(entry) = self.stream.peek(&self.opened)? else {
                break;
            };
            if !is_dots(&entry.name)
                && !is_hidden(self.directory, &entry.name)
                && let Ok(name) = Name::new(&entry.name)
            {
                names.push(name);
            }
            self.stream.taken();
        }
        Ok(names)
    }
}
