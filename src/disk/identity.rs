//! Which tree a directory is the root of, in a way that survives a reboot (device numbers do
//! not), so that another one in its place is noticed (invariant I11).

use super::{Place, look};
use crate::model::Timestamp;
use serde::{Deserialize, Serialize};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `MAX_HANDLE_SZ` of the kernel.
const HANDLE_BYTES_MAX: usize = 128;

/// What names a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FsId {
    /// Its UUID, as the kernel tells it (Linux 6.9).
    Uuid([u8; 16]),
    /// The id of statfs(2), where it is made of the UUID.
    Statfs(u64),
    /// Nothing that would be the same after a reboot.
    Unknown,
}

/// A directory as the root of a tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TreeIdentity {
    /// Its file system.
    pub filesystem: FsId,
    /// Type and bytes of its file handle, which hold a generation; `None` where there is none.
    pub handle: Option<(i32, Vec<u8>)>,
    /// Its inode number.
    pub inode: u64,
    /// Its birth; zero where there is none.
    pub birth: Timestamp,
}

impl TreeIdentity {
    /// Whether both are the same directory, as far as both are known.
    #[must_use]
    pub fn matches(&self, other: &TreeIdentity) -> bool {
        let same_filesystem = match (self.filesystem, other.filesystem) {
            (FsId::Uuid(one), FsId::Uuid(two)) => one == two,
            (FsId::Statfs(one), FsId::Statfs(two)) => one == two,
            // Seen by kernels that tell different things.
            _ => true,
        };
        let same_directory = match (&self.handle, &other.handle) {
            (Some(one), Some(two)) => one == two,
            _ => self.inode == other.inode && self.birth == other.birth,
        };
        same_filesystem && same_directory
    }
}

/// The identity of the tree below an open directory.
///
/// # Errors
/// When it cannot be looked at.
pub fn tree_identity(directory: impl AsFd) -> io::Result<TreeIdentity> {
    let directory = directory.as_fd();
    let seen = look(Place::Open(directory))?;
    Ok(TreeIdentity {
        filesystem: filesystem(directory)?,
        handle: handle(directory),
        inode: seen.stamp.inode,
        birth: seen.stamp.birth,
    })
}

fn filesystem(directory: BorrowedFd<'_>) -> io::Result<FsId> {
    if let Some(uuid) = uuid(directory) {
        return Ok(FsId::Uuid(uuid));
    }
    let statfs = rustix::fs::fstatfs(directory)?;
    // These make it of the device number; others of the UUID, or keep it in memory only, where
    // the tree does not outlive the id.
    const XFS: u64 = 0x5846_5342;
    const OVERLAY: u64 = 0x794c_7630;
    const FUSE: u64 = 0x6573_5546;
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    let magic = statfs.f_type as u64;
    let fsid = rustix::fs::fstatvfs(directory)?.f_fsid;
    Ok(match (magic, fsid) {
        (XFS | OVERLAY | FUSE, _) | (_, 0) => FsId::Unknown,
        (_, fsid) => FsId::Statfs(fsid),
    })
}

fn uuid(directory: BorrowedFd<'_>) -> Option<[u8; 16]> {
    /// `struct fsuuid2` of linux/fs.h.
    #[repr(C)]
    struct FsUuid {
        length: u8,
        uuid: [u8; 16],
    }
    /// `FS_IOC_GETFSUUID`: `_IOR(0x15, 0, struct fsuuid2)`.
    const GET_FS_UUID: u32 = 0x8011_1500;
    let mut found = FsUuid {
        length: 0,
        uuid: [0; 16],
    };
    // SAFETY: the descriptor is open, and the kernel writes at most one `struct fsuuid2`, whose
    // layout `FsUuid` has; it is initialised, so nothing depends on what is written.
    let answer = unsafe {
        libc::ioctl(
            directory.as_raw_fd(),
            GET_FS_UUID as _,
            std::ptr::from_mut(&mut found),
        )
    };
    (answer == 0 && found.length == 16 && found.uuid != [0; 16]).then_some(found.uuid)
}

fn handle(directory: BorrowedFd<'_>) -> Option<(i32, Vec<u8>)> {
    /// `struct file_handle` with room for the largest one.
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        handle: [u8; HANDLE_BYTES_MAX],
    }
    let mut found = Handle {
        bytes: HANDLE_BYTES_MAX as libc::c_uint,
        kind: 0,
        handle: [0; HANDLE_BYTES_MAX],
    };
    let mut mount = MaybeUninit::<libc::c_int>::uninit();
    // SAFETY: the path is an empty C string; `found` has the layout of a `struct file_handle`
    // with `handle_bytes` bytes behind its head, and `mount` room for the one int the kernel
    // writes, which is not read.
    let answer = unsafe {
        libc::name_to_handle_at(
            directory.as_raw_fd(),
            c"".as_ptr(),
            std::ptr::from_mut(&mut found).cast(),
            mount.as_mut_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    if answer != 0 {
        return None;
    }
    Some((
        found.kind,
        found.handle.get(..found.bytes as usize)?.to_vec(),
    ))
}
