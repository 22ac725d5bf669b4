//! Manifests: the entries of epochs, without the bytes of fragments, as the index takes them in.
//!
//! A manifest is durable before the commit of its epoch is sent (invariant I7), so that a lost
//! acknowledgement can be made up for. Layout, numbers little-endian:
//!
//! ```text
//! "mfsmanif" format:u32
//! { length:u32 crc32(kind, body):u32 kind:u8 body:[length] }*    kind 0: an entry, as on the wire
//!                                                                kind 1: the commit; ends the file
//! ```

use super::Directory;
use super::error::{Error, Result};
use crate::model::{Commit, Entry, EpochId};
use crate::wire::{EntryDigest, decode_entry, encode_entry};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

const MAGIC: &[u8; 8] = b"mfsmanif";
const FORMAT: u32 = 1;
const FILE_HEADER_BYTES: u64 = 12;
const RECORD_HEADER_BYTES: usize = 9;
const ENTRY: u8 = 0;
const COMMIT: u8 = 1;

/// The largest record: an entry fits a frame without its bytes.
const RECORD_BYTES_MAX: usize = crate::limits::FRAME_BYTES_MAX;
/// How many bytes are collected before they are written.
const BUFFER_BYTES: usize = 64 * 1024;

const OPEN_NAME: &str = "manifest-open";
const SEALED_PREFIX: &str = "manifest-";

/// A sealed epoch whose manifest is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedManifest {
    /// The epoch.
    pub epoch: EpochId,
    /// The epoch that it changes.
    pub parent: EpochId,
    /// Its digest.
    pub digest: [u8; 32],
}

