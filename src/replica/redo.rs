//! The redo log of one epoch.
//!
//! ```text
//! 8 bytes   "MFSREDO1"
//! records:  kind (1), zeros (3), length of the body (4), length of the data (4),
//!           crc32 of these 12 bytes, body and data (4), body, data       all little endian
//! kinds:    1 header  body: version, primary, incarnation, session, boot
//!           2 entry   body: the entry; data: its bytes, if it has some
//!           3 direct  body: a fragment whose bytes are in N.files; data: blake3 of the bytes
//!           4 commit  body: the commit; nothing follows
//! ```
//!
//! What is valid up to the first record that is not is the stage, or with a commit the epoch.
//! A log in memory is an index: bindings, and where the entries of objects and files are.

use super::error::{Doing, ReplicaError};
use crate::limits::{FRAGMENT_BYTES_MAX, MESSAGE_BYTES_MAX, STAGE_ENTRIES_MAX, STAGE_KEYS_MAX};
use crate::model::{
    Body, Commit, Entry, EpochId, Extent, FileId, Fixed, Fragment, Incarnation, Name, SessionId,
    Uuid,
};
use crate::wire::{decode_entry, encode_entry};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

const MAGIC: &[u8; 8] = b"MFSREDO1";
const HEAD_BYTES: u64 = 16;
const VERSION: u16 = 1;

/// Who staged an epoch, and in which life of the machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub version: u16,
    pub primary: Uuid,
    pub incarnation: Incarnation,
    pub session: SessionId,
    pub boot: Uuid,
}

impl Header {
    pub(super) fn new(
        primary: Uuid,
        incarnation: Incarnation,
        session: SessionId,
    ) -> Result<Header, ReplicaError> {
        let boot = crate::disk::boot_id().doing(|| "cannot read the boot id")?;
        Ok(Header {
            version: VERSION,
            primary,
            incarnation,
            session,
            boot,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RecordKind {
    Header = 1,
    Entry = 2,
    Direct = 3,
    Commit = 4,
}

/// A record without its data.
pub(super) struct Raw {
    pub kind: RecordKind,
    pub body: Vec<u8>,
    pub data_at: u64,
    pub data_bytes: u64,
    pub end: u64,
}

/// What kind of object an entry speaks of, as far as names and files are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    File,
    Directory,
    Other,
}

impl Kind {
    pub(super) fn of(fixed: &Fixed) -> Kind {
        match fixed {
            Fixed::File => Kind::File,
            Fixed::Directory => Kind::Directory,
            _ => Kind::Other,
        }
    }
}

/// The fragments of one file in a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    /// Where they are in the log, in order.
    pub at: Vec<u64>,
    /// How many of them, from the first, are in the staged file already; 0: it is not staged.
    pub direct: usize,
    /// Whether one copies from another file.
    pub copies: bool,
}

/// What a log holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// The last entry of each object.
    pub objects: BTreeMap<FileId, (u64, Kind)>,
    /// The last binding of each name.
    pub bindings: BTreeMap<(FileId, Name), Option<FileId>>,
    /// The fragments of each file.
    pub files: HashMap<FileId, Pieces>,
    /// How many entries.
    pub entries: u64,
}

impl Index {
    /// Takes the entry at `at` in.
    pub(super) fn add(&mut self, entry: &Entry, at: u64, direct: bool) {
        self.entries += 1;
        match entry {
            Entry::Fragment(fragment) => {
                let pieces = self.files.entry(fragment.file).or_default();
                pieces.at.push(at);
                pieces.copies |= matches!(fragment.body, Body::Copy { .. });
                if direct {
                    pieces.direct = pieces.at.len();
                }
            }
            Entry::Object { id, object } => {
                self.objects.insert(*id, (at, Kind::of(&object.fixed)));
            }
            Entry::Binding {
                parent,
                name,
                object,
            } => {
                self.bindings.insert((*parent, name.clone()), *object);
            }
        }
    }

