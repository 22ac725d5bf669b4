//! What a new file has in common with the file whose name it took over.
//!
//! Both are on this machine, so bytes are compared, not hashes, and no round trip is needed. The
//! base is cut into blocks (2 KiB; larger for a large file, so that the table is bounded) that
//! are looked up at every byte of the new file; what is found is extended both ways.

use super::content::{Piece, append, to_usize};
use super::table::{Rolling, Table};
use super::{Index, PlanError};
use crate::limits::{BLOCK_BYTES, DELTA_BASE_BYTES_MAX, DELTA_BLOCKS_MAX, FRAGMENT_BYTES_MAX};
use crate::model::{Body, Extent, FileId, blocks_of, hash_block};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The smallest block that is looked up, in bytes.
const UNIT_BYTES_MIN: u64 = 2048;

/// A piece of a file that is smaller is shipped as it is.
pub(super) const WORTHWHILE_BYTES: u64 = UNIT_BYTES_MIN;

/// A copy that is shorter costs about as much as the bytes.
const COPY_BYTES_MIN: usize = 256;

/// What is found by hash and is not the same: the base must be changing, or be made up to be
/// slow. After so many, only a copy that simply goes on is tried.
const DISAPPOINTMENTS_MAX: u32 = 1000;

/// Compared at once, in bytes.
const COMPARED_BYTES: usize = 64 * 1024;

/// The content of a replaced file, as the replica holds it, prepared for [`super::Against`].
#[derive(Debug)]
pub struct Base {
    id: FileId,
    file: File,
    size: u64,
    unit: u64,
    table: Table,
    // How far the base is ahead of the new file where they were last the same.
    shift: i128,
    disappointments: u32,
    scratch: Vec<u8>,
}

impl Base {
    /// Reads the base, once. `None` if a delta against it is not possible: it is too small or
    /// too large, or not (or no longer) what the replica holds.
    ///
    /// # Errors
    /// Those of the index. That the base cannot be read is none: it is only not of use.
    pub fn prepare(id: FileId, file: File, index: &dyn Index) -> Result<Option<Base>, PlanError> {
        let Some(object) = index.object(id)? else {
            return Ok(None);
        };
        let size = object.size;
        let now = file.metadata().map_or(0, |metadata| metadata.len());
        if size != now || !(UNIT_BYTES_MIN..=DELTA_BASE_BYTES_MAX).contains(&size) {
            return Ok(None);
        }
        let unit = size
            .div_ceil(DELTA_BLOCKS_MAX)
            .next_power_of_two()
            .max(UNIT_BYTES_MIN);
        let mut hashes = Vec::with_capacity(to_usize(size / unit));
        let mut buffer = vec![0; to_usize(size.min(FRAGMENT_BYTES_MAX))];
        let mut at = 0;
        while at < size {
            let part = &mut buffer[..to_usize((size - at).min(FRAGMENT_BYTES_MAX))];
            if file.read_exact_at(part, at).is_err() {
                return Ok(None);
            }
            let blocks = blocks_of(Extent::new(at, part.len() as u64));
            let held = index.blocks(id, blocks.start, blocks.end - blocks.start)?;
            if !part.chunks(BLOCK_BYTES as usize).map(hash_block).eq(held) {
                return Ok(None);
            }
            let units = part.chunks_exact(to_usize(unit));
            hashes.extend(units.map(|unit| Rolling::of(unit).value()));
            at += part.len() as u64;
        }
        Ok(Some(Base {
            id,
            file,
            size,
            unit,
            table: Table::new(hashes.into_iter()),
            shift: 0,
            disappointments: 0,
            scratch: vec![0; COMPARED_BYTES],
        }))
    }

    /// Divides bytes of the new file, which are at `offset` of it, into copies and the rest.
    pub(super) fn divide(&mut self, offset: u64, bytes: &[u8]) -> Result<Vec<Piece>, PlanError> {
        let mut parts = Vec::new();
        let unit = to_usize(self.unit);
        // Where the piece that is neither copied nor given up yet starts, and where we look.
        let (mut rest, mut at) = (0, 0);
        let on = i128::from(offset) + self.shift;
        if let Ok(on) = u64::try_from(on) {
            let same = self.common(on, bytes)?;
            if same >= COPY_BYTES_MIN.min(bytes.len()) {
                self.push(&mut parts, offset, 0, same, Some(on));
                (rest, at) = (same, same);
            }
        }
        let mut window: Option<Rolling> = None;
        while at + unit <= bytes.len() && self.disappointments < DISAPPOINTMENTS_MAX {
            let rolling = *window.get_or_insert_with(|| Rolling::of(&bytes[at..at + unit]));
            if let Some(number) = self.table.find(rolling.value()) {
                let from = u64::from(number) * self.unit;
                let same = self.common(from, &bytes[at..])?;
                if same >= unit {
                    let before = self.common_before(from, &bytes[rest..at])?;
                    let start = at - before;
                    self.push(&mut parts, offset, rest, start, None);
                    at += same;
                    self.push(&mut parts, offset, start, at, Some(from - before as u64));
                    (rest, window) = (at, None);
                    continue;
                }
                self.disappointments += 1;
            }
            if let (Some(rolling), Some(&next)) = (&mut window, bytes.get(at + unit)) {
                rolling.roll(bytes[at], next);
            }
            at += 1;
        }
        self.push(&mut parts, offset, rest, bytes.len(), None);
        Ok(parts)
    }

    fn push(
        &mut self,
        parts: &mut Vec<Piece>,
        offset: u64,
        start: usize,
        end: usize,
        from: Option<u64>,
    ) {
        let extent = Extent::between(offset + start as u64, offset + end as u64);
        let body = match from {
            Some(from) => {
                self.shift = i128::from(from) - i128::from(extent.offset);
                Body::Copy {
                    from: self.id,
                    offset: from,
                }
            }
            None => Body::Bytes,
        };
        append(parts, extent, body);
    }

    // How many bytes are the same from `from` of the base on.
    fn common(&mut self, from: u64, bytes: &[u8]) -> Result<usize, PlanError> {
        let most = to_usize(self.size.saturating_sub(from)).min(bytes.len());
        let mut same = 0;
        let mut step = to_usize(self.unit).min(COMPARED_BYTES);
        while same < most {
            let count = step.min(most - same);
            let theirs = &mut self.scratch[..count];
            if !read(&self.file, self.id, from + same as u64, theirs)? {
                return Ok(same);
            }
            let ours = &bytes[same..same + count];
            if ours != theirs {
                let pairs = ours.iter().zip(theirs.iter());
                return Ok(same + pairs.take_while(|(ours, theirs)| ours == theirs).count());
            }
            same += count;
            step = COMPARED_BYTES;
        }
        Ok(same)
    }

    // How many bytes are the same before `from` of the base.
    fn common_before(&mut self, from: u64, bytes: &[u8]) -> Result<usize, PlanError> {
        let most = to_usize(from.min(self.unit))
            .min(bytes.len())
            .min(COMPARED_BYTES);
        let theirs = &mut self.scratch[..most];
        if !read(&self.file, self.id, from - most as u64, theirs)? {
            return Ok(0);
        }
        let ours = &bytes[bytes.len() - most..];
        let pairs = ours.iter().rev().zip(theirs.iter().rev());
        Ok(pairs.take_while(|(ours, theirs)| ours == theirs).count())
    }
}

// Whether the base still has these bytes.
fn read(file: &File, id: FileId, offset: u64, buffer: &mut [u8]) -> Result<bool, PlanError> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(source) => Err(PlanError::Read {
            file: id,
            offset,
            source,
        }),
    }
}
