//! The database file: opened with its damages told apart, closed and opened again after the disk
//! failed, and every call into it guarded.

use super::error::{Error, Fault, Result};
use super::row::{
    BLOCKS, FORMAT, INODES, LINKS, META, META_FORMAT, META_STATE, NAMES, OBJECTS, Row, Sum,
    decode_state, encode_state,
};
use super::{Durability, State};
use crate::limits::{RECORDS_CACHE_BYTES, RECORDS_CHECK_BYTES_MAX};
use crate::model::{Attributes, EpochId, FileId, Fixed, Object, Xattrs};
use parking_lot::{Condvar, Mutex, RwLock};
use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file and its database, which is `None` between a failure and the next attempt.
#[derive(Debug)]
pub(super) struct Store {
    /// For messages.
    path: PathBuf,
    /// The directory, opened before a mount can cover it, and the file's name in it.
    directory: OwnedFd,
    name: PathBuf,
    database: RwLock<Option<Database>>,
    committed: Mutex<Committed>,
    /// Whether there is a writer.
    writer: Mutex<bool>,
    writer_left: Condvar,
}

/// The newest epoch that was committed, durably or not.
#[derive(Clone, Copy, Debug)]
struct Committed {
    epoch: EpochId,
    /// Whether the disk lost it, and it was not applied again.
    fell_back: bool,
}

/// The one write transaction.
pub(super) struct Writing {
    store: Arc<Store>,
    /// `None` after the disk failed.
    transaction: Option<WriteTransaction>,
}

impl Writing {
    /// Runs one step in the transaction. If the disk fails in it, the transaction is over.
    pub(super) fn step<T>(
        &mut self,
        step: impl FnOnce(&WriteTransaction) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let Some(transaction) = &self.transaction else {
            return Err(self.over());
        };
        guarded(|| step(transaction)).map_err(|fault| self.failed(fault))
    }

    /// Commits, and says that the state is now that of an epoch if it changed it, and whether it
    /// replaced all there was.
    ///
    /// After an error it is not known whether it was committed.
    pub(super) fn commit(
        mut self,
        epoch: Option<(EpochId, bool)>,
        durability: Durability,
    ) -> Result<()> {
        let Some(mut transaction) = self.transaction.take() else {
            return Err(self.over());
        };
        let committed = guarded(|| {
            transaction.set_durability(match durability {
                Durability::None => redb::Durability::None,
                Durability::Immediate => redb::Durability::Immediate,
            })?;
            Ok(transaction.commit()?)
        });
        committed.map_err(|fault| self.failed(fault))?;
        if let Some((epoch, replaces)) = epoch {
            let mut committed = self.store.committed.lock();
            // What fell back is of use again when it is where it was, or was replaced altogether.
            if replaces || !committed.fell_back || epoch >= committed.epoch {
                *committed = Committed {
                    epoch,
                    fell_back: false,
                };
            }
        }
        Ok(())
    }

    fn failed(&mut self, fault: Fault) -> Error {
        if fault.needs_reopen() {
            // The file stays locked as long as the transaction lives.
            self.transaction = None;
            self.store.close();
        }
        fault.at(&self.store.path)
    }

    fn over(&self) -> Error {
        let source = std::io::Error::other("the disk failed earlier in this change");
        Error::Io {
            path: self.store.path.clone(),
            source,
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.transaction = None;
        *self.store.writer.lock() = false;
        self.store.writer_left.notify_one();
    }
}

impl Store {
    pub(super) fn create(path: &Path) -> Result<Store> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let (directory, name) = split(path)?;
        let (target, fresh) = (
            reach(&directory, &name),
            reach(&directory, &name.with_extension("new")),
        );
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(io)?;
        guarded(|| {
            let database = redb::Builder::new().create(&fresh)?;
            initialise(&database)?;
            Ok(database.close()?)
        })
        .map_err(|fault| fault.at(path))?;
        std::fs::rename(&fresh, &target).map_err(io)?;
        crate::disk::sync_directory(&directory).map_err(io)?;
        Store::open(path)
    }

