//! The stage: the entries of the next epoch, in a redo log that has no commit yet.
//!
//! Fragments of a file that is new and large go to a file of its own at once, so that their bytes
//! are stored once. From its first such fragment on, all that arrives for this file goes there
//! (in the order of arrival), up to one that copies from another file, which only the apply can
//! do. Each has a record in the log before it is written, so a stage that is opened again after
//! a crash knows what to check.

use super::error::{Doing, ReplicaError};
use super::redo::{
    self, Header, Log, Raw, RecordKind, encode_commit_record, encode_entry_record,
    encode_header_record, files_name, log_name, overlap,
};
use super::tree::{Tree, staged_name, sync_directory};
use crate::limits::{BLOCK_BYTES, DIRECT_BYTES, REDO_BUFFER_BYTES, STAGED_SYNC_MAX};
use crate::model::{
    Body, Commit, Entry, Extent, ExtentSet, FileId, Fragment, SessionId, blocks_of, hash_block,
};
use crate::wire::{EntryDigest, Refusal};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// See the module.
pub(super) struct Stage {
    tree: Arc<Tree>,
    header: Header,
    number: u64,
    log: Option<Log>,
    // records that are not in the file yet
    buffer: Vec<u8>,
    digest: EntryDigest,
    files: Option<OwnedFd>,
    // the log was begun in an earlier session
    resumed: bool,
}

impl Stage {
    /// An empty stage, whose log will have this number.
    pub(super) fn new(tree: Arc<Tree>, header: Header, number: u64) -> Stage {
        Stage {
            tree,
            header,
            number,
            log: None,
            buffer: Vec::new(),
            digest: EntryDigest::new(),
            files: None,
            resumed: false,
        }
    }

    /// Takes over what an earlier session of the same history has staged, as far as it is whole.
    pub(super) fn resume(&mut self, number: u64) -> Result<(), ReplicaError> {
        let mut digest = EntryDigest::new();
        let opened = Log::open(&self.tree.redo, number, u64::MAX, |_, _, raw| {
            digest.add_encoded(&raw.body);
        })?;
        let ours = |header: &Header| {
            header.primary == self.header.primary && header.incarnation == self.header.incarnation
        };
        let log = match opened {
            Some(log) if log.commit.is_none() && ours(&log.header) => log,
            _ => return self.remove_log(number),
        };
        let rebooted = log.header.boot != self.header.boot;
        self.number = number;
        self.digest = digest;
        self.resumed = true;
        log.truncate()?;
        let entries = log.index.entries;
        self.log = Some(log);
        let keep = self.whole(rebooted)?;
        if keep < entries {
            self.cut(keep)?;
        }
        Ok(())
    }

