//! The replica's own directory, `.mirrorfs` in the root of the target:
//!
//! ```text
//! format        version of this layout, as text
//! identity      who this replica is, whose, and of which history (checksummed, replaced whole)
//! lock          flock of the serving process, and its pid as text
//! records.redb  what the tree holds
//! redo/N.log    the entries of an epoch and their bytes (see `redo`)
//! redo/N.files  files of that epoch that are too large for the log, by id
//! park/         objects on their way, by epoch and id, while an epoch is applied
//! trash/        superseded objects; deleted when the epoch that superseded them is applied
//! applying      exists while an epoch is applied: a reader of the tree may see a mixture
//! mark          the epoch whose names are vacated and whose new objects are complete
//! ```
//!
//! Everything is reached from two descriptors that are taken once, at the start.

use super::error::{Doing, ReplicaError};
use crate::disk;
use crate::model::{EpochId, Incarnation, RESERVED_NAME, SessionId, Uuid};
use crate::wire::Refusal;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The version of the layout.
const FORMAT: &str = "mirrorfs replica 1\n";

/// The largest file of those that are replaced whole, in bytes.
const META_BYTES_MAX: usize = 64 * 1024;

/// Who this replica is, and whom it follows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    /// This replica.
    pub replica: Uuid,
    /// Whose it is.
    pub primary: Uuid,
    /// The newest history that has written to it.
    pub incarnation: Incarnation,
    /// The newest session of that history.
    pub session: SessionId,
    /// A directory with files is being taken over, and the records are not complete yet.
    pub adopting: bool,
    /// What of ownership and modes could be applied is kept in the records only.
    pub fake_super: bool,
}

/// Which epochs an apply that was begun takes together, or has vacated the names of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Group {
    /// The newest of them.
    pub last: EpochId,
}

/// The open directories of a replica.
#[derive(Debug)]
pub(super) struct Home {
    /// The target.
    pub root: OwnedFd,
    /// `.mirrorfs`.
    pub home: OwnedFd,
    /// Its path, for messages and for the database.
    pub path: PathBuf,
}

fn open_directory(at: impl AsFd, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    disk::open_beneath(at, name, flags, Mode::empty())
}

/// Opens the target, which must be a directory.
pub(super) fn open_root(root: &Path) -> Result<OwnedFd, ReplicaError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty())
        .doing(|| format!("cannot open the target directory {}", root.display()))
}

fn make(at: &OwnedFd, name: &str) -> Result<(), ReplicaError> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error).doing(|| format!("cannot make the directory {name}")),
    }
}