    /// Whether it is as large as an epoch may be.
    pub(super) fn is_full(&self) -> bool {
        self.entries >= STAGE_ENTRIES_MAX
            || self.objects.len() + self.bindings.len() >= STAGE_KEYS_MAX
    }
}

/// One log on the disk, with its index.
#[derive(Debug)]
pub(super) struct Log {
    /// The N of its name. Logs are applied in the order of their numbers.
    pub number: u64,
    pub header: Header,
    pub index: Index,
    /// The commit, once it has one.
    pub commit: Option<Commit>,
    /// Bytes that are in the file.
    pub length: u64,
    file: File,
}

/// The name of log `number`.
pub(super) fn log_name(number: u64) -> String {
    format!("{number}.log")
}

/// The name of the directory with the staged files of log `number`.
pub(super) fn files_name(number: u64) -> String {
    format!("{number}.files")
}

/// Appends a record to `out`.
pub(super) fn encode_record(kind: RecordKind, body: &[u8], data: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[kind as u8, 0, 0, 0]);
    // Both are bounded by what a frame can carry.
    #[allow(clippy::cast_possible_truncation)]
    for length in [body.len() as u32, data.len() as u32] {
        out.extend_from_slice(&length.to_le_bytes());
    }
    let mut sum = crc32fast::Hasher::new();
    sum.update(&out[start..]);
    sum.update(body);
    sum.update(data);
    out.extend_from_slice(&sum.finalize().to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(data);
}

fn encode_value<T: Serialize>(value: &T) -> Result<Vec<u8>, ReplicaError> {
    postcard::to_stdvec(value).map_err(|error| ReplicaError::Damaged {
        path: "redo".to_owned(),
        why: error.to_string(),
    })
}

/// A record with the encoding of an entry as its body.
pub(super) fn encode_entry_record(
    direct: bool,
    entry: &Entry,
    data: &[u8],
    out: &mut Vec<u8>,
) -> Result<Vec<u8>, ReplicaError> {
    let mut body = Vec::new();
    encode_entry(entry, &mut body)?;
    let kind = if direct {
        RecordKind::Direct
    } else {
        RecordKind::Entry
    };
    encode_record(kind, &body, data, out);
    Ok(body)
}

/// The record of a header.
pub(super) fn encode_header_record(header: &Header, out: &mut Vec<u8>) -> Result<(), ReplicaError> {
    encode_record(RecordKind::Header, &encode_value(header)?, &[], out);
    Ok(())
}

/// The record of a commit.
pub(super) fn encode_commit_record(commit: &Commit, out: &mut Vec<u8>) -> Result<(), ReplicaError> {
    encode_record(RecordKind::Commit, &encode_value(commit)?, &[], out);
    Ok(())
}

impl Log {
    /// Makes the log `number`, with nothing but a header.
    pub(super) fn create(redo: &OwnedFd, number: u64, header: Header) -> Result<Log, ReplicaError> {
        let name = log_name(number);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(redo, &name, flags, Mode::RUSR | Mode::WUSR)
            .doing(|| format!("cannot make redo/{name}"))?;
        let mut log = Log {
            number,
            header,
            index: Index::default(),
            commit: None,
            length: 0,
            file: File::from(file),
        };
        let mut start = MAGIC.to_vec();
        encode_header_record(&log.header, &mut start)?;
        log.append(&start)?;
        Ok(log)
    }

