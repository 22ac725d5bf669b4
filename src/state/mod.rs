//! The primary's state directory: who it is, what it mirrors, which ids it has used, and the
//! manifests of sealed epochs. It owns the lock and these files:
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked while a process works with the directory; holds its pid |
//! | `identity` | [`Identity`] (checksummed, replaced as a whole) |
//! | `clean` | the last process stopped in order; removed by the next one |
//! | `manifest-open` | entries of the epoch that is being staged (a torn end is cut off) |
//! | `manifest-<epoch>` | entries and commit of a sealed epoch |
//!
//! `index.redb` is `records`', the rest `journal`'s and `control`'s. Whatever is damaged is told
//! so; nothing is half-trusted. All access is through a descriptor that was opened before a mount
//! could cover the directory (invariant I8).

mod checked;
mod error;
mod manifest;
#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use manifest::{ManifestReader, ManifestWriter, SealedManifest};

use crate::disk::{TreeIdentity, boot_id};
use crate::limits::IDS_RESERVED;
use crate::model::{EpochId, FileId, Incarnation, SessionId, Uuid};
use checked::Kind;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const IDENTITY: Kind = Kind {
    name: "identity",
    magic: b"mfsident",
    format: 1,
};
const CLEAN: Kind = Kind {
    name: "clean",
    magic: b"mfsclean",
    format: 1,
};
const LOCK: &str = "lock";

/// What a primary knows of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// This state directory.
    pub primary: Uuid,
    /// The replica that it writes to; `None` before the first contact.
    pub replica: Option<Uuid>,
    /// Whether what the index says of the replica was found wrong: its records are to be fetched.
    pub distrusted: bool,
    /// The history that it writes.
    pub incarnation: Incarnation,
    /// The last session's number.
    pub session: SessionId,
    /// No epoch behind this one was ever named.
    pub epochs_reserved: EpochId,
    /// No object from this id on was ever named.
    pub ids_reserved: FileId,
    /// The tree that is mirrored; `None` before the first mount.
    pub source: Option<TreeIdentity>,
    /// How the user names the replica.
    pub target: String,
    /// The boot of the machine in which it was last used.
    pub boot: Uuid,
}

/// How the last process that worked with a state directory ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastStop {
    /// It stopped in order: everything it knew is in the index, or in the journal's files.
    pub clean: bool,
    /// The machine was not started since, so that what it wrote before is there.
    pub same_boot: bool,
}

/// An open and locked state directory.
#[derive(Debug)]
pub struct StateDir {
    directory: Directory,
    identity: Mutex<Held>,
    last_stop: LastStop,
    // Unlocked when it is dropped.
    lock: OwnedFd,
}

#[derive(Debug)]
struct Held {
    identity: Identity,
    /// The next epoch to name; below `identity.epochs_reserved` or to be reserved.
    next_epoch: EpochId,
}

/// The directory, for all that write into it.
#[derive(Clone, Debug)]
struct Directory {
    fd: Arc<OwnedFd>,
    path: Arc<Path>,
}

