//! The content of files. See [`super::apply`].
//!
//! The old content that a copy reads is never one that this apply changes: a file that would copy
//! from a changed one is rebuilt, and new files are complete before the mark.

use super::ReplicaError;
use super::apply::Apply;
use super::attributes;
use super::delta::{Item, Op};
use super::error::Doing;
use super::place::At;
use super::redo::Kind;
use super::tree::{Change, Seen};
use crate::limits::BLOCK_BYTES;
use crate::model::{BlockHash, Body, Extent, ExtentSet, FileId, Fragment, blocks_of, hash_block};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

const COPY_BYTES: usize = 256 * 1024;

impl Apply<'_> {
    pub(super) fn content_all(&mut self) -> Result<(), ReplicaError> {
        for (&id, item) in &self.delta.items {
            if !item.made() && !item.content.is_empty() && self.lives(id) {
                self.content_in_place(id, item)?;
            }
        }
        Ok(())
    }

    fn content_in_place(&mut self, id: FileId, item: &Item) -> Result<(), ReplicaError> {
        let file = match self.locate(id)? {
            Some((at, seen)) => match self.open_checked(&at, &seen, item)? {
                Some(file) => file,
                None => self.replace_by_copy(id, item, Some((at, seen)))?,
            },
            None => self.replace_by_copy(id, item, None)?,
        };
        self.write_content(id, item, &file)
    }

    /// Opens a file to be written in place, if it is one and nobody but its names in the tree
    /// leads to it.
    fn open_checked(
        &self,
        at: &At,
        seen: &Seen,
        item: &Item,
    ) -> Result<Option<File>, ReplicaError> {
        if seen.kind != Kind::File {
            return Ok(None);
        }
        let action = || format!("cannot open {}", at.name.display());
        let file = match self.tree.file(at.place(), true) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                // Adopted with a mode that does not let its owner write.
                use std::os::fd::AsRawFd;
                let handle = self.tree.handle(at.place()).doing(action)?;
                let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
                let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                rustix::fs::chmod(path, mode).doing(action)?;
                self.tree.file(at.place(), true).doing(action)?
            }
            Err(error) if super::place::is_absent(&error) => return Ok(None),
            opened => opened.doing(action)?,
        };
        let stat = rustix::fs::fstat(&file).doing(action)?;
        let opened = Seen::of(&stat);
        let expected = opened.kind == Kind::File && opened.links == item.links();
        Ok(expected.then_some(file))
    }

    /// A new file takes the place of something that may not be written: what stands there has a
    /// name that the records do not know, or is no file, or is not there at all.
    fn replace_by_copy(
        &mut self,
        id: FileId,
        item: &Item,
        found: Option<(At, Seen)>,
    ) -> Result<File, ReplicaError> {
        self.suspect(id);
        let action = || format!("cannot replace file {id} by a copy");
        let fresh = self.temporary(id, "copy");
        self.tree
            .remove_all(&fresh.directory, &fresh.name)
            .doing(action)?;
        let file = self.tree.make_file(fresh.place()).doing(action)?;
        if let Some((at, seen)) = found
            && seen.kind == Kind::File
        {
            let from = self.tree.file(at.place(), false).doing(action)?;
            copy_all(&from, &file).doing(action)?;
        }
        let object = self.object(id)?;
        attributes::apply(self.tree, file.as_fd(), false, &object, self.policy).doing(action)?;
        let mut names = item.attached.clone();
        names.extend(self.all_kept_names(id, item)?);
        let temporary = self.temporary(id, "link");
        for spot in &names {
            let Some(at) = self.at(spot)? else { continue };
            if self
                .seen(&at)?
                .is_some_and(|there| there.kind != Kind::File)
            {
                self.tree.discard(at.place()).doing(action)?;
            }
            self.tree.unlink(temporary.place()).doing(action)?;
            self.tree
                .link(fresh.place(), temporary.place())
                .doing(action)?;
            self.tree
                .rename_over(temporary.place(), at.place())
                .doing(action)?;
            self.touched.insert(spot.0);
        }
        self.tree.unlink(fresh.place()).doing(action)?;
        Ok(file)
    }

    fn all_kept_names(
        &self,
        id: FileId,
        item: &Item,
    ) -> Result<Vec<super::delta::Spot>, ReplicaError> {
        let mut names = self.records.links(id, usize::MAX)?;
        names.retain(|spot| !item.vacated.contains(spot));
        Ok(names)
    }

    /// Does all that happens to a file's content, then checks it.
    pub(super) fn write_content(
        &mut self,
        id: FileId,
        item: &Item,
        file: &File,
    ) -> Result<(), ReplicaError> {
        let mut size = 0;
        for op in &item.content {
            match *op {
                Op::Direct(..) => {}
                Op::Size(bytes) => {
                    size = bytes;
                    let action = || format!("cannot cut file {id}");
                    self.tree.step(Change::Cut(file)).doing(action)?;
                    file.set_len(bytes).doing(action)?;
                }
                Op::Fragment(log, at) => {
                    let (fragment, raw) = self.delta.logs[log].fragment(at)?;
                    self.write_fragment(&fragment, log, &raw, file)?;
                }
            }
        }
        if !self.is_as_said(item, file, size)? {
            self.suspect(id);
        }
        Ok(())
    }

    fn write_fragment(
        &mut self,
        fragment: &Fragment,
        log: usize,
        raw: &super::redo::Raw,
        file: &File,
    ) -> Result<(), ReplicaError> {
        let Extent { offset, length } = fragment.extent;
        let action = || format!("cannot write file {} at {offset}", fragment.file);
        self.tree
            .step(Change::Write(file, fragment.extent))
            .doing(action)?;
        match fragment.body {
            Body::Bytes => {
                let bytes = self.delta.logs[log].data(raw)?;
                file.write_all_at(&bytes, offset).doing(action)
            }
            Body::Hole => self.tree.punch(file, offset, length).doing(action),
            Body::Copy { from, offset: at } => {
                let mut done = 0;
                if let Some(base) = self.locate_before(from)? {
                    let base = self.tree.file(base.place(), false).doing(action)?;
                    done = copy(&base, at, file, offset, length).doing(action)?;
                }
                // What is not there cannot be copied; the check of the blocks will tell.
                self.tree
                    .punch(file, offset + done, length - done)
                    .doing(action)
            }
        }
    }

    /// Whether the blocks that were patched are what the primary has. Blocks that arrived whole
    /// were checked on arrival.
    fn is_as_said(&self, item: &Item, file: &File, size: u64) -> Result<bool, ReplicaError> {
        let mut checked = ExtentSet::default();
        let mut buffer = vec![0; usize::try_from(BLOCK_BYTES).unwrap_or(0)];
        for op in item.content.iter().rev() {
            let (Op::Direct(log, at) | Op::Fragment(log, at)) = *op else {
                continue;
            };
            let fragment = self.delta.logs[log].fragment(at)?.0;
            for (index, block) in blocks_of(fragment.extent).enumerate() {
                let extent = Extent::new(block * BLOCK_BYTES, BLOCK_BYTES);
                let hash = fragment
                    .blocks
                    .get(index)
                    .copied()
                    .unwrap_or(BlockHash::ZERO);
                let whole = fragment.extent.intersection(extent) == extent;
                let seen = checked.overlaps(extent).next().is_some();
                let trusted = whole && !matches!(fragment.body, Body::Copy { .. });
                if seen || trusted || extent.offset >= size {
                    continue;
                }
                let read = read_block(file, extent.offset, &mut buffer)
                    .doing(|| format!("cannot read file {} back", fragment.file))?;
                if hash_block(&buffer[..read]) != hash {
                    return Ok(false);
                }
            }
            checked.insert(fragment.extent.rounded_out(BLOCK_BYTES));
        }
        Ok(true)
    }

    /// The old content of a file that is rebuilt.
    pub(super) fn copy_whole(&mut self, id: FileId, file: &File) -> Result<(), ReplicaError> {
        let action = || format!("cannot copy file {id}");
        if let Some(base) = self.locate_before(id)? {
            let base = self.tree.file(base.place(), false).doing(action)?;
            copy_all(&base, file).doing(action)?;
        }
        Ok(())
    }
}

fn read_block(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Copies the whole content, sharing it where the file system can.
fn copy_all(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let length = from.metadata()?.len();
    copy(from, 0, to, 0, length)?;
    to.set_len(length)
}

/// Copies up to `length` bytes; returns how many there were.
fn copy(from: &File, at: u64, to: &File, offset: u64, length: u64) -> io::Result<u64> {
    let mut done = 0;
    let mut plain = false;
    let mut buffer = Vec::new();
    while done < length {
        if !plain {
            let (mut source, mut target) = (at + done, offset + done);
            let left = usize::try_from(length - done).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), left)
            {
                // Zero may be the end, or a file system that does not say what it cannot do.
                Ok(0) | Err(_) => plain = true,
                Ok(count) => done += count as u64,
            }
            continue;
        }
        let left = usize::try_from(length - done).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
        buffer.resize(left, 0);
        let read = read_block(from, at + done, &mut buffer)?;
        if read == 0 {
            break;
        }
        to.write_all_at(&buffer[..read], offset + done)?;
        done += read as u64;
    }
    Ok(done)
}
