//! Names, links, handles.

use super::replica::nothing;
use super::rig::{ME, Rig};
use crate::backing::{HandleId, Local, SetAttr, WriteHow};
use crate::model::{FileId, Name};
use std::ffi::OsStr;
use std::io;

fn code<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result
        .expect_err("an error")
        .raw_os_error()
        .expect("an errno")
}

#[test]
fn what_is_born_is_known_and_shipped() {
    let rig = Rig::new();
    rig.mkdir("d").unwrap();
    rig.make("d/f", b"hello").unwrap();
    rig.at("d/l", |p, n| rig.backing.symlink(ME, p, n, OsStr::new("f")))
        .unwrap();
    let fifo = libc::S_IFIFO | 0o600;
    rig.at("p", |p, n| rig.backing.mknod(ME, p, n, fifo, 0, 0))
        .unwrap();
    rig.assert_equal(&nothing);
    rig.write("d/f", 70_000, b"far").unwrap();
    rig.set(
        "d/f",
        SetAttr {
            mode: Some(0o4711),
            ..SetAttr::default()
        },
    )
    .unwrap();
    rig.assert_equal(&nothing);
    rig.rename("d", "e", 0).unwrap();
    rig.unlink("e/f").unwrap();
    rig.assert_equal(&nothing);
    assert_eq!(rig.on("e/l", |id| rig.backing.readlink(id)).unwrap(), b"f");
    assert_eq!(code(rig.rmdir("e")), libc::ENOTEMPTY);
    assert_eq!(code(rig.unlink("e")), libc::EISDIR);
    assert_eq!(code(rig.rmdir("p")), libc::ENOTDIR);
    assert_eq!(code(rig.find("nothing")), libc::ENOENT);
    assert_eq!(code(rig.create("p")), libc::EEXIST);
    assert_eq!(code(rig.rename("p", "e", 0)), libc::EISDIR);
    assert_eq!(
        code(rig.rename("p", "q", libc::RENAME_WHITEOUT)),
        libc::EINVAL
    );
    assert_eq!(code(rig.make(&"x".repeat(256), b"")), libc::ENAMETOOLONG);
    rig.assert_equal(&nothing);
}

#[test]
fn ids_outlive_what_the_kernel_forgets_and_are_not_reused() {
    let rig = Rig::new();
    let id = rig.make("f", b"1").unwrap();
    assert_eq!(rig.on("f", Ok).unwrap(), id);
    rig.ship();
    assert_eq!(rig.on("f", Ok).unwrap(), id);
    assert_eq!(
        rig.backing.counters().nodes,
        1,
        "all but the root forgotten"
    );
    // The file system gives the inode number to the next file at once.
    rig.unlink("f").unwrap();
    let other = rig.make("f", b"2").unwrap();
    assert_ne!(other, id);
    let held = rig.find("f").unwrap();
    rig.unlink("f").unwrap();
    let third = rig.make("g", b"3").unwrap();
    assert_ne!(third, held, "the kernel still knows the old one");
    assert_eq!(code(rig.backing.getattr(held, None)), libc::ESTALE);
    rig.forget(held);
    rig.assert_equal(&nothing);
}

#[test]
fn a_removed_file_lives_as_long_as_it_is_open() {
    let rig = Rig::new();
    let (id, handle) = rig.create("f").unwrap();
    rig.write("f", 0, b"abc").unwrap();
    rig.ship();
    rig.make("g", b"other").unwrap();
    rig.rename("g", "f", 0).unwrap();
    let mut buffer = [0; 9];
    assert_eq!(
        rig.backing.read(id, Some(handle), 0, &mut buffer).unwrap(),
        3
    );
    rig.backing
        .write(id, Some(handle), 3, b"def", WriteHow::default())
        .unwrap();
    assert_eq!(rig.backing.read(id, None, 0, &mut buffer).unwrap(), 6);
    assert_eq!(rig.backing.getattr(id, None).unwrap().nlink, 0);
    rig.backing
        .setattr(
            id,
            None,
            &SetAttr {
                size: Some(1),
                ..SetAttr::default()
            },
        )
        .unwrap();
    rig.backing.fsync(id, Some(handle), true).unwrap();
    rig.assert_equal(&nothing);
    rig.backing.release(handle);
    assert_eq!(code(rig.backing.getattr(id, None)), libc::ESTALE);
    rig.forget(id);
    rig.drop_cache();
    assert_eq!(rig.backing.counters().nodes, 1);
    assert_eq!(rig.backing.counters().handles, 0);
}