    /// Opens the log `number` and reads it; `None` if not even its header is whole. `entries_max`
    /// entries are taken, and `seen` is called with each of them.
    pub(super) fn open(
        redo: &OwnedFd,
        number: u64,
        entries_max: u64,
        mut seen: impl FnMut(u64, &Entry, &Raw),
    ) -> Result<Option<Log>, ReplicaError> {
        let name = log_name(number);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(redo, &name, flags, Mode::empty())
            .doing(|| format!("cannot open redo/{name}"))?;
        let file = File::from(file);
        let mut magic = [0; 8];
        if file.read_exact_at(&mut magic, 0).is_err() || &magic != MAGIC {
            return Ok(None);
        }
        let length = file.metadata().doing(|| format!("redo/{name}"))?.len();
        let Some(first) = checked_record(&file, 8, length)? else {
            return Ok(None);
        };
        let header: Header = match postcard::from_bytes(&first.body) {
            Ok(header) if first.kind == RecordKind::Header => header,
            _ => return Ok(None),
        };
        if header.version != VERSION {
            return Err(ReplicaError::Damaged {
                path: format!("redo/{name}"),
                why: format!("version {} is not known", header.version),
            });
        }
        let mut log = Log {
            number,
            header,
            index: Index::default(),
            commit: None,
            length: first.end,
            file,
        };
        while log.commit.is_none() {
            let at = log.length;
            let Some(raw) = checked_record(&log.file, at, length)? else {
                break;
            };
            match raw.kind {
                // A later session goes on with this stage.
                RecordKind::Header => match postcard::from_bytes::<Header>(&raw.body) {
                    Ok(header) if header.version == VERSION => log.header = header,
                    _ => break,
                },
                RecordKind::Commit => match postcard::from_bytes::<Commit>(&raw.body) {
                    Ok(commit) if commit.entries == log.index.entries => log.commit = Some(commit),
                    _ => break,
                },
                RecordKind::Entry | RecordKind::Direct => {
                    if log.index.entries == entries_max {
                        break;
                    }
                    let Ok(entry) = decode_entry(&raw.body) else {
                        break;
                    };
                    seen(log.index.entries, &entry, &raw);
                    log.index.add(&entry, at, raw.kind == RecordKind::Direct);
                }
            }
            log.length = raw.end;
        }
        Ok(Some(log))
    }

    /// The epoch, of a log with a commit.
    pub(super) fn epoch(&self) -> EpochId {
        self.commit
            .as_ref()
            .map_or(EpochId(0), |commit| commit.epoch)
    }

    /// Appends bytes that are whole records.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ReplicaError> {
        self.file
            .write_all_at(bytes, self.length)
            .doing(|| format!("cannot write redo/{}.log", self.number))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Makes it durable (its name is made so by syncing the directory).
    pub(super) fn sync(&self) -> Result<(), ReplicaError> {
        self.file
            .sync_data()
            .doing(|| format!("cannot sync redo/{}.log", self.number))
    }

    /// Forgets what is behind `length`.
    pub(super) fn truncate(&self) -> Result<(), ReplicaError> {
        self.file
            .set_len(self.length)
            .doing(|| format!("cannot cut redo/{}.log", self.number))
    }

    /// The entry at `at`, and where its bytes are.
    pub(super) fn entry(&self, at: u64) -> Result<(Entry, Raw), ReplicaError> {
        let raw = read_record(&self.file, at, self.length)?;
        let entry = raw.as_ref().and_then(|raw| decode_entry(&raw.body).ok());
        match (entry, raw) {
            (Some(entry), Some(raw)) => Ok((entry, raw)),
            _ => Err(self.damaged(at)),
        }
    }

    /// The fragment at `at`.
    pub(super) fn fragment(&self, at: u64) -> Result<(Fragment, Raw), ReplicaError> {
        match self.entry(at)? {
            (Entry::Fragment(fragment), raw) => Ok((fragment, raw)),
            _ => Err(self.damaged(at)),
        }
    }

    /// Reads the data of a record.
    pub(super) fn data(&self, raw: &Raw) -> Result<Vec<u8>, ReplicaError> {
        let mut data = vec![0; usize::try_from(raw.data_bytes).unwrap_or(0)];
        self.file
            .read_exact_at(&mut data, raw.data_at)
            .doing(|| format!("cannot read redo/{}.log", self.number))?;
        Ok(data)
    }

