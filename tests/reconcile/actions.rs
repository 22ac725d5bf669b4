//! Random work on a tree: behind the back of everybody, or through the backing directory.

use mirrorfs::backing::{Backing, Caller, SetAttr, SetTime, WriteHow};
use mirrorfs::model::{FileId, Timestamp};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// One to three of a few names, so that actions meet.
#[derive(Clone, Debug)]
pub struct Place(Vec<u8>);

impl Place {
    pub fn new(names: &[u8]) -> Place {
        Place(names.to_vec())
    }

    fn path(&self) -> PathBuf {
        self.0
            .iter()
            .map(|name| char::from(b'a' + name).to_string())
            .collect()
    }
}

#[derive(Clone, Debug)]
pub enum Action {
    Write(Place, u8, u32),
    Patch(Place, u8, u32),
    Cut(Place, u32),
    Directory(Place),
    Remove(Place),
    Rename(Place, Place),
    Exchange(Place, Place),
    Link(Place, Place),
    Symlink(Place, u8),
    Fifo(Place),
    Permissions(Place, u32),
    Modified(Place, i64),
    Attribute(Place, u8),
    /// Other content, but the same size and time of modification.
    Stealth(Place, u8),
}

pub fn action() -> impl Strategy<Value = Action> {
    let place = || prop::collection::vec(0u8..3, 1..4).prop_map(Place);
    let size = prop_oneof![3 => 0u32..5000, 1 => 60_000u32..200_000];
    prop_oneof![
        4 => (place(), any::<u8>(), size.clone()).prop_map(|(p, s, n)| Action::Write(p, s, n)),
        2 => (place(), any::<u8>(), size.clone()).prop_map(|(p, s, n)| Action::Patch(p, s, n)),
        1 => (place(), size).prop_map(|(p, n)| Action::Cut(p, n)),
        5 => place().prop_map(Action::Directory),
        2 => place().prop_map(Action::Remove),
        5 => (place(), place()).prop_map(|(p, q)| Action::Rename(p, q)),
        2 => (place(), place()).prop_map(|(p, q)| Action::Exchange(p, q)),
        3 => (place(), place()).prop_map(|(p, q)| Action::Link(p, q)),
        1 => (place(), any::<u8>()).prop_map(|(p, t)| Action::Symlink(p, t)),
        1 => place().prop_map(Action::Fifo),
        1 => (place(), 0u32..0o7777).prop_map(|(p, m)| Action::Permissions(p, m)),
        1 => (place(), -5i64..5).prop_map(|(p, t)| Action::Modified(p, t)),
        1 => (place(), any::<u8>()).prop_map(|(p, v)| Action::Attribute(p, v)),
        2 => (place(), any::<u8>()).prop_map(|(p, s)| Action::Stealth(p, s)),
    ]
}

fn bytes(seed: u8, length: u32) -> Vec<u8> {
    (0..length)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed)
        .collect()
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|seen| seen.is_file())
}