    pub(super) fn open(path: &Path) -> Result<Store> {
        let (directory, name) = split(path)?;
        let (database, state) = open(path, &reach(&directory, &name))?;
        Ok(Store {
            path: path.to_owned(),
            directory,
            name,
            database: RwLock::new(Some(database)),
            committed: Mutex::new(Committed {
                epoch: state.epoch,
                fell_back: false,
            }),
            writer: Mutex::new(false),
            writer_left: Condvar::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `read` in a transaction of its own; a second time if the first one found the database
    /// closed by an earlier failure.
    pub(super) fn read<T>(
        &self,
        read: impl Fn(&ReadTransaction) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            self.check_newest(&transaction)?;
            read(&transaction)
        })
    }

    /// The state, even if it is an older one than was relied upon.
    pub(super) fn state(&self) -> Result<State> {
        self.with(|database| state(&database.begin_read()?))
    }

    /// A transaction that outlives the call, for an export.
    pub(super) fn begin_read(&self) -> Result<ReadTransaction> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            self.check_newest(&transaction)?;
            Ok(transaction)
        })
    }

    fn check_newest(&self, transaction: &ReadTransaction) -> std::result::Result<(), Fault> {
        let Committed {
            epoch: had,
            fell_back,
        } = *self.committed.lock();
        if !fell_back {
            return Ok(());
        }
        let has = state(transaction)?.epoch;
        Err(Fault::Final(Error::FellBack {
            path: self.path.clone(),
            had,
            has,
        }))
    }

    /// A guarded step in a transaction of [`Store::begin_read`].
    pub(super) fn guard<T>(
        &self,
        step: impl FnOnce() -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        guarded(step).map_err(|fault| {
            if fault.needs_reopen() {
                self.close();
            }
            fault.at(&self.path)
        })
    }

    /// Waits for another writer of this process.
    pub(super) fn begin_write(self: &Arc<Store>) -> Result<Writing> {
        // The database would make a second writer wait too, but inside a call, which would keep
        // the first one from closing the database when the disk fails.
        let mut busy = self.writer.lock();
        while *busy {
            self.writer_left.wait(&mut busy);
        }
        *busy = true;
        drop(busy);
        let mut writing = Writing {
            store: self.clone(),
            transaction: None,
        };
        writing.transaction = Some(self.with(|database| Ok(database.begin_write()?))?);
        Ok(writing)
    }

    fn with<T>(&self, call: impl Fn(&Database) -> std::result::Result<T, Fault>) -> Result<T> {
        let mut retried = false;
        loop {
            let database = self.database.read();
            let Some(open) = database.as_ref() else {
                drop(database);
                self.reopen()?;
                continue;
            };
            let answer = guarded(|| call(open));
            drop(database);
            match answer {
                Err(fault) if fault.needs_reopen() => {
                    self.close();
                    if std::mem::replace(&mut retried, true) {
                        return Err(fault.at(&self.path));
                    }
                }
                answer => return answer.map_err(|fault| fault.at(&self.path)),
            }
        }
    }

    fn close(&self) {
        // The reason for closing has been seen; another error adds nothing. A transaction that
        // is still alive keeps the file locked until it ends, which the next attempt finds.
        if let Some(database) = self.database.write().take() {
            tracing::warn!(path = %self.path.display(), "the disk failed, records are reopened");
            let _ = catch_unwind(AssertUnwindSafe(|| database.close()));
        }
    }

    fn reopen(&self) -> Result<()> {
        let mut slot = self.database.write();
        if slot.is_some() {
            return Ok(());
        }
        let (database, state) = open(&self.path, &reach(&self.directory, &self.name))?;
        let mut committed = self.committed.lock();
        if state.epoch < committed.epoch {
            committed.fell_back = true;
        } else {
            // A commit whose answer was an error may have become durable all the same.
            *committed = Committed {
                epoch: state.epoch,
                fell_back: false,
            };
        }
        *slot = Some(database);
        Ok(())
    }
}

/// Calls into the database. It promises errors for what a disk may hold after a crash, and a
/// panic for what something else wrote; neither may end the process.
fn guarded<T>(
    call: impl FnOnce() -> std::result::Result<T, Fault>,
) -> std::result::Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Fault::Row("the database gave up on it")))
}

/// The directory of a file, and its name there.
fn split(path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let name = path
        .file_name()
        .ok_or_else(|| io(std::io::ErrorKind::InvalidInput.into()))?;
    match std::fs::File::open(parent.unwrap_or(Path::new("."))) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::Missing {
            path: path.to_owned(),
        }),
        Err(error) => Err(io(error)),
        Ok(directory) => Ok((directory.into(), name.into())),
    }
}

/// A path that goes through the open directory, whatever is mounted above it by now (I8).
fn reach(directory: &OwnedFd, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name)
}

/// Opens the file `reached`; errors and tests know it as `path`.
fn open(path: &Path, reached: &Path) -> Result<(Database, State)> {
    let bytes = match std::fs::metadata(reached) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Missing {
                path: path.to_owned(),
            });
        }
        Err(source) => {
            return Err(Error::Io {
                path: path.to_owned(),
                source,
            });
        }
        Ok(metadata) => metadata.len(),
    };
    guarded(|| {
        if bytes == 0 {
            // The database would take it for a new one.
            return Err(Fault::Row("the file is empty"));
        }
        let mut builder = redb::Builder::new();
        builder.set_cache_size(RECORDS_CACHE_BYTES);
        builder.set_check_integrity_on_open(bytes <= RECORDS_CHECK_BYTES_MAX);
        #[cfg(test)]
        let database = match faulty::backend(path) {
            Some(backend) => builder.create_with_backend(backend)?,
            None => builder.open(reached)?,
        };
        #[cfg(not(test))]
        let database = builder.open(reached)?;
        let state = check(path, &database.begin_read()?)?;
        Ok((database, state))
    })
    .map_err(|fault| fault.at(path))
}

