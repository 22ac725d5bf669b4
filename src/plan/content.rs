//! The dirty content of one file: read once, block by block, skipped or emitted.

use super::{Against, Emit, EpochView, Held, Index, PlanError, Tally};
use crate::limits::{BLOCK_BYTES, FRAGMENT_BYTES_MAX};
use crate::model::{
    BlockHash, Body, Entry, Extent, ExtentSet, FileId, Fragment, blocks_of, hash_block,
};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Two dirty parts with so few bytes between them become one fragment, which is cheaper.
const GAP_BYTES_MAX: u64 = 128;

/// Behind the last whole block that a file can have.
const OFFSET_MAX: u64 = i64::MAX as u64 / BLOCK_BYTES * BLOCK_BYTES;

/// How many hashes are asked of the index at once, for a hole.
const HOLE_BLOCKS: u64 = 4096;

/// A hole of more blocks is emitted without a look at what the replica has.
const HOLE_BLOCKS_MAX: u64 = 1024 * 1024;

/// A delta is worth its fragments if it saves so much: a quarter.
const SAVED_PART: u64 = 4;

/// A part of a file, as it is emitted. Parts of one file do not overlap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) extent: Extent,
    pub(super) body: Body,
}

pub(super) struct Content<'a> {
    pub(super) id: FileId,
    pub(super) file: &'a File,
    pub(super) size: u64,
    pub(super) dirty: &'a ExtentSet,
    // The size that the index has for the file; if none, no block of it is asked for.
    pub(super) known: Option<u64>,
    pub(super) index: &'a dyn Index,
    pub(super) held: &'a mut Held,
    pub(super) sealed: Option<&'a dyn EpochView>,
    pub(super) buffer: &'a mut Vec<u8>,
    pub(super) tally: Tally,
    pub(super) against: Against<'a>,
}

