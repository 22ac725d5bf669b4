//! The file `hot` in the state directory.
//!
//! Slots of 16 bytes. The first is the head: 8 bytes magic, version (u32), checksum (u32). Each
//! other one is a record: file id (u64), kind (u32), checksum (u32); all little-endian, the
//! checksum is crc32 of what stands before it in the slot. Slots that were not written are
//! zero, which no record is.
//!
//! The file is written whole, and replaced whole when its slots run out, so that an append
//! changes neither its size nor its blocks: it needs no space, and the fdatasync behind it no
//! metadata. A torn append leaves slots that are not valid, and that nobody was told of.

use crate::disk;
use crate::model::FileId;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub(super) const FILE: &str = "hot";
const MAGIC: [u8; 8] = *b"mfs-hot\n";
const VERSION: u32 = 1;
const SLOT: usize = 16;
const KIND_FILE: u32 = 1;
const KIND_EVERYTHING: u32 = 2;

/// What the file names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Content {
    pub files: Vec<FileId>,
    pub everything: bool,
}

/// The open file.
pub(super) struct Log {
    directory: Arc<OwnedFd>,
    // None after a replacement that failed half-way.
    file: Option<File>,
    slots: usize,
    used: usize,
}

impl Log {
    /// Reads what is there. `everything` if that cannot be told: no file, a damaged one, or one
    /// of a version that is not known.
    pub fn read(directory: &Arc<OwnedFd>, slots: usize) -> io::Result<Content> {
        let unknown = Content {
            files: Vec::new(),
            everything: true,
        };
        // Another bound may have held when it was written.
        let bytes_max = slots.saturating_mul(SLOT).max(16 << 20);
        let bytes = match disk::read_file(&**directory, FILE, bytes_max) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(unknown),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(unknown),
            Err(error) => return Err(error),
        };
        let mut slots = bytes.chunks_exact(SLOT);
        if slots.next() != Some(&head()[..]) {
            return Ok(unknown);
        }
        let mut content = Content::default();
        // All that are valid, also behind one that is not: to name too many does no harm.
        for (id, kind) in slots.filter_map(parse) {
            match kind {
                KIND_FILE => content.files.push(id),
                KIND_EVERYTHING => content.everything = true,
                _ => return Ok(unknown),
            }
        }
        content.files.sort_unstable();
        content.files.dedup();
        Ok(content)
    }

    /// A new file with `content`.
    pub fn create(directory: Arc<OwnedFd>, slots: usize, content: &Content) -> io::Result<Log> {
        let mut log = Log {
            directory,
            file: None,
            slots,
            used: 0,
        };
        log.rewrite(content)?;
        Ok(log)
    }

    /// How many records can be appended.
    pub fn room(&self) -> usize {
        if self.file.is_some() {
            self.slots - self.used
        } else {
            0
        }
    }

    /// Replaces the file. Durable when it returns.
    pub fn rewrite(&mut self, content: &Content) -> io::Result<()> {
        self.file = None;
        let mut bytes = Vec::with_capacity(self.slots * SLOT);
        bytes.extend(head());
        bytes.extend(records(content));
        let used = bytes.len() / SLOT;
        bytes.resize(bytes.len().max(self.slots * SLOT), 0);
        disk::replace_file(&*self.directory, FILE, &bytes)?;
        let flags =
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW;
        let mode = rustix::fs::Mode::empty();
        self.file = Some(rustix::fs::openat(&*self.directory, FILE, flags, mode)?.into());
        self.used = used.min(self.slots);
        Ok(())
    }

    /// Adds records, at most [`Log::room`]. Durable when it returns. After an error the file
    /// must be rewritten: what the kernel has of it may never reach the disk.
    pub fn append(&mut self, content: &Content) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let bytes: Vec<u8> = records(content).collect();
        file.write_all_at(&bytes, (self.used * SLOT) as u64)?;
        file.sync_data()?;
        self.used += bytes.len() / SLOT;
        Ok(())
    }
}

fn head() -> [u8; SLOT] {
    slot(MAGIC, VERSION)
}

fn records(content: &Content) -> impl Iterator<Item = u8> {
    let everything = content.everything.then(|| slot([0; 8], KIND_EVERYTHING));
    let files = content
        .files
        .iter()
        .map(|id| slot(id.0.to_le_bytes(), KIND_FILE));
    everything.into_iter().chain(files).flatten()
}

fn slot(first: [u8; 8], second: u32) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(&first);
    slot[8..12].copy_from_slice(&second.to_le_bytes());
    let sum = crc32fast::hash(&slot[..12]);
    slot[12..].copy_from_slice(&sum.to_le_bytes());
    slot
}

fn parse(bytes: &[u8]) -> Option<(FileId, u32)> {
    let id: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let kind: [u8; 4] = bytes.get(8..12)?.try_into().ok()?;
    let kind = u32::from_le_bytes(kind);
    (bytes == slot(id, kind)).then_some((FileId(u64::from_le_bytes(id)), kind))
}
