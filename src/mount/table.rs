//! The kernel's table of mounts, as this process sees it.
//!
//! Which mount a path leads to is asked through an `O_PATH` descriptor and its `mnt_id`: that
//! sends no request to a FUSE daemon, so it is safe on a dead or a stopped one.

use super::MountError;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The file system type of our mounts in the table.
pub const KIND: &str = "fuse.mirrorfs";

/// Major and minor number of a mounted file system (`st_dev`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    /// The mount's id.
    pub id: u64,
    /// The id of the mount it is on.
    pub parent: u64,
    /// The device of its file system.
    pub device: Device,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type of its file system, with the subtype.
    pub kind: String,
    /// What is mounted there; for ours `SOURCE -> TARGET`.
    pub source: String,
}

impl MountEntry {
    /// Whether it is a mount of this program.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.kind == KIND
    }

    /// Whether both are the same mount, as far as the table tells.
    #[must_use]
    pub fn is_same(&self, other: &MountEntry) -> bool {
        (self.id, self.device, &self.point) == (other.id, other.device, &other.point)
    }
}

/// All mounts, in the order of the table (a later one may lie on an earlier one).
///
/// # Errors
/// When `/proc` cannot be read.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// A place, resolved without asking the file system that is mounted there.
#[derive(Debug)]
pub struct Place {
    /// The absolute path without symbolic links.
    pub path: PathBuf,
    /// The mount that it leads to.
    pub mount: MountEntry,
}

impl Place {
    /// Whether a file system is mounted exactly there.
    #[must_use]
    pub fn is_mount_point(&self) -> bool {
        self.mount.point == self.path
    }
}

/// Resolves a directory.
///
/// # Errors
/// When it is not there, or not a directory, or `/proc` cannot be read.
pub fn resolve(path: &Path) -> io::Result<Place> {
    let descriptor = rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolved = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
    let id = mount_id(&descriptor)?;
    let unknown = || io::Error::other(format!("mount {id} is not in /proc/self/mountinfo"));
    let mount = mounts()?
        .into_iter()
        .find(|entry| entry.id == id)
        .ok_or_else(unknown)?;
    Ok(Place {
        path: resolved,
        mount,
    })
}

fn mount_id(descriptor: &OwnedFd) -> io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no mnt_id in /proc/self/fdinfo"))
}

/// How a mount of ours answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Its daemon answers.
    Alive,
    /// Its daemon is gone.
    Dead,
    /// No answer within [`crate::limits::STALE_MOUNT_DEADLINE`].
    Silent,
}

/// Asks the daemon of the mount at `point`, with a deadline: a stopped daemon would block the
/// caller for ever.
#[must_use]
pub fn health(point: &Path) -> Health {
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = point.to_owned();
    let asked = std::thread::Builder::new()
        .name("mount-health".to_owned())
        .spawn(move || {
            // Unlike attributes and names, what `statfs` says is never cached by the kernel.
            let dead = match rustix::fs::statfs(&path) {
                Err(error) => matches!(error, Errno::NOTCONN | Errno::CONNABORTED),
                Ok(_) => false,
            };
            sender
                .send(if dead { Health::Dead } else { Health::Alive })
                .ok();
        });
    if asked.is_err() {
        return Health::Silent;
    }
    receiver
        .recv_timeout(crate::limits::STALE_MOUNT_DEADLINE)
        .unwrap_or(Health::Silent)
}

/// Detaches what dead daemons of ours have left at `path`, and resolves what is then there.
///
/// # Errors
/// When a live one is mounted there, or one does not answer, or a dead one cannot be detached.
pub fn detach_stale(path: &Path) -> Result<Place, MountError> {
    let failed = |source| MountError::Point {
        path: path.to_owned(),
        source,
    };
    for _ in 0..crate::limits::STALE_MOUNTS_MAX {
        let place = resolve(path).map_err(failed)?;
        if !(place.mount.is_ours() && place.is_mount_point()) {
            return Ok(place);
        }
        let point = place.path.clone();
        match health(&point) {
            Health::Dead => {
                tracing::warn!(point = %point.display(), "detaching the mount of a dead daemon");
                super::unmount::detach(&point)
                    .map_err(|source| MountError::Stale { point, source })?;
            }
            Health::Alive => {
                return Err(MountError::AlreadyMounted {
                    point,
                    what: place.mount.source,
                });
            }
            Health::Silent => return Err(MountError::Silent { point }),
        }
    }
    Err(failed(io::Error::other(
        "too many dead mounts on top of each other",
    )))
}

fn parse(table: &[u8]) -> Vec<MountEntry> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

// `36 35 98:0 /root /point options optional... - type source options`; a line that looks
// different is left out rather than misread.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = Device {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    };
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    fields.find(|&field| field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let kind = text(fields.next()?);
    let source = text(fields.next()?);
    Some(MountEntry {
        id,
        parent,
        device,
        point,
        kind,
        source,
    })
}

// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|d| d.iter().all(|c| (b'0'..=b'7').contains(c)));
        let value = digits.map(|d| d.iter().fold(0u32, |sum, c| sum * 8 + u32::from(c - b'0')));
        match value.and_then(|value| u8::try_from(value).ok()) {
            Some(value) if byte == b'\\' => {
                out.push(value);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes() {
        let table = b"29 1 0:24 / / rw - ext4 /dev/root rw\n\
            broken line\n\
            36 29 0:52 / /point/a\\040b rw,nosuid shared:1 master:2 - fuse.mirrorfs /s\\040->\\040t rw\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        let ours = &entries[1];
        assert!(ours.is_ours() && !entries[0].is_ours());
        assert_eq!(ours.point, Path::new("/point/a b"));
        assert_eq!(ours.source, "/s -> t");
        assert_eq!(
            ours.device,
            Device {
                major: 0,
                minor: 52
            }
        );
        assert_eq!((ours.id, ours.parent), (36, 29));
        assert_eq!(unescape(b"a\\"), b"a\\");
        assert_eq!(unescape(b"\\134\\777"), b"\\\\777");
    }

    #[test]
    fn a_directory_leads_to_its_mount() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::fs::create_dir(directory.path().join("d")).unwrap();
        std::os::unix::fs::symlink("d", &link).unwrap();
        let place = resolve(&link).unwrap();
        assert_eq!(
            place.path,
            directory.path().canonicalize().unwrap().join("d")
        );
        assert!(!place.is_mount_point());
        assert!(resolve(Path::new("/proc")).unwrap().is_mount_point());
        assert!(resolve(&directory.path().join("none")).is_err());
    }
}
