//! As root, for all users: what is created is as if they had created it themselves. Each case is
//! done by a real process of that user in a plain directory, too.

use super::replica::{Tree, nothing, plain_tree};
use super::rig::Rig;
use crate::backing::{Caller, SetAttr, WriteHow};
use crate::model::FileId;
use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const USER: Caller = Caller {
    uid: 12_345,
    gid: 23_456,
};

/// `u::rwx,u:12345:rwx,g::r-x,m::rwx,o::---` as a default ACL.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let any = u32::MAX;
    for (tag, permissions, id) in [
        (1u16, 7u16, any),
        (2, 7, 12_345),
        (4, 5, any),
        (16, 7, any),
        (32, 0, any),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn owners(root: &Path, tree: &Tree) -> Vec<(u32, u32)> {
    let owner = |path| {
        root.join(path)
            .symlink_metadata()
            .map(|m| (m.uid(), m.gid()))
            .unwrap()
    };
    tree.keys().map(owner).collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn creations_are_the_callers() {
    if !is_root() {
        return;
    }
    let rig = Rig::new();
    let plain = tempfile::tempdir().unwrap();
    for root in [rig.real.path(), plain.path()] {
        std::fs::set_permissions(root, PermissionsExt::from_mode(0o777)).unwrap();
        for (name, mode) in [("open", 0o777), ("group", 0o2777), ("acl", 0o2777)] {
            let path = root.join(name);
            std::fs::create_dir(&path).unwrap();
            chown(&path, Some(7), Some(8)).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        let set = rustix::fs::setxattr(
            root.join("acl"),
            "system.posix_acl_default",
            &acl(),
            rustix::fs::XattrFlags::empty(),
        );
        if set.is_err() {
            return;
        }
    }
    rig.walk();
    for directory in ["open", "group", "acl"] {
        for umask in [0o022, 0o077, 0o000] {
            let name = |what: &str| format!("{what}{umask:o}");
            let script = format!(
                "umask {umask:o}; cd {directory}; : > {}; mkdir {}; ln -s x {}; mkfifo {}",
                name("f"),
                name("d"),
                name("l"),
                name("p")
            );
            let mut shell = Command::new("sh");
            shell
                .arg("-c")
                .arg(script)
                .current_dir(plain.path())
                .uid(USER.uid)
                .gid(USER.gid);
            assert!(shell.status().unwrap().success());
            let parent = rig.find(directory).unwrap();
            let backing = &rig.backing;
            let flags = libc::O_WRONLY | libc::O_CREAT;
            let (_, handle) = backing
                .create(USER, parent, OsStr::new(&name("f")), 0o666, umask, flags)
                .unwrap();
            backing.release(handle);
            backing
                .mkdir(USER, parent, OsStr::new(&name("d")), 0o777, umask)
                .unwrap();
            backing
                .symlink(USER, parent, OsStr::new(&name("l")), OsStr::new("x"))
                .unwrap();
            let fifo = libc::S_IFIFO | 0o666;
            backing
                .mknod(USER, parent, OsStr::new(&name("p")), fifo, umask, 0)
                .unwrap();
        }
    }
    let (ours, theirs) = (rig.real_tree(&nothing), plain_tree(plain.path(), &nothing));
    assert_eq!(ours, theirs);
    assert_eq!(
        owners(rig.real.path(), &ours),
        owners(plain.path(), &theirs)
    );
    rig.assert_equal(&nothing);
}

#[test]
fn setuid_comes_last_and_goes_first() {
    let rig = Rig::new();
    let caller = if is_root() { USER } else { super::rig::ME };
    let backing = &rig.backing;
    let name = OsStr::new("f");
    let created = backing.create(caller, FileId::ROOT, name, 0o6755, 0, libc::O_RDWR);
    let (attr, handle) = created.unwrap();
    assert_eq!(attr.mode, 0o6755);
    let how = WriteHow { kill_suidgid: true };
    backing
        .write(attr.id, Some(handle), 0, b"x", WriteHow::default())
        .unwrap();
    backing.write(attr.id, Some(handle), 0, b"x", how).unwrap();
    let mode = || backing.getattr(attr.id, None).unwrap().mode;
    assert_eq!(mode(), 0o755);
    let set = |set| backing.setattr(attr.id, None, &set).unwrap().mode;
    let chmod = |mode| SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    assert_eq!(set(chmod(0o6745)), 0o6745);
    let cut = SetAttr {
        size: Some(0),
        kill_suidgid: true,
        ..SetAttr::default()
    };
    assert_eq!(
        set(cut),
        0o2745,
        "setgid without group execution is for locking"
    );
    if is_root() {
        set(chmod(0o6755));
        assert_eq!(
            set(SetAttr {
                uid: Some(1),
                gid: Some(2),
                ..SetAttr::default()
            }),
            0o755
        );
        let seen = backing.getattr(attr.id, None).unwrap();
        assert_eq!((seen.uid, seen.gid), (1, 2));
    }
    rig.assert_equal(&nothing);
}

#[test]
fn extended_attributes_are_recorded() {
    let rig = Rig::new();
    rig.make("f", b"x").unwrap();
    let name = OsStr::new("user.color");
    let set = |flags, value: &[u8]| {
        rig.on("f", |id| {
            rig.backing.setxattr(id, name, value, flags, false)
        })
    };
    match set(libc::XATTR_CREATE, b"red") {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return,
        done => done.unwrap(),
    }
    rig.assert_equal(&nothing);
    assert_eq!(
        set(libc::XATTR_CREATE, b"blue").unwrap_err().raw_os_error(),
        Some(libc::EEXIST)
    );
    set(libc::XATTR_REPLACE, &[9; 1000]).unwrap();
    rig.assert_equal(&nothing);
    assert_eq!(
        rig.on("f", |id| rig.backing.getxattr(id, name)).unwrap(),
        [9; 1000]
    );
    assert_eq!(
        rig.on("f", |id| rig.backing.listxattr(id)).unwrap(),
        b"user.color\0"
    );
    rig.on("f", |id| rig.backing.removexattr(id, name)).unwrap();
    let gone = rig
        .on("f", |id| rig.backing.getxattr(id, name))
        .unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ENODATA));
    rig.assert_equal(&nothing);
}
