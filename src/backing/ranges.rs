//! Operations on ranges of files: fallocate, lseek, copy_file_range.

use super::attributes::between;
use super::types::HandleId;
use super::{Backing, broken, errno};
use crate::limits::COPY_BYTES_MAX;
use crate::model::{Extent, FileId};
use rustix::fs::{FallocateFlags, SeekFrom};
use std::io;

impl Backing {
    /// Allocates, punches or zeroes a range.
    ///
    /// # Errors
    /// Those of fallocate(2); EOPNOTSUPP for modes that move content.
    pub fn fallocate(
        &self,
        id: FileId,
        handle: Option<HandleId>,
        mode: i32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let unsupported = || errno(libc::EOPNOTSUPP);
        let mode =
            FallocateFlags::from_bits_retain(u32::try_from(mode).map_err(|_| unsupported())?);
        let supported =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !supported.contains(mode) {
            return Err(unsupported());
        }
        let zeroes = mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
        let extent = Extent::new(offset, length);
        let file = self.file(id, handle, true)?;
        self.settle(id)?;
        let held = self.locks.lock(&[id]);
        let captured = !self.is_excluded(id);
        let operation = self.begin();
        let old = self.see_open(&file)?.size();
        if captured {
            let touched = if zeroes {
                extent
            } else {
                between(old, extent.end().max(old))
            };
            operation.before_data(id, touched, self).map_err(broken)?;
        }
        let result = rustix::fs::fallocate(&file, mode, offset, length);
        let new = self.see_open(&file).map_or(old, |seen| seen.size());
        if captured {
            if zeroes {
                operation.data(id, extent.intersection(Extent::between(0, old.max(new))));
            }
            if old != new {
                operation.truncated(id, old, new);
            }
            operation.attributes(id);
        }
        drop((operation, held));
        result?;
        self.wrote(id, &file)
    }

    /// Finds data (`SEEK_DATA`) or a hole (`SEEK_HOLE`).
    ///
    /// # Errors
    /// Those of lseek(2); EINVAL for other ways to seek.
    pub fn lseek(
        &self,
        id: FileId,
        handle: Option<HandleId>,
        offset: u64,
        whence: i32,
    ) -> io::Result<u64> {
        let file = self
            .file(id, handle, false)
            .or_else(|_| self.file(id, handle, true))?;
        let wanted = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(errno(libc::EINVAL)),
        };
        // The position itself is used by nobody: all reads and writes say where.
        Ok(rustix::fs::seek(&*file, wanted)?)
    }

    /// Copies a range from one file to another (or within one), by sharing blocks where the file
    /// system can. May copy less than asked for.
    ///
    /// # Errors
    /// Those of copy_file_range(2).
    pub fn copy_file_range(
        &self,
        from: (FileId, Option<HandleId>, u64),
        to: (FileId, Option<HandleId>, u64),
        length: u64,
        flags: u64,
    ) -> io::Result<u64> {
        if flags != 0 {
            return Err(errno(libc::EINVAL));
        }
        let (from_id, from_handle, mut from_offset) = from;
        let (id, handle, mut offset) = to;
        let source = self.file(from_id, from_handle, false)?;
        let file = self.file(id, handle, true)?;
        self.settle(id)?;
        let held = self.locks.lock(&[id]);
        let captured = !self.is_excluded(id);
        let operation = self.begin();
        let length = length.min(COPY_BYTES_MAX);
        let extent = Extent::new(offset, length);
        if captured {
            operation.before_data(id, extent, self).map_err(broken)?;
        }
        let count = usize::try_from(length).unwrap_or(usize::MAX);
        let copied = rustix::fs::copy_file_range(
            &*source,
            Some(&mut from_offset),
            &*file,
            Some(&mut offset),
            count,
        );
        if captured {
            let changed = copied.map_or(length, |count| count as u64);
            operation.data(id, Extent::new(extent.offset, changed));
        }
        drop((operation, held));
        let copied = copied?;
        self.wrote(id, &file)?;
        Ok(copied as u64)
    }
}
