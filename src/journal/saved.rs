//! What a sealed epoch owns of objects that were changed since (invariant I2): bytes in memory,
//! then in an unlinked file; attributes; descriptors of unlinked files.
//!
//! The writer saves before it writes. The reader reads the file first and then patches what it
//! read with what was saved, so that it sees the state of the seal whatever happened between.
//! Once a budget is passed, or a state cannot be read, the epoch is lost as a whole.

use super::Limits;
use super::epoch::Sharded;
use crate::disk::Snapshot;
use crate::limits::{BLOCK_BYTES, FRAGMENT_BYTES_MAX};
use crate::model::{Extent, ExtentSet, FileId};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};

/// How an object is read as it is right now. Called by the operation that is about to change it,
/// with the object's lock held.
pub trait Preserve: Sync {
    /// The bytes of an extent of a file, instead of what `buffer` has. At the end of the file
    /// there are fewer.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read_at(&self, id: FileId, extent: Extent, buffer: &mut Vec<u8>) -> io::Result<()>;

    /// The state of an object, extended attributes included.
    ///
    /// # Errors
    /// When it cannot be read.
    fn stat(&self, id: FileId) -> io::Result<Snapshot>;

    /// A descriptor to read a file with.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn descriptor(&self, id: FileId) -> io::Result<OwnedFd>;
}

// Whether the epoch is still being read, was read completely, or cannot be read any more.
const READING: u8 = 0;
const DONE: u8 = 1;
const LOST: u8 = 2;

/// A rough figure for what an object costs beside its bytes.
const OBJECT_BYTES: u64 = 256;

/// See the module.
pub(super) struct Saved {
    limits: Limits,
    directory: Arc<OwnedFd>,
    phase: AtomicU8,
    objects: Sharded<HashMap<FileId, Object>>,
    // Bytes in memory, and bytes that were saved or looked at in all.
    memory: AtomicU64,
    total: AtomicU64,
    descriptors: AtomicUsize,
    spill: Mutex<Option<Arc<File>>>,
    spilled: AtomicU64,
}

#[derive(Default)]
struct Object {
    snapshot: Option<Box<Snapshot>>,
    descriptor: Option<OwnedFd>,
    // Saved, or read by the planner: no need to save it.
    covered: ExtentSet,
    pieces: BTreeMap<u64, Piece>,
}

/// What was in an extent; behind the bytes there are zeros.
struct Piece {
    length: u64,
    body: Body,
}

enum Body {
    Memory(Box<[u8]>),
    Spilled {
        file: Arc<File>,
        at: u64,
        length: usize,
    },
}

impl Saved {
    pub fn new(directory: Arc<OwnedFd>, limits: Limits) -> Saved {
        Saved {
            limits,
            directory,
            phase: AtomicU8::new(READING),
            objects: Sharded::default(),
            memory: AtomicU64::new(0),
            total: AtomicU64::new(0),
            descriptors: AtomicUsize::new(0),
            spill: Mutex::new(None),
            spilled: AtomicU64::new(0),
        }
    }

    pub fn is_reading(&self) -> bool {
        self.phase.load(SeqCst) == READING
    }

    pub fn is_lost(&self) -> bool {
        self.phase.load(SeqCst) == LOST
    }

    /// From now on nothing is saved, and what was is dropped. No effect once all is read.
    pub fn lose(&self) {
        if self
            .phase
            .compare_exchange(READING, LOST, SeqCst, SeqCst)
            .is_ok()
        {
            self.clear();
        }
    }

    /// From now on nothing is saved, and what was is dropped, since all was read; false: it is
    /// lost.
    pub fn finish(&self) -> bool {
        if self
            .phase
            .compare_exchange(READING, DONE, SeqCst, SeqCst)
            .is_ok()
        {
            self.clear();
        }
        !self.is_lost()
    }

    /// Drops everything.
    pub fn clear(&self) {
        for shard in self.objects.iter() {
            // Dropped without the lock: to close the last descriptor of a file takes time.
            let gone = std::mem::take(&mut *shard.lock());
            drop(gone);
        }
        let gone = self.spill.lock().take();
        drop(gone);
    }

    // Attributes.