#[test]
fn without_opens_what_the_kernel_knows_is_held() {
    let rig = Rig::with(&[], Local::Os, true);
    let id = rig.make("f", b"abc").unwrap();
    assert_eq!(rig.find("f").unwrap(), id);
    rig.unlink("f").unwrap();
    let mut buffer = [0; 9];
    assert_eq!(rig.backing.read(id, None, 0, &mut buffer).unwrap(), 3);
    rig.backing
        .write(id, None, 3, b"d", WriteHow::default())
        .unwrap();
    assert_eq!(rig.backing.counters().kept_descriptors, 1);
    rig.forget(id);
    assert_eq!(rig.backing.counters().kept_descriptors, 0);
    rig.assert_equal(&nothing);
}

#[test]
fn a_removed_directory_is_still_somebodys() {
    let rig = Rig::new();
    rig.mkdir("d").unwrap();
    let id = rig.find("d").unwrap();
    rig.rmdir("d").unwrap();
    assert_eq!(rig.backing.getattr(id, None).unwrap().nlink, 0);
    assert_eq!(code(rig.backing.lookup(id, OsStr::new("x"))), libc::ENOENT);
    assert_eq!(
        code(rig.backing.mkdir(ME, id, OsStr::new("x"), 0o755, 0)),
        libc::ENOENT
    );
    let handle = rig.backing.open_directory(id).unwrap();
    rig.backing.release(handle);
    rig.forget(id);
    assert_eq!(code(rig.backing.getattr(id, None)), libc::ESTALE);
    rig.assert_equal(&nothing);
}

#[test]
fn names_are_exchanged_linked_and_replaced() {
    let rig = Rig::new();
    rig.mkdir("d").unwrap();
    rig.make("d/a", b"a").unwrap();
    rig.make("b", b"b").unwrap();
    rig.ship();
    rig.rename("d", "b", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(
        code(rig.rename("d", "b", libc::RENAME_NOREPLACE)),
        libc::EEXIST
    );
    rig.assert_equal(&nothing);
    rig.link("d", "e").unwrap();
    rig.ship();
    rig.link("d", "b/f").unwrap();
    // POSIX: two names of one file, nothing happens.
    rig.rename("d", "e", 0).unwrap();
    rig.assert_equal(&nothing);
    rig.unlink("d").unwrap();
    rig.rename("e", "b/a", 0).unwrap();
    rig.assert_equal(&nothing);
    let names = rig.on("b/a", |id| {
        Ok(rig.journal.known_links(id, 9).unwrap().len())
    });
    assert_eq!(names.unwrap(), 2);
    assert_eq!(code(rig.rename("b", "b/x", 0)), libc::EINVAL);
}

#[test]
fn the_reserved_name_is_not_there() {
    let rig = Rig::new();
    std::fs::create_dir(rig.real.path().join(".mirrorfs")).unwrap();
    rig.mkdir("d").unwrap();
    rig.walk();
    assert_eq!(code(rig.find(".mirrorfs")), libc::ENOENT);
    assert_eq!(code(rig.make(".mirrorfs", b"")), libc::EPERM);
    assert_eq!(code(rig.rename("d", ".mirrorfs", 0)), libc::EPERM);
    rig.mkdir("d/.mirrorfs").unwrap();
    let seen = list(&rig, "", 0);
    assert_eq!(seen, [".", "..", "d"]);
    rig.assert_equal(&|path| path == std::path::Path::new(".mirrorfs"));
}

fn list(rig: &Rig, path: &str, each: usize) -> Vec<String> {
    let id = rig.find(path).unwrap();
    let handle = rig.backing.open_directory(id).unwrap();
    let mut names = list_by(rig, id, handle, each);
    rig.backing.release(handle);
    rig.forget(id);
    names.sort();
    names
}

/// Lists with attributes, `each` entries a call (0: all), and gives the lookups back.
fn list_by(rig: &Rig, id: FileId, handle: HandleId, each: usize) -> Vec<String> {
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let (mut taken, mut ids) = (0, Vec::new());
        rig.backing
            .read_directory(id, handle, offset, true, &mut |entry| {
                if each > 0 && taken == each {
                    return false;
                }
                taken += 1;
                offset = entry.next;
                names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                ids.extend(entry.attr.map(|attr| attr.id));
                true
            })
            .unwrap();
        ids.into_iter().for_each(|id| rig.forget(id));
        if taken == 0 {
            return names;
        }
    }
}

