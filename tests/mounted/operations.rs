//! What programs do with files, through the kernel; once with and once without OPEN requests.

use super::stand::{Stand, can_mount, eventually};
use mirrorfs::backing::Local;
use mirrorfs::model::{Extent, FileId};
use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

fn both(test: impl Fn(&Stand, &Path)) {
    if !can_mount() {
        return;
    }
    // Without OPEN an ordinary user's daemon could not open a file again that it may not read.
    let modes: &[bool] = if rustix::process::geteuid().is_root() {
        &[false, true]
    } else {
        &[false]
    };
    for &no_open in modes {
        let stand = Stand::new(no_open);
        let point = stand.point();
        test(&stand, &point);
        let message = format!("no_open={no_open}");
        stand.mounted().unmount(false).expect(&message);
    }
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

#[test]
fn content_is_written_read_appended_and_cut() {
    both(|stand, point| {
        let path = point.join("file");
        fs::write(&path, "hello").expect("a write");
        let mut file = OpenOptions::new().append(true).open(&path).expect("a file");
        file.write_all(b" world").expect("an append");
        assert_eq!(read(&path), b"hello world");
        let file = OpenOptions::new().write(true).open(&path).expect("a file");
        file.write_all_at(b"J", 0).expect("a write");
        file.set_len(5).expect("a cut");
        assert_eq!(read(&path), b"Jello");
        file.set_len(10).expect("a growth");
        assert_eq!(read(&path), b"Jello\0\0\0\0\0");
        fs::write(&path, "new").expect("O_TRUNC");
        assert_eq!(read(&path), b"new");
        assert_eq!(read(stand.source().join("file")), b"new");
        let exclusive = OpenOptions::new().write(true).create_new(true).open(&path);
        assert_eq!(
            exclusive.expect_err("it is there").kind(),
            std::io::ErrorKind::AlreadyExists
        );
        assert_eq!(
            fs::metadata(point.join("none"))
                .expect_err("none")
                .raw_os_error(),
            Some(libc::ENOENT)
        );
        // A name that was asked for in vain can be made.
        fs::write(point.join("none"), "").expect("a write");
        assert!(point.join("none").exists());
    });
}

#[test]
fn a_large_file_is_the_same_on_both_sides() {
    both(|stand, point| {
        let bytes: Vec<u8> = (0..5_000_011u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let path = point.join("large");
        fs::write(&path, &bytes).expect("a write");
        assert!(read(&path) == bytes);
        assert!(read(stand.source().join("large")) == bytes);
        let mut direct = OpenOptions::new();
        let direct = direct
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .expect("O_DIRECT");
        // Aligned as O_DIRECT wants it.
        let layout = std::alloc::Layout::from_size_align(8192, 4096).expect("a layout");
        // SAFETY: the layout is not of size zero; the block is freed with the same layout.
        let block = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!block.is_null());
        // SAFETY: 8192 initialised bytes that nothing else points to.
        let buffer = unsafe { std::slice::from_raw_parts_mut(block, 8192) };
        buffer.fill(7);
        direct.write_all_at(buffer, 4096).expect("a direct write");
        buffer.fill(0);
        direct.read_exact_at(buffer, 0).expect("a direct read");
        assert!(buffer[..4096] == bytes[..4096] && buffer[4096..].iter().all(|&b| b == 7));
        // SAFETY: allocated above with this layout, and not used any more.
        unsafe { std::alloc::dealloc(block, layout) };
        assert!(read(&path)[4096..12288].iter().all(|&byte| byte == 7));
    });
}

#[test]
fn a_shared_mapping_is_captured() {
    both(|stand, point| {
        let path = point.join("mapped");
        fs::write(&path, vec![1u8; 256 * 1024]).expect("a write");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("a file");
        drop(stand.seal());
        stand.journal.abandon();
        let length = 256 * 1024;
        // SAFETY: a fresh mapping of an open file of that length; unmapped below.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let map = libc::mmap(
                std::ptr::null_mut(),
                length,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(map, libc::MAP_FAILED);
            *map.cast::<u8>().add(100_000) = 9;
            assert_eq!(libc::msync(map, length, libc::MS_SYNC), 0);
            *map.cast::<u8>().add(200_000) = 8;
            assert_eq!(libc::munmap(map, length), 0);
        }
        drop(file);
        assert_eq!(read(stand.source().join("mapped"))[100_000], 9);
        assert_eq!(read(stand.source().join("mapped"))[200_000], 8);
        let id = FileId(fs::metadata(&path).expect("a file").ino());
        let change = stand.seal().change(id).expect("a change");
        let holds = |byte| {
            change
                .dirty
                .iter()
                .any(|extent| !extent.intersection(Extent::new(byte, 1)).is_empty())
        };
        assert!(holds(100_000) && holds(200_000), "{:?}", change.dirty);
    });
}