    /// Calls `take` with each entry, in order.
    pub(super) fn each<E: From<ReplicaError>>(
        &self,
        mut take: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 8;
        while at < self.length {
            let raw = read_record(&self.file, at, self.length)?.ok_or_else(|| self.damaged(at))?;
            if matches!(raw.kind, RecordKind::Entry | RecordKind::Direct) {
                take(decode_entry(&raw.body).map_err(|_| self.damaged(at))?)?;
            }
            at = raw.end;
        }
        Ok(())
    }

    /// That there is no good record at `at`.
    pub(super) fn damaged(&self, at: u64) -> ReplicaError {
        ReplicaError::Damaged {
            path: format!("redo/{}.log", self.number),
            why: format!("no record at {at}"),
        }
    }
}

fn head(file: &File, at: u64, length: u64) -> io::Result<Option<([u8; 16], Raw)>> {
    let mut head = [0; 16];
    if at + HEAD_BYTES > length {
        return Ok(None);
    }
    file.read_exact_at(&mut head, at)?;
    let kind = match head[0] {
        1 => RecordKind::Header,
        2 => RecordKind::Entry,
        3 => RecordKind::Direct,
        4 => RecordKind::Commit,
        _ => return Ok(None),
    };
    let number = |from: usize| {
        u64::from(u32::from_le_bytes([
            head[from],
            head[from + 1],
            head[from + 2],
            head[from + 3],
        ]))
    };
    let (body, data) = (number(4), number(8));
    let end = at + HEAD_BYTES + body + data;
    if body > MESSAGE_BYTES_MAX as u64 || data > FRAGMENT_BYTES_MAX || end > length {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(body).unwrap_or(0)];
    file.read_exact_at(&mut bytes, at + HEAD_BYTES)?;
    let raw = Raw {
        kind,
        body: bytes,
        data_at: at + HEAD_BYTES + body,
        data_bytes: data,
        end,
    };
    Ok(Some((head, raw)))
}

/// The record at `at`, which is known to be good.
fn read_record(file: &File, at: u64, length: u64) -> Result<Option<Raw>, ReplicaError> {
    Ok(head(file, at, length)
        .doing(|| "cannot read a redo log")?
        .map(|(_, raw)| raw))
}

/// The record at `at` if it is whole.
fn checked_record(file: &File, at: u64, length: u64) -> Result<Option<Raw>, ReplicaError> {
    let Some((head, raw)) = head(file, at, length).doing(|| "cannot read a redo log")? else {
        return Ok(None);
    };
    let mut data = vec![0; usize::try_from(raw.data_bytes).unwrap_or(0)];
    file.read_exact_at(&mut data, raw.data_at)
        .doing(|| "cannot read a redo log")?;
    let mut sum = crc32fast::Hasher::new();
    sum.update(&head[..12]);
    sum.update(&raw.body);
    sum.update(&data);
    Ok((sum.finalize().to_le_bytes() == head[12..]).then_some(raw))
}

/// The numbers of the logs, in order, and of the directories of staged files.
pub(super) fn list(redo: &OwnedFd) -> Result<(Vec<u64>, Vec<u64>), ReplicaError> {
    let (mut logs, mut files) = (Vec::new(), Vec::new());
    for name in names(redo).doing(|| "cannot list redo")? {
        let Some((number, suffix)) = std::str::from_utf8(&name)
            .ok()
            .and_then(|name| name.split_once('.'))
        else {
            continue;
        };
        let Ok(number) = number.parse() else { continue };
        match suffix {
            "log" => logs.push(number),
            "files" => files.push(number),
            _ => {}
        }
    }
    logs.sort_unstable();
    files.sort_unstable();
    Ok((logs, files))
}

/// The names in one of the replica's own directories.
pub(super) fn names(directory: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            found.push(name);
        }
    }
    Ok(found)
}

/// Whether two extents share a byte.
pub(super) fn overlap(one: Extent, other: Extent) -> bool {
    !one.intersection(other).is_empty()
}