/// The replica's own directory belongs to who serves it, and to nobody else: what is in it is
/// believed.
fn open_own(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>, ReplicaError> {
    let action = || format!("cannot open {}", path.display());
    let home = match open_directory(root, Path::new(RESERVED_NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.doing(action)?,
    };
    let stat = rustix::fs::fstat(&home).doing(action)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        let owner = stat.st_uid;
        let message = format!("{} belongs to user {owner}, not to us", path.display());
        return Err(ReplicaError::refused(Refusal::Unusable, message));
    }
    if stat.st_mode & 0o077 != 0 {
        rustix::fs::fchmod(&home, Mode::RWXU).doing(action)?;
    }
    Ok(Some(home))
}

impl Home {
    /// Opens the replica's own directory; `None` if there is none.
    pub(super) fn open(root: &Path) -> Result<Option<Home>, ReplicaError> {
        let opened = open_root(root)?;
        let path = root.join(RESERVED_NAME);
        Ok(open_own(&opened, &path)?.map(|home| Home {
            root: opened,
            home,
            path,
        }))
    }

    /// Makes the replica's own directory, or completes one that a crash left half made.
    pub(super) fn create(root: &Path) -> Result<Home, ReplicaError> {
        let opened = open_root(root)?;
        let path = root.join(RESERVED_NAME);
        make(&opened, RESERVED_NAME)?;
        let home = open_own(&opened, &path)?.ok_or_else(|| {
            let message = format!("{} was removed", path.display());
            ReplicaError::refused(Refusal::Unusable, message)
        })?;
        let this = Home {
            root: opened,
            home,
            path,
        };
        for name in ["redo", "park", "trash"] {
            make(&this.home, name)?;
        }
        disk::sync_directory(&this.root).doing(|| format!("cannot sync {}", root.display()))?;
        Ok(this)
    }

    /// A directory in the replica's own.
    pub(super) fn directory(&self, name: &str) -> Result<OwnedFd, ReplicaError> {
        make(&self.home, name)?;
        open_directory(&self.home, Path::new(name)).doing(|| self.show(name))
    }

    /// The path of the records' database, for redb, which opens by path.
    pub(super) fn records_path(&self) -> PathBuf {
        // The descriptor, not the path: whoever moves the directory does not mislead us.
        use std::os::fd::AsRawFd;
        PathBuf::from(format!(
            "/proc/self/fd/{}/records.redb",
            self.home.as_raw_fd()
        ))
    }

    /// Whether the layout is one that this program knows; `false`: it says nothing yet.
    pub(super) fn check_format(&self) -> Result<bool, ReplicaError> {
        let found = disk::read_file(&self.home, "format", META_BYTES_MAX)
            .doing(|| self.show("cannot read format"))?;
        match found {
            None => Ok(false),
            Some(text) if text == FORMAT.as_bytes() => Ok(true),
            Some(text) => Err(ReplicaError::Damaged {
                path: self.show("format"),
                why: format!(
                    "its layout is {:?}, this program knows {FORMAT:?}",
                    String::from_utf8_lossy(&text)
                ),
            }),
        }
    }

    /// Says which layout it is.
    pub(super) fn write_format(&self) -> Result<(), ReplicaError> {
        disk::replace_file(&self.home, "format", FORMAT.as_bytes())
            .doing(|| self.show("cannot write format"))
    }

    /// Who this replica is; `None` before it was ever served.
    pub(super) fn identity(&self) -> Result<Option<Identity>, ReplicaError> {
        self.read_checked("identity")
    }

    /// Replaces the identity, durably.
    pub(super) fn set_identity(&self, identity: &Identity) -> Result<(), ReplicaError> {
        self.write_checked("identity", identity)
    }

    /// The epochs that an interrupted apply takes together, if there are several.
    pub(super) fn applying(&self) -> Result<Option<Group>, ReplicaError> {
        self.read_marker("applying")
    }

    /// Says that an apply begins; durably if several epochs are applied as one.
    pub(super) fn set_applying(&self, last: EpochId, several: bool) -> Result<(), ReplicaError> {
        if several {
            return self.write_checked("applying", &Group { last });
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        rustix::fs::openat(&self.home, "applying", flags, Mode::RUSR | Mode::WUSR)
            .map(drop)
            .doing(|| self.show("cannot write applying"))
    }

    /// The epochs whose names are vacated and whose new objects are complete.
    pub(super) fn mark(&self) -> Result<Option<Group>, ReplicaError> {
        self.read_marker("mark")
    }

    /// Sets the mark, durably.
    pub(super) fn set_mark(&self, last: EpochId) -> Result<(), ReplicaError> {
        self.write_checked("mark", &Group { last })
    }

    /// Removes a file of the replica's own, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), ReplicaError> {
        match rustix::fs::unlinkat(&self.home, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error).doing(|| self.show(&format!("cannot remove {name}"))),
        }
    }

    fn write_checked<T: Serialize>(&self, name: &str, value: &T) -> Result<(), ReplicaError> {
        let mut bytes = postcard::to_stdvec(value).map_err(|error| ReplicaError::Damaged {
            path: self.show(name),
            why: error.to_string(),
        })?;
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        disk::replace_file(&self.home, name, &bytes)
            .doing(|| self.show(&format!("cannot write {name}")))
    }

    fn read_checked<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ReplicaError> {
        let found = disk::read_file(&self.home, name, META_BYTES_MAX)
            .doing(|| self.show(&format!("cannot read {name}")))?;
        let Some(bytes) = found else { return Ok(None) };
        let damaged = |why: &str| ReplicaError::Damaged {
            path: self.show(name),
            why: why.to_owned(),
        };
        let (body, sum) = bytes
            .split_last_chunk::<32>()
            .ok_or_else(|| damaged("too short"))?;
        if blake3::hash(body).as_bytes() != sum {
            return Err(damaged("its checksum is wrong"));
        }
        let value = postcard::from_bytes(body).map_err(|error| damaged(&error.to_string()))?;
        Ok(Some(value))
    }

    // An empty marker (not yet durable, or only for readers) says nothing.
    fn read_marker(&self, name: &str) -> Result<Option<Group>, ReplicaError> {
        match self.read_checked(name) {
            Err(ReplicaError::Damaged { .. }) => Ok(None),
            read => read,
        }
    }

    fn show(&self, what: &str) -> String {
        format!("{what} in {}", self.path.display())
    }
}