#[test]
fn names_are_linked_renamed_exchanged_and_removed() {
    both(|_, point| {
        let path = |name: &str| point.join(name);
        fs::write(path("a"), "a").expect("a write");
        fs::hard_link(path("a"), path("b")).expect("a link");
        let (a, b) = (
            fs::metadata(path("a")).expect("a"),
            fs::metadata(path("b")).expect("b"),
        );
        assert_eq!((a.ino(), a.nlink(), b.nlink()), (b.ino(), 2, 2));
        fs::write(path("b"), "through b").expect("a write");
        assert_eq!(read(path("a")), b"through b");
        fs::remove_file(path("a")).expect("a removal");
        assert_eq!(fs::metadata(path("b")).expect("b").nlink(), 1);
        fs::create_dir_all(path("d/e/f")).expect("directories");
        fs::rename(path("b"), path("d/e/f/b")).expect("a rename");
        fs::rename(path("d/e"), path("e")).expect("a rename of a directory");
        assert_eq!(read(path("e/f/b")), b"through b");
        assert!(!path("d/e").exists());
        fs::write(path("c"), "c").expect("a write");
        let cwd = rustix::fs::CWD;
        let exists =
            rustix::fs::renameat_with(cwd, path("c"), cwd, path("e/f/b"), RenameFlags::NOREPLACE);
        assert_eq!(exists, Err(rustix::io::Errno::EXIST));
        rustix::fs::renameat_with(cwd, path("c"), cwd, path("e/f/b"), RenameFlags::EXCHANGE)
            .expect("an exchange");
        assert_eq!(
            (read(path("c")), read(path("e/f/b"))),
            (b"through b".to_vec(), b"c".to_vec())
        );
        fs::rename(path("c"), path("e/f/b")).expect("a rename over");
        assert_eq!(read(path("e/f/b")), b"through b");
        let full = fs::remove_dir(path("e")).expect_err("not empty");
        assert_eq!(full.raw_os_error(), Some(libc::ENOTEMPTY));
        symlink("e/f/b", path("s")).expect("a symlink");
        assert_eq!(
            fs::read_link(path("s")).expect("a symlink"),
            Path::new("e/f/b")
        );
        assert_eq!(read(path("s")), b"through b");
        fs::remove_dir_all(path("e")).expect("a removal");
        assert_eq!(
            fs::metadata(path("s"))
                .expect_err("dangling")
                .raw_os_error(),
            Some(libc::ENOENT)
        );
        let reserved = fs::create_dir(path(".mirrorfs")).expect_err("reserved");
        assert!(reserved.raw_os_error().is_some(), "{reserved}");
    });
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    both(|_, point| {
        let path = point.join("doomed");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("a file");
        file.write_all(b"still").expect("a write");
        fs::remove_file(&path).expect("a removal");
        file.write_all(b" here").expect("a write");
        file.seek(SeekFrom::Start(0)).expect("a seek");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("a read");
        assert_eq!(text, "still here");
        assert_eq!(file.metadata().expect("fstat").nlink(), 0);
        file.set_len(5).expect("a cut");
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .expect("fchmod");
        assert_eq!(file.metadata().expect("fstat").size(), 5);
        fs::write(&path, "another").expect("a write");
        assert_eq!(read(&path), b"another");
        assert_eq!(file.metadata().expect("fstat").size(), 5);
    });
}

#[test]
fn attributes_and_extended_attributes_are_kept() {
    both(|stand, point| {
        let path = point.join("file");
        fs::write(&path, "x").expect("a write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        // Before 1970, with nanoseconds.
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(5, 6),
            last_modification: time(-2, 800_000_000),
        };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::empty()).expect("utimensat");
        for seen in [
            fs::metadata(&path),
            fs::metadata(stand.source().join("file")),
        ] {
            let seen = seen.expect("a file");
            assert_eq!(seen.mode() & 0o7777, 0o640);
            assert_eq!((seen.mtime(), seen.mtime_nsec()), (-2, 800_000_000));
            assert_eq!((seen.atime(), seen.atime_nsec()), (5, 6));
        }
        match rustix::fs::setxattr(&path, "user.k", b"value", XattrFlags::CREATE) {
            Err(rustix::io::Errno::OPNOTSUPP) => return eprintln!("no user xattrs here"),
            result => result.expect("setxattr"),
        }
        let mut value = [0u8; 64];
        let length = rustix::fs::getxattr(&path, "user.k", &mut value[..]).expect("getxattr");
        assert_eq!(&value[..length], b"value");
        assert_eq!(
            rustix::fs::getxattr(&path, "user.k", &mut [0u8; 2][..]),
            Err(rustix::io::Errno::RANGE)
        );
        let length = rustix::fs::listxattr(&path, &mut value[..]).expect("listxattr");
        assert_eq!(&value[..length], b"user.k\0");
        rustix::fs::removexattr(&path, "user.k").expect("removexattr");
        assert_eq!(
            rustix::fs::getxattr(&path, "user.k", &mut value[..]),
            Err(rustix::io::Errno::NODATA)
        );
    });
}