/// Does it on the real tree. What cannot be done is not done.
pub fn offline(root: &Path, action: &Action) {
    let at = |place: &Place| root.join(place.path());
    // Files only: an open FIFO would block, a symbolic link leads anywhere.
    let open = |path: &Path| OpenOptions::new().write(true).read(true).open(path);
    let result: io::Result<()> = match action {
        Action::Write(place, seed, length) => {
            let path = at(place);
            if fs::symlink_metadata(&path).is_ok() && !is_file(&path) {
                return;
            }
            fs::write(path, bytes(*seed, *length))
        }
        Action::Patch(place, seed, offset) if is_file(&at(place)) => open(&at(place))
            .and_then(|file| file.write_all_at(&bytes(*seed, 100), u64::from(*offset))),
        Action::Cut(place, size) if is_file(&at(place)) => {
            open(&at(place)).and_then(|file| file.set_len(u64::from(*size)))
        }
        Action::Patch(..) | Action::Cut(..) => return,
        Action::Directory(place) => fs::create_dir(at(place)),
        Action::Remove(place) => {
            fs::remove_file(at(place)).or_else(|_| fs::remove_dir_all(at(place)))
        }
        Action::Rename(one, other) => fs::rename(at(one), at(other)),
        Action::Exchange(one, other) => {
            rustix::fs::renameat_with(CWD, at(one), CWD, at(other), RenameFlags::EXCHANGE)
                .map_err(Into::into)
        }
        Action::Link(one, other) => fs::hard_link(at(one), at(other)),
        Action::Symlink(place, target) => symlink(format!("to-{target}"), at(place)),
        Action::Fifo(place) => {
            rustix::fs::mknodat(CWD, at(place), FileType::Fifo, Mode::from(0o600), 0)
                .map_err(Into::into)
        }
        Action::Permissions(place, mode) => {
            let Ok(seen) = fs::symlink_metadata(at(place)) else {
                return;
            };
            if seen.is_symlink() {
                return;
            }
            // What the test itself needs of directories and files.
            fs::set_permissions(at(place), fs::Permissions::from_mode(mode | 0o700))
        }
        Action::Modified(place, secs) => set_mtime(
            &at(place),
            Timespec {
                tv_sec: *secs,
                tv_nsec: 5,
            },
        ),
        Action::Attribute(place, value) => {
            rustix::fs::lsetxattr(at(place), "user.test", &[*value; 3], XattrFlags::empty())
                .map_err(Into::into)
        }
        Action::Stealth(place, seed) => stealth(&at(place), *seed),
    };
    drop(result);
}

fn stealth(path: &Path, seed: u8) -> io::Result<()> {
    if !is_file(path) {
        return Ok(());
    }
    let seen = fs::metadata(path)?;
    let length = u32::try_from(seen.size()).expect("small");
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&bytes(seed, length), 0)?;
    let mtime = Timespec {
        tv_sec: seen.mtime(),
        tv_nsec: seen.mtime_nsec(),
    };
    set_mtime(path, mtime)
}

fn set_mtime(path: &Path, time: Timespec) -> io::Result<()> {
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_OMIT,
    };
    let times = Timestamps {
        last_access: omit,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// A user at work, as the kernel would pass it on.
pub struct User<'a>(pub &'a Backing);