    pub fn has_snapshot(&self, id: FileId) -> bool {
        self.objects
            .of(id)
            .lock()
            .get(&id)
            .is_some_and(|object| object.snapshot.is_some())
    }

    pub fn keep_snapshot(&self, id: FileId, snapshot: Snapshot) {
        let xattrs = &snapshot.object.xattrs;
        let bytes: usize = xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 64)
            .sum();
        let cost = bytes as u64 + OBJECT_BYTES;
        // Snapshots do not spill, so they get as much again as the bytes have.
        let memory = self.memory.fetch_add(cost, SeqCst) + cost;
        if memory > self.limits.saved_memory_bytes_max.saturating_mul(2) {
            return self.lose();
        }
        let mut shard = self.objects.of(id).lock();
        shard
            .entry(id)
            .or_default()
            .snapshot
            .get_or_insert_with(|| Box::new(snapshot));
    }

    pub fn snapshot(&self, id: FileId) -> Option<Snapshot> {
        self.objects
            .of(id)
            .lock()
            .get(&id)?
            .snapshot
            .as_deref()
            .cloned()
    }

    // Descriptors.

    pub fn has_descriptor(&self, id: FileId) -> bool {
        self.objects
            .of(id)
            .lock()
            .get(&id)
            .is_some_and(|object| object.descriptor.is_some())
    }

    pub fn keep_descriptor(&self, id: FileId, descriptor: OwnedFd) {
        if self.descriptors.fetch_add(1, SeqCst) >= self.limits.saved_descriptors_max {
            return self.lose();
        }
        self.objects.of(id).lock().entry(id).or_default().descriptor = Some(descriptor);
    }

    pub fn descriptor(&self, id: FileId) -> Option<File> {
        let shard = self.objects.of(id).lock();
        shard
            .get(&id)?
            .descriptor
            .as_ref()?
            .try_clone()
            .ok()
            .map(File::from)
    }

    // Bytes.

    /// The parts of `wanted` that are neither saved nor read.
    pub fn uncovered(&self, id: FileId, mut wanted: ExtentSet) -> ExtentSet {
        if let Some(object) = self.objects.of(id).lock().get(&id) {
            object
                .covered
                .iter()
                .for_each(|extent| wanted.remove(extent));
        }
        wanted
    }

    /// Saves extents of a file that is about to be changed.
    pub fn save(&self, id: FileId, extents: &ExtentSet, preserve: &dyn Preserve) {
        let mut buffer = Vec::new();
        let mut at_end = false;
        for extent in extents.iter() {
            let mut start = extent.offset;
            while start < extent.end() && !at_end {
                let part = Extent::between(start, extent.end().min(start + FRAGMENT_BYTES_MAX));
                if !self.is_reading() {
                    return;
                }
                let looked = self.total.fetch_add(part.length, SeqCst) + part.length;
                let max = self.limits.saved_memory_bytes_max + self.limits.saved_disk_bytes_max;
                if looked > max || preserve.read_at(id, part, &mut buffer).is_err() {
                    return self.lose();
                }
                at_end = (buffer.len() as u64) < part.length;
                if self.keep(id, part, &buffer).is_err() {
                    return self.lose();
                }
                start = part.end();
            }
            if start < extent.end() {
                // Behind the end of the file, as is all that follows.
                self.cover(
                    id,
                    Extent::between(start, extent.end()),
                    Some(Body::Memory([].into())),
                );
            }
        }
    }

    fn keep(&self, id: FileId, extent: Extent, bytes: &[u8]) -> io::Result<()> {
        let end = bytes
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        let bytes = &bytes[..end];
        let cost = bytes.len() as u64;
        let memory = self.memory.fetch_add(cost, SeqCst) + cost;
        let body = if memory <= self.limits.saved_memory_bytes_max {
            Body::Memory(bytes.into())
        } else {
            self.memory.fetch_sub(cost, SeqCst);
            let file = self.spill_file()?;
            let at = self.spilled.fetch_add(cost, SeqCst);
            if at + cost > self.limits.saved_disk_bytes_max {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            file.write_all_at(bytes, at)?;
            Body::Spilled {
                file,
                at,
                length: bytes.len(),
            }
        };
        self.cover(id, extent, Some(body));
        Ok(())
    }

    /// The file for what memory has no room for. It has no name, so a crash leaves nothing.
    fn spill_file(&self) -> io::Result<Arc<File>> {
        let mut spill = self.spill.lock();
        if let Some(file) = &*spill {
            return Ok(Arc::clone(file));
        }
        let (directory, name) = (&*self.directory, "saved");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let remove = || rustix::fs::unlinkat(directory, name, AtFlags::empty());
        // One that a crash left between the two steps below.
        let _ = remove();
        let file = rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        remove()?;
        let file = Arc::new(File::from(file));
        *spill = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Notes that an extent is saved (with a body), or that it needs not be (without one).
    fn cover(&self, id: FileId, extent: Extent, body: Option<Body>) {
        let mut shard = self.objects.of(id).lock();
        let object = shard.entry(id).or_default();
        object.covered.insert(extent);
        if let Some(body) = body {
            object.pieces.insert(
                extent.offset,
                Piece {
                    length: extent.length,
                    body,
                },
            );
        }
    }

    /// What an extent holds was read; it is not saved any more, and what was is dropped.
    pub fn read_done(&self, id: FileId, extent: Extent) {
        if !self.is_reading() {
            return;
        }
        self.cover(id, extent, None);
        let mut shard = self.objects.of(id).lock();
        let Some(object) = shard.get_mut(&id) else {
            return;
        };
        let memory = &self.memory;
        object.pieces.retain(|&start, piece| {
            let inside = start >= extent.offset && start + piece.length <= extent.end();
            if inside && let Body::Memory(bytes) = &piece.body {
                memory.fetch_sub(bytes.len() as u64, SeqCst);
            }
            !inside
        });
    }

    /// Whether anything of an extent is saved.
    pub fn has(&self, id: FileId, extent: Extent) -> bool {
        let shard = self.objects.of(id).lock();
        let Some(object) = shard.get(&id) else {
            return false;
        };
        // Pieces do not overlap, so the last one before the end reaches farthest.
        let last = object.pieces.range(..extent.end()).next_back();
        last.is_some_and(|(&start, piece)| start + piece.length > extent.offset)
    }

    /// Overwrites `bytes`, which were read at `offset`, with what was saved.
    pub fn patch(&self, id: FileId, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let window = Extent::new(offset, bytes.len() as u64);
        let mut spilled = Vec::new();
        {
            let shard = self.objects.of(id).lock();
            let Some(object) = shard.get(&id) else {
                return Ok(());
            };
            let first = object
                .pieces
                .range(..=offset)
                .next_back()
                .map_or(offset, |(&at, _)| at);
            for (&start, piece) in object.pieces.range(first..window.end()) {
                let hit = window.intersection(Extent::new(start, piece.length));
                if hit.is_empty() {
                    continue;
                }
                let target = &mut bytes[at(hit.offset - offset)..at(hit.end() - offset)];
                match &piece.body {
                    Body::Memory(saved) => {
                        let from = saved.get(at(hit.offset - start)..).unwrap_or(&[]);
                        put(target, from);
                    }
                    Body::Spilled { file, at, length } => {
                        spilled.push((Arc::clone(file), *at, *length, start, hit));
                    }
                }
            }
        }
        for (file, spilled_at, length, start, hit) in spilled {
            let skip = hit.offset - start;
            let there = (length as u64).saturating_sub(skip).min(hit.length);
            let mut saved = vec![0; at(there)];
            file.read_exact_at(&mut saved, spilled_at + skip)?;
            put(
                &mut bytes[at(hit.offset - offset)..at(hit.end() - offset)],
                &saved,
            );
        }
        Ok(())
    }
}

/// Bytes, and zeros behind them.
fn put(target: &mut [u8], from: &[u8]) {
    let length = from.len().min(target.len());
    target[..length].copy_from_slice(&from[..length]);
    target[length..].fill(0);
}

/// An index into a buffer in memory.
#[allow(clippy::cast_possible_truncation)]
fn at(position: u64) -> usize {
    position as usize
}

/// Whole blocks of `dirty` that `extent` touches.
pub(super) fn touched_blocks(dirty: &ExtentSet, extent: Extent) -> ExtentSet {
    let window = extent.rounded_out(BLOCK_BYTES);
    dirty
        .overlaps(window)
        .map(|part| part.rounded_out(BLOCK_BYTES))
        .collect()
}
