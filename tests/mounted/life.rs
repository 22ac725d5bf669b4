//! Mounting and unmounting.

use super::stand::{LIMIT, Stand, can_mount, eventually};
use mirrorfs::backing::Local;
use mirrorfs::mount::{self, FsyncAnswer, MountError, NoRemoteWait, RemoteWait, Session};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

// A process that stands in a directory until it is dropped.
struct Stander(Child);

impl Stander {
    fn new(directory: &Path) -> Stander {
        let child = Command::new("cat")
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("cat");
        Stander(child)
    }
}

impl Drop for Stander {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("cat ends");
    }
}

#[test]
fn an_unmount_ends_the_session_and_leaves_the_tree_at_the_source() {
    if !can_mount() {
        return;
    }
    let stand = Stand::new(false);
    fs::write(stand.point().join("a"), "one").expect("a write");
    let entry = stand.mounted().entry().clone();
    assert_eq!(entry.kind, "fuse.mirrorfs");
    assert!(entry.source.ends_with("source -> nowhere:/x"), "{entry:?}");
    assert_eq!(
        stand.mounted().wait_ended(std::time::Duration::ZERO),
        Session::Serving
    );
    stand.mounted().unmount(false).expect("an unmount");
    assert_eq!(stand.mounted().wait_ended(LIMIT), Session::Ended);
    assert!(!stand.point().join("a").exists());
    assert_eq!(fs::read(stand.source().join("a")).expect("a file"), b"one");
    // Nothing is there any more, and that is fine.
    stand.mounted().unmount(false).expect("once more");
    let table = mount::table::mounts().expect("a table");
    assert!(table.iter().all(|other| !other.is_same(&entry)));
}

#[test]
fn a_busy_mount_names_who_holds_it() {
    if !can_mount() {
        return;
    }
    let stand = Stand::new(false);
    fs::create_dir(stand.point().join("d")).expect("a directory");
    let stander = Stander::new(&stand.point().join("d"));
    let message = stand
        .mounted()
        .unmount(false)
        .expect_err("it is busy")
        .to_string();
    assert!(message.contains("is busy: cat ("), "{message}");
    assert!(message.contains("stands in"), "{message}");
    drop(stander);
    stand.mounted().unmount(false).expect("an unmount");
    assert_eq!(stand.mounted().wait_ended(LIMIT), Session::Ended);
}

#[test]
fn a_lazy_unmount_serves_until_the_last_one_lets_go() {
    if !can_mount() {
        return;
    }
    let stand = Stand::new(false);
    let held = fs::File::create(stand.point().join("held")).expect("a file");
    stand.mounted().unmount(true).expect("a lazy unmount");
    assert!(!stand.point().join("held").exists());
    assert_eq!(
        stand.mounted().wait_ended(std::time::Duration::ZERO),
        Session::Serving
    );
    rustix::io::pwrite(&held, b"late", 0).expect("a write");
    drop(held);
    assert_eq!(stand.mounted().wait_ended(LIMIT), Session::Ended);
    assert_eq!(
        fs::read(stand.source().join("held")).expect("a file"),
        b"late"
    );
}

#[test]
fn an_unmount_by_somebody_else_is_seen() {
    if !can_mount() {
        return;
    }
    let stand = Stand::new(false);
    let status = Command::new("umount")
        .arg(stand.point())
        .status()
        .expect("umount");
    assert!(status.success());
    assert_eq!(stand.mounted().wait_ended(LIMIT), Session::Ended);
    assert_eq!(*stand.mounted().ended().borrow(), Session::Ended);
}

#[test]
fn a_directory_is_mounted_over_itself() {
    if !can_mount() {
        return;
    }
    let stand = Stand::unmounted(false, Local::Os);
    fs::write(stand.source().join("before"), "x").expect("a write");
    let mounted = stand
        .mount_at(&stand.source(), Arc::new(NoRemoteWait))
        .expect("a mount");
    assert_eq!(
        fs::read(stand.source().join("before")).expect("a file"),
        b"x"
    );
    fs::write(stand.source().join("after"), "y").expect("a write");
    let twice = stand
        .mount_at(&stand.source(), Arc::new(NoRemoteWait))
        .err();
    assert!(
        matches!(twice, Some(MountError::AlreadyMounted { .. })),
        "{twice:?}"
    );
    mounted.unmount(false).expect("an unmount");
    assert_eq!(
        fs::read(stand.source().join("after")).expect("a file"),
        b"y"
    );
}