impl Directory {
    fn at(&self) -> (BorrowedFd<'_>, &Path) {
        (self.fd.as_fd(), &self.path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // To close it is not enough: a child that was forked just now, and has not begun its own
        // program yet, still shares the lock.
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl StateDir {
    /// Opens and locks it; makes it first if there is none and `create` says so. With `create`, a
    /// new one is the primary of a new history, to be written to `target`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::OtherOwner`], [`Error::InUse`], [`Error::Version`],
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn open(path: &Path, create: bool) -> Result<StateDir> {
        let directory = open_directory(path, create)?;
        let lock = lock(&directory)?;
        let boot =
            boot_id().map_err(Error::io("read", "/proc/sys/kernel/random/boot_id".into()))?;
        let known = IDENTITY.read::<Identity>(directory.at())?;
        let clean = CLEAN.read::<Uuid>(directory.at());
        let mut identity = match known {
            Some(identity) => identity,
            None if create && is_new(&directory)? => fresh(boot).map_err(Error::io(
                "make an identity for",
                directory.path(IDENTITY.name),
            ))?,
            None if create => {
                return Err(Error::Damaged {
                    path: directory.path(IDENTITY.name),
                    detail: "it is missing".into(),
                });
            }
            None => return Err(Error::Missing { path: path.into() }),
        };
        // A mark that is damaged is none.
        let last_stop = LastStop {
            clean: matches!(clean, Ok(Some(primary)) if primary == identity.primary),
            same_boot: identity.boot == boot,
        };
        // Gone before anything is done that it would be wrong about.
        remove(&directory, CLEAN.name)?;
        identity.boot = boot;
        IDENTITY.write(directory.at(), &identity)?;
        let next_epoch = identity.epochs_reserved.next();
        Ok(StateDir {
            directory,
            identity: Mutex::new(Held {
                identity,
                next_epoch,
            }),
            last_stop,
            lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory.path
    }

    /// Its descriptor, for others who keep files in it.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.fd.as_fd()
    }

    /// Where the index is.
    #[must_use]
    pub fn index_path(&self) -> PathBuf {
        self.directory.path("index.redb")
    }

    /// How the last process ended.
    #[must_use]
    pub fn last_stop(&self) -> LastStop {
        self.last_stop
    }

    /// Notes that this process stops in order. The next one to open the directory sees it.
    ///
    /// # Durability
    /// On stable storage when it returns.
    ///
    /// # Errors
    /// [`Error::Io`]; the next start then looks for what was lost.
    pub fn mark_clean(&self) -> Result<()> {
        CLEAN.write(self.directory.at(), &self.identity().primary)
    }

    /// What it knows of itself.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity.lock().identity.clone()
    }

    /// See [`Identity::primary`].
    #[must_use]
    pub fn primary(&self) -> Uuid {
        self.identity.lock().identity.primary
    }

    /// See [`Identity::incarnation`].
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.identity.lock().identity.incarnation
    }

    /// The replica whose state the index knows; `None` before the first contact, and when
    /// [`StateDir::forget_replica_state`] was called since: its records are then to be fetched.
    #[must_use]
    pub fn replica(&self) -> Option<Uuid> {
        let identity = &self.identity.lock().identity;
        identity.replica.filter(|_| !identity.distrusted)
    }

    /// Notes the replica, and that the index says what it holds.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_replica(&self, replica: Uuid) -> Result<()> {
        self.change(|identity| {
            identity.replica = Some(replica);
            identity.distrusted = false;
        })
    }

    /// Notes that the index is wrong about the replica.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget_replica_state(&self) -> Result<()> {
        self.change(|identity| identity.distrusted = true)
    }

    /// Begins another history: after an older state of this primary, or a foreign replica, was
    /// taken over.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_incarnation(&self, incarnation: Incarnation) -> Result<()> {
        self.change(|identity| identity.incarnation = incarnation)
    }

    /// Notes which tree is mirrored (invariant I11) and where to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_source(&self, source: &TreeIdentity, target: &str) -> Result<()> {
        self.change(|identity| {
            identity.source = Some(source.clone());
            identity.target = target.into();
        })
    }

    /// The number of a new session.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn next_session(&self) -> Result<SessionId> {
        let mut session = SessionId(0);
        self.change(|identity| {
            identity.session = SessionId(identity.session.0 + 1);
            session = identity.session;
        })?;
        Ok(session)
    }

    /// The id of a new epoch, larger than all before, also after a crash (invariant I7).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn next_epoch(&self) -> Result<EpochId> {
        let mut held = self.identity.lock();
        let epoch = held.next_epoch;
        if epoch > held.identity.epochs_reserved {
            let reserved = EpochId(epoch.0 + IDS_RESERVED);
            self.change_held(&mut held, |identity| identity.epochs_reserved = reserved)?;
        }
        held.next_epoch = epoch.next();
        Ok(epoch)
    }

    /// No epoch up to this one will be named: the replica has seen it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn skip_epochs(&self, upto: EpochId) -> Result<()> {
        let mut held = self.identity.lock();
        if held.next_epoch > upto {
            return Ok(());
        }
        self.change_held(&mut held, |identity| {
            identity.epochs_reserved = identity.epochs_reserved.max(upto);
        })?;
        held.next_epoch = upto.next();
        Ok(())
    }

    /// The first id of an object that was certainly not used by an earlier process.
    #[must_use]
    pub fn ids_reserved(&self) -> FileId {
        self.identity.lock().identity.ids_reserved
    }

    /// Makes it durable that all ids below `below` may be in use (invariant I13).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn reserve_ids(&self, below: FileId) -> Result<()> {
        let mut held = self.identity.lock();
        if below <= held.identity.ids_reserved {
            return Ok(());
        }
        self.change_held(&mut held, |identity| identity.ids_reserved = below)
    }

    /// The manifest of the epoch that is being staged, with the entries it has. At most one is to
    /// be open at a time.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn manifest(&self) -> Result<ManifestWriter> {
        ManifestWriter::open(&self.directory)
    }

    /// The manifests of sealed epochs, in order. A damaged one is left out, with a warning.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn manifests(&self) -> Result<Vec<SealedManifest>> {
        manifest::sealed(&self.directory)
    }

    /// The entries of a sealed epoch; all of them have been checked.
    ///
    /// # Errors
    /// [`Error::NoManifest`], [`Error::Manifest`], [`Error::Io`].
    pub fn read_manifest(&self, epoch: EpochId) -> Result<ManifestReader> {
        ManifestReader::open(&self.directory, epoch)
    }

    /// Removes the manifests of epochs up to this one: the index has them on stable storage.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn trim_manifests(&self, upto: EpochId) -> Result<()> {
        manifest::remove_where(&self.directory, |epoch| epoch <= upto)
    }

    /// Removes the manifests of epochs after this one: the replica never had them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn trim_manifests_after(&self, epoch: EpochId) -> Result<()> {
        manifest::remove_where(&self.directory, |sealed| sealed > epoch)
    }

    fn change(&self, change: impl FnOnce(&mut Identity)) -> Result<()> {
        self.change_held(&mut self.identity.lock(), change)
    }

    /// Changes the file first, so that nobody acts upon what is not durable.
    fn change_held(&self, held: &mut Held, change: impl FnOnce(&mut Identity)) -> Result<()> {
        let mut identity = held.identity.clone();
        change(&mut identity);
        if identity != held.identity {
            IDENTITY.write(self.directory.at(), &identity)?;
            held.identity = identity;
        }
        Ok(())
    }
}