fn check(path: &Path, read: &ReadTransaction) -> std::result::Result<State, Fault> {
    let meta = read.open_table(META)?;
    let format = meta.get(META_FORMAT)?.ok_or(Fault::Row("no format"))?;
    let format = <[u8; 4]>::try_from(format.value()).map_err(|_| Fault::Row("no format"))?;
    let format = u32::from_le_bytes(format);
    if format != FORMAT {
        return Err(Fault::Final(Error::Version {
            path: path.to_owned(),
            found: format.to_string(),
            known: FORMAT,
        }));
    }
    read.open_table(OBJECTS)?;
    read.open_table(NAMES)?;
    read.open_table(LINKS)?;
    read.open_table(BLOCKS)?;
    read.open_table(INODES)?;
    state(read)
}

pub(super) fn state(read: &ReadTransaction) -> std::result::Result<State, Fault> {
    let meta = read.open_table(META)?;
    let state = meta.get(META_STATE)?.ok_or(Fault::Row("no state"))?;
    decode_state(state.value())
}

fn initialise(database: &Database) -> std::result::Result<(), Fault> {
    let write = database.begin_write()?;
    write
        .open_table(META)?
        .insert(META_FORMAT, &FORMAT.to_le_bytes()[..])?;
    clear(&write)?;
    Ok(write.commit()?)
}

/// Makes the tables those of a tree of nothing but its root.
pub(super) fn clear(write: &WriteTransaction) -> std::result::Result<State, Fault> {
    write.delete_table(OBJECTS)?;
    write.delete_table(NAMES)?;
    write.delete_table(LINKS)?;
    write.delete_table(BLOCKS)?;
    write.delete_table(INODES)?;
    write.open_table(NAMES)?;
    write.open_table(LINKS)?;
    write.open_table(BLOCKS)?;
    write.open_table(INODES)?;
    let row = root_row();
    write
        .open_table(OBJECTS)?
        .insert(FileId::ROOT.0, &row.encode()?[..])?;
    let mut root = Sum::default();
    root.add(row.hash(FileId::ROOT)?.unwrap_or_default());
    let state = State {
        epoch: EpochId(0),
        digest: [0; 32],
        root_hash: root.root_hash(),
        objects: 1,
        names: 0,
        bytes: 0,
        consistent: true,
        highest_id: FileId::ROOT,
    };
    write
        .open_table(META)?
        .insert(META_STATE, &encode_state(&state)?[..])?;
    Ok(state)
}

/// The root directory before anything was said of it; the same on both sides.
fn root_row() -> Row {
    let attributes = Attributes {
        mode: 0o755,
        ..Attributes::default()
    };
    let object = Object {
        fixed: Fixed::Directory,
        attributes,
        size: 0,
        xattrs: Xattrs::new(),
    };
    Row {
        object: Some(object),
        ..Row::default()
    }
}

/// A disk that fails when a test says so.
#[cfg(test)]
pub(super) mod faulty {
    use std::collections::HashMap;
    use std::io::{Error, Result};
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    static FAULTS: parking_lot::Mutex<Option<HashMap<PathBuf, Arc<AtomicBool>>>> =
        parking_lot::Mutex::new(None);

    /// The switch that makes every write to this file fail.
    pub fn switch(path: &Path) -> Arc<AtomicBool> {
        let mut faults = FAULTS.lock();
        faults
            .get_or_insert_default()
            .entry(path.to_owned())
            .or_default()
            .clone()
    }

    pub(super) fn backend(path: &Path) -> Option<Faulty> {
        let fails = FAULTS.lock().as_ref()?.get(path)?.clone();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .ok()?;
        Some(Faulty {
            file: redb::backends::FileBackend::new(file).ok()?,
            fails,
        })
    }

    #[derive(Debug)]
    pub(super) struct Faulty {
        file: redb::backends::FileBackend,
        fails: Arc<AtomicBool>,
    }

    impl Faulty {
        fn check(&self) -> Result<()> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(Error::from_raw_os_error(libc::ENOSPC));
            }
            Ok(())
        }
    }

    impl redb::StorageBackend for Faulty {
        fn len(&self) -> Result<u64> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
            self.file.read(offset, out)
        }
        fn set_len(&self, len: u64) -> Result<()> {
            self.check()?;
            self.file.set_len(len)
        }
        fn sync_data(&self) -> Result<()> {
            self.check()?;
            self.file.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
            self.check()?;
            self.file.write(offset, data)
        }
    }
}