#[test]
fn a_source_that_is_a_mount_point_stays_one() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let source = directory.path();
    rustix::mount::mount("under", source, "tmpfs", MountFlags::NOEXEC, None).expect("a tmpfs");
    let stand = Stand::unmounted_at(source, false, Local::Os);
    let mounted = stand
        .mount_at(source, Arc::new(NoRemoteWait))
        .expect("a mount");
    fs::write(source.join("a"), "x").expect("a write");
    let flags = rustix::fs::statvfs(source).expect("statvfs").f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC));
    mounted.unmount(false).expect("an unmount");
    assert_eq!(mounted.wait_ended(LIMIT), Session::Ended);
    drop(mounted);
    let place = mount::table::resolve(source).expect("a place");
    let seen = fs::read(source.join("a"));
    drop(stand);
    rustix::mount::unmount(source, UnmountFlags::DETACH).expect("an unmount");
    assert_eq!(
        (&*place.mount.source, seen.ok()),
        ("under", Some(b"x".to_vec()))
    );
}

#[test]
fn what_a_dead_daemon_left_is_detached_first() {
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can leave such a mount without a daemon");
        return;
    }
    let stand = Stand::unmounted(false, Local::Os);
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect("fuse");
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let data = std::ffi::CString::new(data).expect("no NUL");
    let point = stand.point();
    rustix::mount::mount(
        "old",
        &point,
        "fuse.mirrorfs",
        MountFlags::empty(),
        Some(data.as_c_str()),
    )
    .expect("a mount");
    drop(device);
    assert!(fs::metadata(&point).is_err());
    let mounted = stand
        .mount_at(&point, Arc::new(NoRemoteWait))
        .expect("a mount");
    fs::write(point.join("a"), "x").expect("a write");
    mounted.unmount(false).expect("an unmount");
    assert!(fs::metadata(&point).expect("the directory").is_dir());
}

#[test]
fn a_mount_that_is_covered_is_not_taken_for_the_cover() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        return;
    }
    let stand = Stand::new(false);
    rustix::mount::mount("cover", stand.point(), "tmpfs", MountFlags::empty(), None)
        .expect("a tmpfs");
    let message = stand
        .mounted()
        .unmount(false)
        .expect_err("covered")
        .to_string();
    rustix::mount::unmount(stand.point(), UnmountFlags::empty()).expect("an unmount");
    assert!(
        message.contains("covered by another mount (cover)"),
        "{message}"
    );
}

// Keeps the answers until the test gives them.
#[derive(Default)]
struct Later(Mutex<Vec<FsyncAnswer>>);

impl RemoteWait for Later {
    fn after_fsync(&self, answer: FsyncAnswer) {
        self.0.lock().expect("a lock").push(answer);
    }
}

#[test]
fn an_fsync_that_waits_for_the_replica_holds_no_serving_thread() {
    if !can_mount() {
        return;
    }
    let later = Arc::new(Later::default());
    let stand = Stand::with(false, Local::Os, Arc::clone(&later) as Arc<dyn RemoteWait>);
    let threads: Vec<_> = (0..16)
        .map(|number| {
            let path = stand.point().join(format!("f{number}"));
            std::thread::spawn(move || {
                let file = fs::File::create(path).expect("a file");
                file.sync_data().map_err(|error| error.raw_os_error())
            })
        })
        .collect();
    eventually("all wait", || later.0.lock().expect("a lock").len() == 16);
    // The mount works all the same.
    assert_eq!(
        fs::read_dir(stand.point()).expect("a directory").count(),
        16
    );
    assert_eq!(
        fs::metadata(stand.point().join("f3"))
            .expect("a file")
            .size(),
        0
    );
    let answers = std::mem::take(&mut *later.0.lock().expect("a lock"));
    for (number, answer) in answers.into_iter().enumerate() {
        match number % 3 {
            0 => answer(Ok(())),
            1 => answer(Err(rustix::io::Errno::TIMEDOUT)),
            _ => drop(answer),
        }
    }
    let results: Vec<_> = threads
        .into_iter()
        .map(|t| t.join().expect("a thread"))
        .collect();
    let count = |wanted| results.iter().filter(|&&result| result == wanted).count();
    assert_eq!(count(Ok(())), 6);
    assert_eq!(count(Err(Some(libc::ETIMEDOUT))), 5);
    assert_eq!(count(Err(Some(libc::EIO))), 5);
}