fn fresh(boot: Uuid) -> io::Result<Identity> {
    Ok(Identity {
        primary: Uuid::random()?,
        replica: None,
        distrusted: false,
        incarnation: Incarnation(1),
        session: SessionId(0),
        epochs_reserved: EpochId(0),
        ids_reserved: FileId::FIRST,
        source: None,
        target: String::new(),
        boot,
    })
}

fn open_directory(path: &Path, create: bool) -> Result<Directory> {
    let io = |doing| Error::io(doing, path.to_owned());
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            let mut builder = std::fs::DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(io("make"))?;
            if let Some(parent) = path.parent().and_then(|parent| File::open(parent).ok()) {
                crate::disk::sync_directory(parent).map_err(io("make"))?;
            }
            std::fs::metadata(path).map_err(io("read"))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Missing { path: path.into() });
        }
        Err(error) => return Err(io("read")(error)),
    };
    if found.uid() != rustix::process::geteuid().as_raw() {
        let (path, owner) = (path.into(), found.uid());
        return Err(Error::OtherOwner { path, owner });
    }
    let fd = File::open(path).map_err(io("open"))?;
    if found.mode() & 0o077 != 0 {
        // It holds names and hashes of files that others may not read.
        fd.set_permissions(std::fs::Permissions::from_mode(0o700))
            .map_err(io("protect"))?;
    }
    Ok(Directory {
        fd: Arc::new(fd.into()),
        path: path.into(),
    })
}

fn lock(directory: &Directory) -> Result<OwnedFd> {
    let io = |error: io::Error| Error::io("lock", directory.path(LOCK))(error);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(&directory.fd, LOCK, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| io(error.into()))?;
    let mut file = File::from(fd);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let read = file.take(20).read_to_string(&mut pid);
            let pid = pid.trim().parse::<u32>().ok().filter(|_| read.is_ok());
            return Err(Error::InUse {
                path: directory.path.to_path_buf(),
                by: pid.map_or("another process".into(), |pid| format!("pid {pid}")),
            });
        }
        locked => locked.map_err(|error| io(error.into()))?,
    }
    // For a message only; that the disk is full need not stop anybody.
    let _ = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file.into())
}

/// Whether nothing but what an interrupted creation leaves is in it.
fn is_new(directory: &Directory) -> Result<bool> {
    let io = Error::io("list", directory.path.to_path_buf());
    let names = rustix::fs::Dir::read_from(&directory.fd)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_bytes().to_vec()))
                .collect::<rustix::io::Result<Vec<_>>>()
        })
        .map_err(|error| io(error.into()))?;
    Ok(!names
        .iter()
        .any(|name| name == b"index.redb" || name.starts_with(b"manifest-")))
}

fn remove(directory: &Directory, name: &str) -> Result<()> {
    let io = |error: io::Error| Error::io("remove", directory.path(name))(error);
    match rustix::fs::unlinkat(&directory.fd, name, AtFlags::empty()) {
        Ok(()) => crate::disk::sync_directory(&directory.fd).map_err(io),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(io(error.into())),
    }
}