#[test]
fn a_directory_is_listed_exactly_while_it_shrinks() {
    let rig = Rig::new();
    rig.mkdir("d").unwrap();
    let real = rig.real.path().join("d");
    for number in 0..3000 {
        std::fs::write(
            real.join(format!("a name that is long enough {number}")),
            "",
        )
        .unwrap();
    }
    let id = rig.find("d").unwrap();
    let handle = rig.backing.open_directory(id).unwrap();
    let mut seen = list_by(&rig, id, handle, 7);
    assert_eq!(seen.len(), 3002);
    // A second time, from the beginning, with what was seen removed at once.
    let (mut again, mut offset) = (Vec::new(), 0);
    loop {
        let mut batch: Vec<String> = Vec::new();
        rig.backing
            .read_directory(id, handle, offset, false, &mut |entry| {
                if batch.len() == 50 {
                    return false;
                }
                offset = entry.next;
                batch.push(String::from_utf8(entry.name.to_vec()).unwrap());
                true
            })
            .unwrap();
        if batch.is_empty() {
            break;
        }
        for name in batch.iter().filter(|name| !name.starts_with('.')) {
            rig.backing.unlink(id, OsStr::new(name)).unwrap();
        }
        again.extend(batch);
    }
    seen.sort();
    again.sort();
    assert_eq!(again, seen);
    rig.backing.release(handle);
    rig.forget(id);
    rig.rmdir("d").unwrap();
    rig.assert_equal(&nothing);
    rig.drop_cache();
    assert_eq!(rig.backing.counters().nodes, 1);
}

