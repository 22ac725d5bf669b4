//! The kernel's types and the backing directory's, one into the other.

use crate::backing::{Attr, HandleId, Kind, SetTime};
use crate::model::{FileId, Timestamp};
use fuser::{FileAttr, FileHandle, FileType, INodeNo, Request, TimeOrNow};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn node(ino: INodeNo) -> FileId {
    FileId(ino.0)
}

/// 0 is what the kernel sends for files that it opened by itself.
pub(super) fn handle_of(fh: FileHandle) -> Option<HandleId> {
    (fh.0 != 0).then_some(HandleId(fh.0))
}

pub(super) fn os_str(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

pub(super) fn kind_of(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::CharDevice => FileType::CharDevice,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.id.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.birth),
        kind: kind_of(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // What FUSE takes is the low half of a `dev_t`.
        rdev: u32::try_from(attr.rdev & u64::from(u32::MAX)).unwrap_or(0),
        blksize: attr.block_bytes,
        flags: 0,
    }
}

/// Number and kind, and nothing else.
pub(super) fn bare_attr(id: FileId, kind: Kind) -> FileAttr {
    FileAttr {
        ino: INodeNo(id.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind_of(kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Node id 0 tells the kernel that there is no such name, and for how long it may believe that.
pub(super) fn negative_entry() -> FileAttr {
    bare_attr(FileId(0), Kind::File)
}

fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(UNIX_EPOCH)
}

pub(super) fn decode_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

// fuser 0.18 decodes a time before 1970 as 1970 - (seconds + nanoseconds), where the kernel means
// 1970 - seconds + nanoseconds (`time.rs`, its TODO); so both parts are still there to be read.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs);
            Timestamp {
                secs,
                nanos: before.subsec_nanos(),
            }
        }
    }
}

/// Whether who sets an ACL may keep the setgid bit of the object: members of its group may. fuser
/// does not take the kernel's flag for it, and a request names only one group of its caller.
pub(super) fn may_keep_setgid(request: &Request, attr: &Attr) -> bool {
    attr.mode & libc::S_ISGID == 0
        || request.uid() == 0
        || request.gid() == attr.gid
        || is_member(request.pid(), attr.gid)
}

fn is_member(pid: u32, gid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| {
        groups
            .split_ascii_whitespace()
            .any(|group| group.parse() == Ok(gid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        for (secs, nanos) in [
            (0, 0),
            (5, 7),
            (-1, 0),
            (-2, 800_000_000),
            (i64::MIN / 2, 1),
        ] {
            let ours = Timestamp { secs, nanos };
            let out = system_time(ours);
            // As fuser encodes it for the kernel.
            let encoded = match out.duration_since(UNIX_EPOCH) {
                Ok(after) => (
                    i64::try_from(after.as_secs()).unwrap(),
                    after.subsec_nanos(),
                ),
                Err(before) => {
                    let before = before.duration();
                    let secs = i64::try_from(before.as_secs()).unwrap();
                    match before.subsec_nanos() {
                        0 => (-secs, 0),
                        nanos => (-secs - 1, 1_000_000_000 - nanos),
                    }
                }
            };
            assert_eq!(encoded, (secs, nanos));
        }
        // As fuser decodes (-2 s, 800 ms).
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(
            timestamp(decoded),
            Timestamp {
                secs: -2,
                nanos: 800_000_000
            }
        );
    }

    #[test]
    fn groups_are_read_from_the_kernel() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let groups = status
            .lines()
            .find_map(|line| line.strip_prefix("Groups:"))
            .unwrap();
        for group in groups.split_ascii_whitespace() {
            assert!(is_member(std::process::id(), group.parse().unwrap()));
        }
        assert!(!is_member(std::process::id(), u32::MAX));
    }
}