impl Content<'_> {
    /// Plans everything that is dirty. Of a sealed epoch nothing behind the block that the file
    /// ends in: its final size cuts that off. A stage has no final size yet, so what is cut off
    /// now becomes zeros, or it would be back if the file grew again.
    pub(super) fn plan(&mut self, emit: &mut Emit<'_>) -> Result<(), PlanError> {
        let end = match self.sealed {
            Some(_) => self.size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES),
            None => OFFSET_MAX,
        };
        let whole = Extent::between(0, end.min(OFFSET_MAX));
        let touched: ExtentSet = self
            .dirty
            .overlaps(whole)
            .map(|extent| extent.rounded_out(BLOCK_BYTES))
            .collect();
        for extent in touched.iter() {
            let mut at = extent.offset;
            while at < extent.end() {
                let rest = Extent::between(at, extent.end());
                let hole = self.hole(rest);
                if hole.is_empty() {
                    let run = Extent::new(at, rest.length.min(FRAGMENT_BYTES_MAX));
                    self.run(run, emit)?;
                    at = run.end();
                } else {
                    self.zeros(hole, emit)?;
                    at = hole.end();
                }
            }
            // With a base all may have to be read again.
            if let Some(sealed) = self.sealed
                && !matches!(self.against, Against::Content(_))
            {
                sealed.read_done(self.id, extent);
            }
        }
        Ok(())
    }

    // The whole blocks at the start of `rest` that need not be read, since they are a hole.
    fn hole(&self, rest: Extent) -> Extent {
        if rest.length <= BLOCK_BYTES {
            return Extent::new(rest.offset, 0);
        }
        let end = match rustix::fs::seek(self.file, SeekFrom::Data(rest.offset)) {
            Ok(data) => (data / BLOCK_BYTES * BLOCK_BYTES).min(rest.end()),
            // No data up to the end of the file.
            Err(rustix::io::Errno::NXIO) => rest.end(),
            // It cannot tell.
            Err(_) => rest.offset,
        };
        // What was saved is not in the file: look for a beginning that has nothing saved.
        let mut hole = Extent::between(rest.offset, end);
        while self
            .sealed
            .is_some_and(|sealed| !hole.is_empty() && sealed.has_saved(self.id, hole))
        {
            hole.length = hole.length / 16 / BLOCK_BYTES * BLOCK_BYTES;
        }
        hole
    }

    // A hole of whole blocks: emitted from the first to the last that the replica has not.
    fn zeros(&mut self, hole: Extent, emit: &mut Emit<'_>) -> Result<(), PlanError> {
        // Behind its end the replica has zeros anyway.
        let end = self.known.unwrap_or(0).max(self.held.end(self.id));
        let end = end.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        let held = hole.intersection(Extent::between(0, end));
        let blocks = blocks_of(held);
        self.tally.skipped_blocks += (hole.length - held.length) / BLOCK_BYTES;
        let (mut first, mut last) = (None, 0);
        let mut at = blocks.start;
        if blocks.end - at > HOLE_BLOCKS_MAX {
            (first, last, at) = (Some(at), blocks.end - 1, blocks.end);
        }
        while at < blocks.end {
            let part = at..blocks.end.min(at + HOLE_BLOCKS);
            for (block, held) in part.clone().zip(self.held_hashes(part.clone())?) {
                if held != Some(BlockHash::ZERO) {
                    first.get_or_insert(block);
                    last = block;
                }
            }
            at = part.end;
        }
        let emitted = first.map_or(0, |first| last + 1 - first);
        self.tally.skipped_blocks += blocks.end - blocks.start - emitted;
        let Some(first) = first else { return Ok(()) };
        let extent = Extent::new(first * BLOCK_BYTES, emitted * BLOCK_BYTES);
        self.emit_fragment(extent, Body::Hole, Vec::new(), None, emit)
    }

    // What the replica holds; `None`: that is not known.
    fn held_hashes(&self, blocks: Range<u64>) -> Result<Vec<Option<BlockHash>>, PlanError> {
        let count = blocks.end - blocks.start;
        let hashes = if self.known.is_some() {
            self.index.blocks(self.id, blocks.start, count)?
        } else {
            vec![BlockHash::ZERO; usize::try_from(count).unwrap_or(0)]
        };
        let known = |block| self.held.is_known(self.id, block);
        Ok(blocks
            .zip(hashes)
            .map(|(block, hash)| known(block).then_some(hash))
            .collect())
    }

    // At most a fragment's worth of whole blocks.
    fn run(&mut self, run: Extent, emit: &mut Emit<'_>) -> Result<(), PlanError> {
        let mut buffer = std::mem::take(self.buffer);
        let result = self
            .read(run, &mut buffer)
            .and_then(|()| self.ship(run, &buffer, emit));
        *self.buffer = buffer;
        result
    }

    // Reads a run; what is behind the end of the file is zeros.
    fn read(&mut self, run: Extent, buffer: &mut Vec<u8>) -> Result<(), PlanError> {
        buffer.resize(to_usize(run.length), 0);
        let inside = to_usize(run.length.min(self.size - run.offset.min(self.size)));
        let mut got = 0;
        while got < inside {
            match self
                .file
                .read_at(&mut buffer[got..inside], run.offset + got as u64)
            {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(PlanError::Read {
                        file: self.id,
                        offset: run.offset,
                        source,
                    });
                }
            }
        }
        buffer[got..].fill(0);
        self.tally.bytes_read += got as u64;
        if let Some(sealed) = self.sealed {
            sealed
                .patch_saved(self.id, run, buffer)
                .map_err(|source| PlanError::Saved {
                    file: self.id,
                    offset: run.offset,
                    source,
                })?;
            buffer[inside..].fill(0);
        }
        Ok(())
    }

    fn ship(&mut self, run: Extent, bytes: &[u8], emit: &mut Emit<'_>) -> Result<(), PlanError> {
        let hashes: Vec<BlockHash> = bytes.chunks(BLOCK_BYTES as usize).map(hash_block).collect();
        let blocks = blocks_of(run);
        let held = self.held_hashes(blocks.clone())?;
        let mut pieces = Vec::new();
        for ((block, hash), held) in blocks.zip(&hashes).zip(held) {
            let extent = Extent::new(block * BLOCK_BYTES, BLOCK_BYTES);
            if held == Some(*hash) {
                self.tally.skipped_blocks += 1;
            } else if *hash == BlockHash::ZERO {
                append(&mut pieces, extent, Body::Hole);
            } else {
                for dirty in self.dirty.overlaps(extent) {
                    let inside = dirty.intersection(Extent::between(0, self.size));
                    append(&mut pieces, inside, Body::Bytes);
                    let behind = Extent::between(dirty.offset.max(self.size), dirty.end());
                    append(&mut pieces, behind, Body::Hole);
                }
            }
        }
        for piece in pieces {
            if piece.body == Body::Bytes && piece.extent.length >= super::delta::WORTHWHILE_BYTES {
                for part in self.against(run, piece, bytes, &hashes)? {
                    self.emit_piece(run, part, bytes, &hashes, emit)?;
                }
            } else {
                self.emit_piece(run, piece, bytes, &hashes, emit)?;
            }
        }
        Ok(())
    }

    // Divides bytes into what the replaced file has and the rest.
    fn against(
        &mut self,
        run: Extent,
        piece: Piece,
        bytes: &[u8],
        hashes: &[BlockHash],
    ) -> Result<Vec<Piece>, PlanError> {
        let parts = match &mut self.against {
            Against::Nothing => return Ok(vec![piece]),
            Against::Content(base) => {
                let at = to_usize(piece.extent.offset - run.offset);
                let bytes = &bytes[at..at + to_usize(piece.extent.length)];
                base.divide(piece.extent.offset, bytes)?
            }
            Against::Blocks(base) => {
                let base = *base;
                let hashes = &hashes[to_usize((piece.extent.offset - run.offset) / BLOCK_BYTES)..];
                self.equal_blocks(base, piece.extent, hashes)?
            }
        };
        let copied = |part: &&Piece| matches!(part.body, Body::Copy { .. });
        let saved: u64 = parts
            .iter()
            .filter(copied)
            .map(|part| part.extent.length)
            .sum();
        let pays = saved >= piece.extent.length / SAVED_PART && saved > 0;
        Ok(if pays { parts } else { vec![piece] })
    }

    // The blocks that the replaced file has in the same place.
    fn equal_blocks(
        &self,
        base: FileId,
        extent: Extent,
        hashes: &[BlockHash],
    ) -> Result<Vec<Piece>, PlanError> {
        let blocks = blocks_of(extent);
        let size = self.index.object(base)?.map_or(0, |object| object.size);
        let theirs = self
            .index
            .blocks(base, blocks.start, blocks.end - blocks.start)?;
        let mut parts = Vec::new();
        for ((block, ours), theirs) in blocks.zip(hashes).zip(theirs) {
            let part = Extent::new(block * BLOCK_BYTES, BLOCK_BYTES).intersection(extent);
            let same = *ours == theirs && part.end() <= size;
            let copy = Body::Copy {
                from: base,
                offset: part.offset,
            };
            append(&mut parts, part, if same { copy } else { Body::Bytes });
        }
        Ok(parts)
    }

    fn emit_piece(
        &mut self,
        run: Extent,
        piece: Piece,
        bytes: &[u8],
        hashes: &[BlockHash],
        emit: &mut Emit<'_>,
    ) -> Result<(), PlanError> {
        let Piece { extent, body } = piece;
        let start = to_usize(extent.offset - run.offset);
        let touched = blocks_of(extent);
        let first = run.offset / BLOCK_BYTES;
        let touched = to_usize(touched.start - first)..to_usize(touched.end - first);
        let whole = extent.rounded_out(BLOCK_BYTES) == extent;
        let blocks = if body == Body::Hole && whole {
            Vec::new()
        } else {
            hashes[touched].to_vec()
        };
        let bytes = (body == Body::Bytes).then(|| &bytes[start..start + to_usize(extent.length)]);
        self.emit_fragment(extent, body, blocks, bytes, emit)
    }

    fn emit_fragment(
        &mut self,
        extent: Extent,
        body: Body,
        blocks: Vec<BlockHash>,
        bytes: Option<&[u8]>,
        emit: &mut Emit<'_>,
    ) -> Result<(), PlanError> {
        let entry = Entry::Fragment(Fragment {
            file: self.id,
            extent,
            body,
            blocks,
        });
        debug_assert!(entry.is_valid(), "{entry:?}");
        self.held.observe(&entry);
        self.tally.entries += 1;
        match body {
            Body::Bytes => self.tally.bytes_emitted += extent.length,
            Body::Copy { .. } => self.tally.bytes_copied += extent.length,
            Body::Hole => {}
        }
        emit(entry, bytes).map_err(PlanError::Emit)
    }
}

/// Appends a piece to those of a run, to the last of them if it continues it.
pub(super) fn append(pieces: &mut Vec<Piece>, extent: Extent, body: Body) {
    if extent.is_empty() {
        return;
    }
    if let Some(last) = pieces.last_mut() {
        let gap = extent.offset - last.extent.end();
        let joins = match (last.body, body) {
            (Body::Bytes, Body::Bytes) => gap <= GAP_BYTES_MAX,
            (Body::Hole, Body::Hole) => gap == 0,
            (
                Body::Copy { from, offset },
                Body::Copy {
                    from: other,
                    offset: next,
                },
            ) => gap == 0 && from == other && offset + last.extent.length == next,
            _ => false,
        };
        if joins {
            last.extent.length = extent.end() - last.extent.offset;
            return;
        }
    }
    pieces.push(Piece { extent, body });
}

// Offsets within a run, which is at most a fragment long.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