#[test]
fn ranges_are_punched_copied_and_sought() {
    let rig = Rig::new();
    let id = rig.make("f", &[7; 300_000]).unwrap();
    rig.make("g", b"short").unwrap();
    rig.ship();
    let id = (rig.find("f").unwrap() == id).then_some(id).unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    rig.backing
        .fallocate(id, None, punch, 65_536, 65_536)
        .unwrap();
    assert_eq!(
        rig.backing.lseek(id, None, 0, libc::SEEK_HOLE).unwrap(),
        65_536
    );
    assert_eq!(
        rig.backing
            .lseek(id, None, 70_000, libc::SEEK_DATA)
            .unwrap(),
        131_072
    );
    assert_eq!(
        code(rig.backing.lseek(id, None, 1 << 40, libc::SEEK_DATA)),
        libc::ENXIO
    );
    rig.backing.fallocate(id, None, 0, 300_000, 5).unwrap();
    rig.backing
        .fallocate(id, None, libc::FALLOC_FL_KEEP_SIZE, 400_000, 5)
        .unwrap();
    rig.backing
        .fallocate(id, None, libc::FALLOC_FL_ZERO_RANGE, 299_990, 100)
        .unwrap();
    let collapse = rig
        .backing
        .fallocate(id, None, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
    assert_eq!(code(collapse), libc::EOPNOTSUPP);
    rig.assert_equal(&nothing);
    let g = rig.find("g").unwrap();
    assert_eq!(
        rig.backing
            .copy_file_range((id, None, 3), (g, None, 2), 70_000, 0)
            .unwrap(),
        70_000
    );
    rig.assert_equal(&nothing);
    rig.forget(id);
    rig.forget(g);
}

#[test]
fn a_failed_sync_is_never_retried_into_success() {
    let rig = Rig::with(&[], Local::Close, false);
    let (id, handle) = rig.create("f").unwrap();
    let write = || {
        rig.backing
            .write(id, Some(handle), 0, b"x", WriteHow::default())
    };
    write().unwrap();
    rig.backing.flush(id, Some(handle)).unwrap();
    *rig.backing.durability.fault.lock() = Some(libc::EIO);
    rig.backing
        .flush(id, Some(handle))
        .expect("nothing was written since");
    write().unwrap();
    assert_eq!(code(rig.backing.flush(id, Some(handle))), libc::EIO);
    assert_eq!(code(rig.backing.flush(id, Some(handle))), libc::EIO);
    assert_eq!(code(rig.backing.fsync(id, Some(handle), true)), libc::EIO);
    let other = rig.make("g", b"x").unwrap();
    assert_eq!(
        rig.on("g", |id| rig.backing.fsync(id, None, false).map(|()| id))
            .unwrap(),
        other
    );
    assert_eq!(rig.backing.counters().failed_syncs, 1);
}

#[test]
fn always_syncs_each_write_and_name() {
    let rig = Rig::with(&[], Local::Always, false);
    rig.make("f", b"x").unwrap();
    *rig.backing.durability.fault.lock() = Some(libc::ENOSPC);
    assert_eq!(code(rig.write("f", 0, b"y")), libc::ENOSPC);
    assert_eq!(code(rig.write("f", 0, b"y")), libc::ENOSPC);
    *rig.backing.durability.fault.lock() = Some(libc::EIO);
    assert_eq!(code(rig.mkdir("d")), libc::EIO);
    rig.assert_equal(&nothing);
}

#[test]
fn the_interval_flusher_keeps_what_failed() {
    let rig = Rig::with(
        &[],
        Local::Interval(std::time::Duration::from_millis(1)),
        false,
    );
    let (id, handle) = rig.create("f").unwrap();
    *rig.backing.durability.fault.lock() = Some(libc::EIO);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while rig.backing.counters().failed_syncs == 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the flusher has synced nothing"
        );
        rig.backing
            .write(id, Some(handle), 0, b"x", WriteHow::default())
            .unwrap();
        std::thread::yield_now();
    }
    let failed = [id, FileId::ROOT].map(|id| rig.backing.fsync(id, None, false).is_err());
    assert!(
        failed.contains(&true),
        "the file's or the directory's sync has failed"
    );
}

#[test]
fn deep_trees_are_reached_with_few_descriptors() {
    let rig = Rig::new();
    let mut parent = FileId::ROOT;
    let mut ids = Vec::new();
    for _ in 0..1500 {
        parent = rig
            .backing
            .mkdir(ME, parent, OsStr::new("d"), 0o755, 0)
            .unwrap()
            .id;
        ids.push(parent);
    }
    assert!(rig.backing.counters().cached_descriptors <= crate::limits::DIRECTORY_DESCRIPTORS + 1);
    rig.backing
        .mkdir(ME, ids[3], OsStr::new("e"), 0o755, 0)
        .unwrap();
    rig.backing
        .mkdir(ME, parent, OsStr::new("e"), 0o755, 0)
        .unwrap();
    rig.backing.descriptors.clear();
    let name = Name::new("e").unwrap();
    assert!(rig.backing.inspect(parent, &name).unwrap().is_some());
    // Without the table, through the known tree.
    rig.backing.forget_all();
    assert!(rig.backing.inspect(parent, &name).unwrap().is_some());
}