impl User<'_> {
    fn caller() -> Caller {
        Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    fn resolve(&self, path: &Path) -> io::Result<FileId> {
        let mut at = FileId::ROOT;
        for name in path {
            at = self.0.lookup(at, name)?.id;
        }
        Ok(at)
    }

    fn parent(&self, place: &Place) -> io::Result<(FileId, OsString)> {
        let path = place.path();
        let parent = self.resolve(path.parent().expect("a parent"))?;
        Ok((parent, path.file_name().expect("a name").to_owned()))
    }

    fn file(&self, place: &Place) -> io::Result<(FileId, u64)> {
        let (parent, name) = self.parent(place)?;
        let attr = self.0.lookup(parent, &name)?;
        match attr.kind {
            mirrorfs::backing::Kind::File => Ok((attr.id, attr.size)),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub fn act(&self, action: &Action) {
        drop(self.attempt(action));
    }

    fn attempt(&self, action: &Action) -> io::Result<()> {
        let backing = self.0;
        match action {
            Action::Write(place, seed, length) => {
                let (parent, name) = self.parent(place)?;
                let id = match self.file(place) {
                    Ok((id, _)) => {
                        let cut = SetAttr {
                            size: Some(0),
                            ..SetAttr::default()
                        };
                        backing.setattr(id, None, &cut)?;
                        id
                    }
                    Err(_) => {
                        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
                        let (attr, handle) =
                            backing.create(User::caller(), parent, &name, 0o644, 0o022, flags)?;
                        backing.release(handle);
                        attr.id
                    }
                };
                self.write(id, 0, &bytes(*seed, *length))
            }
            Action::Patch(place, seed, offset) => {
                self.write(self.file(place)?.0, u64::from(*offset), &bytes(*seed, 100))
            }
            Action::Cut(place, size) => {
                let set = SetAttr {
                    size: Some(u64::from(*size)),
                    ..SetAttr::default()
                };
                backing.setattr(self.file(place)?.0, None, &set).map(drop)
            }
            Action::Stealth(place, seed) => {
                let (id, size) = self.file(place)?;
                self.write(id, 0, &bytes(*seed, u32::try_from(size).expect("small")))
            }
            Action::Permissions(place, mode) => {
                let (parent, name) = self.parent(place)?;
                let attr = backing.lookup(parent, &name)?;
                if attr.kind == mirrorfs::backing::Kind::Symlink {
                    return Ok(());
                }
                let set = SetAttr {
                    mode: Some(mode | 0o700),
                    ..SetAttr::default()
                };
                backing.setattr(attr.id, None, &set).map(drop)
            }
            Action::Modified(place, secs) => {
                let time = SetTime::At(Timestamp {
                    secs: *secs,
                    nanos: 5,
                });
                let set = SetAttr {
                    mtime: Some(time),
                    ..SetAttr::default()
                };
                backing
                    .setattr(self.resolve(&place.path())?, None, &set)
                    .map(drop)
            }
            Action::Attribute(place, value) => {
                let id = self.resolve(&place.path())?;
                backing.setxattr(id, OsStr::new("user.test"), &[*value; 3], 0, false)
            }
            names => self.attempt_names(names),
        }
    }

    fn attempt_names(&self, action: &Action) -> io::Result<()> {
        let backing = self.0;
        match action {
            Action::Directory(place) => {
                let (parent, name) = self.parent(place)?;
                backing
                    .mkdir(User::caller(), parent, &name, 0o755, 0o022)
                    .map(drop)
            }
            Action::Remove(place) => {
                let (parent, name) = self.parent(place)?;
                self.remove(parent, &name)
            }
            Action::Rename(one, other) => {
                let ((from, name), (to, new)) = (self.parent(one)?, self.parent(other)?);
                backing.rename(from, &name, to, &new, 0)
            }
            Action::Exchange(one, other) => {
                let ((from, name), (to, new)) = (self.parent(one)?, self.parent(other)?);
                backing.rename(from, &name, to, &new, libc::RENAME_EXCHANGE)
            }
            Action::Link(one, other) => {
                let (parent, name) = self.parent(other)?;
                backing
                    .link(self.resolve(&one.path())?, parent, &name)
                    .map(drop)
            }
            Action::Symlink(place, target) => {
                let (parent, name) = self.parent(place)?;
                let target = OsString::from(format!("to-{target}"));
                backing
                    .symlink(User::caller(), parent, &name, &target)
                    .map(drop)
            }
            Action::Fifo(place) => {
                let (parent, name) = self.parent(place)?;
                let mode = libc::S_IFIFO | 0o600;
                backing
                    .mknod(User::caller(), parent, &name, mode, 0, 0)
                    .map(drop)
            }
            _ => Ok(()),
        }
    }

    fn write(&self, id: FileId, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.0
            .write(id, None, offset, data, WriteHow::default())
            .map(drop)
    }

    fn remove(&self, parent: FileId, name: &OsStr) -> io::Result<()> {
        let attr = self.0.lookup(parent, name)?;
        if attr.kind != mirrorfs::backing::Kind::Directory {
            return self.0.unlink(parent, name);
        }
        let mut listing = self.0.list(attr.id)?;
        let mut names = Vec::new();
        loop {
            let batch = listing.next(100)?;
            if batch.is_empty() {
                break;
            }
            names.extend(batch);
        }
        for name in names {
            self.remove(attr.id, name.as_os_str())?;
        }
        self.0.rmdir(parent, name)
    }
}