    /// How many entries it has.
    pub(super) fn entries(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.index.entries)
    }

    /// The session that staged them.
    pub(super) fn session(&self) -> SessionId {
        self.log
            .as_ref()
            .map_or(self.header.session, |log| log.header.session)
    }

    /// The digest of the entries.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest.digest()
    }

    /// Bytes of its redo log.
    pub(super) fn length(&self) -> u64 {
        let log = self.log.as_ref().map_or(0, |log| log.length);
        log + self.buffer.len() as u64
    }

    /// What it holds, by key.
    pub(super) fn index(&self) -> Option<&redo::Index> {
        self.log.as_ref().map(|log| &log.index)
    }

    /// Takes the next entry in. `is_known` says whether the replica has, or will have, a file
    /// from before this epoch.
    pub(super) fn add(
        &mut self,
        entry: &Entry,
        bytes: &[u8],
        is_known: impl FnOnce(FileId) -> Result<bool, ReplicaError>,
    ) -> Result<(), ReplicaError> {
        if let Entry::Fragment(fragment) = entry {
            check_blocks(fragment, bytes)?;
        }
        self.begin()?;
        if self.log.as_ref().is_some_and(|log| log.index.is_full()) {
            return Err(ReplicaError::refused(
                Refusal::Protocol,
                "an epoch has more entries than a replica takes",
            ));
        }
        let direct = match entry {
            Entry::Fragment(fragment) => self.is_direct(fragment, is_known)?,
            _ => false,
        };
        let sum = blake3::hash(bytes);
        let data: &[u8] = if direct { sum.as_bytes() } else { bytes };
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let at = log.length + self.buffer.len() as u64;
        let body = encode_entry_record(direct, entry, data, &mut self.buffer)?;
        if direct || self.buffer.len() >= REDO_BUFFER_BYTES {
            self.flush()?;
        }
        if direct && let Entry::Fragment(fragment) = entry {
            self.write_direct(fragment, bytes)?;
        }
        if let Some(log) = &mut self.log {
            log.index.add(entry, at, direct);
            self.digest.add_encoded(&body);
        }
        Ok(())
    }

    /// Keeps the first `keep` entries, or fewer, and returns how many. They are now this
    /// session's.
    pub(super) fn truncate(&mut self, keep: u64) -> Result<u64, ReplicaError> {
        let kept = match keep < self.entries() {
            true => self.cut(keep)?,
            false => self.entries(),
        };
        if kept > 0 {
            self.begin()?;
        }
        Ok(kept)
    }

    fn cut(&mut self, keep: u64) -> Result<u64, ReplicaError> {
        self.flush()?;
        let keep = self.untouched(keep)?;
        if keep == 0 {
            self.discard()?;
            return Ok(0);
        }
        let mut digest = EntryDigest::new();
        let opened = Log::open(&self.tree.redo, self.number, keep, |_, _, raw| {
            digest.add_encoded(&raw.body);
        })?;
        let Some(log) = opened else {
            self.discard()?;
            return Ok(0);
        };
        log.truncate()?;
        let staged = |id: &FileId| log.index.files.get(id).is_some_and(|file| file.direct > 0);
        for id in self.direct_files() {
            if !staged(&id) {
                self.remove_direct(id)?;
            }
        }
        self.log = Some(log);
        self.digest = digest;
        self.resumed = true;
        Ok(keep)
    }

    /// Forgets everything.
    pub(super) fn discard(&mut self) -> Result<(), ReplicaError> {
        self.buffer.clear();
        self.digest = EntryDigest::new();
        self.files = None;
        self.resumed = false;
        self.log = None;
        self.remove_log(self.number)
    }

    /// Makes the stage an epoch, durably, and hands its log over.
    ///
    /// After an error the log may hold a commit, so it must be discarded.
    pub(super) fn commit(&mut self, commit: &Commit) -> Result<Log, ReplicaError> {
        self.begin()?;
        self.flush()?;
        self.sync_direct()?;
        let mut record = Vec::new();
        encode_commit_record(commit, &mut record)?;
        let missing = || ReplicaError::Damaged {
            path: "redo".to_owned(),
            why: "the stage has no log".to_owned(),
        };
        let log = self.log.as_mut().ok_or_else(missing)?;
        log.append(&record)?;
        log.sync()?;
        sync_directory(&self.tree.redo)?;
        let mut log = self.log.take().ok_or_else(missing)?;
        log.commit = Some(commit.clone());
        self.files = None;
        self.resumed = false;
        self.digest = EntryDigest::new();
        self.number += 1;
        Ok(log)
    }

    /// Writes what is buffered to the log.
    pub(super) fn flush(&mut self) -> Result<(), ReplicaError> {
        if let Some(log) = &mut self.log
            && !self.buffer.is_empty()
        {
            log.append(&self.buffer)?;
        }
        self.buffer.clear();
        Ok(())
    }

    fn begin(&mut self) -> Result<(), ReplicaError> {
        match &mut self.log {
            None => {
                let header = self.header.clone();
                self.log = Some(Log::create(&self.tree.redo, self.number, header)?);
            }
            Some(log) if self.resumed => {
                // From here on it is this session's stage.
                log.header = self.header.clone();
                encode_header_record(&self.header, &mut self.buffer)?;
                self.resumed = false;
                self.flush()?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Whether a fragment goes to the staged file of its file. The first one that does takes
    /// along what arrived before.
    fn is_direct(
        &mut self,
        fragment: &Fragment,
        is_known: impl FnOnce(FileId) -> Result<bool, ReplicaError>,
    ) -> Result<bool, ReplicaError> {
        let Some(log) = &self.log else {
            return Ok(false);
        };
        let copies = matches!(fragment.body, Body::Copy { .. });
        if let Some(pieces) = log.index.files.get(&fragment.file) {
            if pieces.direct > 0 {
                return Ok(pieces.direct == pieces.at.len() && !copies);
            }
            if pieces.copies {
                return Ok(false);
            }
        }
        let large = fragment.body == Body::Bytes && fragment.extent.end() > DIRECT_BYTES;
        if !large || is_known(fragment.file)? {
            return Ok(false);
        }
        self.flush()?;
        let before = match self
            .log
            .as_ref()
            .and_then(|log| log.index.files.get(&fragment.file))
        {
            Some(pieces) => pieces.at.clone(),
            None => Vec::new(),
        };
        self.remove_direct(fragment.file)?;
        for at in before {
            let Some(log) = &self.log else { break };
            let (fragment, raw) = log.fragment(at)?;
            let bytes = log.data(&raw)?;
            self.write_direct(&fragment, &bytes)?;
        }
        Ok(true)
    }

    fn files(&mut self) -> Result<&OwnedFd, ReplicaError> {
        let name = files_name(self.number);
        if self.files.is_none() {
            match rustix::fs::mkdirat(&self.tree.redo, &name, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error).doing(|| format!("cannot make redo/{name}")),
            }
            let opened = self.tree.directory(&self.tree.redo, OsStr::new(&name));
            self.files = Some(opened.doing(|| format!("cannot open redo/{name}"))?);
        }
        self.files.as_ref().ok_or_else(|| ReplicaError::Damaged {
            path: name,
            why: "not open".to_owned(),
        })
    }

    fn direct_file(&mut self, id: FileId) -> Result<File, ReplicaError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let opened = rustix::fs::openat(self.files()?, staged_name(id), flags, mode);
        Ok(File::from(
            opened.doing(|| format!("cannot open the staged file {id}"))?,
        ))
    }

    fn write_direct(&mut self, fragment: &Fragment, bytes: &[u8]) -> Result<(), ReplicaError> {
        let file = self.direct_file(fragment.file)?;
        let Extent { offset, length } = fragment.extent;
        let action = || format!("cannot write the staged file {} at {offset}", fragment.file);
        match fragment.body {
            Body::Bytes => file.write_all_at(bytes, offset).doing(action),
            Body::Hole => self.tree.punch(&file, offset, length).doing(action),
            Body::Copy { .. } => Ok(()),
        }
    }

    fn direct_files(&self) -> Vec<FileId> {
        let Some(log) = &self.log else {
            return Vec::new();
        };
        let staged = log
            .index
            .files
            .iter()
            .filter(|(_, pieces)| pieces.direct > 0);
        staged.map(|(id, _)| *id).collect()
    }

    fn remove_direct(&mut self, id: FileId) -> Result<(), ReplicaError> {
        match rustix::fs::unlinkat(self.files()?, staged_name(id), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error).doing(|| format!("cannot remove the staged file {id}")),
        }
    }

    fn sync_direct(&mut self) -> Result<(), ReplicaError> {
        let files = self.direct_files();
        if files.is_empty() {
            return Ok(());
        }
        let action = || "cannot sync the staged files";
        if files.len() > STAGED_SYNC_MAX {
            return rustix::fs::syncfs(&self.tree.redo).doing(action);
        }
        for id in files {
            self.direct_file(id)?.sync_all().doing(action)?;
        }
        sync_directory(self.files()?)
    }

    fn remove_log(&self, number: u64) -> Result<(), ReplicaError> {
        let action = || format!("cannot remove redo/{number}");
        let files = files_name(number);
        self.tree
            .remove_all(&self.tree.redo, OsStr::new(&files))
            .doing(action)?;
        match rustix::fs::unlinkat(&self.tree.redo, log_name(number), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error).doing(action),
        }
    }

    /// The fragments that were written to staged files, in order: number, what, and its record.
    fn direct_fragments(&self) -> Result<Vec<(u64, Fragment, Raw)>, ReplicaError> {
        let mut found = Vec::new();
        let mut left: HashMap<FileId, usize> = HashMap::new();
        for id in self.direct_files() {
            let pieces = self.log.as_ref().and_then(|log| log.index.files.get(&id));
            left.insert(id, pieces.map_or(0, |pieces| pieces.direct));
        }
        if left.is_empty() {
            return Ok(found);
        }
        Log::open(
            &self.tree.redo,
            self.number,
            u64::MAX,
            |number, entry, raw| {
                if let Entry::Fragment(fragment) = entry
                    && let Some(left) = left.get_mut(&fragment.file)
                    && *left > 0
                {
                    *left -= 1;
                    let raw = Raw {
                        body: Vec::new(),
                        ..*raw
                    };
                    let mut fragment = fragment.clone();
                    fragment.blocks = Vec::new();
                    found.push((number, fragment, raw));
                }
            },
        )?;
        Ok(found)
    }

    /// How many of the first `keep` entries have in the staged files what they wrote there.
    fn untouched(&self, mut keep: u64) -> Result<u64, ReplicaError> {
        let fragments = self.direct_fragments()?;
        loop {
            let forgotten = fragments.iter().filter(|(number, ..)| *number >= keep);
            let mut lost: HashMap<FileId, ExtentSet> = HashMap::new();
            for (_, fragment, _) in forgotten {
                lost.entry(fragment.file)
                    .or_default()
                    .insert(fragment.extent);
            }
            let hit = fragments.iter().find(|(number, fragment, _)| {
                *number < keep
                    && lost
                        .get(&fragment.file)
                        .is_some_and(|lost| lost.overlaps(fragment.extent).next().is_some())
            });
            match hit {
                Some((number, ..)) => keep = *number,
                None => return Ok(keep),
            }
        }
    }

    /// How many entries, from the first, have their bytes in the staged files. After a crash of
    /// this process only the last one can be missing; after one of the machine, any.
    fn whole(&mut self, rebooted: bool) -> Result<u64, ReplicaError> {
        let entries = self.entries();
        let fragments = self.direct_fragments()?;
        let mut later: HashMap<FileId, ExtentSet> = HashMap::new();
        let mut files = HashSet::new();
        let mut keep = entries;
        for (number, fragment, raw) in fragments.iter().rev() {
            let over = later.entry(fragment.file).or_default();
            let covered: u64 = over
                .overlaps(fragment.extent)
                .map(|extent| extent.length)
                .sum();
            over.insert(fragment.extent);
            files.insert(fragment.file);
            let last = number + 1 == entries;
            if covered == fragment.extent.length || !(rebooted || last) {
                continue;
            }
            if covered > 0 || !self.is_written(fragment, raw)? {
                keep = *number;
            }
        }
        Ok(keep)
    }

    fn is_written(&mut self, fragment: &Fragment, raw: &Raw) -> Result<bool, ReplicaError> {
        let expected = match (raw.kind, fragment.body, &self.log) {
            (_, Body::Bytes, None) | (_, Body::Hole | Body::Copy { .. }, _) => return Ok(false),
            (RecordKind::Direct, Body::Bytes, Some(log)) => log.data(raw)?,
            (_, Body::Bytes, Some(log)) => blake3::hash(&log.data(raw)?).as_bytes().to_vec(),
        };
        let file = self.direct_file(fragment.file)?;
        let mut bytes = vec![0; usize::try_from(fragment.extent.length).unwrap_or(0)];
        match file.read_exact_at(&mut bytes, fragment.extent.offset) {
            Ok(()) => Ok(blake3::hash(&bytes).as_bytes()[..] == expected[..]),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error).doing(|| "cannot read a staged file"),
        }
    }
}

/// Checks the blocks that a fragment brings whole.
fn check_blocks(fragment: &Fragment, bytes: &[u8]) -> Result<(), ReplicaError> {
    if fragment.body != Body::Bytes {
        return Ok(());
    }
    let wrong = |what: &str| {
        let file = fragment.file;
        let at = fragment.extent.offset;
        let message = format!("a fragment of file {file} at {at} has {what}");
        ReplicaError::refused(Refusal::Protocol, message)
    };
    if bytes.len() as u64 != fragment.extent.length {
        return Err(wrong("not the bytes it says"));
    }
    for (block, hash) in blocks_of(fragment.extent).zip(&fragment.blocks) {
        let extent = Extent::new(block * BLOCK_BYTES, BLOCK_BYTES);
        if !overlap(extent, fragment.extent) || fragment.extent.intersection(extent) != extent {
            continue;
        }
        let start = usize::try_from(extent.offset - fragment.extent.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(BLOCK_BYTES).unwrap_or(0));
        let block = bytes
            .get(start..end)
            .ok_or_else(|| wrong("too few bytes"))?;
        if hash_block(block) != *hash {
            return Err(wrong("a block that its hash is not of"));
        }
    }
    Ok(())
}