/// The manifest of the epoch that is being staged.
#[derive(Debug)]
pub struct ManifestWriter {
    directory: Directory,
    file: File,
    /// Where `buffer` belongs in the file.
    offset: u64,
    buffer: Vec<u8>,
    digest: EntryDigest,
    state: WriterState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum WriterState {
    Open,
    /// The disk failed: what is in the file behind some entry is not known.
    Broken,
    Sealed,
}

impl ManifestWriter {
    /// Opens it, with the entries that an earlier writer left whole.
    pub(super) fn open(directory: &Directory) -> Result<ManifestWriter> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&directory.fd, OPEN_NAME, flags, mode)
            .map_err(|error| Error::io("open", directory.path(OPEN_NAME))(error.into()))?;
        let mut writer = ManifestWriter {
            directory: directory.clone(),
            file: file.into(),
            offset: 0,
            buffer: Vec::new(),
            digest: EntryDigest::new(),
            state: WriterState::Broken,
        };
        writer.cut(u64::MAX)?;
        Ok(writer)
    }

    /// How many entries it has.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.digest.entries()
    }

    /// The digest of its entries, as a commit carries it.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest.digest()
    }

    /// Appends an entry.
    ///
    /// # Durability
    /// None before [`ManifestWriter::seal`].
    ///
    /// # Errors
    /// [`Error::Io`]; the manifest must then be cut before it is of use again.
    pub fn append(&mut self, entry: &Entry) -> Result<()> {
        self.check(WriterState::Open)?;
        let mut body = Vec::new();
        let encoded = encode_entry(entry, &mut body);
        if encoded.is_err() || body.len() > RECORD_BYTES_MAX {
            return Err(self.io("append to")(io::ErrorKind::InvalidInput.into()));
        }
        self.digest.add_encoded(&body);
        push_record(&mut self.buffer, ENTRY, &body);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Cuts it to its first `entries` entries, or to those it has; answers how many that are.
    /// Makes a broken manifest whole. A sealed one has none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn truncate(&mut self, entries: u64) -> Result<u64> {
        match self.state {
            WriterState::Open if entries >= self.entries() => {}
            WriterState::Open => {
                self.flush()?;
                self.cut(entries)?;
            }
            WriterState::Broken => self.cut(entries)?,
            WriterState::Sealed => {
                let reopened = ManifestWriter::open(&self.directory)?;
                *self = reopened;
                self.cut(entries)?;
            }
        }
        Ok(self.entries())
    }

    /// Ends it with the commit of its epoch, and gives it its name. The next append needs another
    /// writer.
    ///
    /// # Durability
    /// On stable storage when it returns.
    ///
    /// # Errors
    /// [`Error::Io`]: it is not sealed, or may not stay so; the commit must not be sent.
    pub fn seal(&mut self, commit: &Commit) -> Result<()> {
        self.check(WriterState::Open)?;
        assert!(
            commit.entries == self.entries() && commit.digest == self.digest(),
            "the commit is that of these entries"
        );
        let body = postcard::to_stdvec(commit)
            .map_err(|_| self.io("seal")(io::ErrorKind::InvalidInput.into()))?;
        push_record(&mut self.buffer, COMMIT, &body);
        self.flush()?;
        // Should any of this fail, the file ends in a commit, and is cut before the next append.
        self.state = WriterState::Broken;
        self.file.sync_data().map_err(self.io("sync"))?;
        let name = sealed_name(commit.epoch);
        rustix::fs::renameat(&self.directory.fd, OPEN_NAME, &self.directory.fd, &name)
            .map_err(|error| self.io("seal")(error.into()))?;
        self.state = WriterState::Sealed;
        crate::disk::sync_directory(&self.directory.fd).map_err(self.io("seal"))
    }

    /// Takes a sealed manifest back as the one that is being written: the link was lost before the
    /// replica had the commit, and may still have the entries. What this one had is dropped.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NoManifest`].
    pub fn unseal(&mut self, epoch: EpochId) -> Result<()> {
        self.state = WriterState::Broken;
        let name = sealed_name(epoch);
        let directory = self.directory.clone();
        match rustix::fs::renameat(&directory.fd, &name, &directory.fd, OPEN_NAME) {
            Err(rustix::io::Errno::NOENT) => {
                let path = directory.path.to_path_buf();
                return Err(Error::NoManifest { path, epoch });
            }
            renamed => renamed.map_err(|error| self.io("unseal")(error.into()))?,
        }
        *self = ManifestWriter::open(&directory)?;
        Ok(())
    }

    fn check(&self, wanted: WriterState) -> Result<()> {
        if self.state == wanted {
            return Ok(());
        }
        let path = self.directory.path(OPEN_NAME);
        Err(Error::Broken { path })
    }

    fn flush(&mut self) -> Result<()> {
        let written = self.file.write_all_at(&self.buffer, self.offset);
        if let Err(error) = written {
            self.state = WriterState::Broken;
            return Err(self.io("write")(error));
        }
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Keeps the first whole entries of the file, at most `entries`, and nothing else.
    fn cut(&mut self, entries: u64) -> Result<()> {
        self.state = WriterState::Broken;
        self.buffer.clear();
        self.digest = EntryDigest::new();
        self.offset = 0;
        let mut scan = Scan::new(&self.file).map_err(self.io("read"))?;
        let mut end = 0;
        if scan.header().map_err(self.io("read"))? {
            end = FILE_HEADER_BYTES;
            while self.digest.entries() < entries {
                match scan.record().map_err(self.io("read"))? {
                    Found::Record(ENTRY, body) if decode_entry(&body).is_ok() => {
                        self.digest.add_encoded(&body);
                        end = scan.offset;
                    }
                    _ => break,
                }
            }
        }
        self.file.set_len(end).map_err(self.io("cut"))?;
        self.offset = end;
        if end == 0 {
            self.buffer.extend_from_slice(MAGIC);
            self.buffer.extend_from_slice(&FORMAT.to_le_bytes());
        }
        self.state = WriterState::Open;
        Ok(())
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::io(doing, self.directory.path(OPEN_NAME))
    }
}

impl Drop for ManifestWriter {
    fn drop(&mut self) {
        // What cannot be written is not there when it is opened again; its entries are then
        // staged again.
        if self.state == WriterState::Open {
            let _ = self.flush();
        }
    }
}