#[test]
fn a_large_directory_is_listed_once_each() {
    both(|stand, point| {
        fs::create_dir(point.join("d")).expect("a directory");
        let names: BTreeSet<String> = (0..3000)
            .map(|n| format!("a-rather-long-name-{n}"))
            .collect();
        for name in &names {
            File::create(point.join("d").join(name)).expect("a file");
        }
        let list = || -> Vec<String> {
            let entries = fs::read_dir(point.join("d")).expect("a directory");
            entries
                .map(|e| {
                    e.expect("an entry")
                        .file_name()
                        .into_string()
                        .expect("text")
                })
                .collect()
        };
        for _ in 0..2 {
            let listed = list();
            assert_eq!(listed.len(), names.len());
            assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
        }
        // What the kernel has cached of the directory follows a change.
        fs::remove_file(point.join("d/a-rather-long-name-7")).expect("a removal");
        File::create(point.join("d/new")).expect("a file");
        let listed: BTreeSet<String> = list().into_iter().collect();
        assert!(listed.contains("new") && !listed.contains("a-rather-long-name-7"));
        let numbers = fs::read_dir(point.join("d"))
            .expect("a directory")
            .map(|entry| {
                let entry = entry.expect("an entry");
                rustix::fs::statat(rustix::fs::CWD, entry.path(), AtFlags::empty())
                    .expect("stat")
                    .st_ino
            });
        assert_eq!(numbers.collect::<BTreeSet<_>>().len(), 3000);
        fs::remove_dir_all(point.join("d")).expect("a removal");
        // Every lookup that was counted is given back, every handle is closed.
        eventually("the kernel forgets", || {
            let counters = stand.backing.counters();
            counters.nodes <= 1 && counters.handles == 0
        });
        assert!(
            fs::read_dir(stand.source())
                .expect("the source")
                .next()
                .is_none()
        );
    });
}

#[test]
fn ranges_are_punched_copied_and_found() {
    both(|_, point| {
        let path = point.join("file");
        fs::write(&path, vec![5u8; 300_000]).expect("a write");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("a file");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&file, punch, 65536, 65536) {
            Err(rustix::io::Errno::OPNOTSUPP) => return eprintln!("no holes here"),
            result => result.expect("fallocate"),
        }
        let bytes = read(&path);
        assert!(bytes[65536..131_072].iter().all(|&byte| byte == 0) && bytes[65535] == 5);
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).expect("a hole");
        assert_eq!(hole, 65536);
        let target = File::create(point.join("copy")).expect("a file");
        let (mut from, mut to) = (0, 0);
        let copied =
            rustix::fs::copy_file_range(&file, Some(&mut from), &target, Some(&mut to), 300_000);
        let copied = copied.expect("a copy");
        assert!(copied > 0 && read(point.join("copy"))[..] == bytes[..copied]);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 400_000, 100).expect("fallocate");
        assert_eq!(file.metadata().expect("fstat").size(), 400_100);
    });
}

#[test]
fn special_files_and_what_is_not_supported() {
    both(|_, point| {
        let fifo = point.join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from(0o600),
            0,
        )
        .expect("a fifo");
        let socket = point.join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        std::os::unix::net::UnixStream::connect(&socket).expect("a connection");
        drop(listener);
        let temporary = rustix::fs::open(point, OFlags::TMPFILE | OFlags::RDWR, Mode::from(0o600));
        assert_eq!(temporary.err(), Some(rustix::io::Errno::OPNOTSUPP));
    });
}

#[test]
fn close_and_synchronous_writes_reach_the_disk_in_every_mode() {
    if !can_mount() {
        return;
    }
    for local in [
        Local::Always,
        Local::Close,
        Local::Interval(std::time::Duration::from_secs(1)),
    ] {
        for no_open in [false, true] {
            let stand = Stand::with(
                no_open,
                local,
                std::sync::Arc::new(mirrorfs::mount::NoRemoteWait),
            );
            let mut options = OpenOptions::new();
            options
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(libc::O_SYNC);
            let mut file = options.open(stand.point().join("file")).expect("a file");
            file.write_all(b"x").expect("a write");
            file.sync_all().expect("fsync");
            drop(file);
            File::open(stand.point())
                .expect("the root")
                .sync_all()
                .expect("fsync of a directory");
            assert_eq!(read(stand.point().join("file")), b"x");
            stand.mounted().unmount(false).expect("an unmount");
        }
    }
}