/// The entries of a sealed epoch.
#[derive(Debug)]
pub struct ManifestReader {
    scan: Scan<File>,
    epoch: EpochId,
    commit: Commit,
    directory: Directory,
}

impl ManifestReader {
    /// Opens it, and checks it as a whole: no entry of a damaged one is ever given out.
    pub(super) fn open(directory: &Directory, epoch: EpochId) -> Result<ManifestReader> {
        let name = sealed_name(epoch);
        let path = directory.path(&name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(&directory.fd, &name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => {
                let path = directory.path.to_path_buf();
                return Err(Error::NoManifest { path, epoch });
            }
            opened => opened.map_err(|error| Error::io("open", path.clone())(error.into()))?,
        };
        let file = File::from(file);
        let mut scan = Scan::new(file).map_err(Error::io("read", path.clone()))?;
        let read = check(&mut scan, epoch).map_err(Error::io("read", path.clone()))?;
        let damaged = |detail: &str| {
            let (path, detail) = (path.clone(), detail.into());
            Error::Manifest {
                path,
                epoch,
                detail,
            }
        };
        let commit = read.map_err(damaged)?;
        scan.rewind().map_err(Error::io("read", path.clone()))?;
        Ok(ManifestReader {
            scan,
            epoch,
            commit,
            directory: directory.clone(),
        })
    }

    /// The commit of the epoch.
    #[must_use]
    pub fn commit(&self) -> &Commit {
        &self.commit
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Manifest`] if the file changed since it was checked.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let path = || self.directory.path(&sealed_name(self.epoch));
        let found = self
            .scan
            .record()
            .map_err(|error| Error::io("read", path())(error))?;
        let entry = match found {
            Found::Record(ENTRY, body) => decode_entry(&body).ok(),
            Found::Record(COMMIT, _) => return Ok(None),
            _ => None,
        };
        entry.map(Some).ok_or_else(|| Error::Manifest {
            path: path(),
            epoch: self.epoch,
            detail: "it changed while it was read".into(),
        })
    }
}

/// Reads a sealed manifest to its end.
fn check(
    scan: &mut Scan<File>,
    epoch: EpochId,
) -> io::Result<std::result::Result<Commit, &'static str>> {
    if !scan.header()? {
        return Ok(Err("its head is another"));
    }
    let mut digest = EntryDigest::new();
    let body = loop {
        match scan.record()? {
            Found::Record(ENTRY, body) => {
                if decode_entry(&body).is_err() {
                    return Ok(Err("an entry is none"));
                }
                digest.add_encoded(&body);
            }
            Found::Record(COMMIT, body) => break body,
            Found::Record(..) => return Ok(Err("a record is of no known kind")),
            Found::Torn => return Ok(Err("a checksum is another, or it is cut off")),
            Found::End => return Ok(Err("it has no commit")),
        }
    };
    let Ok(commit) = postcard::from_bytes::<Commit>(&body) else {
        return Ok(Err("its commit is none"));
    };
    if !matches!(scan.record()?, Found::End) {
        return Ok(Err("something is behind its commit"));
    }
    let same = commit.entries == digest.entries() && commit.digest == digest.digest();
    if commit.epoch != epoch || !same {
        return Ok(Err("its commit is of other entries"));
    }
    Ok(Ok(commit))
}

/// What comes next in a manifest.
enum Found {
    Record(u8, Vec<u8>),
    /// Nothing.
    End,
    /// Not what was written.
    Torn,
}

/// Reads records.
#[derive(Debug)]
struct Scan<R> {
    reader: BufReader<R>,
    /// Behind the last whole record.
    offset: u64,
    bytes: u64,
}

impl<R: Read + Seek> Scan<R> {
    fn new(mut reader: R) -> io::Result<Scan<R>> {
        let bytes = reader.seek(SeekFrom::End(0))?;
        reader.seek(SeekFrom::Start(0))?;
        let reader = BufReader::with_capacity(BUFFER_BYTES, reader);
        Ok(Scan {
            reader,
            offset: 0,
            bytes,
        })
    }

    /// Whether it begins as a manifest does.
    fn header(&mut self) -> io::Result<bool> {
        if self.bytes < FILE_HEADER_BYTES {
            return Ok(false);
        }
        let (mut magic, mut format) = ([0; 8], [0; 4]);
        self.reader.read_exact(&mut magic)?;
        self.reader.read_exact(&mut format)?;
        self.offset = FILE_HEADER_BYTES;
        Ok(magic == *MAGIC && u32::from_le_bytes(format) == FORMAT)
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.reader.seek(SeekFrom::Start(FILE_HEADER_BYTES))?;
        self.offset = FILE_HEADER_BYTES;
        Ok(())
    }

    fn record(&mut self) -> io::Result<Found> {
        let left = self.bytes.saturating_sub(self.offset);
        if left == 0 {
            return Ok(Found::End);
        }
        let Some(left) = left.checked_sub(RECORD_HEADER_BYTES as u64) else {
            return Ok(Found::Torn);
        };
        let (mut length, mut sum, mut kind) = ([0; 4], [0; 4], [0]);
        self.reader.read_exact(&mut length)?;
        self.reader.read_exact(&mut sum)?;
        self.reader.read_exact(&mut kind)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > RECORD_BYTES_MAX || length as u64 > left {
            return Ok(Found::Torn);
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        if checksum(kind[0], &body) != u32::from_le_bytes(sum) {
            return Ok(Found::Torn);
        }
        self.offset += (RECORD_HEADER_BYTES + length) as u64;
        Ok(Found::Record(kind[0], body))
    }
}

fn push_record(buffer: &mut Vec<u8>, kind: u8, body: &[u8]) {
    buffer.extend_from_slice(&(body.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&checksum(kind, body).to_le_bytes());
    buffer.push(kind);
    buffer.extend_from_slice(body);
}

fn checksum(kind: u8, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(body);
    hasher.finalize()
}

fn sealed_name(epoch: EpochId) -> String {
    format!("{SEALED_PREFIX}{:016x}", epoch.0)
}

/// The epochs that have a manifest, in order.
fn epochs(directory: &Directory) -> Result<Vec<EpochId>> {
    let io =
        |error: rustix::io::Errno| Error::io("list", directory.path.to_path_buf())(error.into());
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory.fd).map_err(io)? {
        let name = entry.map_err(io)?;
        let digits = name
            .file_name()
            .to_str()
            .ok()
            .and_then(|n| n.strip_prefix(SEALED_PREFIX));
        let epoch = digits
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(EpochId);
        found.extend(
            epoch.filter(|epoch| digits == sealed_name(*epoch).strip_prefix(SEALED_PREFIX)),
        );
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn sealed(directory: &Directory) -> Result<Vec<SealedManifest>> {
    let mut found = Vec::new();
    for epoch in epochs(directory)? {
        match ManifestReader::open(directory, epoch) {
            Ok(reader) => {
                let Commit {
                    epoch,
                    parent,
                    digest,
                    ..
                } = reader.commit;
                found.push(SealedManifest {
                    epoch,
                    parent,
                    digest,
                });
            }
            Err(error @ Error::Manifest { .. }) => {
                tracing::warn!(%error, "a manifest cannot be used; what it had will be compared");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

pub(super) fn remove_where(directory: &Directory, wanted: impl Fn(EpochId) -> bool) -> Result<()> {
    let mut removed = false;
    for epoch in epochs(directory)?
        .into_iter()
        .filter(|epoch| wanted(*epoch))
    {
        let name = sealed_name(epoch);
        rustix::fs::unlinkat(&directory.fd, &name, AtFlags::empty())
            .map_err(|error| Error::io("remove", directory.path(&name))(error.into()))?;
        removed = true;
    }
    if removed {
        crate::disk::sync_directory(&directory.fd)
            .map_err(Error::io("sync", directory.path.to_path_buf()))?;
    }
    Ok(())
}
